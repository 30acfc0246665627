"""Work of which some has to wait for other, and does not keep a thread while it does."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from artifacts.errors import Busy
from artifacts.workers import Workers

_Key = TypeVar("_Key", bound=Hashable)


class Turns(Generic[_Key]):
    """Has work done by workers, that of one key in turn: by one thread, in the order of coming."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._lock = threading.Lock()  # guards the dictionary; never held while work runs
        # What is to be done after what a worker has been given, or is at.
        self._behind: dict[_Key, deque[Callable[[], None]]] = {}

    def submit(self, key: _Key, work: Callable[[], None]) -> None:
        """Have ``work`` called, which must not raise.

        Raises:
            Busy: the workers are closed.
        """
        with self._lock:
            if key in self._behind:
                self._behind[key].append(work)
                return
            self._behind[key] = deque()
            try:
                self._workers.submit(partial(self._run, key, work))
            except Busy:
                del self._behind[key]
                raise

    def _run(self, key: _Key, work: Callable[[], None]) -> None:
        following: Callable[[], None] | None = work
        while following is not None:
            following()
            following = self._next(key)

    def _next(self, key: _Key) -> Callable[[], None] | None:
        with self._lock:
            if self._behind[key]:
                return self._behind[key].popleft()
            del self._behind[key]
            return None
