"""The pass over the blobs of a file that is being assembled: each read once, all of them checked.

What is checked is the file: if it has its checksum, its blobs have theirs. Only if it has not, they
are read again, to find out whether one of them is damaged.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import IO

import google_crc32c

from artifacts.blobs.blob_range import BlobDamaged
from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.files import BlobPart
from artifacts.blobs.sha1 import new_sha1
from artifacts.blobs.storage import BlobMissing, StorageError
from artifacts.errors import shutting_down
from artifacts.workers import Workers

_BLOCK_BYTES = 1 << 20
# Blobs that are read while the one before them is hashed and written: a storage may be far away.
_BLOBS_AHEAD = 3


class BlobPass:
    """Reads the blobs of files in order, several ahead, and tells what they amount to.

    No more than four blobs are in memory for a file.
    """

    def __init__(self, blobs: BlobStore, readers: Workers, stopped: threading.Event) -> None:
        """``stopped``: set when no more is to be read."""
        self._blobs = blobs
        self._readers = readers
        self._stopped = stopped

    def run(
        self, parts: Sequence[BlobPart], checksum: str, file: IO[bytes] | None
    ) -> tuple[str, int]:
        """Write the blobs to ``file``, if there is one; return SHA-1 and CRC32C of all bytes.

        If the SHA-1 is another than ``checksum``, it is not for a damaged blob.

        Raises:
            BlobDamaged: one of them is, and has been dropped.
            StorageError: the storage fails.
            Busy: the server is shutting down.
            OSError: the file cannot be written.
        """
        sha1, crc32c = self._run(parts, file, checks_blobs=False)
        if sha1 != checksum:
            sha1, _ = self._run(parts, None, checks_blobs=True)
            if sha1 == checksum:
                raise StorageError(f"a blob of {checksum} came damaged once, and is whole by now")
        return sha1, crc32c

    def _run(
        self, parts: Sequence[BlobPart], file: IO[bytes] | None, *, checks_blobs: bool
    ) -> tuple[str, int]:
        sha1 = new_sha1()
        crc32c = 0
        for blocks in self._read_ahead(parts, checks_blobs=checks_blobs):
            for block in blocks:
                sha1.update(block)
                crc32c = google_crc32c.extend(crc32c, block)
                if file is not None:
                    file.write(block)
        return sha1.hexdigest(), crc32c

    def _read_ahead(
        self, parts: Sequence[BlobPart], *, checks_blobs: bool
    ) -> Iterator[list[bytes]]:
        read = partial(_read, self._blobs, is_checked=checks_blobs)
        coming: deque[tuple[str, Future[list[bytes]]]] = deque()
        left = iter(parts)
        try:
            while True:
                while len(coming) < _BLOBS_AHEAD and (part := next(left, None)) is not None:
                    # Files have the same blob repeatedly, as zeros, one after the other.
                    same = (future for checksum, future in coming if checksum == part.checksum)
                    future = next(same, None) or self._readers.call(read, part)
                    coming.append((part.checksum, future))
                if not coming:
                    return
                if self._stopped.is_set():
                    raise shutting_down()
                yield coming.popleft()[1].result()
        finally:
            for _, future in coming:
                future.cancel()


def _read(blobs: BlobStore, part: BlobPart, *, is_checked: bool) -> list[bytes]:
    """Return what a blob consists of; raise BlobDamaged if that is seen to be wrong."""
    sha1 = new_sha1() if is_checked else None
    blocks = []
    is_whole = False
    with suppress(BlobMissing), blobs.open(part.checksum) as opened:
        size = 0
        # What is longer than it should be is not read to its end.
        while size <= part.size and (block := opened.read(_BLOCK_BYTES)):
            if sha1 is not None:
                sha1.update(block)
            blocks.append(block)
            size += len(block)
        is_whole = size == part.size and (sha1 is None or sha1.hexdigest() == part.checksum)
    if is_whole:
        return blocks
    if blobs.drop(part.checksum) is None:
        raise StorageError(f"blob {part.checksum} came damaged once, and is whole by now")
    raise BlobDamaged(part.checksum)
