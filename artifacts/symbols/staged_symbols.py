"""Staged symbols: the symbol files of builds that are staged, found by debug id.

Builds bring them as ``debug/breakpad/NAME/IDENTIFIER/NAME.sym``, and each build keeps its own.
Which build has which debug ids is looked up when it is asked for the first time, and again when its
manifest has changed; what is kept of it in memory is the ids. It may say more than is there: what
it says is looked up in the build.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from artifacts.archive_url import BuildName
from artifacts.errors import BadRequest
from artifacts.manifest import Item, StagedFile
from artifacts.staging import Staging
from artifacts.symbols.debug_ids import parse_debug_id

_log = logging.getLogger(__name__)

# The artifacts that bring symbols, by the name they have in catalogs; `/stage_debug` stages the
# first of them.
SYMBOLS = Item.artifact("symbols")
_ARTIFACTS = (SYMBOLS, Item.artifact("symbols_only"))


@dataclass(frozen=True)
class StagedObject:
    """A symbol file of a staged build.

    Attributes:
        checksum: tells it from all others, like the SHA-1 of a file, which is not known.
    """

    path: Path
    debug_id: str
    checksum: str
    number: int = 0
    architecture: str | None = None
    features: frozenset[str] = frozenset({"debug"})

    @classmethod
    def of(cls, path: Path, debug_id: str, file: StagedFile) -> StagedObject:
        known = f"{debug_id} {file.size} {file.crc32c}"
        return cls(path, debug_id, hashlib.sha1(known.encode("ascii")).hexdigest())


@dataclass(frozen=True)
class _Indexed:
    """The debug ids of a build, as of one version of its manifest."""

    version: tuple[int, int]
    debug_ids: frozenset[str]


class StagedSymbols:
    """Finds symbol files in the builds of a static directory."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        # Guards the index; held while it is brought up to date, so that it is read once.
        self._lock = threading.Lock()
        self._index: dict[BuildName, _Indexed] = {}
        # Of `Staging.trees_recorded`, before the index was made: what is more is not in it.
        self._seen = -1

    def of_build(self, name: BuildName, debug_ids: Collection[str]) -> dict[str, StagedObject]:
        """Return the symbol files of one build that have these debug ids, by id."""
        build = self._staging.build(name)
        found: dict[str, StagedObject] = {}
        for item in _ARTIFACTS:
            try:
                files = build.files_of(item)
            except (OSError, ValueError):
                _log.exception("what %s has of %s cannot be read", name, item.name)
                continue
            for path, file in files.items():
                debug_id = _debug_id_of(path)
                if debug_id in debug_ids and debug_id is not None and file.link is None:
                    found[debug_id] = StagedObject.of(build.directory / path, debug_id, file)
        if found:
            build.touch()
        return found

    def find(self, debug_ids: Collection[str]) -> dict[str, StagedObject]:
        """Return symbol files of any builds that have these debug ids, by id."""
        found: dict[str, StagedObject] = {}
        wanted = set(debug_ids)
        for name in self._having(wanted):
            if wanted:
                found.update(self.of_build(name, wanted))
                wanted -= found.keys()
        return found

    def _having(self, debug_ids: Collection[str]) -> list[BuildName]:
        with self._lock:
            recorded = self._staging.trees_recorded
            if recorded != self._seen:
                self._index = dict(self._brought_up_to_date())
                self._seen = recorded
            return [
                name
                for name, indexed in self._index.items()
                if not indexed.debug_ids.isdisjoint(debug_ids)
            ]

    def _brought_up_to_date(self) -> Iterator[tuple[BuildName, _Indexed]]:
        for name in self._staging.all_builds():
            version = self._staging.manifest_version(name)
            if version is None:
                continue
            indexed = self._index.get(name)
            if indexed is None or indexed.version != version:
                indexed = _Indexed(version, frozenset(self._debug_ids_of(name)))
            yield name, indexed

    def _debug_ids_of(self, name: BuildName) -> Iterator[str]:
        build = self._staging.build(name)
        for item in _ARTIFACTS:
            for path in build.members_of(item):
                if (debug_id := _debug_id_of(path)) is not None:
                    yield debug_id


def _debug_id_of(path: str) -> str | None:
    """Return the debug id of a symbol file, by its path; None where it is something else."""
    parts = PurePosixPath(path)
    if parts.suffix != ".sym":
        return None
    try:
        return parse_debug_id(parts.parent.name)
    except BadRequest:
        return None
