"""Blobs in a directory: ``ab/cdef…`` for the blob ``abcdef…``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from artifacts.blobs.sha1 import is_checksum
from artifacts.blobs.storage import BlobMissing, StorageError, StoredBlob
from artifacts.disk import fsync_directory
from artifacts.errors import DevserverError, InsufficientStorage, storage_error

_SHARD_CHARACTERS = 2
_SPOOL = "tmp"


class DirectoryStorage:
    """A directory, on a disk of this machine or mounted; see `BlobStorage`."""

    def __init__(self, directory: Path) -> None:
        """Make the directory, if it is not there.

        Raises:
            DevserverError: it cannot be made.
        """
        self._directory = directory
        self.spool_directory = directory / _SPOOL
        try:
            self.spool_directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, str(directory)) from error

    def put(self, checksum: str, spooled: Path) -> None:
        path = self._path(checksum)
        try:
            with spooled.open("rb") as file:
                os.fsync(file.fileno())
            if not path.parent.is_dir():
                path.parent.mkdir(exist_ok=True)
                fsync_directory(self._directory)
            spooled.replace(path)
            fsync_directory(path.parent)
        except OSError as error:
            raise _in_words(error, f"blob {checksum}") from error

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> _FileRange:
        path = self._path(checksum)
        try:
            return _FileRange(path, start, stop)
        except FileNotFoundError as error:
            raise BlobMissing(f"blob {checksum} is not in {self._directory}") from error
        except OSError as error:
            raise _in_words(error, f"blob {checksum}") from error

    def delete(self, checksum: str) -> None:
        path = self._path(checksum)
        try:
            path.unlink()
            fsync_directory(path.parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _in_words(error, f"blob {checksum}") from error

    def list(self) -> Iterator[StoredBlob]:
        for shard in sorted(self._directory.iterdir()):
            if len(shard.name) != _SHARD_CHARACTERS or not shard.is_dir():
                continue
            with os.scandir(shard) as entries:
                for entry in entries:
                    checksum = shard.name + entry.name
                    if is_checksum(checksum) and entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        yield StoredBlob(checksum, status.st_size, status.st_mtime)

    def close(self) -> None:
        pass

    def _path(self, checksum: str) -> Path:
        assert is_checksum(checksum)
        shard, name = checksum[:_SHARD_CHARACTERS], checksum[_SHARD_CHARACTERS:]
        return self._directory / shard / name


class _FileRange:
    """Part of a file; see `OpenedBlob`."""

    def __init__(self, path: Path, start: int, stop: int | None) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(start)
        self._left = None if stop is None else max(0, stop - start)

    def read(self, max_bytes: int) -> bytes:
        count = max_bytes if self._left is None else min(max_bytes, self._left)
        try:
            block = self._file.read(count)
        except OSError as error:
            raise _in_words(error, self._file.name) from error
        if self._left is not None:
            self._left -= len(block)
        return block

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _FileRange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _in_words(error: OSError, what: str) -> DevserverError:
    worded = storage_error(error, what)
    return worded if isinstance(worded, InsufficientStorage) else StorageError(worded.message)
