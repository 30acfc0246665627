"""Garbage: what is kept of uploads though nobody can need it any more.

Servers that share a database and a storage may all collect it at the same time, while chunks come
in and files are assembled: each piece is looked at again, under its lock, before it goes.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Column, Table, delete, not_, select

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.files import Files, is_named
from artifacts.blobs.inventory import count_recorded, pages_of_records, unrecorded_blobs
from artifacts.blobs.storage_failures import StorageFailures
from artifacts.database.database import Database
from artifacts.database.tables import assemblies, files, leases
from artifacts.errors import shutting_down, storage_error

# A blob is stored first and recorded next; one that is not on record by then never will be.
RECORD_SECONDS = 3600.0
_DAY_SECONDS = 24 * 3600.0
_ROWS_AT_ONCE = 1000
# Crashes leave a few blobs without a record. Many are those of another database: who names the
# wrong one must not lose them.
_MAX_UNRECORDED = 100
_UNRECORDED_AT_ONCE = 10_000
_MAX_PAUSE_SECONDS = 1.0

_Result = TypeVar("_Result")


@dataclass
class Collected:
    """What was removed.

    Attributes:
        blobs: that were on record.
        unrecorded_blobs: that were in the storage, and not on record.
        bytes: of all that was removed.
        files: that neither a debug file nor a build named.
        leases, assemblies: records that had expired.
        temporary_files: that whoever wrote them has left behind.
        unrecorded_blobs_left: that are not on record, but too many to have been left by crashes.
    """

    blobs: int = 0
    unrecorded_blobs: int = 0
    bytes: int = 0
    files: int = 0
    leases: int = 0
    assemblies: int = 0
    temporary_files: int = 0
    unrecorded_blobs_left: int = 0


class GarbageCollector:
    """Collects the garbage of one database and storage."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        files: Files,
        stopped: threading.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``stopped``: once it is set, collecting ends with Busy, as soon as it can."""
        self._database = database
        self._blobs = blobs
        self._storage = blobs.storage
        self._files = files
        self._stopped = stopped
        self._now = now

    def collect(self) -> Collected:
        """Remove what nobody needs.

        Raises:
            Busy: the database is unavailable, a blob is locked for too long, or it was stopped.
            StorageError: the storage cannot be read, fails at many blobs one after the other, or,
                once all the rest is done, it did not remove a blob.
        """
        collected = Collected()
        failures = StorageFailures()
        # Files before blobs: those of a file that goes now can go, too.
        self._collect_files(collected)
        self._collect_blobs(collected, failures)
        self._collect_unrecorded(collected, failures)
        collected.leases = self._delete_expired(leases, leases.c.checksum)
        collected.assemblies = self._delete_expired(assemblies, assemblies.c.offer)
        self._collect_temporary(collected)
        if failures.first is not None:
            raise failures.first
        return collected

    def _collect_files(self, collected: Collected) -> None:
        before = self._now() - _DAY_SECONDS
        page = (
            select(files.c.id)
            .where(files.c.created_at < before, not_(is_named(files.c.id)))
            .order_by(files.c.id)
            .limit(_ROWS_AT_ONCE)
        )
        last = -1
        while True:
            with self._database.reading() as connection:
                ids = connection.execute(page.where(files.c.id > last)).scalars().all()
            if not ids:
                return
            for last in ids:
                collected.files += self._gently(partial(self._files.remove_unnamed, last, before))

    def _collect_blobs(self, collected: Collected, failures: StorageFailures) -> None:
        for page in pages_of_records(self._database, self._now()):
            self._check_stopped()
            for record in page:
                if record.is_needed:
                    continue
                collect = partial(self._blobs.collect, record.checksum, self._now())
                with failures.noted():
                    size = self._gently(collect)
                    if size is not None:
                        collected.blobs += 1
                        collected.bytes += size

    def _collect_unrecorded(self, collected: Collected, failures: StorageFailures) -> None:
        before = self._now() - RECORD_SECONDS
        unrecorded = unrecorded_blobs(self._database, self._storage, self._check_stopped)
        found = [
            blob for blob in islice(unrecorded, _UNRECORDED_AT_ONCE) if blob.stored_at < before
        ]
        recorded, _ = count_recorded(self._database)
        if len(found) > max(recorded, _MAX_UNRECORDED):
            collected.unrecorded_blobs_left = len(found)
            return
        for blob in found:
            with failures.noted():
                if self._gently(partial(self._blobs.remove_unrecorded, blob.checksum)):
                    collected.unrecorded_blobs += 1
                    collected.bytes += blob.size

    def _delete_expired(self, table: Table, key: Column[str]) -> int:
        """Delete the rows of a table that have expired, some at a time; return how many."""
        is_over = table.c.expires_at <= self._now()
        # What others are just prolonging is left to them: waiting for it, while they wait for what
        # this holds, would be for ever.
        some = select(key).where(is_over).limit(_ROWS_AT_ONCE).with_for_update(skip_locked=True)

        def delete_some() -> int:
            with self._database.writing() as connection:
                return connection.execute(delete(table).where(key.in_(some))).rowcount

        deleted = 0
        while count := self._gently(delete_some):
            deleted += count
        return deleted

    def _collect_temporary(self, collected: Collected) -> None:
        directory = self._storage.spool_directory
        try:
            freed = remove_abandoned(directory, self._now() - _DAY_SECONDS)
        except OSError as error:
            raise storage_error(error, str(directory)) from error
        collected.temporary_files = len(freed)
        collected.bytes += sum(freed)

    def _gently(self, work: Callable[[], _Result]) -> _Result:
        """Do a piece of work, and then leave the disk to others for as long as it took.

        Deleting makes writing to the same file system slower by far.
        """
        self._check_stopped()
        begun_at = time.monotonic()
        done = work()
        self._stopped.wait(min(time.monotonic() - begun_at, _MAX_PAUSE_SECONDS))
        return done

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise shutting_down()


def remove_abandoned(directory: Path, before: float) -> list[int]:
    """Remove the files of a directory that were last written ``before``; return their sizes."""
    sizes = []
    with os.scandir(directory) as entries:
        for entry in entries:
            # Somebody else may take one away just now.
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_mtime < before:
                    os.unlink(entry.path)
                    sizes.append(status.st_size)
    return sizes
