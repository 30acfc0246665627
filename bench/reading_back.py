"""How fast a chunked file is read back: from a disk, and from a storage that is far away."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.files import Files, parts_of
from artifacts.blobs.limits import CHUNK_BYTES
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from bench.chunks import checksum_of, crc32c_of, make_chunks
from bench.measure import Goal, Row, interleave
from bench.moved import Moved, rate_row
from bench.place import Place, size_text
from bench.processes import run_once
from bench.programs import need, versioned
from bench.read_file import WORKERS, ReadBack
from bench.upload_servers import ORGANIZATION

_NAME = "read-back"
_LATENCY_SECONDS = 0.05
_SERIAL, _PREFETCH = ReadBack("without prefetch", False), ReadBack("prefetch", True)
_FAR_SERIAL = ReadBack("one blob after another", False, _LATENCY_SECONDS)
_FAR_PREFETCH = ReadBack(f"prefetch with {WORKERS} workers", True, _LATENCY_SECONDS)
_CAT_TO_NULL, _CAT_TO_FILE = "cat to /dev/null", "cat to a file"


def read_back(place: Place) -> Iterator[Row]:
    """512 MiB of 64 blobs, with and without prefetch, on the disk and 50 ms away."""
    need("cat")
    count = 16 if place.quick else 64
    size = count * CHUNK_BYTES
    place.need_disk(4 * size)
    warm_up_rounds = 0 if place.quick else 1
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        data, temporary = room / "data", room / "tmp"
        temporary.mkdir()
        checksum, blobs = _store_file(data, count)
        subjects: dict[str, Callable[[], Moved]] = {
            each.name: partial(each.run, data, checksum, temporary) for each in (_SERIAL, _PREFETCH)
        }
        subjects[_CAT_TO_NULL] = lambda: _cat(blobs, size, None)
        subjects[_CAT_TO_FILE] = lambda: _cat(blobs, size, room / "joined")
        near = interleave(subjects, place.rounds, warm_up_rounds=warm_up_rounds)
        subjects = {
            each.name: partial(each.run, data, checksum, temporary)
            for each in (_FAR_SERIAL, _FAR_PREFETCH)
        }
        far = interleave(subjects, place.rounds)
    what = f"read back {size_text(size)} of {count} blobs"
    cat = f"{versioned('cat')} of the blobs"
    yield rate_row(
        _NAME,
        f"{what}, with prefetch, which puts them into a file, verified",
        f"{cat} to a file: not verified",
        Goal(">=", 0.8),
        *(_PREFETCH.name, _CAT_TO_FILE, near),
    )
    for ours in _PREFETCH, _SERIAL:
        against = f"{cat} to /dev/null: neither written nor verified"
        how = f"{what}, {ours.name}, verified"
        yield rate_row(_NAME, how, against, None, ours.name, _CAT_TO_NULL, near)
    yield rate_row(
        _NAME,
        f"{what}, {_LATENCY_SECONDS * 1000:.0f} ms a blob, {_FAR_PREFETCH.name}",
        f"{_FAR_SERIAL.name}, without prefetch",
        Goal(">=", 7),
        *(_FAR_PREFETCH.name, _FAR_SERIAL.name, far),
    )


def _store_file(data_directory: Path, count: int) -> tuple[str, list[Path]]:
    """Have what a server would have of a file; return its SHA-1, and the files of its blobs."""
    chunks = make_chunks(count)
    checksums = [checksum_of([chunk]) for chunk in chunks]
    storage = DirectoryStorage(data_directory / "blobs")
    database = Database.in_directory(data_directory)
    try:
        blobs = BlobStore(database, storage, ProcessLocks())
        for checksum, chunk in zip(checksums, chunks, strict=True):
            spooled = storage.spool_directory / checksum
            spooled.write_bytes(chunk)
            blobs.keep(ORGANIZATION, checksum, len(chunk), spooled)
        parts = parts_of(checksums, dict.fromkeys(checksums, CHUNK_BYTES))
        checksum = checksum_of(chunks)
        with database.writing() as connection:
            Files(database).add(connection, ORGANIZATION, checksum, crc32c_of(chunks), parts)
    finally:
        database.close()
    directory = data_directory / "blobs"
    return checksum, [directory / each[:2] / each[2:] for each in checksums]


def _cat(blobs: Sequence[Path], size: int, target: Path | None) -> Moved:
    output = target or Path(os.devnull)
    command = ["sh", "-c", 'exec cat "$@" >"$0"', str(output), *map(str, blobs)]
    seconds, cpu_seconds = run_once(command)
    if target is not None:
        if target.stat().st_size != size:
            raise RuntimeError(f"cat left {target.stat().st_size} bytes")
        target.unlink()
    return Moved(size, seconds, cpu_seconds)
