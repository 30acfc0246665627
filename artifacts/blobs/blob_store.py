"""Blobs, with what is on record of them: what is kept, whose it is, and until when.

A blob is there if the database says so, and the database says so only once the storage has it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from sqlalchemy import Connection, select

from artifacts.blobs.storage import BlobStorage, OpenedBlob
from artifacts.database.database import Database
from artifacts.database.locks import Locks
from artifacts.database.tables import blobs, leases, owners

# For which what a client was told to be there stays, at least.
LEASE_SECONDS = 24 * 3600.0
# Databases limit how many values a statement may have.
_VALUES_AT_ONCE = 500


class BlobStore:
    """The blobs of a server, or of several that share a database and a storage."""

    def __init__(self, database: Database, storage: BlobStorage, locks: Locks) -> None:
        self._database = database
        self.storage = storage
        self._locks = locks

    def keep(self, organization: str, checksum: str, size: int, spooled: Path | None) -> bool:
        """Have a blob that ``organization`` has sent; it has a lease when this returns.

        Args:
            checksum: that of the bytes; the caller has checked it.
            spooled: a file in the storage's spool directory, which is taken away; None to keep the
                blob only if it is there already.

        Returns:
            Whether it is there.

        Raises:
            StorageError, InsufficientStorage, Busy: it is not.
        """
        with self._locks.holding(checksum):
            if self._claim(organization, checksum):
                if spooled is not None:
                    spooled.unlink(missing_ok=True)
                return True
            if spooled is None:
                return False
            self.storage.put(checksum, spooled)
            with self._database.writing() as connection:
                row = {"checksum": checksum, "size": size, "stored_at": time.time()}
                connection.execute(self._database.insert(blobs).on_conflict_do_nothing(), row)
                self._own(connection, organization, checksum)
            return True

    def _claim(self, organization: str, checksum: str) -> bool:
        with self._database.writing() as connection:
            is_there = connection.execute(
                select(blobs.c.checksum).where(blobs.c.checksum == checksum)
            ).first()
            if is_there is not None:
                self._own(connection, organization, checksum)
            return is_there is not None

    def _own(self, connection: Connection, organization: str, checksum: str) -> None:
        owned = {"checksum": checksum, "organization": organization}
        connection.execute(self._database.insert(owners).on_conflict_do_nothing(), owned)
        self._lease(connection, [checksum])

    def lease_owned(self, organization: str, checksums: Collection[str]) -> dict[str, int]:
        """Return the sizes of those blobs that are there and the organization's, by checksum.

        They stay for as long as a lease lasts.
        """
        found: dict[str, int] = {}
        with self._database.writing() as connection:
            for some in _batches(checksums):
                rows = connection.execute(
                    select(blobs.c.checksum, blobs.c.size)
                    .join(owners, owners.c.checksum == blobs.c.checksum)
                    .where(owners.c.organization == organization, blobs.c.checksum.in_(some))
                )
                found.update((row.checksum, row.size) for row in rows)
            self._lease(connection, sorted(found))
        return found

    def _lease(self, connection: Connection, checksums: Collection[str]) -> None:
        insert = self._database.insert(leases)
        longest = insert.on_conflict_do_update(
            index_elements=["checksum"],
            set_={"expires_at": insert.excluded.expires_at},
            where=leases.c.expires_at < insert.excluded.expires_at,
        )
        expires_at = time.time() + LEASE_SECONDS
        if checksums:
            rows = [{"checksum": checksum, "expires_at": expires_at} for checksum in checksums]
            connection.execute(longest, rows)

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> OpenedBlob:
        """Open a blob, as the storage does."""
        return self.storage.open(checksum, start, stop)

    def drop(self, checksum: str) -> None:
        """Forget a blob that is damaged, and remove it: it will be asked for again."""
        with self._locks.holding(checksum):
            with self._database.writing() as connection:
                connection.execute(blobs.delete().where(blobs.c.checksum == checksum))
            self.storage.delete(checksum)


def _batches(checksums: Collection[str]) -> Iterator[list[str]]:
    left = iter(checksums)
    while some := list(islice(left, _VALUES_AT_ONCE)):
        yield some
