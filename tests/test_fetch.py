"""Fetch: pieces into a growing file, read by others while it grows."""

from __future__ import annotations

import io
import os
import random
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import pytest
from archive_server import ArchiveServer, Fault
from hypothesis import given
from hypothesis import strategies as st
from polling import wait_until

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.attempt import Attempt
from artifacts.errors import ArchiveError, Busy
from artifacts.fetch import WITHHELD_BYTES, Fetch, FetchLimits
from artifacts.growing_file import FetchRestarted, FollowedFile
from artifacts.retries import RetryLimits
from artifacts.sources.bare_session import BareSession
from artifacts.sources.http import HttpSource
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts, Transport
from artifacts.workers import Workers

FILE = "/t/b/payload"
SIZE = 30_000_000
MIB = 2**20
FIRST = 4 * MIB  # of what a connection is asked for, where up to eight may share the file

MakeFetch = Callable[..., Fetch]


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = random.Random(SIZE).randbytes(SIZE)
    path = tmp_path / "archive" / FILE.lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return data


@pytest.fixture
def archive(
    tmp_path: Path, content: bytes, request: pytest.FixtureRequest
) -> Iterator[ArchiveServer]:
    options = getattr(request, "param", {})
    with ArchiveServer(tmp_path / "archive", goog_hash=True, **options) as server:
        yield server


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    directory = tmp_path / "tmp"
    directory.mkdir()
    return directory


@pytest.fixture
def make_fetch(archive: ArchiveServer, temporary: Path) -> Iterator[MakeFetch]:
    sources = []
    workers, writeback = Workers("connection", 16), Workers("writeback", 2)
    url = ArchiveUrl.parse(f"{archive.url}/t/b")
    made = []

    def make(connections: int = 8, tries: int = 3, stall_seconds: float = 1) -> Fetch:
        timeouts, allowed = Timeouts(2, stall_seconds), AllowList([archive.url])
        source = HttpSource(Transport(BareSession(16), timeouts, allowed))
        sources.append(source)
        limits = FetchLimits(connections, RetryLimits(tries, 0.01))
        file = source.stat(url, "payload")
        made.append(Fetch(source, url, file, temporary, workers, writeback, limits))
        return made[-1]

    yield make
    for fetch in made:
        fetch.discard()
    assert workers.close(timeout_seconds=10)
    assert writeback.close(timeout_seconds=10)
    for source in sources:
        source.close()


@pytest.fixture
def _fast_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, the archive counts as one that needs one connection only."""
    monkeypatch.setattr("artifacts.fetch._SLOW_ANSWER_SECONDS", 60)
    monkeypatch.setattr("artifacts.fetch._SLOW_BYTES_PER_SECOND", 0)


@pytest.fixture
def reader_waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a reader has begun to wait for bytes."""
    event, want = threading.Event(), Attempt.want

    def tell_and_want(attempt: Attempt, position: int) -> bool:
        event.set()
        return want(attempt, position)

    monkeypatch.setattr(Attempt, "want", tell_and_want)
    return event


def ranges_asked_for(archive: ArchiveServer) -> list[tuple[int, int]]:
    """What the archive was asked for so far, in that order, as offsets of start and stop."""
    gets = [r.range_header for r in archive.requests if r.method == "GET"]
    matches = [re.fullmatch(r"bytes=(\d+)-(\d+)", header or "bytes=0-0") for header in gets]
    return [(int(match[1]), int(match[2]) + 1) for match in matches if match]


def read_last(fetch: Fetch, count: int, **more: int) -> bytes:
    with fetch.open_reader(**more) as reader:
        reader.seek(-count, io.SEEK_END)
        return reader.readall()


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
    # Watching memory takes time.
    fetch = make_fetch(stall_seconds=30)
    tracemalloc.start()
    try:
        fetch.start()
        fetch.wait()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 60_000_000


# --- readers that begin elsewhere than at the start


