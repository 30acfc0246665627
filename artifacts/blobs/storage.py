"""What a blob storage is: where blobs are kept, by their SHA-1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from artifacts.errors import DevserverError


class StorageError(DevserverError):
    """The storage failed, or did not answer in time; 503, as it may do so again soon."""

    status, code = 503, "blob_storage_error"


class BlobMissing(StorageError):
    """The storage does not have a blob that is on record."""

    code = "blob_missing"


@dataclass(frozen=True)
class StoredBlob:
    """A blob in a storage; ``size`` in bytes, ``stored_at`` in seconds since 1970."""

    checksum: str
    size: int
    stored_at: float


class OpenedBlob(Protocol):
    """Bytes of a blob on their way here; a context manager."""

    def read(self, max_bytes: int) -> bytes:
        """Return what has come, 1 to ``max_bytes`` bytes; b"" at the end.

        Raises:
            StorageError: the rest does not come.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class BlobStorage(Protocol):
    """Keeps blobs. Methods block, within time limits of their own; threads may share a storage.

    Errors of all methods: StorageError; InsufficientStorage where there is no room left.

    Attributes:
        spool_directory: a directory of this machine, where what is to be put is written first.
    """

    spool_directory: Path

    def put(self, checksum: str, spooled: Path) -> None:
        """Keep the bytes of the file ``spooled``, in ``spool_directory``, and remove that file.

        The blob is durable when this returns; before, there is none of it to be seen. What is
        there under the same checksum is replaced. The caller has checked the bytes. If it fails,
        the file may still be there.
        """

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> OpenedBlob:
        """Open bytes ``start`` up to ``stop`` (to the end, if None) of a blob.

        Raises:
            BlobMissing: it is not there.
        """

    def delete(self, checksum: str) -> None:
        """Remove a blob, if it is there."""

    def list(self) -> Iterator[StoredBlob]:
        """List all blobs, in any order; what is no blob of ours is passed over."""

    def close(self) -> None:
        """Let go of connections."""
