"""One chunk on its way in: hashed as it comes, and written aside unless it is there already."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.blobs.limits import CHUNK_BYTES
from artifacts.blobs.sha1 import new_sha1
from artifacts.blobs.spool import SpooledFile
from artifacts.decompress import DECOMPRESSION_ERRORS, Decompressor, open_gzip
from artifacts.errors import BadRequest

# What gzip may add to bytes that it cannot compress, as it does to those of most archive files.
_MAX_PACKED_BYTES = CHUNK_BYTES + (CHUNK_BYTES >> 8)
_BLOCK_BYTES = 256 << 10


@dataclass(frozen=True)
class ReceivedChunk:
    """A chunk whose bytes have the SHA-1 ``checksum``; ``size`` in bytes.

    ``spooled`` is None for one that was there already.
    """

    checksum: str
    size: int
    spooled: SpooledFile | None


class IncomingChunk:
    """Takes a chunk in, block by block; ``drop`` it if it is not to be finished.

    What is wrong with it raises BadRequest; StorageError and InsufficientStorage: it cannot be
    written.
    """

    def __init__(self, checksum: str, spooled: SpooledFile | None, *, is_packed: bool) -> None:
        """Begin with a chunk.

        Args:
            checksum: the name that it comes under.
            spooled: where it is written; None to hash it only.
            is_packed: whether it comes compressed, with gzip.
        """
        self._checksum = checksum
        self._spooled = spooled
        self._gzip = open_gzip() if is_packed else None
        self._packed_bytes = 0
        self._size = 0
        self._sha1 = new_sha1()

    def take(self, data: memoryview) -> None:
        if self._gzip is None:
            self._take_plain(data)
        else:
            self._unpack(self._gzip, data)

    def finish(self) -> ReceivedChunk:
        """Check that this was the chunk it was said to be, and all of it."""
        if self._gzip is not None and not self._gzip.eof:
            raise self._refusal("its gzip data is cut short")
        if self._sha1.hexdigest() != self._checksum:
            raise self._refusal(f"its bytes have the SHA-1 {self._sha1.hexdigest()}")
        if self._spooled is not None:
            self._spooled.finish()
        return ReceivedChunk(self._checksum, self._size, self._spooled)

    def drop(self) -> None:
        if self._spooled is not None:
            self._spooled.remove()

    def _unpack(self, gzip: Decompressor, data: memoryview) -> None:
        self._packed_bytes += len(data)
        if self._packed_bytes > _MAX_PACKED_BYTES:
            raise self._too_large()
        left = bytes(data)
        while not gzip.eof:
            try:
                plain = gzip.decompress(left, _BLOCK_BYTES)
            except DECOMPRESSION_ERRORS as error:
                raise self._refusal("its gzip data is damaged") from error
            left = b""
            self._take_plain(memoryview(plain))
            if gzip.needs_input:
                break
        if left or gzip.unused_data:
            raise self._refusal("something follows its gzip data")

    def _take_plain(self, data: memoryview) -> None:
        self._size += len(data)
        if self._size > CHUNK_BYTES:
            raise self._too_large()
        self._sha1.update(data)
        if self._spooled is not None:
            self._spooled.write(data)

    def _too_large(self) -> BadRequest:
        return self._refusal(f"it is larger than {CHUNK_BYTES:,} bytes")

    def _refusal(self, reason: str) -> BadRequest:
        return BadRequest(f"chunk {self._checksum} is refused: {reason}")
