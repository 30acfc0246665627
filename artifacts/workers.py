"""Threads that do queued work."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from artifacts.errors import Busy, shutting_down

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers:
    """Daemon threads, at most ``limit`` of them, grown by need, which end when idle.

    Urgent work is taken before the rest, each kind in the order in which it came. Work must not
    raise; what it raises all the same is logged, and the thread goes on.
    """

    def __init__(self, name: str, limit: int, idle_seconds: float = 10) -> None:
        self._name = name
        self._limit = limit
        self._idle_seconds = idle_seconds
        # Guards everything below; never held while work runs.
        self._changed = threading.Condition()
        self._urgent: deque[Callable[[], None]] = deque()
        self._later: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._started = 0
        self._closed = False

    def submit(
        self, work: Callable[[], None], *, urgent: bool = True, is_next: bool = False
    ) -> None:
        """Have ``work`` called on a thread; what ``is_next`` comes before all that waits.

        Raises:
            Busy: the workers are closed.
        """
        with self._changed:
            if self._closed:
                raise shutting_down()
            queue = self._urgent if urgent or is_next else self._later
            (queue.appendleft if is_next else queue.append)(work)
            if len(self._urgent) + len(self._later) > self._idle and self._threads < self._limit:
                self._threads += 1
                self._started += 1
                name = f"{self._name}-{self._started}"
                try:
                    threading.Thread(target=self._run, name=name, daemon=True).start()
                except RuntimeError as error:
                    # The system gives no more threads; those that there are will have to do.
                    self._threads -= 1
                    if not self._threads:
                        queue.remove(work)
                        raise Busy(f"no thread can be started: {error}") from error
                    self._changed.notify()
            else:
                self._changed.notify()

    def call(self, call: Callable[[_Item], _Result], item: _Item) -> Future[_Result]:
        """Have ``call(item)`` called on a thread; return the future of its result.

        It fails with Busy if the workers are closed before. Raises Busy where they are already.
        """
        work = _Call(call, item)
        self.submit(work)
        return work.future

    def map(self, call: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """Call for each item, several at a time; block, and return the results in their order.

        Raises whatever a call raises, the first item's first; Busy when the workers are closed
        meanwhile. Not to be used on one of the workers.
        """
        futures = [self.call(call, item) for item in items]
        return [future.result() for future in futures]

    @property
    def busy(self) -> int:
        """How many threads are at work."""
        with self._changed:
            return self._threads - self._idle

    def close(self, timeout_seconds: float) -> bool:
        """Drop what is queued, wait for what runs; return whether all threads ended in time."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._closed = True
            for work in (*self._urgent, *self._later):
                if isinstance(work, _Call) and work.future.set_running_or_notify_cancel():
                    work.future.set_exception(shutting_down())
            self._urgent.clear()
            self._later.clear()
            self._changed.notify_all()
            while self._threads and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._threads

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            deadline = time.monotonic() + self._idle_seconds
            self._idle += 1
            try:
                while not self._closed:
                    if self._urgent:
                        return self._urgent.popleft()
                    if self._later:
                        return self._later.popleft()
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                self._threads -= 1
                self._changed.notify_all()
                return None
            finally:
                self._idle -= 1

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException:
                _log.exception("work failed on %s", threading.current_thread().name)
            del work


@dataclass
class _Call(Generic[_Item, _Result]):
    """Work whose result somebody waits for."""

    call: Callable[[_Item], _Result]
    item: _Item
    future: Future[_Result] = field(default_factory=Future)

    def __call__(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.call(self.item))
        except BaseException as error:
            self.future.set_exception(error)
