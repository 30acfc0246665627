"""Blobs in a bucket of an object store: objects ``PREFIX/ab/cdef…`` for the blob ``abcdef…``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from artifacts.blobs.remote_blob import RemoteBlob
from artifacts.blobs.sha1 import is_checksum
from artifacts.blobs.spool_directory import SpoolDirectory
from artifacts.blobs.storage import BlobMissing, StorageError, StoredBlob
from artifacts.errors import ArchiveError, ArchiveFileMissing, ArchiveObjectMissing, NotAllowed
from artifacts.retries import RetryLimits, retrying
from artifacts.sources.http_range import HttpRange

_LIMITS = RetryLimits(tries=3)
_SHARD_CHARACTERS = 2
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class StoredObject:
    """An object of a bucket; ``size`` in bytes, ``stored_at`` in seconds since 1970."""

    key: str
    size: int
    stored_at: float


@dataclass(frozen=True)
class Page:
    """Part of a listing; ``next_page`` names the part that follows, None at the end."""

    objects: list[StoredObject]
    next_page: str | None


class Bucket(Protocol):
    """The objects of one bucket. Methods try once, and block within time limits of their own.

    Errors of all methods: TransientArchiveError (worth another try), ArchiveError (not worth one),
    ArchiveObjectMissing (the bucket is there, and the object is not), ArchiveFileMissing (not even
    the bucket is, as far as can be told).

    Attributes:
        url: the bucket's, for messages.
    """

    url: str

    def put(self, key: str, file: BinaryIO, checksum: str) -> None:
        """Make an object of the bytes of ``file``, all of them, or leave what is there.

        Args:
            checksum: their SHA-1, in hex.

        Raises:
            InsufficientStorage: the store says that it is full.
        """

    def open(self, key: str, start: int, stop: int | None) -> HttpRange:
        """Open bytes ``start`` up to ``stop`` of an object; to the end, if None.

        Raises:
            ArchiveRangeMissing: it has no byte there.
        """

    def delete(self, key: str) -> None: ...

    def list(self, prefix: str, page: str | None) -> Page:
        """List objects whose key begins with ``prefix``; the first page, if None."""

    def close(self) -> None: ...


class BucketStorage:
    """A bucket, or what is below a prefix of one; see `BlobStorage`.

    What fails in passing is tried again. What has been put is waiting in a directory of this
    machine until then, and is sent from there.
    """

    def __init__(self, bucket: Bucket, prefix: str, spool_directory: Path) -> None:
        """``prefix`` has no slash at its end, and may be empty.

        Raises:
            DevserverError: the spool directory cannot be made.
        """
        with ExitStack() as undo:
            undo.callback(bucket.close)
            spool = SpoolDirectory(spool_directory)
            undo.callback(spool.close)
            self._undo = undo.pop_all()
        self.spool_directory = spool.path
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._closed = threading.Event()

    def put(self, checksum: str, spooled: Path) -> None:
        key = self._key(checksum)
        try:
            with spooled.open("rb") as file:
                self._trying(lambda: self._bucket.put(key, file, checksum))
            spooled.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot read {spooled}: {error.strerror}") from error

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> RemoteBlob:
        key = self._key(checksum)
        return RemoteBlob(
            lambda start, stop: self._bucket.open(key, start, stop), self._trying, start, stop
        )

    def delete(self, checksum: str) -> None:
        key = self._key(checksum)
        with suppress(BlobMissing):
            self._trying(lambda: self._bucket.delete(key))

    def list(self) -> Iterator[StoredBlob]:
        page: str | None = None
        while True:
            listed = self._trying(partial(self._bucket.list, self._prefix, page))
            for found in listed.objects:
                name = found.key.removeprefix(self._prefix)
                checksum = name[:_SHARD_CHARACTERS] + name[_SHARD_CHARACTERS + 1 :]
                if is_checksum(checksum) and found.key == self._key(checksum):
                    yield StoredBlob(checksum, found.size, found.stored_at)
            page = listed.next_page
            if page is None:
                return

    def close(self) -> None:
        self._closed.set()
        self._undo.close()

    def _key(self, checksum: str) -> str:
        assert is_checksum(checksum)
        return f"{self._prefix}{checksum[:_SHARD_CHARACTERS]}/{checksum[_SHARD_CHARACTERS:]}"

    def _trying(self, call: Callable[[], _Result]) -> _Result:
        """Return what ``call`` returns, sooner or later; raise as storages do."""
        try:
            return retrying(call, _LIMITS, self._closed)
        except ArchiveObjectMissing as error:
            raise BlobMissing(error.message) from error
        except ArchiveFileMissing as error:
            raise StorageError(
                f"there is no bucket {self._bucket.url}, or not for this server"
            ) from error
        except (ArchiveError, NotAllowed) as error:
            raise StorageError(error.message) from error