@pytest.mark.usefixtures("_fast_archive")
def test_a_range_that_a_reader_waits_for_comes_though_earlier_bytes_have_not(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    archive.misbehave(FILE, Fault(stall_after=1000), times=1)
    fetch = make_fetch(stall_seconds=30)
    fetch.start()
    with fetch.open_reader(withheld_bytes=0) as reader:
        assert reader.read(1000) == content[:1000]
        reader.seek(-100_000, io.SEEK_END)
        assert reader.readall() == content[-100_000:]
    assert fetch.bytes_done == 101_000
    assert ranges_asked_for(archive)[:2] == [(0, FIRST), (SIZE - 100_000, SIZE)]

    archive.behave()
    assert read_all(fetch) == content
    # The connection that was added for the reader left the rest to the one that was there.
    assert ranges_asked_for(archive)[-1] == (FIRST, SIZE - 100_000)
    assert archive.bytes_sent(FILE) == SIZE


@pytest.mark.usefixtures("_fast_archive")
def test_where_no_connection_can_be_added_the_wanted_range_is_the_next(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes, reader_waits: threading.Event
) -> None:
    hold = threading.Event()
    archive.misbehave(FILE, Fault(hold=hold), times=1)
    fetch = make_fetch(connections=1)
    fetch.start()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_last, fetch, 100_000, withheld_bytes=0)
        assert reader_waits.wait(10)
        hold.set()
        assert reading.result(60) == content[-100_000:]
    assert read_all(fetch) == content
    middle, last = SIZE // 4, SIZE - 100_000
    assert ranges_asked_for(archive) == [(0, middle), (last, SIZE), (middle, last)]


@pytest.mark.usefixtures("_fast_archive")
def test_a_reader_that_follows_in_order_adds_no_connection(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    fetch = make_fetch()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all, fetch)
        fetch.start()
        assert reading.result(60) == content
    assert ranges_asked_for(archive) == [(0, FIRST), (FIRST, SIZE)]


