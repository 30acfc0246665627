"""Reading part of an assembled file, blob after blob, each checked against its name if need be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.files import BlobPart
from artifacts.blobs.sha1 import new_sha1
from artifacts.blobs.storage import BlobMissing, OpenedBlob, StorageError
from artifacts.closing import Closing

if TYPE_CHECKING:
    import hashlib


class BlobDamaged(StorageError):
    """A blob's bytes are not those that its name stands for."""

    code = "blob_damaged"

    def __init__(self, checksum: str) -> None:
        super().__init__(f"blob {checksum} is damaged, and has to be sent again")


class BlobRange(Closing):
    """Bytes ``start`` up to ``stop`` of a file; a context manager.

    One blob is open at a time. The end of a blob that is read whole comes only if the blob is what
    its name says. What turns out to be damaged, or gone, is dropped: it will be asked for again.
    """

    def __init__(
        self,
        blobs: BlobStore,
        parts: Sequence[BlobPart],
        start: int,
        stop: int,
        *,
        checks_blobs: bool = True,
    ) -> None:
        """Open the blob that has the byte at ``start``.

        Args:
            parts: those of the file, in order; at least the ones that have bytes of the range.
            stop: not behind the end of the file.
            checks_blobs: False for those who check the bytes of the file by themselves: hashing
                takes longer than reading. Of blobs, only their lengths are checked then.

        Raises:
            BlobMissing: the blob is lost, and has to be sent again.
            StorageError: the storage fails; another try may not.
        """
        self.position = start
        self.stop = stop
        self._blobs = blobs
        self._parts = parts
        self._checks_blobs = checks_blobs
        self._index = bisect_right(parts, start, key=lambda part: part.offset) - 1
        self._opened: OpenedBlob | None = None
        self._sha1: hashlib._Hash | None = None  # of a blob that is read whole
        if start < stop:
            self._opened = self._open_blob(self._part_here())

    def read(self, max_bytes: int) -> bytes:
        """Return what has come, 1 to ``max_bytes`` bytes; b"" at the end.

        Raises:
            BlobMissing, BlobDamaged: a blob is lost, and has to be sent again.
            StorageError: the storage fails; another try may not.
        """
        if self.position >= self.stop:
            return b""
        part = self._part_here()
        if self._opened is None:
            self._opened = self._open_blob(part)
        stop = min(self.stop, part.offset + part.size)
        block = self._opened.read(min(max_bytes, stop - self.position))
        if self._sha1 is not None:
            self._sha1.update(block)
        is_at_end = self.position + len(block) == stop
        if not block or (is_at_end and not self._is_right(part)):
            raise self._damaged(part)
        self.position += len(block)
        if is_at_end:
            self.close()
        return block

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _part_here(self) -> BlobPart:
        # Empty parts are passed over.
        while (part := self._parts[self._index]).offset + part.size <= self.position:
            self._index += 1
        return part

    def _open_blob(self, part: BlobPart) -> OpenedBlob:
        start = self.position - part.offset
        stop = min(self.stop - part.offset, part.size)
        is_whole = (start, stop) == (0, part.size)
        self._sha1 = new_sha1() if is_whole and self._checks_blobs else None
        try:
            return self._blobs.open(part.checksum, start, stop)
        except BlobMissing:
            self._blobs.drop(part.checksum)
            raise

    def _is_right(self, part: BlobPart) -> bool:
        return self._sha1 is None or self._sha1.hexdigest() == part.checksum

    def _damaged(self, part: BlobPart) -> StorageError:
        self.close()
        if self._blobs.drop(part.checksum) is not None:
            return BlobDamaged(part.checksum)
        # It is whole when read once more, or others have found it damaged, and dropped it.
        return StorageError(f"blob {part.checksum} came damaged")


def drop_damaged(blobs: BlobStore, parts: Sequence[BlobPart]) -> None:
    """Check the blobs of a file that came with wrong bytes; drop those that are damaged or lost.

    Raises:
        BlobDamaged: there is such a blob.
        StorageError: the storage fails; another try may not.
    """
    damaged = [part for part in parts if blobs.drop(part.checksum) is not None]
    if damaged:
        raise BlobDamaged(damaged[0].checksum)
