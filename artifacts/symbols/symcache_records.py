"""What is on record of symcaches: which were built, and why others cannot be."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.tables import debug_files, files, symcaches

# For which an error is told to all who ask; after it, the file may be tried again.
_TOLD_SECONDS = 300.0


@dataclass(frozen=True)
class BuiltSymcache:
    """That of one object of a debug file; ``error`` says why there is none."""

    number: int
    version: int
    error: str | None = None


@dataclass(frozen=True)
class RecordedError:
    """Why there is no symcache; ``is_old``: all who asked can have been told."""

    detail: str
    is_old: bool


class SymcacheRecords:
    """A row for each object of a debug file, and each version of the format."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, connection: Connection, debug_file_id: int, built: Collection[BuiltSymcache]
    ) -> None:
        """Record what was built, within a transaction; older versions are forgotten.

        Of several who build the same one, all count on one row. One that was built is worth more
        than an error.
        """
        for one in built:
            row = {
                "debug_file_id": debug_file_id,
                "number": one.number,
                "version": one.version,
                "error": one.error,
                "created_at": time.time(),
            }
            insert = self._database.insert(symcaches)
            latest = {name: insert.excluded[name] for name in ("error", "created_at")}
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["debug_file_id", "number", "version"],
                    set_=latest,
                    where=symcaches.c.error.is_not(None),
                ),
                row,
            )
            connection.execute(
                symcaches.delete().where(
                    symcaches.c.debug_file_id == debug_file_id,
                    symcaches.c.number == one.number,
                    symcaches.c.version < one.version,
                )
            )

    def note(self, debug_file_id: int, built: Collection[BuiltSymcache]) -> None:
        """Record what was built, if the debug file is still on record."""
        with contextlib.suppress(IntegrityError), self._database.writing() as connection:
            self.add(connection, debug_file_id, built)

    def error_of(self, debug_file_id: int) -> RecordedError | None:
        """Return why one file has no symcache, if it should have one."""
        with self._database.reading() as connection:
            return self.errors(connection, [debug_file_id]).get(debug_file_id)

    def errors(
        self, connection: Connection, debug_file_ids: Collection[int]
    ) -> dict[int, RecordedError]:
        """Return which of the files have no symcache that they should have, by id, and why.

        Of no more ids than a statement may have.
        """
        rows = connection.execute(
            select(symcaches)
            .where(symcaches.c.debug_file_id.in_(debug_file_ids), symcaches.c.error.is_not(None))
            .order_by(symcaches.c.number.desc())
        )
        told = time.time() - _TOLD_SECONDS
        return {row.debug_file_id: RecordedError(row.error, row.created_at < told) for row in rows}

    def of_checksums(self, checksums: Collection[str]) -> set[tuple[str, int, int]]:
        """Return checksum, number and version of those of the files with these checksums."""
        found: set[tuple[str, int, int]] = set()
        with self._database.reading() as connection:
            for some in batches(checksums):
                query = (
                    select(files.c.checksum, symcaches.c.number, symcaches.c.version)
                    .join(debug_files, debug_files.c.id == symcaches.c.debug_file_id)
                    .join(files, files.c.id == debug_files.c.file_id)
                    .where(files.c.checksum.in_(some))
                )
                found.update(tuple(row) for row in connection.execute(query))
        return found