@pytest.mark.usefixtures("_fast_archive")
def test_what_is_next_in_order_is_not_held_up_by_what_comes_before_it(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    archive.misbehave(FILE, Fault(stall_after=1000), times=1)
    fetch = make_fetch(stall_seconds=30)
    fetch.start()
    with fetch.open_reader(withheld_bytes=0) as reader:
        reader.seek(FIRST)
        assert reader.read(1000) == content[FIRST : FIRST + 1000]
    archive.behave()
    assert read_all(fetch) == content
    assert archive.bytes_sent(FILE) == SIZE


@pytest.mark.usefixtures("_fast_archive")
def test_a_reader_may_go_anywhere_at_any_time(make_fetch: MakeFetch, content: bytes) -> None:
    fetch = make_fetch()
    fetch.start()
    with fetch.open_reader() as reader:
        for position in (20_000_000, 5, SIZE - 1, 12_345_678, 0):
            assert reader.seek(position) == position
            data = reader.read(1000)
            assert data and content.startswith(data, position)
            assert reader.tell() == position + len(data)
        assert reader.seek(-1, io.SEEK_CUR) == len(data) - 1
        assert reader.seek(0, io.SEEK_END) == SIZE
        assert reader.read(1) == b""
        reader.seek(SIZE + 5)
        assert reader.read(1) == b""
        with pytest.raises(ValueError, match="-1"):
            reader.seek(-SIZE - 1, io.SEEK_END)


@pytest.mark.parametrize("archive", [{"ranges": False}], indirect=True)
def test_without_ranges_a_reader_waits_until_its_turn_has_come(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    fetch = make_fetch()
    fetch.start()
    assert read_last(fetch, 100, withheld_bytes=0) == content[-100:]
    assert read_last(fetch, 100) == content[-100:]
    assert len(ranges_asked_for(archive)) == 1
    assert archive.bytes_sent(FILE) == SIZE


def test_the_end_is_waited_for_where_the_archive_does_not_say_how_long_the_file_is(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    archive.misbehave(FILE, Fault(chunked=True, head_too=True))
    fetch = make_fetch()
    fetch.start()
    assert read_last(fetch, 100, withheld_bytes=0) == content[-100:]


@pytest.mark.usefixtures("_fast_archive")
def test_the_connection_added_for_a_reader_may_find_that_the_file_has_changed(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    new = bytes(SIZE - 1000)
    archive.misbehave(FILE, Fault(stall_after=1000), times=1)
    archive.misbehave(FILE, Fault(replace_with=new), times=1)
    fetch = make_fetch()
    fetch.start()
    with fetch.open_reader(withheld_bytes=0) as reader:
        assert reader.read(1000)
        reader.seek(-100, io.SEEK_END)
        with pytest.raises(FetchRestarted):
            reader.read(1)
    assert read_last(fetch, 100, withheld_bytes=0) == new[-100:]
    assert fetch.wait().crc32c == google_crc32c.value(new)


@pytest.mark.parametrize("withheld_bytes", [0, WITHHELD_BYTES])
def test_a_reader_anywhere_is_cut_when_the_fetch_fails(
    make_fetch: MakeFetch,
    archive: ArchiveServer,
    reader_waits: threading.Event,
    withheld_bytes: int,
) -> None:
    archive.misbehave(FILE, Fault(hold=threading.Event()))
    fetch = make_fetch()
    fetch.start()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_last, fetch, 100, withheld_bytes=withheld_bytes)
        assert reader_waits.wait(10)
        fetch.cancel()
        with pytest.raises(Busy):
            reading.result(10)


def attempt_of(directory: Path, size: int, part_bytes: int | None = None) -> Attempt:
    file = ArchiveFile(
        "f", size, size_is_exact=True, generation="1", has_ranges=True, part_bytes=part_bytes
    )
    return Attempt(file, directory)


def test_a_reader_that_waits_no_longer_has_no_say(temporary: Path) -> None:
    attempt = attempt_of(temporary, SIZE)
    attempt.take_piece(8, is_alone=False)
    assert attempt.want(20_000_000)
    assert attempt.want(20_000_000)
    assert attempt.want(10_000_000)
    attempt.unwant(20_000_000)
    attempt.unwant(10_000_000)
    piece = attempt.take_piece(8, is_alone=False)
    assert piece is not None and piece.position == 20_000_000
    attempt.unwant(20_000_000)
    piece = attempt.take_piece(8, is_alone=False)
    assert piece is not None and piece.position == FIRST


@given(
    wanted=st.lists(st.integers(0, 200 * MIB), max_size=12),
    is_alone=st.booleans(),
    part_bytes=st.sampled_from([None, MIB, 8 * MIB, 7_654_321, 150 * MIB]),
    data=st.data(),
)
def test_whatever_readers_wait_for_each_byte_is_in_one_piece_and_each_part_too(
    tmp_path_factory: pytest.TempPathFactory,
    wanted: list[int],
    is_alone: bool,
    part_bytes: int | None,
    data: st.DataObject,
) -> None:
    attempt = attempt_of(tmp_path_factory.getbasetemp(), 200 * MIB - 1, part_bytes)
    taken: list[tuple[int, int]] = []
    for position in [*wanted, None]:
        free = position is not None and position < 200 * MIB - 1
        free = free and not any(start <= position < stop for start, stop in taken)
        if position is not None:
            attempt.want(position)
        for _ in range(data.draw(st.integers(0, 2)) if position is not None else 1000):
            if (piece := attempt.take_piece(8, is_alone=is_alone)) is None:
                break
            assert piece.stop is not None
            if free:
                assert piece.position <= position < piece.stop
                assert part_bytes or piece.position == position
                free = False
            taken.append((piece.position, piece.stop))
        if position is not None:
            attempt.unwant(position)
    assert attempt.pieces_left == 0
    end = 0
    for start, stop in sorted(taken):
        assert start == end
        assert start % (part_bytes or 1) == 0
        end = stop
    assert end == 200 * MIB - 1
    attempt.abandoned = True
    attempt.close_if_unused()
    attempt.path.unlink()


# --- readers that are called back


def follow(fetch: Fetch) -> FollowedFile:
    """Return a reader, as soon as there can be one."""
    while isinstance(followed := fetch.follow(lambda: None), Future):
        followed.result(10)
    assert followed is not None
    return followed


def read_following(followed: FollowedFile, start: int = 0) -> bytes:
    """Read to the end, waiting for calls only."""
    data = bytearray()
    while (position := start + len(data)) < followed.size:
        stop = followed.readable_to(position)
        if stop is None:
            called = threading.Event()
            followed.watch(position, called.set)
            assert called.wait(30), f"nobody called at {position}"
        else:
            data += os.pread(followed.fileno(), stop - position, position)
    return bytes(data)


@pytest.fixture
def _held(archive: ArchiveServer) -> None:
    """After 1,000 bytes, the first answer stalls until the archive behaves."""
    archive.misbehave(FILE, Fault(stall_after=1000), times=1)


def test_many_are_called_back_and_read_the_same_bytes_once_fetched(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    archive.misbehave(FILE, Fault(cut_after=700_000), times=5)
    fetch = make_fetch()
    fetch.start()
    starts = [random.Random(n).randrange(SIZE) for n in range(20)] + [0] * 20
    with ThreadPoolExecutor(40) as pool:
        reading = [pool.submit(read_following, follow(fetch), start) for start in starts]
        for start, reader in zip(starts, reading, strict=True):
            assert reader.result(60) == content[start:]
    assert archive.bytes_sent(FILE) == SIZE


@pytest.mark.usefixtures("_fast_archive", "_held")
def test_only_those_are_called_for_whom_something_has_come(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    fetch = make_fetch(stall_seconds=30)
    fetch.start()
    followed = follow(fetch)
    here, there, at_the_end = threading.Event(), threading.Event(), threading.Event()
    followed.watch(2000, here.set)
    followed.watch(SIZE - 10, at_the_end.set)
    followed.watch(20_000_000, there.set)

    # What is waited for is fetched by connections of its own, though the first one hangs.
    assert there.wait(10)
    stop = followed.readable_to(20_000_000)
    assert stop is not None and stop > 20_000_000
    assert os.pread(followed.fileno(), 10, 20_000_000) == content[20_000_000:20_000_010]
    assert not here.is_set() and followed.readable_to(2000) is None

    # The last 64 KiB have come, and are not given away before all is verified.
    last = read_last(fetch, 10, withheld_bytes=0)
    assert last == content[-10:]
    assert not at_the_end.is_set() and followed.readable_to(SIZE - 10) is None

    archive.behave()
    assert here.wait(10) and at_the_end.wait(10)
    assert followed.readable_to(SIZE - 10) == SIZE
    followed.close()


@pytest.mark.usefixtures("_fast_archive", "_held")
def test_who_need_not_wait_is_called_at_once(make_fetch: MakeFetch, archive: ArchiveServer) -> None:
    fetch = make_fetch()
    fetch.start()
    followed = follow(fetch)
    called = threading.Event()
    followed.watch(0, called.set)
    assert called.wait(10)
    at_once = threading.Event()
    followed.watch(0, at_once.set)
    assert at_once.is_set()
    archive.behave()
    fetch.wait()
    at_the_end = threading.Event()
    followed.watch(SIZE, at_the_end.set)
    assert at_the_end.is_set()
    followed.close()


@pytest.mark.usefixtures("_fast_archive")
def test_who_has_ended_the_watch_is_not_called_and_has_no_say(
    make_fetch: MakeFetch, archive: ArchiveServer, content: bytes
) -> None:
    hold = threading.Event()
    archive.misbehave(FILE, Fault(), times=1)
    archive.misbehave(FILE, Fault(hold=hold), times=1)
    fetch = make_fetch(connections=1)
    fetch.start()
    followed = follow(fetch)
    called = threading.Event()
    ends = [followed.watch(25_000_000, called.set) for _ in range(3)]
    for end in (*ends, *ends):
        end()
    hold.set()
    assert read_all(fetch) == content
    assert not called.is_set()
    asked_for = ranges_asked_for(archive)
    assert asked_for == sorted(asked_for)
    followed.close()


@pytest.mark.usefixtures("_fast_archive", "_held")
def test_who_waits_is_called_when_the_fetch_fails(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    fetch = make_fetch(stall_seconds=30)
    fetch.start()
    followed, called = follow(fetch), threading.Event()
    followed.watch(2000, called.set)
    fetch.cancel()
    assert called.wait(10)
    for position in (0, 2000):
        with pytest.raises(Busy):
            followed.readable_to(position)
    late = threading.Event()
    followed.watch(2000, late.set)
    assert late.is_set()
    with pytest.raises(Busy):
        fetch.follow(lambda: None)
    followed.close()
    archive.behave()


@pytest.mark.usefixtures("_fast_archive")
def test_who_waits_is_called_when_the_fetch_starts_over(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    new = bytes(SIZE)
    hold = threading.Event()
    archive.misbehave(FILE, Fault(hold=hold), times=1)
    archive.misbehave(FILE, Fault(replace_with=new), times=1)
    fetch = make_fetch(connections=1)
    fetch.start()
    followed, called = follow(fetch), threading.Event()
    followed.watch(29_000_000, called.set)
    hold.set()
    assert called.wait(10)
    with pytest.raises(ArchiveError, match="anew"):
        followed.readable_to(0)
    # Who asks now waits for what the archive says of the new file.
    again = follow(fetch)
    assert read_following(again) == new
    followed.close()
    again.close()


@pytest.mark.usefixtures("_fast_archive")
def test_what_is_verified_stays_readable_after_the_fetch_is_discarded(
    make_fetch: MakeFetch, content: bytes, temporary: Path
) -> None:
    fetch = make_fetch()
    fetch.start()
    followed = follow(fetch)
    fetch.wait()
    fetch.discard()
    assert not list(temporary.iterdir())
    assert read_following(followed) == content
    followed.close()


def test_who_asks_early_is_told_when_the_archive_has_answered(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    archive.latency_seconds = 0.2
    fetch = make_fetch()
    early = fetch.follow(lambda: None)
    fetch.start()
    assert isinstance(early, Future)
    early.result(10)
    follow(fetch).close()


def test_who_asks_early_is_told_when_it_fails(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    archive.misbehave(FILE, Fault(status=403))
    fetch = make_fetch()
    early = fetch.follow(lambda: None)
    fetch.start()
    assert isinstance(early, Future)
    early.result(10)
    with pytest.raises(ArchiveError, match="403"):
        fetch.follow(lambda: None)


def test_a_file_whose_length_nobody_knows_cannot_be_followed(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    hold = threading.Event()
    archive.misbehave(FILE, Fault(chunked=True, head_too=True), times=1)
    archive.misbehave(FILE, Fault(chunked=True, hold=hold), times=1)
    fetch = make_fetch()
    early = fetch.follow(lambda: None)
    fetch.start()
    assert isinstance(early, Future)
    early.result(10)
    assert fetch.follow(lambda: None) is None
    hold.set()
    fetch.wait()


def test_closing_a_reader_tells_once(make_fetch: MakeFetch) -> None:
    closed: list[str] = []
    fetch = make_fetch()
    fetch.start()
    fetch.wait()
    followed = fetch.follow(lambda: closed.append("closed"))
    assert isinstance(followed, FollowedFile)
    followed.close()
    followed.close()
    assert closed == ["closed"]


def test_a_fetch_in_a_hurry_comes_before_those_that_wait(
    make_fetch: MakeFetch, archive: ArchiveServer
) -> None:
    # Given 16 threads that are all held up, and more fetches in a queue behind them.
    one, others = threading.Event(), threading.Event()
    archive.misbehave(FILE, Fault(hold=one), times=1)
    archive.misbehave(FILE, Fault(hold=others), times=15)
    ended: list[int] = []
    fetches = [make_fetch(connections=1, stall_seconds=30) for _ in range(20)]
    for number, fetch in enumerate(fetches):
        fetch.when_ended(lambda _, number=number: ended.append(number))
        fetch.start(urgent=number != 19)
    wait_until(lambda: len(ranges_asked_for(archive)) == 16)

    fetches[19].hurry()
    fetches[19].hurry()
    one.set()
    for fetch in fetches[16:]:
        fetch.wait()
    assert ended[1:] == [19, 16, 17, 18]
    others.set()
