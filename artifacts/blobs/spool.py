"""The spool: chunks on their way into the blob storage, each in a file of its own."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from artifacts.blobs.storage import StorageError
from artifacts.errors import (
    Busy,
    DevserverError,
    InsufficientStorage,
    busy_if_out_of_files,
    storage_error,
)

# At a time, whatever becomes of their requests; none is larger than a chunk.
_MAX_FILES = 256
_ROOM_SECONDS = 30.0


class Spool:
    """Makes files in a directory. Whoever makes one removes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._room = threading.BoundedSemaphore(_MAX_FILES)

    def open(self) -> SpooledFile:
        """Make a file, as soon as there is room for it.

        Raises:
            Busy: what is there is not stored in time.
            StorageError, InsufficientStorage: the disk refuses.
        """
        if not self._room.acquire(timeout=_ROOM_SECONDS):
            raise Busy("chunks come faster than they can be stored; send them again")
        try:
            return SpooledFile(self._directory / f"chunk-{uuid.uuid4().hex}", self._room.release)
        except BaseException:
            self._room.release()
            raise


class SpooledFile:
    """A file that is written once; ``remove`` it in any case, also if it was taken away since."""

    def __init__(self, path: Path, removed: Callable[[], None]) -> None:
        self.path = path
        self._removed = removed
        try:
            self._file = path.open("xb")
        except OSError as error:
            raise _in_words(error) from error

    def write(self, data: memoryview) -> None:
        """Raises StorageError, InsufficientStorage."""
        try:
            self._file.write(data)
        except OSError as error:
            raise _in_words(error) from error

    def finish(self) -> None:
        """End writing; errors as of ``write``."""
        try:
            self._file.close()
        except OSError as error:
            raise _in_words(error) from error

    def remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
            # What is not written yet need not be.
            self._file.raw.close()
        finally:
            self._removed()


def _in_words(error: OSError) -> DevserverError:
    worded = busy_if_out_of_files(error) or storage_error(error, "a chunk")
    if isinstance(worded, Busy | InsufficientStorage):
        return worded
    return StorageError(worded.message)
