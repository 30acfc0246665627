"""Blobs in a directory: ``ab/cdef…`` for the blob ``abcdef…``."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from artifacts.blobs.sha1 import is_checksum
from artifacts.blobs.spool_directory import SpoolDirectory
from artifacts.blobs.storage import BlobMissing, StorageError, StoredBlob
from artifacts.closing import Closing
from artifacts.disk import fsync_directory, make_directory
from artifacts.errors import DevserverError, busy_if_out_of_files, storage_error

_SHARD_CHARACTERS = 2
# Not a name that somebody else's directory may have: what is left in it is removed.
_SPOOL = ".spool"


class DirectoryStorage:
    """A directory, on a disk of this machine or mounted; see `BlobStorage`.

    Processes may share it, also on several machines: a blob appears and goes in one step each.
    """

    def __init__(self, directory: Path) -> None:
        """Make the directory, if it is not there.

        Raises:
            DevserverError: it cannot be made, or written.
        """
        self._directory = directory
        self.spool_directory = directory / _SPOOL
        # Those whose entries in the directory are known to be durable: another process may have
        # made one, and not be done with that.
        self._durable_shards: set[str] = set()
        with contextlib.ExitStack() as undo:
            try:
                make_directory(directory)
                self._spool = SpoolDirectory(self.spool_directory)
                undo.callback(self._spool.close)
                self._check_usable()
            except OSError as error:
                raise storage_error(error, str(directory)) from error
            undo.pop_all()

    def _check_usable(self) -> None:
        for where in (self._directory, self.spool_directory):
            if not os.access(where, os.W_OK | os.X_OK):
                raise DevserverError(f"cannot write to {where}: make it this server's own")
        if self._directory.stat().st_dev != self.spool_directory.stat().st_dev:
            raise DevserverError(
                f"{self.spool_directory} must be on the disk of {self._directory}: blobs are "
                "moved from one to the other"
            )

    def put(self, checksum: str, spooled: Path) -> None:
        path = self._path(checksum)
        try:
            with spooled.open("rb") as file:
                os.fsync(file.fileno())
            self._make_shard(path.parent)
            spooled.replace(path)
            fsync_directory(path.parent)
        except OSError as error:
            raise self._in_words(error, "write", checksum) from error

    def _make_shard(self, shard: Path) -> None:
        if shard.name not in self._durable_shards or not shard.is_dir():
            shard.mkdir(exist_ok=True)
            fsync_directory(self._directory)
            self._durable_shards.add(shard.name)

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> _FileRange:
        path = self._path(checksum)
        try:
            return _FileRange(path, start, stop)
        except FileNotFoundError as error:
            if not self.spool_directory.is_dir():
                # A disk that is not mounted says nothing about the blobs on it.
                raise StorageError(f"{self._directory} is gone: is its disk mounted?") from error
            raise BlobMissing(f"blob {checksum} is not in {self._directory}") from error
        except OSError as error:
            raise self._in_words(error, "read", checksum) from error

    def delete(self, checksum: str) -> None:
        path = self._path(checksum)
        try:
            path.unlink()
            fsync_directory(path.parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._in_words(error, "delete", checksum) from error

    def list(self) -> Iterator[StoredBlob]:
        try:
            for shard in sorted(self._directory.iterdir()):
                if len(shard.name) == _SHARD_CHARACTERS and shard.is_dir():
                    yield from _blobs_in(shard)
        except OSError as error:
            raise _in_words(error, "list", str(self._directory)) from error

    def close(self) -> None:
        self._spool.close()

    def _path(self, checksum: str) -> Path:
        assert is_checksum(checksum)
        shard, name = checksum[:_SHARD_CHARACTERS], checksum[_SHARD_CHARACTERS:]
        return self._directory / shard / name

    def _in_words(self, error: OSError, doing: str, checksum: str) -> DevserverError:
        return _in_words(error, doing, f"blob {checksum} in {self._directory}")


def _blobs_in(shard: Path) -> Iterator[StoredBlob]:
    with os.scandir(shard) as entries:
        for entry in entries:
            checksum = shard.name + entry.name
            # Others may remove it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if is_checksum(checksum) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield StoredBlob(checksum, status.st_size, status.st_mtime)


class _FileRange(Closing):
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
            raise _in_words(error, "read", self._file.name) from error
        if self._left is not None:
            self._left -= len(block)
        return block

    def close(self) -> None:
        self._file.close()


def _in_words(error: OSError, doing: str, what: str) -> DevserverError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return storage_error(error, what)
    reason = error.strerror or str(error)
    return busy_if_out_of_files(error) or StorageError(f"cannot {doing} {what}: {reason}")
