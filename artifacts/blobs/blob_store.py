"""Blobs, with what is on record of them: what is kept, whose it is, and until when.

A blob is there if the database says so, and the database says so only once the storage has it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Select, select

from artifacts.blobs.damage import Damage, find_damage, unreadable
from artifacts.blobs.storage import BlobStorage, OpenedBlob, StorageError
from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.locks import Locks
from artifacts.database.tables import blob_index, blobs, leases, owners
from artifacts.errors import Busy

# For which what has come, or was not to stay for long, is kept.
LEASE_SECONDS = 24 * 3600.0
# A lease that lasts as long is not prolonged: clients ask every second.
_LONG_SECONDS = 20 * 3600.0
_LEASED_AT_ONCE = 5000

_log = logging.getLogger(__name__)
_Removed = TypeVar("_Removed")


class BlobStore:
    """The blobs of a server, or of several that share a database and a storage."""

    def __init__(self, database: Database, storage: BlobStorage, locks: Locks) -> None:
        self._database = database
        self.storage = storage
        self._locks = locks

    def has(self, checksum: str) -> bool:
        """Whether a blob is there, whoever has sent it; not to be told to clients."""
        return self._size_of(checksum) is not None

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
            # Reading first spares those who write their turn.
            if self.has(checksum) and self._claim(organization, checksum):
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
            is_there = connection.execute(_record_of(checksum)).first() is not None
            if is_there:
                self._own(connection, organization, checksum)
            return is_there

    def _own(self, connection: Connection, organization: str, checksum: str) -> None:
        owned = {"checksum": checksum, "organization": organization}
        connection.execute(self._database.insert(owners).on_conflict_do_nothing(), owned)
        self._lease(connection, [checksum])

    def lease_owned(self, organization: str, checksums: Collection[str]) -> dict[str, int]:
        """Return the sizes of those blobs that are there and the organization's, by checksum.

        They stay for 20 hours at least. There may be hundreds of thousands: nothing is written of a
        lease that lasts as long, and others may write between some and the next.
        """
        found: dict[str, int] = {}
        # In their order, so that those who lease the same do not wait for each other in a circle.
        left = iter(sorted(checksums))
        while some := list(islice(left, _LEASED_AT_ONCE)):
            lasting, ending = self._find_owned(organization, some)
            found.update(lasting)
            if ending:
                found.update(self._lease_owned(organization, ending))
        return found

    def _find_owned(
        self, organization: str, checksums: Collection[str]
    ) -> tuple[dict[str, int], list[str]]:
        """Return the sizes of those with a lease that lasts long; and the others' checksums."""
        lasting: dict[str, int] = {}
        ending = []
        last_long = leases.c.expires_at > time.time() + _LONG_SECONDS
        with self._database.reading() as connection:
            for some in batches(checksums):
                owned = _owned(organization, some).add_columns(last_long.label("lasts"))
                for row in connection.execute(
                    owned.outerjoin(leases, leases.c.checksum == blobs.c.checksum)
                ):
                    if row.lasts:
                        lasting[row.checksum] = row.size
                    else:
                        ending.append(row.checksum)
        return lasting, ending

    def _lease_owned(self, organization: str, checksums: Collection[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._database.writing() as connection:
            for some in batches(checksums):
                # Whoever is just removing one has removed it, or finds the lease.
                locked = _owned(organization, some).with_for_update(
                    read=True, key_share=True, of=blobs
                )
                found.update((row.checksum, row.size) for row in connection.execute(locked))
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

    def find_damage(self, checksum: str) -> Damage | None:
        """Return what is wrong with a blob; None if it is whole, or not on record.

        Nobody stores or removes it while it is read.

        Raises:
            StorageError: the storage does not let it be read.
        """
        with self._locks.holding(checksum):
            return self._find_damage(checksum)

    def drop(self, checksum: str, read_others: Callable[[], object] | None = None) -> Damage | None:
        """Forget a blob that is damaged or missing, and remove it: it will be asked for again.

        One that is whole stays: others may have found the damage, too, and it has been sent anew.
        Bytes that cannot be removed stay as well, until garbage is collected.

        Args:
            read_others: raises StorageError if other blobs cannot be read; if it does not, one that
                the storage does not let be read counts as damaged.

        Returns:
            What was wrong with it; None if it is whole, or not on record.

        Raises:
            StorageError: the storage does not let it be read.
        """

        def unrecord() -> Damage | None:
            try:
                damage = self._find_damage(checksum)
            except StorageError as error:
                if read_others is None:
                    raise
                read_others()
                damage = unreadable(checksum, error)
            if damage is not None:
                with self._database.writing() as connection:
                    connection.execute(blobs.delete().where(blobs.c.checksum == checksum))
            return damage

        return self._remove(checksum, unrecord, self._try_to_delete)

    def collect(self, checksum: str, now: float) -> int | None:
        """Remove a blob if no file uses it and its lease is over.

        Returns:
            Its size in bytes; None if it stays, or is not on record.

        Raises:
            StorageError: its record is removed, but its bytes cannot be.
        """

        def unrecord() -> int | None:
            with self._database.writing() as connection:
                # Who is granting a lease has locked the row, too: what comes after this look sees
                # the lease, or does not see the blob.
                row = connection.execute(_record_of(checksum).with_for_update()).first()
                if row is None or _is_needed(connection, checksum, now):
                    return None
                connection.execute(blobs.delete().where(blobs.c.checksum == checksum))
                return int(row.size)

        return self._remove(checksum, unrecord, self.storage.delete)

    def remove_unrecorded(self, checksum: str) -> bool:
        """Remove the bytes of a blob that is not on record; return whether it is not.

        Raises:
            StorageError: they cannot be removed.
        """

        def unrecord() -> bool | None:
            return True if self._size_of(checksum) is None else None

        return self._remove(checksum, unrecord, self.storage.delete) is not None

    def _remove(
        self,
        checksum: str,
        unrecord: Callable[[], _Removed | None],
        delete: Callable[[str], None],
    ) -> _Removed | None:
        """Remove the bytes of a blob, unless ``unrecord`` returns None; return what it returns.

        Both under its lock. Should that be lost meanwhile, others may have stored and recorded the
        blob anew before its bytes went: then it is forgotten again, and so asked for again.
        """
        removed = None
        try:
            with self._locks.holding(checksum):
                removed = unrecord()
                if removed is not None:
                    delete(checksum)
        except Busy:
            if removed is not None:
                self.drop(checksum)
            raise
        return removed

    def _try_to_delete(self, checksum: str) -> None:
        try:
            self.storage.delete(checksum)
        except StorageError as error:
            # Once it is sent anew, it takes their place.
            _log.warning("blob %s is forgotten, and its bytes are left: %s", checksum, error)

    def _find_damage(self, checksum: str) -> Damage | None:
        size = self._size_of(checksum)
        return None if size is None else find_damage(self.storage, checksum, size)

    def _size_of(self, checksum: str) -> int | None:
        with self._database.reading() as connection:
            row = connection.execute(_record_of(checksum)).first()
        return None if row is None else int(row.size)


def _record_of(checksum: str) -> Select[tuple[int]]:
    return select(blobs.c.size).where(blobs.c.checksum == checksum)


def _owned(organization: str, checksums: Collection[str]) -> Select[tuple[str, int]]:
    return (
        select(blobs.c.checksum, blobs.c.size)
        .join(owners, owners.c.checksum == blobs.c.checksum)
        .where(owners.c.organization == organization, blobs.c.checksum.in_(checksums))
    )


def _is_needed(connection: Connection, checksum: str, now: float) -> bool:
    is_used = select(blob_index.c.checksum).where(blob_index.c.checksum == checksum).limit(1)
    is_leased = select(leases.c.checksum).where(
        leases.c.checksum == checksum, leases.c.expires_at > now
    )
    return any(connection.execute(query).first() is not None for query in (is_used, is_leased))
