"""Files that consist of blobs, put where a server keeps them, without a server."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import google_crc32c
from faulty_storage import FailingStorage
from sqlalchemy import select

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.files import AssembledFile, Files, parts_of
from artifacts.blobs.sha1 import new_sha1
from artifacts.blobs.storage import BlobStorage, OpenedBlob
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from artifacts.database.tables import build_files, builds

ORGANIZATION = "lab"


def sha1_of(data: bytes) -> str:
    return new_sha1(data).hexdigest()


def cut(content: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Cut content in chunks of these sizes, and one of what is left."""
    start = 0
    for size in sizes:
        yield content[start : start + size]
        start += size
    yield content[start:]


class NotingStorage(FailingStorage):
    """Notes which bytes of which blobs are opened, too."""

    def __init__(self, storage: BlobStorage) -> None:
        super().__init__(storage)
        self.opened: list[tuple[str, int, int | None]] = []

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> OpenedBlob:
        self.opened.append((checksum, start, stop))
        return super().open(checksum, start, stop)


class StoredFiles:
    """Database and blob storage of a data directory; a context manager.

    The storage may be told to misbehave.
    """

    def __init__(self, data_directory: Path) -> None:
        data_directory.mkdir(parents=True, exist_ok=True)
        self.database = Database.in_directory(data_directory)
        self.directory = data_directory / "blobs"
        self.storage = NotingStorage(DirectoryStorage(self.directory))
        self.blobs = BlobStore(self.database, self.storage, ProcessLocks())
        self.files = Files(self.database)

    def __enter__(self) -> StoredFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.database.close()

    def keep(self, chunk: bytes) -> str:
        """Store a chunk, as uploading it does; return its checksum."""
        checksum = sha1_of(chunk)
        spooled = self.storage.spool_directory / f"test-{checksum}"
        spooled.write_bytes(chunk)
        self.blobs.keep(ORGANIZATION, checksum, len(chunk), spooled)
        return checksum

    def add(self, content: bytes, sizes: Sequence[int] = ()) -> AssembledFile:
        """Store a file in chunks of these sizes, and one of what is left."""
        chunks = list(cut(content, sizes))
        checksums = [self.keep(chunk) for chunk in chunks]
        lengths = {sha1_of(chunk): len(chunk) for chunk in chunks}
        with self.database.writing() as connection:
            self.files.add(
                connection,
                ORGANIZATION,
                sha1_of(content),
                google_crc32c.value(content),
                parts_of(checksums, lengths),
            )
        added = self.files.find(ORGANIZATION, sha1_of(content))
        assert added is not None
        return added

    def publish(self, build: str, name: str, file: AssembledFile) -> None:
        """Make a file part of a build, in the place of what it may have by that name."""
        self.unpublish(build, name)
        target, _, build_name = build.partition("/")
        with self.database.writing() as connection:
            row = {
                "target": target,
                "build": build_name,
                "organization": ORGANIZATION,
                "project": "builds",
                "created_at": time.time(),
            }
            connection.execute(self.database.insert(builds).on_conflict_do_nothing(), row)
            found = select(builds.c.id).where(
                builds.c.target == target, builds.c.build == build_name
            )
            build_id = connection.execute(found).scalar_one()
            connection.execute(
                build_files.insert(), {"build_id": build_id, "name": name, "file_id": file.id}
            )

    def unpublish(self, build: str, name: str) -> None:
        target, _, build_name = build.partition("/")
        found = select(builds.c.id).where(builds.c.target == target, builds.c.build == build_name)
        with self.database.writing() as connection:
            connection.execute(
                build_files.delete().where(
                    build_files.c.name == name, build_files.c.build_id.in_(found)
                )
            )

    def path_of(self, checksum: str) -> Path:
        """Where a blob is on disk."""
        return self.directory / checksum[:2] / checksum[2:]
