"""Uploads as they stand in a database and a storage, made without a server."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Sequence

from sqlalchemy import Table, func, select

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.check import BlobCheck, CheckReport
from artifacts.blobs.files import Files, parts_of
from artifacts.blobs.garbage import Collected, GarbageCollector
from artifacts.blobs.storage import BlobStorage
from artifacts.database.database import Database
from artifacts.database.locks import Locks
from artifacts.database.tables import blobs, build_files, builds, debug_files

ORGANIZATION = "lab"
HOUR = 3600.0
DAY = 24 * HOUR


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


class StoredUploads:
    """What a server would have of uploads; ``later`` is what upkeep adds to the time of day."""

    def __init__(self, database: Database, storage: BlobStorage, locks: Locks) -> None:
        self.database = database
        self.storage = storage
        self.blobs = BlobStore(database, storage, locks)
        self.files = Files(database)
        self.stopped = threading.Event()
        self.later = 0.0

    def send(self, data: bytes, organization: str = ORGANIZATION) -> str:
        """Have a chunk kept, as uploading it does; return its checksum."""
        spooled = self.storage.spool_directory / uuid.uuid4().hex
        spooled.write_bytes(data)
        assert self.blobs.keep(organization, sha1(data), len(data), spooled)
        return sha1(data)

    def add_file(self, chunks: Sequence[bytes]) -> int:
        """Record a file of chunks that are there, named by nothing; return its id."""
        sizes = {sha1(chunk): len(chunk) for chunk in chunks}
        parts = parts_of([sha1(chunk) for chunk in chunks], sizes)
        checksum = sha1(b"".join(chunks))
        with self.database.writing() as connection:
            return self.files.add(connection, ORGANIZATION, checksum, 0, parts)

    def add_debug_file(self, name: str, chunks: Sequence[bytes]) -> int:
        """Record a debug file of the project ``devices``; return its file's id."""
        file_id = self.add_file(chunks)
        with self.database.writing() as connection:
            row = {"organization": ORGANIZATION, "project": "devices", "file_id": file_id}
            connection.execute(debug_files.insert(), {**row, "name": name, "created_at": 0.0})
        return file_id

    def add_build_file(self, target: str, build: str, name: str, chunks: Sequence[bytes]) -> None:
        """Publish a build of one file."""
        file_id = self.add_file(chunks)
        row = {"target": target, "build": build, "organization": ORGANIZATION}
        with self.database.writing() as connection:
            added = connection.execute(
                builds.insert().returning(builds.c.id),
                {**row, "project": "builds", "created_at": 0.0},
            )
            connection.execute(
                build_files.insert(),
                {"build_id": added.scalar_one(), "name": name, "file_id": file_id},
            )

    def is_recorded(self, checksum: str) -> bool:
        with self.database.reading() as connection:
            found = connection.execute(select(blobs).where(blobs.c.checksum == checksum))
            return found.first() is not None

    def is_stored(self, checksum: str) -> bool:
        return checksum in {blob.checksum for blob in self.storage.list()}

    def count(self, table: Table) -> int:
        with self.database.reading() as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar_one()

    def now(self) -> float:
        return time.time() + self.later

    def collect(self) -> Collected:
        """Collect garbage, as the server does."""
        return GarbageCollector(
            self.database, self.blobs, self.files, self.stopped, self.now
        ).collect()

    def check(self, *, repair: bool = False) -> CheckReport:
        """Check all blobs, as the server does."""
        return BlobCheck(self.database, self.blobs, self.stopped, self.now).run(repair=repair)
