"""Offer: what a build in an archive would publish, and what has to be staged for that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from artifacts.archive_url import BuildName
from artifacts.artifact import Members
from artifacts.catalog import Catalog
from artifacts.errors import ArchiveError
from artifacts.manifest import Item
from artifacts.plan import PlannedItem, plan_item
from artifacts.sources.source import ArchiveFile

_log = logging.getLogger(__name__)

_MAX_LINKS = 8


@dataclass(frozen=True)
class Offered:
    """One way to get a file: ``items`` have to be staged.

    ``file`` of the archive is then published there whole. None: an archive is unpacked, and whether
    it has such a member is not known before.
    """

    items: tuple[Item, ...]
    file: ArchiveFile | None


@dataclass(frozen=True)
class _Tree:
    """An archive file that is unpacked at ``top``, below the build; "" for the build itself."""

    item: Item
    top: str
    members: Members

    def may_have(self, path: str) -> bool:
        """Whether a member is to be expected at ``path``. Of the build itself, few can be told."""
        if not self.top:
            return bool(self.members.include) and self.members.wants(path)
        relative = path.removeprefix(f"{self.top}/")
        return relative != path and self.members.wants(relative)


class Offer:
    """What a build offers by its ``listing``, planned for each artifact of the catalog once."""

    def __init__(
        self, listing: Mapping[str, ArchiveFile], catalog: Catalog, build: BuildName
    ) -> None:
        self.listing = listing
        # By path below the build; the first artifact of the catalog counts.
        self._files: dict[str, tuple[Item, str]] = {}
        self._links: dict[str, tuple[Item, str]] = {}
        self._trees: list[_Tree] = []
        for name, artifact in catalog.artifacts.items():
            item = Item.artifact(name)
            try:
                planned = plan_item(item, listing, catalog, build)
            except ArchiveError as error:
                # Which file is meant is not clear, and staging it would not tell either.
                _log.info("%s of %s: %s", name, build, error.message)
                continue
            if not planned.files:
                continue
            if planned.is_unpacked:
                self._trees.append(_Tree(item, artifact.tree_path(build), planned.members))
            self._add(item, planned)

    def _add(self, item: Item, planned: PlannedItem) -> None:
        is_one_of_many = len(planned.published_whole) > 1
        for path, name in planned.published_whole.items():
            # Of many files that keep their names, just the one is staged that is asked for.
            alone = Item.files(name) if is_one_of_many and path == name else item
            self._files.setdefault(path, (alone, name))
        for path, target in planned.links.items():
            self._links.setdefault(path, (item, target))

    def find(self, path: str) -> list[Offered]:
        """Return the ways to get the file at ``path``, the best first.

        It is looked for by the path at which it would be published, else by its name in the
        archive.
        """
        linking: tuple[Item, ...] = ()
        while path in self._links and len(linking) < _MAX_LINKS:
            item, path = self._links[path]
            linking += (item,)
        found = []
        if path in self._files:
            item, name = self._files[path]
            found.append(Offered((*linking, item), self.listing[name]))
        found += [Offered((*linking, t.item), None) for t in self._trees if t.may_have(path)]
        if path in self.listing:
            found.append(Offered((*linking, Item.files(path)), self.listing[path]))
        return found
