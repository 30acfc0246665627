"""A dictionary of locks that holds only those in use."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)


class LockDictionary(Generic[_Key]):
    """One reentrant lock a key; one that nobody holds or waits for leaves the dictionary."""

    def __init__(self) -> None:
        self._guard = threading.Lock()  # guards the dictionary; never held while waiting for a lock
        self._locks: dict[_Key, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def holding(self, key: _Key, timeout_seconds: float | None = None) -> Iterator[None]:
        """Hold the lock of ``key`` for the length of a block.

        Raises:
            TimeoutError: others hold it for longer than ``timeout_seconds``.
        """
        with self._guard:
            lock, users = self._locks.get(key) or (threading.RLock(), 0)
            self._locks[key] = (lock, users + 1)
        try:
            if not lock.acquire(timeout=-1 if timeout_seconds is None else timeout_seconds):
                raise TimeoutError(f"the lock of {key} was not free in {timeout_seconds:g} s")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)

    def __len__(self) -> int:
        with self._guard:
            return len(self._locks)
