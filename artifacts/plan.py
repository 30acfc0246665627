"""Plans: which files of the archive make up what was asked for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from artifacts.archive_url import BuildName, check_relative_path
from artifacts.artifact import Artifact, Members, PlannedFile
from artifacts.catalog import Catalog
from artifacts.errors import ArtifactNotFound, BadRequest, Conflict
from artifacts.manifest import Item
from artifacts.patterns import matches
from artifacts.sources.source import ArchiveFile

_log = logging.getLogger(__name__)

# How much larger than packed a file is taken to be; checked again by the disk while unpacking.
_UNPACKED_RATIO = {".tar": 1, ".gz": 3, ".tgz": 3, ".zip": 3, ".zst": 4, ".bz2": 4, ".xz": 5}
_DECODED_RATIO = 3


@dataclass(frozen=True)
class PlannedItem:
    """What has to be done for one item.

    Attributes:
        artifact: what it is in the catalog; None for files that were asked for by name.
        members: which members of its files are unpacked, if they are.
        links: symbolic links to make, path to target, both below the build.
    """

    files: tuple[PlannedFile, ...]
    artifact: Artifact | None = None
    members: Members = field(default_factory=Members)
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_unpacked(self) -> bool:
        return self.artifact is not None and self.artifact.unpack

    @cached_property
    def published_whole(self) -> Mapping[str, str]:
        """The names in the archive of files that are published whole, by path below the build."""
        return {} if self.is_unpacked else {file.path: file.archive_name for file in self.files}

    def needed_bytes(self, listing: Mapping[str, ArchiveFile], kept: Collection[str] = ()) -> int:
        """Estimate what this will take on disk; files of unknown size count as nothing.

        ``kept`` are files of the archive that are there as they are, and are not fetched again.
        """
        total = 0
        for file in self.files:
            stored = listing[file.archive_name]
            size = stored.size or 0
            total += 0 if file.archive_name in kept else size
            if stored.content_encoding is not None:
                size *= _DECODED_RATIO
                total += 0 if file.archive_name in kept else size
            if self.is_unpacked:
                suffix = "." + file.archive_name.rpartition(".")[2]
                total += size * _UNPACKED_RATIO.get(suffix, 4)
        return total


@dataclass(frozen=True)
class Plan:
    """What is to be staged, and which of the items the build does not have.

    Attributes:
        absent: those that it does not have to have.
        missing: those that it has to have.
    """

    items: Mapping[Item, PlannedItem]
    absent: tuple[Item, ...]
    missing: tuple[Item, ...]

    @property
    def archive_names(self) -> set[str]:
        """The files of the archive that are needed."""
        return {file.archive_name for item in self.items.values() for file in item.files}


def usable_files(files: Iterable[ArchiveFile]) -> dict[str, ArchiveFile]:
    """Return the files of a listing by name, without those whose names cannot be published."""
    usable = {}
    for file in files:
        try:
            check_relative_path(file.name, "file name")
        except BadRequest as error:
            _log.warning("a file of the archive is passed over: %s", error.message)
            continue
        if any(segment.startswith(".") for segment in file.name.split("/")):
            _log.warning("a file of the archive is passed over, as dot names are: %s", file.name)
            continue
        usable[file.name] = file
    return usable


def make_plan(
    wanted: Mapping[Item, bool],
    listing: Mapping[str, ArchiveFile],
    catalog: Catalog,
    build: BuildName,
) -> Plan:
    """Plan the items of ``wanted``; its values say whether the build may lack the item.

    Raises:
        BadRequest: an item is not in the catalog.
        ArchiveError: it is not clear which file is meant.
        Conflict: two files are to be published at one path.
    """
    planned: dict[Item, PlannedItem] = {}
    absent, missing = [], []
    for item, may_be_absent in wanted.items():
        found = plan_item(item, listing, catalog, build)
        if found.files:
            planned[item] = found
        elif may_be_absent and not (found.artifact and found.artifact.required):
            absent.append(item)
        else:
            missing.append(item)
    check_paths(planned, build)
    return Plan(planned, tuple(absent), tuple(missing))


def not_in_build(items: Iterable[Item], catalog: Catalog, build: BuildName) -> ArtifactNotFound:
    """Return the error which says that a build does not have these items."""
    words = [
        _in_words(item, catalog.artifacts[item.name] if item.is_artifact else None)
        for item in items
    ]
    return ArtifactNotFound(f"{build} does not have {', '.join(words)}")


def check_paths(planned: Mapping[Item, PlannedItem], build: BuildName) -> None:
    """Raise Conflict where two files of the archive are to be published at one path."""
    taken: dict[str, PlannedFile] = {}
    for item, found in planned.items():
        for file in () if found.is_unpacked else found.files:
            there = taken.setdefault(file.path, file)
            if there != file:
                other = next(other for other, its in planned.items() if there in its.files)
                raise Conflict(
                    f"{build} has two files for {file.path}: {there.archive_name} ({other.name}) "
                    f"and {file.archive_name} ({item.name}); ask for one of them, or mend the "
                    "catalog"
                )


def plan_item(
    item: Item, listing: Collection[str], catalog: Catalog, build: BuildName
) -> PlannedItem:
    """Plan one item; no files where the build does not have it. Errors are those of make_plan."""
    if item.is_artifact:
        catalog.check_known([item.name])
        return _plan_artifact(item.name, listing, catalog, build)
    if item.name in listing:
        names = [item.name]
    else:
        names = [name for name in listing if matches(item.name, name)]
    return PlannedItem(tuple(PlannedFile(name, name) for name in names))


def _plan_artifact(
    name: str, listing: Collection[str], catalog: Catalog, build: BuildName
) -> PlannedItem:
    artifact = catalog.artifacts[name]
    files: list[PlannedFile] = []
    links: dict[str, str] = {}
    for part in catalog.parts_of(name):
        if found := part.plan(listing, build):
            files += found
            links |= part.links_of(build)
    return PlannedItem(tuple(files), artifact, artifact.members(build), links)


def _in_words(item: Item, artifact: Artifact | None) -> str:
    if artifact is None:
        return f"a file {item.name}"
    return f"{item.name} ({' or '.join(artifact.files or artifact.parts)})"
