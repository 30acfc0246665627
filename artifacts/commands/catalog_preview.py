"""What a catalog would stage of a build, told without staging it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

from artifacts.archive_url import AllowList, ArchiveUrl, BuildName
from artifacts.catalog import Catalog
from artifacts.errors import ArchiveError, Conflict
from artifacts.manifest import Item
from artifacts.plan import PlannedItem, check_paths, plan_item
from artifacts.retries import RetryLimits
from artifacts.sources.registry import Sources
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts
from artifacts.survey import Survey
from artifacts.workers import Workers

_TIMEOUTS = Timeouts(10, 30)
_RETRIES = RetryLimits(3)
_CONNECTIONS = 16


@dataclass(frozen=True)
class Preview:
    """A build as a catalog sees it.

    Attributes:
        files: those of the archive, by name, with their sizes as far as they are known.
        planned: the artifacts that the build has, by name.
        unclear: the artifacts of which it is not clear which file is meant.
        problems: why it cannot be staged like this, one line each.
    """

    files: Mapping[str, ArchiveFile]
    planned: Mapping[str, PlannedItem]
    unclear: frozenset[str]
    problems: tuple[str, ...]

    @property
    def others(self) -> list[ArchiveFile]:
        """The files that are in no artifact, by name."""
        taken = {file.archive_name for item in self.planned.values() for file in item.files}
        return [file for name, file in sorted(self.files.items()) if name not in taken]


def preview(catalog: Catalog, archive_url: ArchiveUrl) -> Preview:
    """List an archive, from here and not through a server, and plan every artifact.

    Raises:
        BuildNotFound: the archive has no such build.
        ArchiveError: it cannot be read.
    """
    with contextlib.ExitStack() as closing:
        sources = Sources(AllowList([str(archive_url)]), _TIMEOUTS, _CONNECTIONS)
        closing.callback(sources.close)
        connections = Workers("connection", _CONNECTIONS)
        closing.callback(lambda: connections.close(timeout_seconds=1))
        source = sources.source_of(archive_url)
        survey = Survey(source, archive_url, connections, _RETRIES, threading.Event())
        seen = _plan(catalog, survey.list(), archive_url.name)
        needed = {file.archive_name for item in seen.planned.values() for file in item.files}
        described = survey.describe(seen.files[name] for name in needed)
    return replace(seen, files={**seen.files, **described})


def _plan(catalog: Catalog, files: Mapping[str, ArchiveFile], build: BuildName) -> Preview:
    planned: dict[str, PlannedItem] = {}
    unclear, problems = set(), []
    for name, artifact in catalog.artifacts.items():
        try:
            found = plan_item(Item.artifact(name), files, catalog, build)
        except ArchiveError as error:
            unclear.add(name)
            problems.append(f"{name}: {error.message}")
            continue
        if found.files:
            planned[name] = found
        elif artifact.required:
            problems.append(f"{name}: {build} does not have it, and it is required")
    try:
        check_paths({Item.artifact(name): item for name, item in planned.items()}, build)
    except Conflict as error:
        problems.append(error.message)
    return Preview(files, planned, frozenset(unclear), tuple(problems))
