"""The source ``store``: builds that have been published to this server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from artifacts.archive_url import ArchiveUrl
from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.files import BlobPart
from artifacts.blobs.store_range import StoreRange, archive_errors, part_bytes
from artifacts.checksums import Checksums
from artifacts.database.database import Database
from artifacts.database.tables import blob_index, build_files, builds, files
from artifacts.errors import ArchiveFileChanged, ArchiveFileMissing, BuildNotFound
from artifacts.sources.source import ArchiveFile


class StoreSource:
    """Reads ``store://target/build``: the database lists it, blobs are what is read."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        with archive_errors(str(archive_url)), self._database.reading() as connection:
            rows = connection.execute(_files_of(archive_url)).all()
        if not rows:
            raise BuildNotFound(f"no such build: {archive_url}; nothing is published by that name")
        return [replace(_describe(row), stat_tells_more=True) for row in rows]

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        with archive_errors(f"{archive_url}/{name}"), self._database.reading() as connection:
            row = _find(connection, archive_url, name)
            in_order = select(blob_index.c.size).where(blob_index.c.file_id == row.id)
            sizes = connection.execute(in_order.order_by(blob_index.c.number)).scalars().all()
        return replace(_describe(row), part_bytes=part_bytes(sizes))

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> StoreRange:
        what = f"{archive_url}/{file.name}"
        with archive_errors(what), self._database.reading() as connection:
            row = _find(connection, archive_url, file.name)
            if file.generation not in {None, row.checksum}:
                raise ArchiveFileChanged(f"{what} was published anew while it was fetched")
            stop = row.size if stop is None else min(stop, row.size)
            start = min(start, stop)
            parts = _parts_between(connection, row.id, start, stop)
        return StoreRange(self._blobs, parts, _describe(row), what, start, stop)

    def close(self) -> None:
        pass


def _files_of(archive_url: ArchiveUrl) -> Select[Any]:
    name = archive_url.name
    return (
        select(build_files.c.name, files.c.id, files.c.checksum, files.c.size, files.c.crc32c)
        .join(builds, builds.c.id == build_files.c.build_id)
        .join(files, files.c.id == build_files.c.file_id)
        .where(builds.c.target == name.target, builds.c.build == name.build)
    )


def _find(connection: Connection, archive_url: ArchiveUrl, name: str) -> Row[Any]:
    row = connection.execute(_files_of(archive_url).where(build_files.c.name == name)).first()
    if row is None:
        raise ArchiveFileMissing(f"{archive_url} has no file {name}")
    return row


def _parts_between(
    connection: Connection, file_id: int, start: int, stop: int
) -> Sequence[BlobPart]:
    index = blob_index.c
    rows = connection.execute(
        select(index.offset, index.size, index.checksum)
        .where(index.file_id == file_id, index.offset < stop, index.offset + index.size > start)
        .order_by(index.number)
    )
    return [BlobPart(*row) for row in rows]


def _describe(row: Row[Any]) -> ArchiveFile:
    return ArchiveFile(
        name=row.name,
        size=row.size,
        size_is_exact=True,
        generation=row.checksum,
        has_ranges=True,
        checksums=Checksums(crc32c=row.crc32c),
    )
