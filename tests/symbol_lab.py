"""Symbol files as a server has them, without a server, and programs that make them."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from made_dumps import DEBUG_ID
from stored_files import ORGANIZATION, StoredFiles, sha1_of

from artifacts.blobs.chunked_files import ChunkedFiles
from artifacts.errors import InsufficientStorage
from artifacts.fetch import FetchLimits
from artifacts.retries import RetryLimits
from artifacts.symbols.choice import WalkChoice
from artifacts.symbols.copies import DebugFileCopies
from artifacts.symbols.debug_files import StoredObject
from artifacts.symbols.limited_programs import LimitedPrograms
from artifacts.symbols.symbol_files import SymbolFiles
from artifacts.workers import Workers

SECONDS = 60


class SymbolLab:
    """Symbol files and all that they are made of; ``dump_syms`` may be another one, or none.

    Attributes:
        runs: a file that programs of ``fake`` write a line to.
        full_while_there: a file that leaves no room for others.
    """

    def __init__(self, directory: Path, max_kept_bytes: int) -> None:
        self.stored = StoredFiles(directory / "data")
        self.kept = directory / "breakpad"
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.runs = directory / "runs"
        self.dump_syms: str | None = None
        self.is_full = False
        self.full_while_there: Path | None = None
        self._directory = directory
        self.connections = Workers("connection", 4)
        limits = FetchLimits(4, RetryLimits(2, 0.01))
        chunked_files = ChunkedFiles(self.stored.blobs, self.temporary, self.connections, limits)
        self._copies = DebugFileCopies(
            self.stored.files, chunked_files, self.temporary, self._check_room
        )
        self.programs = LimitedPrograms()
        self._max_kept_bytes = max_kept_bytes
        self.files = self._opened()

    def _opened(self) -> SymbolFiles:
        return SymbolFiles(
            self._copies, self.programs, lambda: self.dump_syms, self.kept, self._max_kept_bytes
        )

    def open_again(self) -> None:
        """Close the symbol files, and open them as the next server does."""
        self.files.close(10)
        self.files = self._opened()

    def _check_room(self) -> None:
        if self.is_full or (self.full_while_there and self.full_while_there.exists()):
            raise InsufficientStorage("the disk is full")

    def close(self) -> None:
        self.programs.close()
        self.files.close(10)
        assert self.connections.close(10)
        self.stored.database.close()

    def add(self, content: bytes, kind: str = "elf") -> StoredObject:
        """Store a debug file, in two chunks."""
        self.stored.add(content, (len(content) // 2,))
        has = frozenset({"symtab", "debug", "unwind"})
        size = len(content)
        return StoredObject(
            1, 0, ORGANIZATION, sha1_of(content), size, DEBUG_ID, kind, "x86_64", has
        )

    def ask(self, named: StoredObject, unwound: StoredObject | None = None) -> Future[Path]:
        return self.files.get(WalkChoice(named, unwound or named))

    def made(self, named: StoredObject, unwound: StoredObject | None = None) -> Path:
        return self.ask(named, unwound).result(SECONDS)

    def fake(self, lines: str) -> None:
        """Have a program of lines of shell be ``dump_syms``."""
        path = self._directory / "dump_syms"
        path.write_text(f'#!/bin/sh\necho run >> "{self.runs}"\n{lines}\n', encoding="utf-8")
        path.chmod(0o755)
        self.dump_syms = str(path)

    def count_runs(self) -> int:
        return len(self.runs.read_bytes().splitlines()) if self.runs.exists() else 0

    def names(self) -> set[str]:
        """What is kept; nothing else may be there, nor of what was copied."""
        names = {path.name for path in self.kept.iterdir()}
        assert not any(name.startswith(".aside-") for name in names)
        assert list(self.temporary.iterdir()) == []
        return names
