"""Locks by name, across the threads of a process and across processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from artifacts.lock_dictionary import LockDictionary


class Locks(Protocol):
    """Locks that one holds at a time, anywhere; they end with the process that holds them."""

    def holding(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of ``name`` for the length of a block.

        Raises:
            Busy: somebody else holds it for too long.
        """

    def close(self) -> None: ...


class ProcessLocks:
    """Locks across the threads of this process alone."""

    def __init__(self) -> None:
        self._locks: LockDictionary[str] = LockDictionary()

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        with self._locks.holding(name):
            yield

    def close(self) -> None:
        pass
