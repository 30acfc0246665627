"""Tasks: those of one build, and who joins which."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

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
        promoted: those that are planned, and have become urgent.
    """

    tasks: dict[Item, Task] = field(default_factory=dict)
    fresh: list[Task] = field(default_factory=list)
    promoted: list[Task] = field(default_factory=list)


class Tasks:
    """The tasks of one build, the last one of each item."""

    def __init__(self) -> None:
        # Guards all below; never held while waiting for anything.
        self._lock = threading.Lock()
        self._tasks: dict[Item, Task] = {}
        self._unfinished = 0

    def join(
        self,
        wishes: Mapping[Item, Wish],
        gate: Future[None],
        wait_until: float,
        is_settled: Callable[[Item, Wish], bool],
    ) -> Joined:
        """Return a task for each wish: what is under way, or else a new one.

        ``gate`` is what tasks that are not urgent wait for; ``wait_until``, of
        ``time.monotonic()``, until when files may come; ``is_settled`` tells of an item that is
        not under way whether nothing is left to do for it.
        """
        joined = Joined()
        with self._lock:
            for item, wish in wishes.items():
                task = self._tasks.get(item)
                if task is None or not task.join(wait_until):
                    if is_settled(item, wish):
                        joined.tasks[item] = settled_task(item, wish)
                        continue
                    task = Task(item, wish, None if wish.is_urgent else gate, wait_until)
                    self._tasks[item] = task
                    self._unfinished += 1
                    joined.fresh.append(task)
                elif wish.is_urgent and task.gate is not None:
                    task.wish, task.gate = replace(task.wish, is_urgent=True), None
                    if task.planned is not None:
                        joined.promoted.append(task)
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


def demanding_task(task: Task, absent: Callable[[Item], DevserverError]) -> Task:
    """Return ``task`` for somebody who must have it, though others can do without it.

    ``absent`` makes the error for when it turns out to be so.
    """
    if not task.wish.may_be_absent or task.planned is not None:
        return task
    own = Task(task.item, Wish(), None)
    task.accepted.add_done_callback(lambda done: resolve(own.accepted, done.exception()))

    def ended(done: Future[None]) -> None:
        error = done.exception()
        if error is None and task.planned is None:
            error = absent(task.item)
        resolve(own.future, error)

    task.future.add_done_callback(ended)
    return own
