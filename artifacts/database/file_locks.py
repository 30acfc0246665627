"""Locks among the processes of one machine: a byte of a file for each name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from artifacts.database.locks import ProcessLocks, lock_number, still_held
from artifacts.errors import shutting_down, storage_error

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.2
_HELD_BY_OTHERS = {errno.EACCES, errno.EAGAIN}


class FileLocks(ProcessLocks):
    """Locks on bytes of one file, of which the system keeps the books.

    A process opens the file once, by one object of this class: the system takes back all locks that
    a process has on a file as soon as it closes it once.
    """

    def __init__(self, path: Path, **more: float) -> None:
        """Open ``path``, which is made if need be, and stays.

        Raises:
            DevserverError: it cannot be made.
        """
        super().__init__(**more)
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise storage_error(error, str(path)) from error
        self._guard = threading.Lock()  # guards the file: not to be closed while it is used
        self._closing = threading.Event()

    @contextlib.contextmanager
    def _holding_of_all(self, name: str, deadline: float) -> Iterator[None]:
        place = lock_number(name)
        self._take(name, place, deadline)
        try:
            yield
        finally:
            self._change(fcntl.LOCK_UN, place)

    def _take(self, name: str, place: int, deadline: float) -> None:
        # The system's own way to wait has no end, and takes two processes for deadlocked whose
        # threads wait for each other's locks crosswise. Another process is rare, so look again.
        pause_seconds = _FIRST_PAUSE_SECONDS
        while not self._try_to_take(place):
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                raise still_held(name)
            if self._closing.wait(min(pause_seconds * random.uniform(0.5, 1), left_seconds)):
                raise shutting_down()
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)

    def _try_to_take(self, place: int) -> bool:
        try:
            self._change(fcntl.LOCK_EX | fcntl.LOCK_NB, place)
        except OSError as error:
            if error.errno in _HELD_BY_OTHERS:
                return False
            raise
        return True

    def _change(self, operation: int, place: int) -> None:
        with self._guard:
            if self._file.closed:
                raise shutting_down()
            fcntl.lockf(self._file, operation, 1, place)

    def close(self) -> None:
        """End all waits, and all locks of this process."""
        self._closing.set()
        with self._guard:
            self._file.close()
