"""Extraction: one member of an archive on its way to a temporary file, readable while it grows.

The file has no name: it goes with the last descriptor of it, whatever happens to this process.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from artifacts.errors import Busy, DevserverError
from artifacts.futures import resolve

# So much is there before an answer begins: what fails earlier is told in words.
BEGUN_BYTES = 2**20
# Held back from readers until the member is known to be whole and right.
WITHHELD_BYTES = 2**16
# A larger one is given up, when those who read it have gone before its end.
MAX_KEPT_BYTES = 2**28
_ROOM_CHECK_BYTES = 2**24


class ExtractionGone(Busy):
    """Nobody read an extraction any more, and it was given up."""

    def __init__(self) -> None:
        super().__init__("nobody reads it any more; ask again", retry_after_seconds=1)

    def again(self) -> DevserverError:
        return type(self)()


class Extraction:
    """A member of ``size`` bytes on its way to a file in ``directory``.

    ``begun`` ends when it is worth opening, or with what went wrong before that.
    """

    def __init__(
        self,
        size: int,
        directory: Path,
        check_room: Callable[[], None],
        note_idle: Callable[[], None],
    ) -> None:
        """``check_room`` raises where the disk gets full.

        ``note_idle`` is called, without any lock held, when the last reader has gone.
        """
        self.size = size
        self.begun: Future[None] = Future()
        self._check_room = check_room
        self._unchecked_bytes = _ROOM_CHECK_BYTES
        self._note_idle = note_idle
        self._file = tempfile.TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115 (close does)
        # Guards everything below; nothing is called while it is held but the file's descriptor.
        self._lock = threading.Lock()
        self._position = 0  # up to where there are bytes
        self._has_begun = False
        self._is_whole = False
        self._failure: DevserverError | None = None
        self._readers = 0
        self._idle_since: float | None = None  # None: it is not whole, or somebody reads it
        self._numbers = itertools.count()
        self._watches: dict[int, tuple[int, Callable[[], None]]] = {}

    # --- for who fills it

    @property
    def bytes_written(self) -> int:
        with self._lock:
            return self._position

    def write(self, offset: int, block: bytes) -> None:
        """Write a block behind those before it; what is left out in between is zeros.

        Raises:
            DevserverError: it has failed, or been given up.
            OSError: the disk refuses.
        """
        self._unchecked_bytes += len(block)
        if self._unchecked_bytes >= _ROOM_CHECK_BYTES:
            self._check_room()
            self._unchecked_bytes = 0
        stop = offset
        view = memoryview(block)
        while view:
            written = os.pwrite(self._file.fileno(), view, stop)
            stop, view = stop + written, view[written:]
        with self._lock:
            if self._failure is not None:
                raise self._failure.again()
            self._position = stop
            due = self._due_watches()
        _call_all(due)
        if BEGUN_BYTES <= stop < self.size:
            self._begin(None)

    def finish(self) -> None:
        """Note that all of it is written, and right; raises as ``write``."""
        os.ftruncate(self._file.fileno(), self.size)
        with self._lock:
            if self._failure is not None:
                raise self._failure.again()
            self._position, self._is_whole = self.size, True
            self._idle_since = None if self._readers else time.monotonic()
            due = self._due_watches()
        _call_all(due)
        self._begin(None)

    def fail(self, error: DevserverError) -> None:
        """Cut those who read it, and tell those who wait for it; what is whole stays so."""
        with self._lock:
            if self._is_whole or self._failure is not None:
                return
            self._failure = error
            due = self._due_watches()
        _call_all(due)
        self._begin(error)

    def close(self) -> None:
        """Let go of the file; those who have opened it can go on reading."""
        with self._lock:
            self._file.close()

    def _begin(self, error: DevserverError | None) -> None:
        with self._lock:
            is_first, self._has_begun = not self._has_begun, True
        if is_first:
            resolve(self.begun, error)

    # --- for who keeps it

    @property
    def is_whole(self) -> bool:
        with self._lock:
            return self._is_whole

    @property
    def has_failed(self) -> bool:
        with self._lock:
            return self._failure is not None

    @property
    def idle_since(self) -> float | None:
        """Since when, of ``time.monotonic()``, it is whole and nobody reads it; else None."""
        with self._lock:
            return self._idle_since

    # --- for readers

    def open(self) -> ExtractionReader:
        """Return a reader of it.

        Raises:
            ExtractionGone: it has been given up meanwhile; another one can be made.
            DevserverError: what it failed with.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure.again()
            if self._file.closed:
                raise ExtractionGone
            descriptor = os.dup(self._file.fileno())
            self._readers += 1
            self._idle_since = None
        return ExtractionReader(self, descriptor)

    def readable_to(self, position: int) -> int | None:
        """As `ServedFile`."""
        with self._lock:
            if self._failure is not None:
                raise self._failure.again()
            return self._readable_to(position)

    def watch(self, position: int, changed: Callable[[], None]) -> Callable[[], None]:
        """As `ServedFile`."""
        number = next(self._numbers)
        with self._lock:
            has_news = self._failure is not None or self._readable_to(position) is not None
            if not has_news:
                self._watches[number] = (position, changed)
        if has_news:
            changed()
        return partial(self._unwatch, number)

    def _unwatch(self, number: int) -> None:
        with self._lock:
            self._watches.pop(number, None)

    def note_closed(self) -> None:
        with self._lock:
            self._readers -= 1
            is_idle = self._readers == 0
            if is_idle and self._is_whole:
                self._idle_since = time.monotonic()
            is_wasted = is_idle and not self._is_whole and self.size > MAX_KEPT_BYTES
        if is_wasted:
            self.fail(ExtractionGone())
        elif is_idle:
            self._note_idle()

    def _readable_to(self, position: int) -> int | None:
        if self._is_whole:
            return self.size
        stop = min(self._position, self.size - WITHHELD_BYTES)
        return stop if stop > position else None

    def _due_watches(self) -> list[Callable[[], None]]:
        numbers = [
            number
            for number, (position, _) in self._watches.items()
            if self._failure is not None or self._readable_to(position) is not None
        ]
        return [self._watches.pop(number)[1] for number in numbers]


class ExtractionReader:
    """A reader of an extraction: a `ServedFile`."""

    def __init__(self, extraction: Extraction, descriptor: int) -> None:
        self._extraction = extraction
        self._descriptor = descriptor
        self.readable_to = extraction.readable_to
        self.watch = extraction.watch

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._extraction.note_closed()


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()
