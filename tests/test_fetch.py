"""Fetch: pieces into a growing file, read by others while it grows."""

from __future__ import annotations

import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import pytest
from archive_server import ArchiveServer, Fault

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.errors import ArchiveError, Busy
from artifacts.fetch import WITHHELD_BYTES, Fetch, FetchLimits
from artifacts.growing_file import FetchRestarted
from artifacts.retries import RetryLimits
from artifacts.sources.bare_session import BareSession
from artifacts.sources.http import HttpSource
from artifacts.sources.transport import Timeouts, Transport
from artifacts.workers import Workers

FILE = "/t/b/payload"
SIZE = 30_000_000

MakeFetch = Callable[..., Fetch]


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = random.Random(SIZE).randbytes(SIZE)
    path = tmp_path / "archive" / FILE.lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return data


@pytest.fixture
def archive(tmp_path: Path, content: bytes) -> Iterator[ArchiveServer]:
    with ArchiveServer(tmp_path / "archive", goog_hash=True) as server:
        yield server


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    directory = tmp_path / "tmp"
    directory.mkdir()
    return directory


@pytest.fixture
def make_fetch(archive: ArchiveServer, temporary: Path) -> Iterator[MakeFetch]:
    session = BareSession(16)
    source = HttpSource(Transport(session, Timeouts(2, 1), AllowList([archive.url])))
    workers, writeback = Workers("connection", 16), Workers("writeback", 2)
    url = ArchiveUrl.parse(f"{archive.url}/t/b")
    made = []

    def make(connections: int = 8, tries: int = 3) -> Fetch:
        limits = FetchLimits(connections, RetryLimits(tries, 0.01))
        file = source.stat(url, "payload")
        made.append(Fetch(source, url, file, temporary, workers, writeback, limits))
        return made[-1]

    yield make
    for fetch in made:
        fetch.discard()
    assert workers.close(timeout_seconds=10)
    assert writeback.close(timeout_seconds=10)
    source.close()


def read_all(fetch: Fetch) -> bytes:
    with fetch.open_reader() as reader:
        return reader.readall()


def test_a_file_is_fetched_verified_and_described(
    make_fetch: MakeFetch, content: bytes, temporary: Path
) -> None:
    fetch = make_fetch()
    fetch.start()
    fetched = fetch.wait()
    assert fetched.path.read_bytes() == content
    assert (fetched.size, fetched.crc32c) == (SIZE, google_crc32c.value(content))
    assert (fetch.bytes_done, fetch.bytes_total) == (SIZE, SIZE)
    fetch.discard()
    assert not list(temporary.iterdir())


def test_many_readers_at_their_own_pace_get_the_same_bytes(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    archive.misbehave(FILE, Fault(cut_after=700_000), times=5)
    fetch = make_fetch()
    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read_all, fetch) for _ in range(10)]
        fetch.start()
        for reader in readers:
            assert reader.result(60) == content
    # One that comes late reads the file as it lies there.
    assert read_all(fetch) == content
    assert archive.bytes_sent(FILE) == SIZE


def test_bytes_are_there_as_they_come_but_the_last_only_when_all_is_verified(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    # Two pieces, one after the other; the second stalls just before its end.
    archive.misbehave(FILE, Fault(), times=1)
    archive.misbehave(FILE, Fault(stall_after=SIZE - SIZE // 4 - 10), times=1)
    fetch = make_fetch(connections=1)
    fetch.start()
    with fetch.open_reader() as reader:
        first = reader.read(1000)
        assert first == content[: len(first)]
        got = len(first)
        while got < SIZE - WITHHELD_BYTES:
            got += len(reader.read(1 << 20))
        assert got == SIZE - WITHHELD_BYTES
        assert fetch.bytes_done < SIZE
        # The stall is ended by the time limit, and the last byte read by another connection.
        assert len(reader.readall()) == WITHHELD_BYTES


def test_a_fetch_that_starts_over_cuts_its_readers(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    new = bytes(SIZE)
    fetch = make_fetch(connections=1)
    archive.misbehave(FILE, Fault(cut_after=10_000_000), times=1)
    archive.misbehave(FILE, Fault(replace_with=new), times=1)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all, fetch)
        fetch.start()
        with pytest.raises(FetchRestarted):
            reading.result(60)
    assert read_all(fetch) == new
    assert fetch.wait().crc32c == google_crc32c.value(new)


def test_wrong_bytes_never_reach_the_end_of_a_reader(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    archive.misbehave(FILE, Fault(flip_at=SIZE - 10))
    fetch = make_fetch()
    fetch.start()
    with pytest.raises((FetchRestarted, ArchiveError)):
        read_all(fetch)
    with pytest.raises(ArchiveError, match="CRC32C"):
        fetch.wait()


def test_who_waits_is_told_when_it_ends_one_way_or_the_other(
    make_fetch: MakeFetch, archive: ArchiveServer, temporary: Path
) -> None:
    hold = threading.Event()
    archive.misbehave(FILE, Fault(hold=hold))
    fetch = make_fetch()
    told = threading.Event()
    fetch.when_ended(lambda _: told.set())
    fetch.start()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(fetch.wait), pool.submit(read_all, fetch)]
        fetch.cancel()
        for future in waiting:
            with pytest.raises(Busy):
                future.result(10)
    assert told.wait(10)
    assert not list(temporary.iterdir())
    hold.set()
    late = threading.Event()
    fetch.when_ended(lambda _: late.set())
    assert late.is_set()


def test_a_slow_archive_gets_more_connections_and_never_more_than_allowed(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    archive.misbehave(FILE, Fault(trickle=20_000_000))
    fetch = make_fetch(connections=3)
    fetch.start()
    fetch.wait()
    pieces = [r.range_header for r in archive.requests if r.method == "GET"]
    assert len(pieces) >= 3
    assert len(set(pieces)) == len(pieces)


def test_memory_does_not_grow_with_the_file(
    make_fetch: MakeFetch, archive: ArchiveServer, tmp_path: Path
) -> None:
    with (tmp_path / "archive" / FILE.lstrip("/")).open("r+b") as file:
        file.truncate(300_000_000)
    fetch = make_fetch()
    tracemalloc.start()
    try:
        fetch.start()
        fetch.wait()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 60_000_000
