"""Timers: work to be done later, without a thread that waits for its time."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from artifacts.errors import Busy
from artifacts.workers import Workers


class Timers:
    """One thread watches the clock; what is due is done by workers, at most ``limit`` at a time.

    Work must not raise; see `Workers`.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._workers = Workers(name, limit)
        # Guards all below; never held while work runs.
        self._changed = threading.Condition()
        self._numbers = itertools.count()  # work that is due at the same time has its order
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._watch, name=f"{name}-clock", daemon=True)
        self._thread.start()

    def at(self, due: float, work: Callable[[], None]) -> None:
        """Have ``work`` called at ``due`` (of ``time.monotonic()``), at once if that is over.

        Raises:
            Busy: the timers are closed.
        """
        with self._changed:
            if self._is_closed:
                raise Busy("the server is shutting down")
            heapq.heappush(self._due, (due, next(self._numbers), work))
            self._changed.notify()

    def close(self, timeout_seconds: float) -> bool:
        """Drop what is not done yet, wait for what runs; return whether it ended in time."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._is_closed = True
            self._due.clear()
            self._changed.notify()
        self._thread.join(timeout_seconds)
        return self._workers.close(max(0.0, deadline - time.monotonic()))

    def _watch(self) -> None:
        while (work := self._next()) is not None:
            try:
                self._workers.submit(work)
            except Busy:
                return

    def _next(self) -> Callable[[], None] | None:
        """Wait until something is due, and return it; None when closed."""
        with self._changed:
            while not self._is_closed:
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(left)
            return None
