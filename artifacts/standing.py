"""Where a build, or an item of it, stands by its manifest."""

from __future__ import annotations

from artifacts.archive_url import ArchiveUrl
from artifacts.build import Asked, Build
from artifacts.catalog import Catalog
from artifacts.manifest import Failure, Item, ItemState
from artifacts.patterns import is_glob
from artifacts.task import Wish


def asked_of(build: Build, archive_url: ArchiveUrl) -> Asked | None:
    """Return where a build stands, if it is of this archive."""
    asked = build.asked
    return asked if asked and asked.archive_url == str(archive_url) else None


def is_settled(
    build: Build, archive_url: ArchiveUrl, item: Item, wish: Wish, *, may_come: bool = False
) -> bool:
    """Whether nothing is left to do for an item; ``may_come``: the build may get it yet."""
    if asked_of(build, archive_url) is None:
        return False
    record = build.state_of(item)
    if record is None:
        return False
    if record.state is ItemState.STAGED:
        return True
    return record.state is ItemState.ABSENT and wish.may_be_absent and not may_come


def is_staged(build: Build, archive_url: ArchiveUrl, item: Item, failure: Failure | None) -> bool:
    """Whether an item is there; ``failure`` is what is known of it without a manifest.

    Raises:
        DevserverError: what it failed with.
    """
    is_ours = asked_of(build, archive_url) is not None
    record = build.state_of(item) if is_ours else None
    if record is not None and record.state is ItemState.STAGED:
        return True
    failure = failure or (record.failure if record else None)
    if failure is not None:
        raise failure.error()
    return not item.is_artifact and _is_there(build, item.name)


def matters_to_all(item: Item, failure: Failure, asked: Asked | None, catalog: Catalog) -> bool:
    """Whether a failure to plan an item is one of the build, or only of who asked for the item.

    That a staged build does not have something that somebody tried is of no concern to others.
    """
    if asked is None or not asked.has_staged or failure.status != 404:
        return True
    return is_required(item, catalog)


def is_required(item: Item, catalog: Catalog) -> bool:
    """Whether a build without this item cannot be staged."""
    artifact = catalog.artifacts.get(item.name) if item.is_artifact else None
    return artifact is not None and artifact.required


def _is_there(build: Build, name: str) -> bool:
    """Whether a file, named without wildcards, is there as it is in the archive."""
    found = build.find(name)
    return not is_glob(name) and found is not None and found.archive_name == name
