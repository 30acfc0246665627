"""Files that miss some of their blobs: which builds and debug files these are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.tables import (
    blob_index,
    blobs,
    build_files,
    builds,
    debug_files,
    files,
)

_FILES_AT_ONCE = 100


@dataclass(frozen=True)
class IncompleteFile:
    """A file of a published build, or a debug file, that cannot be read until it is sent again.

    Attributes:
        build: TARGET/BUILD; None for a debug file.
    """

    organization: str
    project: str
    build: str | None
    name: str


def find_incomplete(
    database: Database, damaged: Sequence[str], max_files: int
) -> list[IncompleteFile]:
    """Return the files that have one of the ``damaged`` blobs, or one that is not on record.

    Of files, no more than ``max_files`` are looked at.
    """
    ids: set[int] = set()
    for some in _lacking(database, damaged):
        ids.update(some)
        if len(ids) >= max_files:
            break
    found: list[IncompleteFile] = []
    for batch in batches(sorted(ids)[:max_files]):
        with database.reading() as connection:
            found += _describe(connection, batch)
    return found


def _lacking(database: Database, damaged: Sequence[str]) -> Iterator[Sequence[int]]:
    """Yield the ids of files that lack blobs, some at a time; one may come repeatedly."""
    for checksums in batches(damaged):
        have_one = select(blob_index.c.file_id).where(blob_index.c.checksum.in_(checksums))
        with database.reading() as connection:
            yield connection.execute(have_one.distinct()).scalars().all()
    page = select(files.c.id).order_by(files.c.id).limit(_FILES_AT_ONCE)
    lack_one = (
        select(blob_index.c.file_id)
        .outerjoin(blobs, blobs.c.checksum == blob_index.c.checksum)
        .where(blobs.c.checksum.is_(None))
        .distinct()
    )
    last = -1
    while True:
        with database.reading() as connection:
            ids = connection.execute(page.where(files.c.id > last)).scalars().all()
            if not ids:
                return
            last = ids[-1]
            among = lack_one.where(blob_index.c.file_id.between(ids[0], last))
            yield connection.execute(among).scalars().all()


def _describe(connection: Connection, ids: list[int]) -> Iterator[IncompleteFile]:
    in_builds = (
        select(builds, build_files.c.name)
        .join(build_files, build_files.c.build_id == builds.c.id)
        .where(build_files.c.file_id.in_(ids))
        .order_by(builds.c.target, builds.c.build, build_files.c.name)
    )
    for row in connection.execute(in_builds):
        build = f"{row.target}/{row.build}"
        yield IncompleteFile(row.organization, row.project, build, row.name)
    of_debugging = (
        select(debug_files).where(debug_files.c.file_id.in_(ids)).order_by(debug_files.c.id)
    )
    for row in connection.execute(of_debugging):
        yield IncompleteFile(row.organization, row.project, None, row.name)
