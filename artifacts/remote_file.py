"""Reading here and there in a file of an archive, by ranges, until it is cheaper to stage it."""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING

from artifacts.archive_url import ArchiveUrl
from artifacts.errors import ArchiveFileChanged, Busy, TransientArchiveError
from artifacts.retries import RetryLimits, retrying
from artifacts.sources.source import ArchiveFile, OpenedRange, Source

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# What a request counts as, in bytes: so many come in the time that one takes, from near and far.
REQUEST_BYTES = 2**17
MAX_REQUESTS = 2000
# What is read with one request: little, as long as it is here and there, and more in a row.
MIN_AHEAD_BYTES = 2**14
MAX_AHEAD_BYTES = 2**20
# So near to the end, the rest is read: a zip archive's end record may begin anywhere in it.
_TAIL_BYTES = 2**16 + 2**9
_BLOCK_BYTES = 2**20


class StagingIsCheaper(Busy):
    """So much has been read of a file that it had better be staged, which is what happens then."""


class RemoteReads:
    """What has been read by ranges of one generation of an archive's file.

    Attributes:
        has_changed: whether the archive has another file in its place by now.
    """

    def __init__(self, size: int) -> None:
        """``size``: of the file, in bytes."""
        self.has_changed = False
        self._limit = size // 2
        self._lock = threading.Lock()  # guards the two below
        self._cost = 0
        self._requests = 0

    @property
    def are_dear(self) -> bool:
        with self._lock:
            return self._cost > self._limit

    def give_up(self) -> StagingIsCheaper:
        """Have everybody stage the file from now on; return an error that says so."""
        with self._lock:
            self._cost = self._limit + 1
        return StagingIsCheaper("the archive file has to be staged first; ask again")

    def spend(self, count: int) -> None:
        """Count ``count`` bytes and the request for them; raise StagingIsCheaper if it is."""
        with self._lock:
            self._cost += REQUEST_BYTES + count
            is_too_much = self._cost > self._limit
        if is_too_much:
            raise self.give_up()

    def note_request(self) -> None:
        """Count a request, made again or not; raise StagingIsCheaper when there were too many."""
        with self._lock:
            self._requests += 1
            is_too_many = self._requests > MAX_REQUESTS
        if is_too_many:
            raise self.give_up()


class RemoteFile(io.RawIOBase):
    """A reader of one generation of a file; it can seek. What fails in passing is tried again.

    Reading raises StagingIsCheaper, ArchiveFileChanged where it is another file by now, and what
    else the source raises.
    """

    def __init__(
        self,
        source: Source,
        archive_url: ArchiveUrl,
        file: ArchiveFile,
        reads: RemoteReads,
        retries: RetryLimits,
        stopped: threading.Event,
        stretch: tuple[int, int] | None = None,
    ) -> None:
        """Open ``file``, whose size is known.

        Args:
            stretch: (start, stop) of what will be read in a row, with one request.
            stopped: when set, ends pauses between tries.
        """
        super().__init__()
        assert file.size is not None
        self._source = source
        self._archive_url = archive_url
        self._file = file
        self._size = file.size
        self._reads = reads
        self._retries = retries
        self._stopped = stopped
        self._stretch = stretch or (0, 0)
        self._position = 0
        self._ahead_bytes = MIN_AHEAD_BYTES
        # What has been read last, and where it begins.
        self._block = b""
        self._block_start = 0
        # What is being read of the stretch, and up to where it has been.
        self._opened: OpenedRange | None = None
        self._opened_position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = bases[whence] + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not view:
            return 0
        if not 0 <= self._position - self._block_start < len(self._block):
            self._fetch()
        offset = self._position - self._block_start
        data = self._block[offset : offset + len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._let_go()
        super().close()

    # --- inside

    def _fetch(self) -> None:
        """Read a block that begins where the next byte is wanted."""
        start, stop = self._stretch
        is_in_stretch = start <= self._position < stop
        if not is_in_stretch:
            stop = self._end_of_block()
        if not is_in_stretch or self._opened is None:
            self._reads.spend(stop - self._position)
        try:
            self._block = retrying(
                lambda: self._read_on(stop) if is_in_stretch else self._read_whole(stop),
                self._retries,
                self._stopped,
            )
        except ArchiveFileChanged:
            self._reads.has_changed = True
            raise
        self._block_start = self._position

    def _end_of_block(self) -> int:
        """Choose how much is read at once: more when the last block is just before this one."""
        gap = self._position - (self._block_start + len(self._block))
        if 0 <= gap <= REQUEST_BYTES and self._block:
            self._ahead_bytes = min(self._ahead_bytes * 2, MAX_AHEAD_BYTES)
        else:
            self._ahead_bytes = MIN_AHEAD_BYTES
        if self._position >= self._size - _TAIL_BYTES:
            return self._size
        return min(self._position + self._ahead_bytes, self._size)

    def _read_whole(self, stop: int) -> bytes:
        """Read up to ``stop``, to the end of the answer, so that its connection can be kept."""
        blocks, position = [], self._position
        with self._open(stop) as opened:
            while position < stop and (block := opened.read(stop - position)):
                blocks.append(block)
                position += len(block)
        return self._checked(b"".join(blocks))

    def _read_on(self, stop: int) -> bytes:
        """Read what comes next of the stretch."""
        if self._opened is None or self._opened_position != self._position:
            self._let_go()
            self._opened = self._open(stop)
        try:
            block = self._checked(self._opened.read(min(_BLOCK_BYTES, stop - self._position)))
        except BaseException:
            self._let_go()
            raise
        self._opened_position = self._position + len(block)
        if self._opened_position == stop:
            self._let_go()
        return block

    def _open(self, stop: int) -> OpenedRange:
        self._reads.note_request()
        opened = self._source.open(self._archive_url, self._file, self._position, stop)
        if opened.start != self._position or opened.file.content_encoding is not None:
            opened.close()
            raise self._reads.give_up()
        return opened

    def _checked(self, block: bytes) -> bytes:
        if not block:
            raise TransientArchiveError(
                f"{self._archive_url}/{self._file.name} was cut at byte {self._position:,}"
            )
        return block

    def _let_go(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
