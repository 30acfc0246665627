"""A lock that threads get in the order in which they have asked for it."""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """A lock for one thread at a time, first come, first served; not reentrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()  # guards the two below; never held while waiting for a turn
        self._is_held = False
        self._turns: deque[threading.Event] = deque()

    def acquire(self, timeout_seconds: float) -> bool:
        """Take the lock; return whether its turn came in time."""
        with self._guard:
            if not self._is_held:
                self._is_held = True
                return True
            turn = threading.Event()
            self._turns.append(turn)
        if turn.wait(timeout_seconds):
            return True
        with self._guard:
            # It may have come between the two.
            if turn.is_set():
                return True
            self._turns.remove(turn)
            return False

    def release(self) -> None:
        """Pass the lock on to whoever has waited longest."""
        with self._guard:
            if self._turns:
                self._turns.popleft().set()
            else:
                self._is_held = False
