"""Fetch: one file on its way from an archive to disk.

A Fetch is filled by several connections at once, each reading a *piece*: a few MiB of consecutive
bytes. Pieces are taken in order, but for those that a reader waits for and that no connection reads
yet: these come first, and a connection is added for them if the fetch may have one more. A reader
that waits no longer has no say any more. No byte is in two pieces. Where the archive keeps the file
in parts, no part is in two pieces either, and several connections are used from the beginning.

All bytes of one *attempt* come from one generation of the object: when the archive's file turns out
to be another by now, or the finished bytes do not have their checksum, the attempt is abandoned,
with its temporary file, and a new one begins. A piece that fails or stalls is tried again by
itself, from where it got to.

Readers follow an attempt while it grows, each at its own pace and from wherever it likes. A
`GrowingFile` blocks until its bytes have come, a `FollowedFile` is called back. Both are cut, with
`FetchRestarted` or the fetch's own error, when there will be no more bytes. They get the last
64 KiB only once the whole file is verified, so that nobody takes wrong bytes for a whole file; but
for those who promise not to let out what they make of it before they have asked `wait`.

Verification happens on the connections' own threads, in order: the block that continues what is
verified so far is hashed while it is still in the processor's cache; what came out of order is read
back from the page cache when its turn has come.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from artifacts.archive_url import ArchiveUrl
from artifacts.attempt import BLOCK_BYTES, Attempt, Piece
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    Busy,
    DevserverError,
    TransientArchiveError,
    shutting_down,
    storage_error,
)
from artifacts.futures import resolve
from artifacts.growing_file import FetchRestarted, FollowedFile, GrowingFile
from artifacts.retries import RetryLimits, retrying
from artifacts.sources.source import ArchiveFile, OpenedRange, Source
from artifacts.watches import Watch
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

# Held back from readers until the whole file is verified.
WITHHELD_BYTES = 64 << 10
# An archive that takes longer than this to answer is worth several connections at once ...
_SLOW_ANSWER_SECONDS = 0.015
# ... and so is one that sends a connection fewer bytes a second than this.
_SLOW_BYTES_PER_SECOND = 150e6
# A try that brought less than this counts as one that brought nothing.
_PROGRESS_BYTES = 64 << 10
_MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class FetchedFile:
    """A verified, durable temporary file of the bytes that the archive stores; ``size`` in bytes.

    ``content_encoding`` as in `ArchiveFile`.
    """

    path: Path
    size: int
    crc32c: int
    sha256: bytes | None
    content_encoding: str | None


@dataclass(frozen=True)
class FetchLimits:
    """How hard a fetch tries: ``connections`` for one file at most, and when to give up."""

    connections: int = 8
    retries: RetryLimits = field(default_factory=RetryLimits)


class Fetch:
    """One file on its way to ``directory``; see the module's text.

    Created idle; ``start`` begins it. Its owner calls ``discard`` when nobody needs it any more,
    and may call ``cancel`` before.
    """

    def __init__(
        self,
        source: Source,
        archive_url: ArchiveUrl,
        file: ArchiveFile,
        directory: Path,
        connections: Workers,
        writeback: Workers | None,
        limits: FetchLimits,
    ) -> None:
        """Prepare to fetch ``file``.

        Args:
            connections: threads that read.
            writeback: threads that wait for the disk; None where the file is only to be read, and
                need not be durable.
        """
        self._source = source
        self._archive_url = archive_url
        self._directory = directory
        self._connections = connections
        self._writeback = writeback
        self._limits = limits
        self._urgent = True
        # Guards all state below, and the attempt's; never held during I/O other than opening and
        # closing the temporary file, nor while those who wait are called. Notified whenever bytes
        # have come and when the end has.
        self._changed = threading.Condition()
        self._file = file
        self._attempt: Attempt | None = None
        self._attempts = 0
        self._wanted_connections = 1 if file.part_bytes is None else limits.connections
        self._open_connections = 0
        self._failure: DevserverError | None = None
        self._stopped = threading.Event()  # set on the end of either kind; ends pauses
        self._when_ended: list[Callable[[Fetch], None]] = []
        self._described: Future[None] | None = None  # made when somebody waits for it
        self._is_begun = False
        self._is_hurried = False
        self._started_at: float | None = None
        self._ended_at: float | None = None

    # --- for the owner

    @property
    def name(self) -> str:
        return self._file.name

    def start(self, *, urgent: bool = True) -> None:
        """Begin; once. ``urgent`` fetches get connections before others."""
        with self._changed:
            if self._attempts == 0:
                self._urgent = urgent
                self._attempts = 1
                self._started_at = time.monotonic()
                self._open_connections += 1
                self._connections.submit(self._begin, urgent=urgent)

    def hurry(self) -> None:
        """Have it begun before anything else that waits for a connection."""
        with self._changed:
            is_due = self._attempts > 0 and not (self._is_begun or self._is_hurried)
            self._is_hurried = self._urgent = True
            if not is_due:
                return
            with suppress(Busy):
                self._connections.submit(self._begin, is_next=True)

    def cancel(self) -> None:
        """Fail whoever waits, with Busy: the server is ending."""
        self._fail(shutting_down())

    def discard(self) -> None:
        """Cancel what is under way, and remove the temporary file."""
        self.cancel()
        with self._changed:
            watches = self._retire(self._attempt)
        _call(watches)

    def wait(self) -> FetchedFile:
        """Block until the file is verified and durable; return it, or raise what it failed with."""
        with self._changed:
            while not self._is_verified:
                self._raise_failure()
                self._changed.wait()
            assert self._attempt is not None and self._attempt.size is not None
            return FetchedFile(
                path=self._attempt.path,
                size=self._attempt.size,
                crc32c=self._attempt.crc32c,
                sha256=self._attempt.sha256,
                content_encoding=self._attempt.file.content_encoding,
            )

    def when_ended(self, callback: Callable[[Fetch], None]) -> None:
        """Have ``callback`` called, quickly, once ``wait`` will not block any more."""
        with self._changed:
            if not self._is_verified and self._failure is None:
                self._when_ended.append(callback)
                return
        callback(self)

    def open_reader(self, *, withheld_bytes: int = WITHHELD_BYTES) -> GrowingFile:
        """Return a reader of the bytes from the start; blocks until there is a file to read.

        ``withheld_bytes``: so many at the end come only when all is verified.
        """
        with self._changed:
            while True:
                self._raise_failure()
                attempt = self._attempt
                if attempt is not None and not attempt.abandoned:
                    return GrowingFile(
                        attempt,
                        partial(self.wait_for_bytes, attempt, withheld_bytes=withheld_bytes),
                        partial(self.wait_for_size, attempt),
                    )
                self._changed.wait()

    def follow(self, on_close: Callable[[], None]) -> FollowedFile | Future[None] | None:
        """Return a reader that never blocks, from which the file can be sent while it comes.

        What ends when it is worth asking again, where the archive has not told yet what there is to
        know of the file. None where the file cannot be sent as it comes: its length is not known,
        or it is not to be published as it is stored.

        Not to be called after ``discard``. ``on_close`` is called when the reader is closed.

        Raises:
            DevserverError: the fetch failed.
        """
        with self._changed:
            self._raise_failure()
            attempt = self._attempt
            if attempt is None or attempt.abandoned or not attempt.may_be_followed:
                self._described = self._described or Future()
                return self._described
            if attempt.size is None or attempt.file.content_encoding is not None:
                return None
            return FollowedFile(
                attempt,
                attempt.size,
                partial(self.readable_to, attempt),
                partial(self.watch, attempt),
                on_close,
            )

    @property
    def has_failed(self) -> bool:
        with self._changed:
            return self._failure is not None

    @property
    def bytes_done(self) -> int:
        with self._changed:
            return self._attempt.present.total if self._attempt else 0

    @property
    def bytes_total(self) -> int | None:
        with self._changed:
            if self._attempt and self._attempt.size is not None:
                return self._attempt.size
            return self._file.size

    @property
    def seconds_under_way(self) -> float:
        with self._changed:
            if self._started_at is None:
                return 0.0
            return (self._ended_at or time.monotonic()) - self._started_at

    # --- for readers

    def wait_for_bytes(
        self, attempt: Attempt, position: int, withheld_bytes: int = WITHHELD_BYTES
    ) -> int:
        """Block until bytes at ``position`` may be read; return up to where, 0 at the end.

        What nobody reads from the archive yet is read next, if the archive has ranges.

        Raises:
            FetchRestarted: the attempt was abandoned.
            DevserverError: the fetch failed.
        """
        with self._changed:
            if (stop := self._readable_from(attempt, position, withheld_bytes)) is not None:
                return stop
            if attempt.want(position):
                self._add_wanted_connection()
            try:
                while stop is None:
                    self._changed.wait()
                    stop = self._readable_from(attempt, position, withheld_bytes)
                return stop
            finally:
                attempt.unwant(position)

    def wait_for_size(self, attempt: Attempt) -> int:
        """Block until the size of the whole is known; return it. Raises as ``wait_for_bytes``."""
        with self._changed:
            while True:
                self._raise_if_cut(attempt)
                if attempt.size is not None:
                    return attempt.size
                self._changed.wait()

    def readable_to(self, attempt: Attempt, position: int) -> int | None:
        """Return up to where bytes at ``position`` may be read by now; None: not yet.

        Raises as ``wait_for_bytes``.
        """
        with self._changed:
            stop = self._readable_from(attempt, position, WITHHELD_BYTES)
            return attempt.size if stop == 0 else stop

    def watch(
        self, attempt: Attempt, position: int, changed: Callable[[], None]
    ) -> Callable[[], None]:
        """Have ``changed`` called, once, when ``readable_to`` has another answer than None.

        Meanwhile a reader waits at ``position``, as with ``wait_for_bytes``. Returned is what ends
        that; it may be called at any time, more than once.
        """
        with self._changed:
            if not self._is_worth_waiting(attempt, position):
                watch = None
            else:
                if attempt.want(position):
                    # Without another connection, those that there are will come to it.
                    with suppress(Busy):
                        self._add_wanted_connection()
                watch = attempt.watch(position, changed)
        if watch is None:
            changed()
            return lambda: None
        return partial(self._end_watch, attempt, watch)

    def _is_worth_waiting(self, attempt: Attempt, position: int) -> bool:
        is_cut = self._failure is not None or attempt.abandoned
        return not is_cut and self._readable_from(attempt, position, WITHHELD_BYTES) is None

    def _end_watch(self, attempt: Attempt, watch: Watch) -> None:
        with self._changed:
            attempt.end_watch(watch)

    def _readable_from(self, attempt: Attempt, position: int, withheld_bytes: int) -> int | None:
        """Return up to where bytes at ``position`` may be read by now; 0 at the end, None: wait."""
        self._raise_if_cut(attempt)
        if attempt.verified:
            withheld_bytes = 0
        stop = attempt.present.end_from(position)
        if attempt.size is None:
            stop -= withheld_bytes
        elif position >= attempt.size and not withheld_bytes:
            return 0
        else:
            stop = min(stop, attempt.size - withheld_bytes)
        return stop if stop > position else None

    def _raise_if_cut(self, attempt: Attempt) -> None:
        self._raise_failure()
        if attempt.abandoned and not attempt.verified:
            raise FetchRestarted

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure.again()

    @property
    def _is_verified(self) -> bool:
        return self._attempt is not None and self._attempt.verified

    # --- on the connections' threads

    def _begin(self) -> None:
        with self._changed:
            was_begun, self._is_begun = self._is_begun, True
        if not was_begun:
            self._run_connection()

    def _run_connection(self, *, takes_wanted_only: bool = False) -> None:
        try:
            while (taken := self._take_piece(takes_wanted_only)) is not None:
                attempt, piece = taken
                try:
                    self._fill(attempt, piece)
                except ArchiveFileChanged as error:
                    self._start_over(attempt, error)
                finally:
                    self._leave(attempt)
                # The others leave an abandoned attempt: it may be for this one to begin the next.
                takes_wanted_only = takes_wanted_only and not attempt.abandoned
        except DevserverError as error:
            self._fail(error)
        except OSError as error:
            self._fail(storage_error(error, f"{self._archive_url}/{self.name}"))
        except Exception as error:
            _log.exception("fetching %s/%s", self._archive_url, self.name)
            self._fail(DevserverError(f"fetching {self.name} failed: {type(error).__name__}"))
        finally:
            with self._changed:
                self._open_connections -= 1

    def _take_piece(self, wanted_only: bool) -> tuple[Attempt, Piece] | None:
        """Return the next piece of work; None when there is none for this connection."""
        with self._changed:
            if self._stopped.is_set():
                return None
            if self._attempt is None:
                self._attempt = Attempt(self._file, self._directory)
                self._changed.notify_all()
            if self._attempt.abandoned:
                return None
            if wanted_only:
                piece = self._attempt.take_wanted_piece()
            else:
                piece = self._attempt.take_piece(
                    self._limits.connections, is_alone=self._wanted_connections == 1
                )
            if piece is None:
                return None
            self._attempt.users += 1
            self._add_connections(self._attempt)
            return self._attempt, piece

    def _leave(self, attempt: Attempt) -> None:
        with self._changed:
            attempt.users -= 1
            attempt.close_if_unused()

    def _add_connections(self, attempt: Attempt) -> None:
        wanted = min(self._wanted_connections - self._open_connections, attempt.pieces_left)
        for _ in range(wanted):
            self._open_connections += 1
            self._connections.submit(self._run_connection, urgent=self._urgent)

    def _add_wanted_connection(self) -> None:
        """Have a piece that a reader waits for read at once, however long the others take."""
        if self._open_connections < self._limits.connections:
            run = partial(self._run_connection, takes_wanted_only=True)
            self._connections.submit(run, urgent=self._urgent)
            self._open_connections += 1

    def _fill(self, attempt: Attempt, piece: Piece) -> None:
        while True:
            position_before = piece.position
            try:
                self._read(attempt, piece)
                return
            except TransientArchiveError as error:
                if piece.position - position_before >= _PROGRESS_BYTES:
                    piece.failed_tries = 0
                piece.failed_tries += 1
                _log.info("try %d of %s: %s", piece.failed_tries, self.name, error.message)
                if piece.failed_tries >= self._limits.retries.tries:
                    raise ArchiveError(
                        f"{error.message} ({self._limits.retries.tries} tries)"
                    ) from error
                if not attempt.can_be_split and piece.position > 0 and not attempt.file.generation:
                    raise ArchiveFileChanged(error.message) from error
                pause = self._limits.retries.pause_seconds(piece.failed_tries, error)
            if self._stopped.wait(pause) or attempt.abandoned:
                return

    def _read(self, attempt: Attempt, piece: Piece) -> None:
        if piece.position != piece.stop:
            opened_at = time.monotonic()
            with self._source.open(
                self._archive_url, attempt.file, piece.position, piece.stop
            ) as opened:
                self._learn(attempt, piece, opened)
                self._judge_speed(attempt, time.monotonic() - opened_at, 0)
                self._skip(opened, piece.position - opened.start)
                if not self._read_blocks(attempt, piece, opened):
                    return
        if attempt.is_complete:
            self._complete(attempt)

    def _learn(self, attempt: Attempt, piece: Piece, opened: OpenedRange) -> None:
        with self._changed:
            attempt.learn(opened)
            if piece.stop is None:
                piece.stop = attempt.size
            known = attempt.size is not None or opened.end_is_told
        self._tell_described()
        if not known and not attempt.file.checksums:
            raise ArchiveError(
                f"{self._archive_url}/{self.name} comes without a length or a checksum: "
                "whether it is whole cannot be told"
            )

    def _read_blocks(self, attempt: Attempt, piece: Piece, opened: OpenedRange) -> bool:
        """Read the piece to its end; return whether the attempt is still worth it."""
        begun_at, begun_position = time.monotonic(), piece.position
        while piece.stop is None or piece.position < piece.stop:
            left = BLOCK_BYTES if piece.stop is None else piece.stop - piece.position
            block = opened.read(min(BLOCK_BYTES, left))
            if not block:
                break
            if not self._write(attempt, piece, block):
                return False
            self._judge_speed(attempt, time.monotonic() - begun_at, piece.position - begun_position)
        if piece.stop is None:
            with self._changed:
                piece.stop = attempt.size = piece.position
        elif piece.position < piece.stop:
            raise TransientArchiveError(
                f"{self._archive_url}/{self.name} was cut at byte {piece.position} "
                f"of {attempt.size}"
            )
        return True

    @staticmethod
    def _skip(opened: OpenedRange, count: int) -> None:
        """Read past what is there already, where the source could not start in the middle."""
        while count > 0:
            block = opened.read(min(BLOCK_BYTES, count))
            if not block:
                raise TransientArchiveError(f"{opened.file.name} was cut before it got anywhere")
            count -= len(block)

    def _judge_speed(self, attempt: Attempt, seconds: float, taken: int) -> None:
        """Use more connections when one turns out to be slow: in answering, or in sending."""
        if self._wanted_connections > 1:
            return
        if taken == 0:
            is_slow = seconds > _SLOW_ANSWER_SECONDS
        else:
            is_slow = taken >= BLOCK_BYTES and taken < seconds * _SLOW_BYTES_PER_SECOND
        if is_slow:
            with self._changed:
                self._wanted_connections = self._limits.connections
                if not attempt.abandoned:
                    self._add_connections(attempt)

    def _write(self, attempt: Attempt, piece: Piece, block: bytes) -> bool:
        """Write a block where it belongs; return whether the attempt is still worth it."""
        offset, view = piece.position, memoryview(block)
        while view:
            written = os.pwrite(attempt.descriptor, view, offset)
            offset, view = offset + written, view[written:]
        with self._changed:
            if attempt.abandoned or self._stopped.is_set():
                return False
            attempt.present.add(piece.position, offset)
            self._changed.notify_all()
            watches: list[Watch] = []
            if attempt.size is not None:
                released = min(offset, attempt.size - WITHHELD_BYTES)
                watches = attempt.take_watches(piece.position, released)
            is_writeback_due = self._writeback is not None and attempt.begin_writeback()
        _call(watches)
        if self._writeback is not None and is_writeback_due:
            self._writeback.submit(lambda: self._write_out(attempt))
        attempt.verify_from(piece.position, block, self._end_from(attempt))
        piece.position = offset
        return True

    def _write_out(self, attempt: Attempt) -> None:
        try:
            attempt.write_out()
        except OSError as error:
            self._fail(storage_error(error, f"{self._archive_url}/{self.name}"))
        finally:
            self._leave(attempt)

    def _end_from(self, attempt: Attempt) -> Callable[[int], int]:
        def end_from(position: int) -> int:
            with self._changed:
                return attempt.present.end_from(position)

        return end_from

    def _complete(self, attempt: Attempt) -> None:
        """Verify all of it, make it durable, and tell everyone; whoever brought the last byte."""
        mismatch = attempt.verify_rest()
        if mismatch is not None:
            self._start_over(attempt, ArchiveError(f"wrong bytes of {self.name}: {mismatch}"))
            return
        if self._writeback is not None:
            os.fsync(attempt.descriptor)
        watches: list[Watch] = []
        with self._changed:
            if not attempt.abandoned and self._failure is None:
                attempt.verified = True
                self._file = attempt.file
                watches = attempt.take_all_watches()
            self._changed.notify_all()
        _call(watches)
        self._tell_end()

    def _start_over(self, attempt: Attempt, why: ArchiveError) -> None:
        """Abandon an attempt and begin another, of the file as it is now; or give up."""
        with self._changed:
            if attempt.abandoned or self._stopped.is_set():
                return
            watches = self._retire(attempt)
            self._attempts += 1
        _call(watches)
        if self._attempts > _MAX_ATTEMPTS:
            raise ArchiveError(f"{why.message} ({_MAX_ATTEMPTS} attempts)")
        _log.warning("%s/%s is fetched anew: %s", self._archive_url, self.name, why.message)
        if self._stopped.wait(self._limits.retries.pause_seconds(self._attempts - 1, why)):
            return
        try:
            file = self._describe_again()
        except ArchiveFileMissing as error:
            raise ArchiveError(f"{error.message}, though its listing names it") from error
        with self._changed:
            self._file = file
            self._attempt = None

    def _describe_again(self) -> ArchiveFile:
        """Ask the archive for the file as it is now; checksums from beside it still hold."""
        now = retrying(
            lambda: self._source.stat(self._archive_url, self.name),
            self._limits.retries,
            self._stopped,
        )
        if now.generation == self._file.generation or not now.checksums:
            return replace(now, checksums=now.checksums.joined(self._file.checksums))
        return now

    def _retire(self, attempt: Attempt | None) -> list[Watch]:
        """Give an attempt up, if there is one; return whom to call without the lock."""
        if attempt is None:
            return []
        attempt.abandoned = True
        attempt.path.unlink(missing_ok=True)
        attempt.close_if_unused()
        self._changed.notify_all()
        return attempt.take_all_watches()

    def _fail(self, error: DevserverError) -> None:
        watches: list[Watch] = []
        with self._changed:
            if self._failure is None and not self._is_verified:
                self._failure = error
                watches = self._retire(self._attempt)
            self._changed.notify_all()
        _call(watches)
        self._tell_end()

    def _tell_described(self) -> None:
        with self._changed:
            described, self._described = self._described, None
        if described is not None:
            resolve(described, None)

    def _tell_end(self) -> None:
        with self._changed:
            if not self._is_verified and self._failure is None:
                return
            self._stopped.set()
            if self._ended_at is None:
                self._ended_at = time.monotonic()
            callbacks, self._when_ended = self._when_ended, []
        self._tell_described()
        for callback in callbacks:
            callback(self)


def _call(watches: Iterable[Watch]) -> None:
    for watch in watches:
        watch.changed()
