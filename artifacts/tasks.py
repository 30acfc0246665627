"""Tasks: those of one build, and who joins which."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from artifacts.errors import DevserverError
from artifacts.futures import resolve
from artifacts.manifest import Item
from artifacts.task import Task, Wish, settled_task


@dataclass(frozen=True)
class Joined:
    """What a call gets for its wishes.

    Attributes:
        tasks: one for each item.
        fresh: those that nobody has asked for before.
        shared: those that others have asked for, too.
        promoted: those of them that have become urgent.
    """

    tasks: dict[Item, Task] = field(default_factory=dict)
    fresh: list[Task] = field(default_factory=list)
    shared: list[Task] = field(default_factory=list)
    promoted: list[Task] = field(default_factory=list)


class Tasks:
    """The tasks of one build, the last one of each item."""

    def __init__(self) -> None:
        # Guards all below; never held while waiting for anything but the build's own lock.
        self._lock = threading.Lock()
        self._tasks: dict[Item, Task] = {}
        self._unfinished = 0

    def join(
        self,
        wishes: Mapping[Item, Wish],
        wait_until: float,
        is_settled: Callable[[Item, Wish], bool],
    ) -> Joined:
        """Return a task for each wish: what is under way, or else a new one.

        ``wait_until``, of ``time.monotonic()``: until when files may come; ``is_settled`` tells of
        an item that is not under way whether nothing is left to do for it.
        """
        joined = Joined()
        with self._lock:
            for item, wish in wishes.items():
                task = self._tasks.get(item)
                if task is not None and task.join(wish, wait_until):
                    joined.shared.append(task)
                    if wish.is_urgent and task.open_gate():
                        joined.promoted.append(task)
                elif is_settled(item, wish):
                    task = settled_task(item, wish)
                else:
                    task = Task(item, wish, wait_until)
                    self._tasks[item] = task
                    self._unfinished += 1
                    joined.fresh.append(task)
                joined.tasks[item] = task
        return joined

    def note_end(self) -> bool:
        """Note that one has ended; return whether it was the last."""
        with self._lock:
            self._unfinished -= 1
            return self._unfinished == 0

    @property
    def are_under_way(self) -> bool:
        with self._lock:
            return self._unfinished > 0

    @property
    def all(self) -> list[Task]:
        with self._lock:
            return list(self._tasks.values())

    @property
    def under_way(self) -> set[Item]:
        return {task.item for task in self.all if not task.future.done()}

    @property
    def failed(self) -> list[Task]:
        return [task for task in self.all if task.error is not None]


def own_view(
    task: Task,
    *,
    must_be_there: bool,
    looked: Future[None] | None,
    absent: Callable[[Item], DevserverError],
) -> Task:
    """Return a task as one of those who share it sees it.

    Args:
        must_be_there: whether it is a failure if the build lacks it.
        looked: what tells that the archive has been looked at for somebody who does not wait for
            files any longer; None for who waits as long as anybody.
        absent: makes the error for what is not there, but must be.
    """
    own = Task(task.item, Wish())

    def end(error: BaseException | None) -> None:
        if own.claim():
            if error is None and must_be_there and task.planned is None:
                error = absent(task.item)
            resolve(own.future, error)

    def end_if_lacking(looked: Future[None]) -> None:
        if task.planned is None:
            end(looked.exception())

    task.accepted.add_done_callback(lambda done: resolve(own.accepted, done.exception()))
    task.future.add_done_callback(lambda done: end(done.exception()))
    if looked is not None:
        looked.add_done_callback(end_if_lacking)
    return own
