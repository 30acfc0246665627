"""Published builds: files that have been uploaded to be staged from ``store://target/build``.

A build is named alike for everybody: it belongs to the organization that published it first. A name
in it is set once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from time import time

from sqlalchemy import Connection, Select, func, or_, select

from artifacts.archive_url import BuildName
from artifacts.blobs.assembly import Assembly, Record, Refused
from artifacts.blobs.files import Files
from artifacts.blobs.offers import Offer
from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.tables import build_files, builds, files

# Several times a test image: few bytes of a request can name one chunk very often.
_MAX_FILE_BYTES = 64 << 30
# PostgreSQL has no room in an index for names that are much longer.
_MAX_NAME_BYTES = 1024


class BuildFiles:
    """The purpose of what an organization publishes as files of a build; see `Purpose`."""

    kind = "build"
    needs_file = False
    max_file_bytes = _MAX_FILE_BYTES

    def __init__(
        self, database: Database, files: Files, organization: str, project: str, build: BuildName
    ) -> None:
        self.organization = organization
        self.key = f"build {build} of {project}"
        self.place: Mapping[str, str] = {
            "project": project,
            "target": build.target,
            "build": build.build,
        }
        self._database = database
        self._files = files
        self._project = project
        self._build = build

    def find(self, connection: Connection, offers: Collection[Offer]) -> dict[str, Assembly]:
        found = {
            offer.checksum: Assembly.error(refusal)
            for offer in offers
            if (refusal := _refusal_of(offer.name)) is not None
        }
        build = connection.execute(self._select_build()).first()
        if build is None:
            return found
        if build.organization != self.organization:
            return {
                offer.checksum: Assembly.error(self._belongs_to_others().message)
                for offer in offers
            }
        for some in batches(offer for offer in offers if offer.checksum not in found):
            found.update(self._find_names(connection, build.id, some))
        return found

    def examine(self, offer: Offer, path: Path | None) -> Record:
        return partial(self._record, offer)

    def _find_names(
        self, connection: Connection, build_id: int, offers: Collection[Offer]
    ) -> dict[str, Assembly]:
        named = {
            row.name: row
            for row in connection.execute(
                select(build_files.c.name, files.c.id, files.c.checksum)
                .join(files, files.c.id == build_files.c.file_id)
                .where(
                    build_files.c.build_id == build_id,
                    build_files.c.name.in_([offer.name for offer in offers]),
                )
            )
        }
        incomplete = self._files.incomplete(connection, [row.id for row in named.values()])
        found = {}
        for offer in offers:
            if (row := named.get(offer.name)) is None:
                continue
            if row.checksum != offer.checksum:
                found[offer.checksum] = Assembly.error(
                    self._is_taken(offer.name, row.checksum).message
                )
            elif row.id not in incomplete:
                found[offer.checksum] = Assembly("ok")
        return found

    def _record(self, offer: Offer, connection: Connection, file_id: int) -> None:
        row = {
            "target": self._build.target,
            "build": self._build.build,
            "organization": self.organization,
            "project": self._project,
            "created_at": time(),
        }
        connection.execute(self._database.insert(builds).on_conflict_do_nothing(), row)
        # Others who name a file of this build wait here, so that they see the names of these.
        build = connection.execute(self._select_build().with_for_update()).one()
        if build.organization != self.organization:
            raise self._belongs_to_others()
        self._check_places(connection, build.id, offer, file_id)
        connection.execute(
            self._database.insert(build_files).on_conflict_do_nothing(),
            {"build_id": build.id, "name": offer.name, "file_id": file_id},
        )

    def _check_places(
        self, connection: Connection, build_id: int, offer: Offer, file_id: int
    ) -> None:
        """Refuse a name that is set to another file, or where one file is a directory of both."""
        directories = offer.name.split("/")[:-1]
        above = ["/".join(directories[:count]) for count in range(1, len(directories) + 1)]
        below = f"{offer.name}/"
        clashes = connection.execute(
            select(build_files.c.name, build_files.c.file_id, files.c.checksum)
            .join(files, files.c.id == build_files.c.file_id)
            .where(
                build_files.c.build_id == build_id,
                or_(
                    build_files.c.name.in_([offer.name, *above]),
                    # Not LIKE, which ignores case on SQLite.
                    func.substr(build_files.c.name, 1, len(below)) == below,
                ),
            )
            .limit(2)
        )
        for row in clashes:
            if row.name != offer.name:
                raise Refused(
                    f"{self._build} has a file {row.name!r:.300}: "
                    "one of the two names would have to be a directory"
                )
            if row.file_id != file_id:
                raise self._is_taken(offer.name, row.checksum)

    def _select_build(self) -> Select[tuple[int, str]]:
        return select(builds.c.id, builds.c.organization).where(
            builds.c.target == self._build.target, builds.c.build == self._build.build
        )

    def _belongs_to_others(self) -> Refused:
        return Refused(
            f"{self._build} is published by another organization; give the build another name"
        )

    def _is_taken(self, name: str, checksum: str) -> Refused:
        return Refused(
            f"{self._build} has another file {name!r:.300} already, {checksum}; a name is set once"
        )


def _refusal_of(name: str) -> str | None:
    """Return why no build has a file of that name; None if one may."""
    if any(segment.startswith(".") for segment in name.split("/")):
        return f"names that begin with a dot are reserved: {name!r:.300}"
    if len(name.encode("utf-8")) > _MAX_NAME_BYTES:
        return f"a shorter name is needed, of {_MAX_NAME_BYTES:,} bytes at most: {name!r:.300}"
    return None
