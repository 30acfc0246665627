"""Files: lists of blobs, on record for the organization that has uploaded them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, exists, or_, select

from artifacts.database.database import Database
from artifacts.database.tables import (
    blob_index,
    blobs,
    build_files,
    debug_files,
    files,
)


@dataclass(frozen=True)
class BlobPart:
    """A blob's place in a file; ``offset`` and ``size`` in bytes."""

    offset: int
    size: int
    checksum: str


@dataclass(frozen=True)
class AssembledFile:
    """A file whose bytes have been checked against ``checksum``, its SHA-1, once.

    Attributes:
        id: in the database.
        size: in bytes.
        parts: the blobs it is made of, in order and without gaps.
    """

    id: int
    checksum: str
    size: int
    crc32c: int
    parts: tuple[BlobPart, ...]


def parts_of(chunks: Sequence[str], sizes: Mapping[str, int]) -> tuple[BlobPart, ...]:
    """Return the parts of a file that consists of ``chunks``, in order."""
    parts = []
    offset = 0
    for checksum in chunks:
        parts.append(BlobPart(offset, sizes[checksum], checksum))
        offset += sizes[checksum]
    return tuple(parts)


class Files:
    """The files on record, with their blob indexes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, organization: str, checksum: str) -> AssembledFile | None:
        """Return the organization's file of that checksum; None where it has none."""
        with self._database.reading() as connection:
            row = connection.execute(
                select(files).where(
                    files.c.organization == organization, files.c.checksum == checksum
                )
            ).first()
            return None if row is None else self._read(connection, row)

    def add(
        self,
        connection: Connection,
        organization: str,
        checksum: str,
        crc32c: int,
        parts: Sequence[BlobPart],
    ) -> int:
        """Record a file, within a transaction; return its id, that of the one on record if any.

        The caller has checked the bytes, and holds leases on the blobs.
        """
        row = {
            "organization": organization,
            "checksum": checksum,
            "size": sum(part.size for part in parts),
            "crc32c": crc32c,
            "created_at": time.time(),
        }
        insert = self._database.insert(files).on_conflict_do_nothing().returning(files.c.id)
        inserted = connection.execute(insert, row).first()
        if inserted is None:
            # Whoever is just removing it has removed it, or finds what names it.
            known = connection.execute(
                select(files.c.id)
                .where(files.c.organization == organization, files.c.checksum == checksum)
                .with_for_update(read=True, key_share=True)
            ).first()
            if known is not None:
                return int(known.id)
            inserted = connection.execute(insert, row).one()
        _index(connection, inserted.id, parts)
        return int(inserted.id)

    def index_anew(self, connection: Connection, file_id: int, parts: Sequence[BlobPart]) -> None:
        """Have a file on record consist of other blobs, within a transaction.

        The caller has checked that their bytes are the file's, and holds leases on them.
        """
        connection.execute(blob_index.delete().where(blob_index.c.file_id == file_id))
        _index(connection, file_id, parts)

    def incomplete(self, connection: Connection, file_ids: Collection[int]) -> set[int]:
        """Return those of the files that lack blobs; of no more ids than a statement may have."""
        lacking = (
            select(blob_index.c.file_id)
            .outerjoin(blobs, blobs.c.checksum == blob_index.c.checksum)
            .where(blob_index.c.file_id.in_(file_ids), blobs.c.checksum.is_(None))
            .distinct()
        )
        return set(connection.execute(lacking).scalars())

    def missing_blobs(self, file: AssembledFile) -> list[str]:
        """Return those blobs of a file that are not there (any more), each once, in order."""
        with self._database.reading() as connection:
            present = set(
                connection.execute(
                    select(blob_index.c.checksum)
                    .join(blobs, blobs.c.checksum == blob_index.c.checksum)
                    .where(blob_index.c.file_id == file.id)
                ).scalars()
            )
        return list(dict.fromkeys(p.checksum for p in file.parts if p.checksum not in present))

    def remove_unnamed(self, file_id: int, before: float) -> bool:
        """Remove a file and its blob index if nothing names it and it is older than ``before``.

        Returns whether it was removed.
        """
        with self._database.writing() as connection:
            row = connection.execute(
                select(files.c.id)
                .where(files.c.id == file_id, files.c.created_at < before)
                .with_for_update()
            ).first()
            # Looked at only now, when nobody can begin to name it.
            if row is None or connection.execute(select(is_named(file_id))).scalar_one():
                return False
            connection.execute(files.delete().where(files.c.id == file_id))
            return True

    def _read(self, connection: Connection, row: Row[Any]) -> AssembledFile:
        indexed = connection.execute(
            select(blob_index).where(blob_index.c.file_id == row.id).order_by(blob_index.c.number)
        )
        parts = tuple(BlobPart(part.offset, part.size, part.checksum) for part in indexed)
        return AssembledFile(row.id, row.checksum, row.size, row.crc32c, parts)


def is_named(file_id: ColumnElement[int] | int) -> ColumnElement[bool]:
    """The condition that a debug file or a build names a file."""
    return or_(
        exists().where(debug_files.c.file_id == file_id),
        exists().where(build_files.c.file_id == file_id),
    )


def _index(connection: Connection, file_id: int, parts: Sequence[BlobPart]) -> None:
    rows = [
        {
            "file_id": file_id,
            "number": number,
            "offset": part.offset,
            "size": part.size,
            "checksum": part.checksum,
        }
        for number, part in enumerate(parts)
    ]
    if rows:
        connection.execute(blob_index.insert(), rows)
