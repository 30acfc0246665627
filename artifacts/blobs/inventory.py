"""Going through all blobs, those on record and those in the storage, some at a time.

There may be millions: neither are all of them in memory, nor is the database held meanwhile. What
is told of a blob may be over when it is told; who acts on it looks again, under the blob's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import exists, func, or_, select

from artifacts.blobs.storage import BlobStorage, StoredBlob
from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.tables import blob_index, blobs, leases

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class BlobRecord:
    """A blob on record; ``size`` in bytes, ``is_needed``: a file uses it, or its lease goes on."""

    checksum: str
    size: int
    is_needed: bool


def count_recorded(database: Database) -> tuple[int, int]:
    """Return how many blobs are on record, and how many bytes these are."""
    with database.reading() as connection:
        count, size = connection.execute(
            select(func.count(), func.coalesce(func.sum(blobs.c.size), 0)).select_from(blobs)
        ).one()
        return int(count), int(size)


def pages_of_records(database: Database, now: float) -> Iterator[list[BlobRecord]]:
    """Yield the blobs on record, ordered by checksum, some at a time."""
    is_needed = or_(
        exists().where(blob_index.c.checksum == blobs.c.checksum),
        exists().where(leases.c.checksum == blobs.c.checksum, leases.c.expires_at > now),
    )
    page = (
        select(blobs.c.checksum, blobs.c.size, is_needed.label("is_needed"))
        .order_by(blobs.c.checksum)
        .limit(_ROWS_AT_ONCE)
    )
    last = ""
    while True:
        with database.reading() as connection:
            rows = connection.execute(page.where(blobs.c.checksum > last)).all()
        if not rows:
            return
        yield [BlobRecord(row.checksum, row.size, bool(row.is_needed)) for row in rows]
        last = rows[-1].checksum


def unrecorded_blobs(
    database: Database, storage: BlobStorage, check_stopped: Callable[[], None]
) -> Iterator[StoredBlob]:
    """Yield what the storage has and the database has no record of.

    Args:
        check_stopped: called every few hundred blobs; what it raises ends it.
    """
    for some in batches(storage.list()):
        check_stopped()
        checksums = [blob.checksum for blob in some]
        with database.reading() as connection:
            recorded = set(
                connection.execute(
                    select(blobs.c.checksum).where(blobs.c.checksum.in_(checksums))
                ).scalars()
            )
        yield from (blob for blob in some if blob.checksum not in recorded)
