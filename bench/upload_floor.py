"""The floor of uploading: hashing and writing what is in memory, and nothing else.

``python -m bench.upload_floor DIRECTORY CHUNKS`` does so in a process of its own, and removes what
it has written; ``Floor`` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from artifacts.blobs.limits import CHUNK_BYTES
from artifacts.blobs.sha1 import new_sha1
from bench.chunks import make_chunks
from bench.moved import Moved
from bench.processes import CALL_SECONDS, REPOSITORY


@dataclass(frozen=True)
class Floor:
    """SHA-1 of each chunk, and a write of it.

    Attributes:
        syncs: whether each file is fsynced when it is written.
        threads: how many chunks are hashed and written at a time.
        one_file: whether all chunks go to one file, and the SHA-1 is that of all of them.
    """

    syncs: bool = True
    threads: int = 1
    one_file: bool = False

    @property
    def name(self) -> str:
        return (
            "floor"
            + ", not synced" * (not self.syncs)
            + f", {self.threads} at a time" * (self.threads > 1)
        )

    @property
    def description(self) -> str:
        files = "one file" if self.one_file else "a file each"
        turns = f"{self.threads} at a time" if self.threads > 1 else "one after another"
        synced = "fsync" if self.syncs else "no fsync"
        return f"the floor: hash + write of chunks in memory, {turns}, {files}, {synced}"

    def run(self, directory: Path, chunks: int) -> Moved:
        """Hash and write so many chunks; ``directory`` must not be there."""
        options = [f"--threads={self.threads}", *("--sync",) * self.syncs]
        options += ("--one-file",) * self.one_file
        result = subprocess.run(
            [*_COMMAND, str(directory), str(chunks), *options],
            stdout=subprocess.PIPE,
            check=True,
            timeout=CALL_SECONDS,
            cwd=REPOSITORY,
        )
        return Moved(**json.loads(result.stdout))


_COMMAND = (sys.executable, "-m", "bench.upload_floor")


def _write_each(directory: Path, chunks: Sequence[bytes], threads: int, *, syncs: bool) -> None:
    def keep(number: int) -> None:
        new_sha1(chunks[number]).digest()
        with (directory / str(number)).open("xb", buffering=0) as file:
            file.write(chunks[number])
            if syncs:
                os.fsync(file.fileno())

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(keep, range(len(chunks))))


def _write_one(directory: Path, chunks: Sequence[bytes], *, syncs: bool) -> None:
    sha1 = new_sha1()
    with (directory / "all").open("xb", buffering=0) as file:
        for chunk in chunks:
            sha1.update(chunk)
            file.write(chunk)
        sha1.digest()
        if syncs:
            os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("chunks", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--one-file", action="store_true")
    options = parser.parse_args()
    chunks = make_chunks(options.chunks)
    options.directory.mkdir()
    before, begun_at = os.times(), time.monotonic()
    if options.one_file:
        _write_one(options.directory, chunks, syncs=options.sync)
    else:
        _write_each(options.directory, chunks, options.threads, syncs=options.sync)
    seconds, after = time.monotonic() - begun_at, os.times()
    shutil.rmtree(options.directory)
    cpu_seconds = after.user + after.system - before.user - before.system
    print(
        json.dumps(
            {"bytes": len(chunks) * CHUNK_BYTES, "seconds": seconds, "cpu_seconds": cpu_seconds}
        )
    )


if __name__ == "__main__":
    main()
