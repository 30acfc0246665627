"""A chunked file, read as any other binary file."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from typing import TYPE_CHECKING

from artifacts.blobs.blob_range import BlobRange
from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.files import AssembledFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES = 64 << 10


class ChunkedFile(io.BufferedReader):
    """Reads an assembled file from its blobs, from anywhere; as a file opened with ``"rb"``.

    Blobs that are read from their start to their end are checked against their names on the way.

    Reading raises BlobMissing or BlobDamaged where a blob is lost and has to be sent again, and
    StorageError where the storage fails; the position is then behind what has come.
    """

    def __init__(self, blobs: BlobStore, file: AssembledFile) -> None:
        super().__init__(_BlobReader(blobs, file), _BUFFER_BYTES)


class SeekableReader(io.RawIOBase):
    """What a BufferedReader reads of, here and there; what it asks of a closed file is refused."""

    def readable(self) -> bool:
        self.check_open()
        return True

    def seekable(self) -> bool:
        self.check_open()
        return True

    def check_open(self) -> None:
        """Raise what files raise that are closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file")


class _BlobReader(SeekableReader):
    def __init__(self, blobs: BlobStore, file: AssembledFile) -> None:
        super().__init__()
        self._blobs = blobs
        self._file = file
        self._position = 0
        self._range: BlobRange | None = None  # what was read last, and may be read on

    def tell(self) -> int:
        self.check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}
        if whence not in bases:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"there is no position {position} in a file")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._file.size or not view:
            return 0
        try:
            block = self._range_here(len(view)).read(len(view))
        except BaseException:
            self._let_go()
            raise
        view[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        self._let_go()
        super().close()

    def _range_here(self, wanted_bytes: int) -> BlobRange:
        """Return what the next bytes are to be read of: all that follows, if it is read in order.

        Here and there, no more is asked for than is wanted; but blobs from their start.
        """
        if self._range is not None and self._range.position == self._position < self._range.stop:
            return self._range
        is_in_order = self._range is not None and self._range.position == self._position
        self._let_go()
        parts = self._file.parts
        index = bisect_right(parts, self._position, key=lambda part: part.offset) - 1
        if is_in_order or parts[index].offset == self._position:
            stop = self._file.size
        else:
            stop = min(self._position + wanted_bytes, self._file.size)
        self._range = BlobRange(self._blobs, parts, self._position, stop)
        return self._range

    def _let_go(self) -> None:
        if self._range is not None:
            self._range.close()
            self._range = None
