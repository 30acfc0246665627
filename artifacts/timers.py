"""Timers: work to be done later, without a thread that waits for its time."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from artifacts.errors import Busy, shutting_down
from artifacts.workers import Workers

_NO_THREAD_SECONDS = 1.0

Work = Callable[[], None]


@dataclass
class _Lane:
    """Work that may hang together, as when it asks the same archive."""

    running: int = 0
    held_up: deque[Work] = field(default_factory=deque)


class Timers:
    """One thread watches the clock; what is due is done by workers, at most ``limit`` at a time.

    Of each lane, at most ``lane_limit`` are, so that work that hangs does not hold up that of other
    lanes. Work must not raise; see `Workers`.
    """

    def __init__(self, name: str, limit: int, lane_limit: int) -> None:
        self._workers = Workers(name, limit)
        self._lane_limit = lane_limit
        # Guards all below; never held while work runs.
        self._changed = threading.Condition()
        self._numbers = itertools.count()  # work that is due at the same time has its order
        self._due: list[tuple[float, int, str, Work]] = []
        self._lanes: dict[str, _Lane] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._watch, name=f"{name}-clock", daemon=True)
        self._thread.start()

    def at(self, due: float, lane: str, work: Work) -> None:
        """Have ``work`` called at ``due`` (of ``time.monotonic()``), at once if that is over.

        Raises:
            Busy: the timers are closed.
        """
        with self._changed:
            if self._is_closed:
                raise shutting_down()
            heapq.heappush(self._due, (due, next(self._numbers), lane, work))
            self._changed.notify()

    def close(self, timeout_seconds: float) -> bool:
        """Drop what is not done yet, wait for what runs; return whether it ended in time."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._is_closed = True
            self._due.clear()
            for lane in self._lanes.values():
                lane.held_up.clear()
            self._changed.notify()
        self._thread.join(timeout_seconds)
        return self._workers.close(max(0.0, deadline - time.monotonic()))

    def _watch(self) -> None:
        while (next_up := self._next()) is not None:
            lane, work = next_up
            if self._may_begin(lane, work):
                self._begin(lane, work)

    def _next(self) -> tuple[str, Work] | None:
        """Wait until something is due, and return it; None when closed."""
        with self._changed:
            while not self._is_closed:
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._due)[2:]
                self._changed.wait(left)
            return None

    def _may_begin(self, name: str, work: Work) -> bool:
        with self._changed:
            lane = self._lanes.setdefault(name, _Lane())
            if lane.running >= self._lane_limit:
                lane.held_up.append(work)
                return False
            lane.running += 1
            return True

    def _begin(self, name: str, work: Work) -> None:
        def run() -> None:
            try:
                work()
            finally:
                self._go_on(name)

        try:
            self._workers.submit(run)
        except Busy:
            with self._changed:
                self._lanes[name].running -= 1
            # Either they are closed, or the system gives no thread just now.
            with suppress(Busy):
                self.at(time.monotonic() + _NO_THREAD_SECONDS, name, work)

    def _go_on(self, name: str) -> None:
        """Begin what a lane's work held up, now that some of it has ended."""
        with self._changed:
            lane = self._lanes[name]
            work = lane.held_up.popleft() if lane.held_up else None
            if work is None:
                lane.running -= 1
                if not lane.running:
                    del self._lanes[name]
        if work is not None:
            self._begin(name, work)
