"""Reading a file back from its blobs, as fast as it comes.

``python -m bench.read_file DATA_DIRECTORY CHECKSUM DIRECTORY LATENCY PREFETCH`` does so in a
process of its own, without a server; ``ReadBack`` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.chunked_files import ChunkedFiles
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.files import Files
from artifacts.blobs.storage import OpenedBlob, StoredBlob
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from artifacts.fetch import FetchLimits
from artifacts.workers import Workers
from bench.moved import Moved
from bench.processes import CALL_SECONDS, REPOSITORY
from bench.upload_servers import ORGANIZATION

WORKERS = 8
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class ReadBack:
    """One way to read a file.

    Attributes:
        latency_seconds: what each blob takes before its first byte comes.
    """

    name: str
    prefetch: bool
    latency_seconds: float = 0.0

    def run(self, data_directory: Path, checksum: str, directory: Path) -> Moved:
        """Read the file of that SHA-1; ``directory`` is for what is read ahead."""
        command = [sys.executable, "-m", "bench.read_file", str(data_directory), checksum]
        options = [str(directory), str(self.latency_seconds), str(int(self.prefetch))]
        result = subprocess.run(
            [*command, *options],
            stdout=subprocess.PIPE,
            check=True,
            timeout=CALL_SECONDS,
            cwd=REPOSITORY,
        )
        return Moved(**json.loads(result.stdout))


class _FarStorage:
    """A directory whose blobs are far away; see `BlobStorage`."""

    def __init__(self, storage: DirectoryStorage, latency_seconds: float) -> None:
        self.spool_directory = storage.spool_directory
        self._storage = storage
        self._latency_seconds = latency_seconds
        self._never = threading.Event()

    def put(self, checksum: str, spooled: Path) -> None:
        self._storage.put(checksum, spooled)

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> OpenedBlob:
        self._never.wait(self._latency_seconds)
        return self._storage.open(checksum, start, stop)

    def delete(self, checksum: str) -> None:
        self._storage.delete(checksum)

    def list(self) -> Iterator[StoredBlob]:
        return self._storage.list()

    def close(self) -> None:
        self._storage.close()


def _read(chunked_files: ChunkedFiles, files: Files, checksum: str, *, prefetch: bool) -> int:
    found = files.find(ORGANIZATION, checksum)
    assert found is not None
    buffer = bytearray(_BLOCK_BYTES)
    size = 0
    with chunked_files.open(found, prefetch=prefetch) as file:
        while count := file.readinto(buffer):
            size += count
    assert size == found.size
    return size


def main() -> None:
    data_directory, checksum, directory, latency, prefetch = sys.argv[1:]
    with ExitStack() as stack:
        database = Database.in_directory(Path(data_directory))
        stack.callback(database.close)
        storage = DirectoryStorage(Path(data_directory) / "blobs")
        far = _FarStorage(storage, float(latency)) if float(latency) else storage
        locks = ProcessLocks()
        stack.callback(locks.close)
        connections = Workers("connection", WORKERS)
        stack.callback(connections.close, 5)
        blobs = BlobStore(database, far, locks)
        chunked_files = ChunkedFiles(blobs, Path(directory), connections, FetchLimits(WORKERS))
        before, begun_at = os.times(), time.monotonic()
        size = _read(chunked_files, Files(database), checksum, prefetch=prefetch == "1")
        seconds, after = time.monotonic() - begun_at, os.times()
    cpu_seconds = after.user + after.system - before.user - before.system
    print(json.dumps({"bytes": size, "seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main()
