"""Symcaches: tables that tell function, file and line of an address, built from debug files.

A debug file has one for each of its objects that has symbols. It is a file below ``symcaches/`` in
the data directory, named by the SHA-1 of the debug file, the object's number, and the version of
the format; and a row says that it was built, or why it cannot be (`SymcacheRecords`). The file
comes first, the row next: what a row names may still be missing, where another server has built it,
or somebody has removed it. Then it is built again, from the blobs of the debug file, when it is
looked for.

Those of symbols that builds have brought have no row: they are named by what the build's manifest
says of the file, are built when they are looked for, and go at a start of the server that is an
hour later, or more.

An error is remembered as long as the format has that version. Who uploads the file again makes it
be tried again, once a while has passed in which all who asked could be told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from artifacts.errors import storage_error
from artifacts.symbols.kept_files import KeptFiles
from artifacts.symbols.symcache_builder import ConversionFailed, SymcacheBuilder
from artifacts.symbols.symcache_records import BuiltSymcache, SymcacheRecords

# What is built first is recorded next; what is not on record by then never will be.
_RECORD_SECONDS = 3600.0
_MAX_ERROR_CHARACTERS = 1000


class Convertible(Protocol):
    """What a debug file has for one architecture."""

    @property
    def debug_id(self) -> str: ...

    @property
    def architecture(self) -> str | None: ...

    @property
    def features(self) -> Collection[str]: ...


class Symcaches:
    """The symcaches in a directory."""

    def __init__(self, records: SymcacheRecords, builder: SymcacheBuilder, directory: Path) -> None:
        """``directory``: this one's alone; what a crash has left there is removed.

        Raises:
            DevserverError: it cannot be made, or read.
        """
        self._records = records
        self._builder = builder
        self._files = KeptFiles(directory)
        # That of the library, once it has been asked.
        self._version: int | None = None

    def build(
        self, checksum: str, path: Path, objects: Mapping[int, Convertible]
    ) -> list[BuiltSymcache]:
        """Build those of a debug file, as far as they are not there, to be recorded next.

        Args:
            checksum: of the debug file.
            path: where it is for now.
            objects: what is in it, by number; what has no symbols is passed over.

        Raises:
            StorageError, InsufficientStorage: one cannot be written.
            Busy: the server is shutting down.
        """
        wanted = {n: found for n, found in objects.items() if has_symbols(found.features)}
        if not wanted:
            return []
        version = self.version()
        built = []
        for number, found in wanted.items():
            error = None
            try:
                self._build_one(path, found, self.path_of(checksum, number, version))
            except ConversionFailed as failure:
                error = failure.message[:_MAX_ERROR_CHARACTERS]
            built.append(BuiltSymcache(number, version, error))
        return built

    def version(self) -> int:
        """Return the version of the format; raise as `SymcacheBuilder.build` does."""
        if self._version is None:
            self._version = self._builder.version()
        return self._version

    def path_of(self, checksum: str, number: int, version: int) -> Path:
        """Return where a symcache is, if it is there."""
        return self._files.directory / checksum[:2] / f"{checksum[2:]}-{number}-v{version}"

    def remove_unrecorded(self) -> None:
        """Remove the files that nothing on record names, but for those that are just built.

        Raises:
            DatabaseUnavailable: it cannot be told which these are.
            OSError: the directory cannot be read.
        """
        for directory in sorted(self._files.directory.glob("[0-9a-f][0-9a-f]")):
            paths = list(directory.iterdir())
            checksums = {directory.name + path.name.partition("-")[0] for path in paths}
            recorded = {self.path_of(*one) for one in self._records.of_checksums(checksums)}
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    is_old = path.stat().st_mtime < time.time() - _RECORD_SECONDS
                    if is_old and path not in recorded:
                        path.unlink()

    def _build_one(self, path: Path, found: Convertible, final: Path) -> None:
        if final.exists():
            return
        with self._files.aside() as aside:
            self._builder.build(path, found.debug_id, found.architecture, aside)
            try:
                self._files.keep(aside, final)
            except OSError as error:
                raise storage_error(error, "a symcache") from error


def has_symbols(features: Collection[str]) -> bool:
    """Whether there is anything to make a symcache of."""
    return not {"debug", "symtab"}.isdisjoint(features)
