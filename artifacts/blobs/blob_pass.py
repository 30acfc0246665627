"""The pass over the blobs of a file that is being assembled: each read and checked once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
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
# Blobs that are read while the one before them is written: hashing them takes as long as hashing
# the file does, and a storage may be far away.
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

    def run(self, parts: Sequence[BlobPart], file: IO[bytes] | None) -> tuple[str, int]:
        """Write the blobs to ``file``, if there is one; return SHA-1 and CRC32C of all bytes.

        Raises:
            BlobDamaged: one of them is, and has been dropped.
            StorageError: the storage fails.
            Busy: the server is shutting down.
            OSError: the file cannot be written.
        """
        # A lone blob has been hashed when it comes.
        sha1 = new_sha1() if len(parts) > 1 else None
        crc32c = 0
        for blocks in self._read_ahead(parts):
            for block in blocks:
                if sha1 is not None:
                    sha1.update(block)
                crc32c = google_crc32c.extend(crc32c, block)
                if file is not None:
                    file.write(block)
        return (sha1.hexdigest() if sha1 is not None else parts[0].checksum), crc32c

    def _read_ahead(self, parts: Sequence[BlobPart]) -> Iterator[list[bytes]]:
        read = partial(_read_checked, self._blobs)
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


def _read_checked(blobs: BlobStore, part: BlobPart) -> list[bytes]:
    if (blocks := _read(blobs, part)) is not None:
        return blocks
    if blobs.drop(part.checksum) is None:
        raise StorageError(f"blob {part.checksum} came damaged once, and is whole by now")
    raise BlobDamaged(f"blob {part.checksum} is damaged, and has to be sent again")


def _read(blobs: BlobStore, part: BlobPart) -> list[bytes] | None:
    """Return what a blob consists of; None for one that is damaged."""
    sha1 = new_sha1()
    blocks = []
    size = 0
    try:
        with blobs.open(part.checksum) as opened:
            # What is longer than it should be is not read to its end.
            while size <= part.size and (block := opened.read(_BLOCK_BYTES)):
                sha1.update(block)
                blocks.append(block)
                size += len(block)
    except BlobMissing:
        return None
    return blocks if (sha1.hexdigest(), size) == (part.checksum, part.size) else None
