"""Symbol files: debug files that were uploaded, as Breakpad's stack walker reads them (``.sym``).

Those of Breakpad are taken as they are; ELF is converted by ``dump_syms``, where that is installed.
Where one file has the functions and another one what tells the frames, as with programs that were
stripped, what both have is put together. The result is kept on this machine, below ``breakpad/`` in
the data directory, as long as there is room for it: the one that was used longest ago goes first.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import IO

from artifacts.errors import DevserverError, InsufficientStorage, storage_error
from artifacts.recent_outcomes import RecentOutcomes
from artifacts.symbols.choice import WalkChoice
from artifacts.symbols.copies import DebugFileCopies
from artifacts.symbols.debug_files import StoredObject
from artifacts.symbols.kept_files import KeptFiles
from artifacts.symbols.limited_programs import LimitedPrograms, ProgramLimits
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

DUMP_SYMS = "dump_syms"
_SECONDS_A_FILE = 300.0
_ADDRESS_SPACE_BYTES = 16 << 30
_MAX_FILE_BYTES = 8 << 30
_MAX_KEPT_BYTES = 20 << 30
# For which it is not tried again to convert what cannot be converted.
_FAILED_SECONDS = 60.0
_FAILED_FILES = 10_000
_STACK = b"STACK "
_PIECE_BYTES = 1 << 16


class SymbolFileFailed(DevserverError):
    """A debug file cannot be converted."""

    status, code = 422, "conversion_failed"


class SymbolFiles:
    """Makes symbol files, and keeps them."""

    def __init__(
        self,
        copies: DebugFileCopies,
        programs: LimitedPrograms,
        dump_syms: Callable[[], str | None],
        directory: Path,
        max_kept_bytes: int = _MAX_KEPT_BYTES,
    ) -> None:
        """Open the directory, this one's alone.

        Args:
            dump_syms: tells the path of that program, or None where it is not installed.

        Raises:
            DevserverError: the directory cannot be made, or read.
        """
        self._copies = copies
        self._programs = programs
        self._dump_syms = dump_syms
        self._files = KeptFiles(directory)
        self._max_kept_bytes = max_kept_bytes
        self._workers = Workers("symbol-file", os.cpu_count() or 1)
        # What was made is remembered by being there.
        self._made: RecentOutcomes[str, Path] = RecentOutcomes(
            _FAILED_SECONDS, _FAILED_FILES, lambda _: _FAILED_FILES + 1
        )

    @property
    def formats(self) -> frozenset[str]:
        """The formats of debug files that symbol files can be made of."""
        return frozenset({"breakpad"} if self._dump_syms() is None else {"breakpad", "elf"})

    def get(self, choice: WalkChoice) -> Future[Path]:
        """Return the symbol file of a choice, in the future; made once for all who ask for it.

        The future fails with SymbolFileFailed where it cannot be converted, with
        InsufficientStorage where there is no room, and as `DebugFileCopies.write` does.

        Raises:
            Busy: the server is shutting down, or too many are made.
        """
        path = self._files.directory / _name_of(choice)
        with contextlib.suppress(OSError):
            # It was used last now.
            os.utime(path)
            there: Future[Path] = Future()
            there.set_result(path)
            return there
        make = partial(self._make, choice)
        return self._made.get(path.name, lambda: self._workers.call(make, path))

    def close(self, timeout_seconds: float) -> None:
        self._workers.close(timeout_seconds)

    def _make(self, choice: WalkChoice, path: Path) -> Path:
        try:
            self._write_and_keep(choice, path)
        except InsufficientStorage:
            # The others are kept as long as there is room.
            if not self._remove_oldest(0):
                raise
            self._write_and_keep(choice, path)
        self._remove_oldest(self._max_kept_bytes, but=path)
        _log.info("made %s of %s", path.name, choice.named.debug_id)
        return path

    def _write_and_keep(self, choice: WalkChoice, path: Path) -> None:
        with self._files.aside() as aside:
            try:
                with aside.open("wb") as file:
                    self._write(choice, file)
                    file.flush()
                    os.fsync(file.fileno())
                self._files.keep(aside, path)
            except OSError as error:
                raise storage_error(error, f"symbols of {choice.named.debug_id}") from error

    def _write(self, choice: WalkChoice, file: IO[bytes]) -> None:
        if choice.is_one:
            self._write_all(choice.named, file)
            return
        for stored, takes_frames in ((choice.named, False), (choice.unwound, True)):
            with self._files.aside() as part, part.open("w+b") as whole:
                self._write_all(stored, whole)
                whole.seek(0)
                file.writelines(_some_lines(whole, takes_frames))

    def _write_all(self, stored: StoredObject, file: IO[bytes]) -> None:
        if stored.format == "breakpad":
            self._copies.write(stored, file)
            return
        dump_syms = self._dump_syms()
        if dump_syms is None:
            raise SymbolFileFailed(f"{DUMP_SYMS}, which converts ELF, is not installed any more")
        limits = ProgramLimits(_SECONDS_A_FILE, _ADDRESS_SPACE_BYTES, _MAX_FILE_BYTES)
        with self._copies.copied(stored) as path:
            # With what was inlined.
            ended = self._programs.run(
                [dump_syms, "-d", str(path)], limits, self._copies.watched(file)
            )
        file.flush()
        if ended.status != 0 or not file.tell():
            said = ended.chatter.strip().rpartition("\n")[2]
            raise SymbolFileFailed(
                f"{DUMP_SYMS} cannot read the debug file {stored.checksum}: it ended with status "
                f"{ended.status}: {said}"
            )

    def _remove_oldest(self, max_bytes: int, but: Path | None = None) -> bool:
        """Remove what was used longest ago, until the others have ``max_bytes``, or are ``but``.

        Returns whether there was any.
        """
        files = []
        for path in self._files.directory.glob("*.sym"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        kept = sum(size for _, size, _ in files)
        has_removed = False
        for _, size, path in sorted(files):
            if kept > max_bytes and path != but:
                path.unlink(missing_ok=True)
                kept -= size
                has_removed = True
        return has_removed


def _some_lines(file: IO[bytes], of_frames: bool) -> Iterator[bytes]:
    """Yield the lines that tell frames, or all others; of lines of any length, piece by piece."""
    is_wanted, begins = False, True
    while piece := file.readline(_PIECE_BYTES):
        if begins:
            is_wanted = piece.startswith(_STACK) is of_frames
        if is_wanted:
            yield piece
        begins = piece.endswith(b"\n")
    if is_wanted and not begins:
        # Others follow.
        yield b"\n"


def _name_of(choice: WalkChoice) -> str:
    checksums = dict.fromkeys((choice.named.checksum, choice.unwound.checksum))
    return f"{'+'.join(checksums)}.sym"
