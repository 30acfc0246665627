"""One try at fetching a whole file: a temporary file of one generation's bytes."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.checksums import Verifier
from artifacts.errors import ArchiveFileChanged
from artifacts.intervals import Intervals
from artifacts.sources.source import ArchiveFile, OpenedRange
from artifacts.watches import Watch, Watches

BLOCK_BYTES = 1 << 20
# What has come is written out to the disk in portions of this size while more comes, so that making
# the whole durable takes no time in the end.
_WRITEBACK_BYTES = 64 << 20
# macOS has no fdatasync.
_write_out = getattr(os, "fdatasync", os.fsync)
_MIN_PIECE_BYTES = 4 << 20
_USUAL_PIECE_BYTES = 8 << 20
# Where one connection is as fast as several, asking more seldom saves time.
_LONE_PIECE_BYTES = 64 << 20


@dataclass
class Piece:
    """Consecutive bytes that one connection reads; ``stop`` is None where the end is not known."""

    position: int
    stop: int | None
    failed_tries: int = 0


class Attempt:
    """One try at a whole file.

    All state is guarded by the condition of the fetch that the attempt belongs to, but for the
    verifier, which has a lock of its own: hashing must not hold up readers.
    """

    def __init__(self, file: ArchiveFile, directory: Path) -> None:
        self.file = file
        self.path = directory / f"fetch-{uuid.uuid4().hex}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = os.open(self.path, flags, 0o644)
        self.size = file.size if file.size_is_exact else None
        self.present = Intervals()
        self._taken = Intervals()  # what connections have been given to read
        # Where readers wait, and how many at each place, in the order of their coming.
        self._wanted: dict[int, int] = {}
        self._watches = Watches()  # those of these readers that are called back
        # Whether the archive has said, in answering, what there is to know of the file.
        self.is_described = False
        self._written_out_bytes = 0
        self._is_writing_out = False
        self._taken_whole = False
        # Pieces and writebacks that use the descriptor; the last one out closes it.
        self.users = 0
        self.abandoned = False
        self.verified = False
        self._verifier = Verifier()
        self._verifier.expect(file.checksums)
        self._verifying = threading.Lock()  # guards the verifier; held while hashing
        self._piece_bytes: int | None = None

    @property
    def can_be_split(self) -> bool:
        """Whether ranges of this very object can be asked for."""
        return bool(self.size) and self.file.has_ranges and self.file.generation is not None

    @property
    def may_be_followed(self) -> bool:
        """Whether what there is to know of the file is known. Empty ones are never asked for."""
        return self.is_described or self.verified

    @property
    def is_complete(self) -> bool:
        return self.size is not None and self.present.total >= self.size

    def take_piece(self, connections: int, *, is_alone: bool) -> Piece | None:
        """Return the piece that a reader waits for, else the next in order; None: all are taken.

        ``is_alone``: one connection, out of ``connections`` that may be used, is enough so far.
        """
        if not self.can_be_split:
            if self._taken_whole:
                return None
            self._taken_whole = True
            return Piece(0, self.size)
        assert self.size is not None
        if self._taken_whole:
            return None
        if self._piece_bytes is None:
            # As many rounds as pieces of the usual size would need, all of them full.
            rounds = -(-self.size // (connections * _USUAL_PIECE_BYTES))
            even_bytes = max(_MIN_PIECE_BYTES, -(-self.size // (connections * rounds)))
            self._piece_bytes = self._in_whole_parts(even_bytes)
        if piece := self.take_wanted_piece():
            return piece
        # The first piece is small all the same: it shows how fast the archive is.
        is_large = is_alone and self._taken.total > 0
        lone_bytes = self._in_whole_parts(_LONE_PIECE_BYTES)
        return self._take(0, lone_bytes if is_large else self._piece_bytes)

    def take_wanted_piece(self) -> Piece | None:
        """Return the piece that has been waited for the longest and nobody reads yet, if any."""
        for position in self._wanted:
            if self._is_free(position):
                return self._take(position, self._least_piece_bytes)
        return None

    def _take(self, position: int, max_bytes: int) -> Piece | None:
        """Return a piece of what is free: the part that has ``position``, or what is behind it."""
        assert self.size is not None
        # All that is taken is taken in whole parts, so that a part is free if any byte of it is.
        position -= position % (self.file.part_bytes or 1)
        start, stop = self._taken.gap_from(position, self.size)
        stop = min(stop, start + max_bytes)
        self._taken.add(start, stop)
        return Piece(start, stop) if start < stop else None

    def _is_free(self, position: int) -> bool:
        return (
            self.can_be_split
            and not self._taken_whole
            and position < (self.size or 0)
            and self._taken.end_from(position) == position
        )

    def want(self, position: int) -> bool:
        """Note that a reader waits at ``position``; return whether a new connection is called for.

        To be followed by ``unwant`` when it does not wait any more.
        """
        self._wanted[position] = self._wanted.get(position, 0) + 1
        # Who follows in order waits for what a connection takes as soon as it is free; but while
        # what lies before has not come, nobody knows when that will be.
        is_next = position == self._taken.end_from(0) == self.present.end_from(0)
        return self._is_free(position) and not is_next

    def unwant(self, position: int) -> None:
        self._wanted[position] -= 1
        if not self._wanted[position]:
            del self._wanted[position]

    def watch(self, position: int, changed: Callable[[], None]) -> Watch:
        """Note whom to call when bytes at ``position``, which is wanted already, have come."""
        return self._watches.add(position, changed)

    def end_watch(self, watch: Watch) -> None:
        """Forget a watch, and that its position is wanted; nothing if it has been taken."""
        if self._watches.remove(watch):
            self.unwant(watch.position)

    def take_watches(self, start: int, stop: int) -> list[Watch]:
        """End the watches of positions from ``start`` up to ``stop``; they are to be called."""
        return self._unwanted(self._watches.take(start, stop))

    def take_all_watches(self) -> list[Watch]:
        return self._unwanted(self._watches.take_all())

    def _unwanted(self, watches: list[Watch]) -> list[Watch]:
        for watch in watches:
            self.unwant(watch.position)
        return watches

    @property
    def pieces_left(self) -> int:
        """How many pieces are not taken yet, by the smallest that they may be."""
        if not self.can_be_split or self._taken_whole or self.size is None:
            return 0
        return -(-(self.size - self._taken.total) // self._least_piece_bytes)

    @property
    def _least_piece_bytes(self) -> int:
        return self._piece_bytes or self._in_whole_parts(_MIN_PIECE_BYTES)

    def _in_whole_parts(self, count: int) -> int:
        """Return the size of as many whole parts as ``count`` bytes are, and of one at least."""
        part_bytes = self.file.part_bytes or 1
        return max(1, count // part_bytes) * part_bytes

    def begin_writeback(self) -> bool:
        """Whether to call ``write_out`` now, for which the attempt has got another user."""
        is_due = self.present.total - self._written_out_bytes >= _WRITEBACK_BYTES
        if not is_due or self._is_writing_out:
            return False
        self._written_out_bytes = self.present.total
        self._is_writing_out = True
        self.users += 1
        return True

    def write_out(self) -> None:
        """Have the disk take what has come so far; called without the fetch's lock."""
        try:
            _write_out(self.descriptor)
        finally:
            self._is_writing_out = False

    def learn(self, opened: OpenedRange) -> None:
        """Take over what the archive's answer says of the file; raise ArchiveFileChanged."""
        known, told = self.file, opened.file
        size = told.size if told.size_is_exact else None
        if self.size is not None and size is not None and size != self.size:
            raise ArchiveFileChanged(f"{known.name} has {size} bytes now, and had {self.size}")
        if self.size is None:
            self.size = size
        if self.present.total == 0 and not known.checksums:
            with self._verifying:
                self._verifier.expect(told.checksums)
        self.file = replace(
            known,
            size=self.size,
            size_is_exact=self.size is not None,
            generation=known.generation or told.generation,
            has_ranges=known.has_ranges or told.has_ranges,
            checksums=known.checksums.joined(told.checksums),
            content_encoding=known.content_encoding or told.content_encoding,
        )
        self.is_described = True

    def verify_from(self, offset: int, block: bytes, end_from: Callable[[int], int]) -> None:
        """Hash ``block``, and what follows it on disk, unless another thread is at it.

        ``end_from`` says up to where the bytes from an offset on have come.
        """
        if self._verifying.acquire(blocking=False):
            try:
                if offset == self._verifier.position:
                    self._verifier.update(block)
                self._verify_up_to(end_from(self._verifier.position))
            finally:
                self._verifying.release()

    def verify_rest(self) -> str | None:
        """Hash what is left; return what is wrong with the file, in words, or None."""
        assert self.size is not None
        with self._verifying:
            self._verify_up_to(self.size)
            return self._verifier.mismatch(self.file.checksums)

    def _verify_up_to(self, stop: int) -> None:
        while (count := min(BLOCK_BYTES, stop - self._verifier.position)) > 0:
            block = os.pread(self.descriptor, count, self._verifier.position)
            if not block:
                raise OSError(f"{self.path} is shorter than what was written to it")
            self._verifier.update(block)

    @property
    def crc32c(self) -> int:
        return self._verifier.crc32c

    @property
    def sha256(self) -> bytes | None:
        return self._verifier.sha256

    def close_if_unused(self) -> None:
        if (self.abandoned or self.verified) and not self.users and self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
