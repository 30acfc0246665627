"""Locks by name, across the threads of a process and across processes."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import Protocol

from artifacts.errors import Busy
from artifacts.lock_dictionary import LockDictionary

_WAIT_SECONDS = 30


class Locks(Protocol):
    """Locks that one holds at a time, anywhere; they end with the process that holds them."""

    def holding(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of ``name`` for the length of a block, in which it is not taken again.

        Raises:
            Busy: somebody else holds it for too long; or it was lost before the block has ended, so
                that somebody else may have held it, too.
        """

    def close(self) -> None: ...


class ProcessLocks:
    """Locks across the threads of this process alone; what extends them to others rests on it."""

    def __init__(self, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._wait_seconds = wait_seconds
        self._threads: LockDictionary[str] = LockDictionary()
        # What is held. Whether a name is, only the thread that has its lock asks, and changes.
        self._held: set[str] = set()

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        deadline = time.monotonic() + self._wait_seconds
        with contextlib.ExitStack() as holding:
            try:
                holding.enter_context(self._threads.holding(name, self._wait_seconds))
            except TimeoutError as error:
                raise still_held(name) from error
            if name in self._held:
                raise RuntimeError(f"this thread holds the lock of {name} already")
            holding.enter_context(self._holding_of_all(name, deadline))
            self._held.add(name)
            holding.callback(self._held.discard, name)
            yield

    def _holding_of_all(
        self, name: str, deadline: float
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the lock against other processes, too, for the one thread that has it in this one.

        Raises:
            Busy: it is not free by ``deadline``, in terms of ``time.monotonic``.
        """
        return contextlib.nullcontext()

    def close(self) -> None:
        pass


def still_held(name: str) -> Busy:
    return Busy(f"{name} is being changed by somebody else; ask again")


def lock_number(name: str) -> int:
    """Return what stands for a name where locks are numbers: 62 bits, equal for equal names."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 2
