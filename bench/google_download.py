"""The peers of Google's library, in a process of their own.

``python -m bench.google_download WAY WORKERS ENDPOINT DIRECTORY NAME…`` downloads objects with

- ``file``: ``Blob.download_to_filename``, one after another
- ``thread``, ``process``: ``transfer_manager``, with so many workers; one object in chunks, several
  side by side

and prints the seconds and the CPU seconds that this took as JSON; what importing takes is not
counted. Checksums are checked, as devserver does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager
from requests.adapters import HTTPAdapter

from bench.objects import BUCKET

_MAX_CHUNK_BYTES = 32 << 20  # the library's default


def main() -> None:
    way, workers, endpoint, directory, *names = sys.argv[1:]
    client = storage.Client(
        project="bench",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": endpoint},
    )
    # Else connections over ten are closed after each answer.
    client._http.mount("http://", HTTPAdapter(pool_maxsize=int(workers)))
    paths = {client.bucket(BUCKET).blob(name): Path(directory, Path(name).name) for name in names}
    begun_at, cpu_before = time.monotonic(), _cpu_seconds()
    if way == "file":
        for blob, path in paths.items():
            blob.download_to_filename(path, checksum="crc32c")
    else:
        _download_in_parallel(way, int(workers), paths)
    seconds, cpu_seconds = time.monotonic() - begun_at, _cpu_seconds() - cpu_before
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))


def _download_in_parallel(worker_type: str, workers: int, paths: dict[storage.Blob, Path]) -> None:
    if len(paths) == 1:
        [(blob, path)] = paths.items()
        blob.reload()
        # With fewer chunks than workers some would have nothing to do.
        chunk_bytes = min(_MAX_CHUNK_BYTES, -(-blob.size // workers))
        transfer_manager.download_chunks_concurrently(
            blob, str(path), chunk_bytes, worker_type=worker_type, max_workers=workers
        )
        return
    results = transfer_manager.download_many(
        [(blob, str(path)) for blob, path in paths.items()],
        worker_type=worker_type,
        max_workers=workers,
        raise_exception=True,
    )
    for result in results:
        if isinstance(result, Exception):
            raise result


def _cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
