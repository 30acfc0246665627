"""``/static`` while files are fetched: what is there is sent, the rest follows or is cut."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import clients, wait_until
from running_server import RunningServer

NAME = "board-release/R1-1.0.0"
PAYLOAD, DELTA = "x_full_y.bin", "x_R1-1.0.0_R1-1.0.0_delta.bin"
SIZE = 20_000_000
PIECE = 4 << 20  # of what one connection reads at first, at the least
WITHHELD = 64 << 10
ARCHIVE_CONNECTIONS = 16
UPDATE = f"/static/{NAME}/update.gz"
NTON = f"/static/{NAME}/au/R1-1.0.0_nton"


@pytest.fixture
def payload() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def build(tmp_path: Path, payload: bytes) -> Path:
    """The directory of a build in the archive."""
    directory = tmp_path / "archive" / NAME
    directory.mkdir(parents=True)
    (directory / PAYLOAD).write_bytes(payload)
    (directory / DELTA).write_bytes(os.urandom(100_000))
    (directory / "stateful.tgz").write_bytes(os.urandom(200_000))
    return directory


@pytest.fixture
def archive(tmp_path: Path, build: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(tmp_path / "archive", goog_hash=True) as server:
        yield server
        server.behave()


@pytest.fixture
def url(archive: ArchiveServer) -> str:
    return f"{archive.url}/{NAME}"


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer) -> RunningServer:
    options = ("--tries", "2", "--max-connections", str(ARCHIVE_CONNECTIONS), "--threads", "8")
    return serve("--allow-archive", archive.url, "--shutdown-timeout", "1", *options)


@pytest.fixture
def growing(server: RunningServer, archive: ArchiveServer, url: str) -> RunningServer:
    """A server that is fetching the payload; of its first piece, only 1,000,000 bytes come."""
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(stall_after=1_000_000), times=1)
    stage(server, url)
    wait_until(lambda: archive.bytes_sent(f"/{NAME}/{PAYLOAD}") >= 1_000_000)
    return server


def stage(server: RunningServer, url: str, artifacts: str = "full_payload") -> None:
    server.call("/stage?async=True", archive_url=url, artifacts=artifacts)


def get(
    server: RunningServer, path: str = UPDATE, method: str = "GET", **headers: str
) -> requests.Response:
    """Ask for a file; of the body, nothing is read yet."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.session.request(method, server.url + path, headers=named, timeout=60, stream=True)


def read(answer: requests.Response, count: int) -> bytes:
    """Read so many bytes, as they come."""
    data: bytes = answer.raw.read(count)
    assert len(data) == count
    return data


def pieces(answer: requests.Response) -> Iterator[bytes]:
    """The rest of a body as it comes, which ends in an error if it is not all there."""
    return answer.iter_content(1 << 16)


def read_to_the_end(answer: requests.Response) -> None:
    for _ in pieces(answer):
        pass


def ranges_asked_for(archive: ArchiveServer, name: str = PAYLOAD) -> list[tuple[int, int]]:
    gets = [r for r in archive.requests if (r.method, r.path) == ("GET", f"/{NAME}/{name}")]
    matches = [re.fullmatch(r"bytes=(\d+)-(\d+)", get.range_header or "") for get in gets]
    return [(int(match[1]), int(match[2]) + 1) for match in matches if match]


# --- what is sent


def test_a_file_is_sent_as_it_comes_with_its_final_length(
    growing: RunningServer, archive: ArchiveServer, payload: bytes
) -> None:
    answer = get(growing)
    assert answer.status_code == 200
    assert answer.headers["Content-Length"] == str(SIZE)
    assert answer.headers["Content-Type"] == "application/gzip"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Security-Policy"] == "sandbox"
    # They would promise what is not known yet.
    assert not {"ETag", "Last-Modified"} & set(answer.headers)

    data = read(answer, 900_000)
    assert growing.call("/is_staged", archive_url=f"{archive.url}/{NAME}", artifacts="full_payload")
    assert growing.get(f"/static/{NAME}/").status_code == 404

    archive.behave()
    assert data + answer.raw.read() == payload
    wait_until(lambda: "ETag" in get(growing, method="HEAD").headers)
    assert archive.bytes_sent(f"/{NAME}/{PAYLOAD}") == SIZE


def test_head_tells_the_final_length_of_what_is_still_coming(growing: RunningServer) -> None:
    head = get(growing, method="HEAD")
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(SIZE))
    assert "ETag" not in head.headers


def test_readers_at_several_places_get_what_there_is_at_once(
    growing: RunningServer, archive: ArchiveServer, payload: bytes
) -> None:
    starts = [0, 10_000, 500_000, 999_000, PIECE, 9_000_000, SIZE - WITHHELD - 1000]
    with ThreadPoolExecutor(len(starts)) as pool:
        answers = list(pool.map(lambda at: get(growing, Range=f"bytes={at}-"), starts))
        for start, answer in zip(starts, answers, strict=True):
            assert answer.headers["Content-Range"] == f"bytes {start}-{SIZE - 1}/{SIZE}"
            assert read(answer, 1000) == payload[start : start + 1000]
        archive.behave()
        rests = pool.map(lambda answer: answer.raw.read(), answers)
        for start, rest in zip(starts, rests, strict=True):
            assert rest == payload[start + 1000 :]
    assert archive.bytes_sent(f"/{NAME}/{PAYLOAD}") == SIZE


def test_a_range_that_has_not_come_is_fetched_next(
    server: RunningServer, archive: ArchiveServer, url: str, payload: bytes
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(hold=hold))
    stage(server, url)
    wait_until(lambda: bool(ranges_asked_for(archive)))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: get(server, Range="bytes=17000000-17000099").content)
        wait_until(lambda: any(start == 17_000_000 for start, _ in ranges_asked_for(archive)))
        hold.set()
        assert reading.result() == payload[17_000_000:17_000_100]
    assert get(server).content == payload
    assert archive.bytes_sent(f"/{NAME}/{PAYLOAD}") == SIZE


def test_the_last_bytes_wait_until_all_is_verified(
    growing: RunningServer, archive: ArchiveServer, payload: bytes
) -> None:
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(lambda: get(growing, Range="bytes=-100").content)
        before = get(growing, Range=f"bytes={SIZE - WITHHELD - 100}-{SIZE - WITHHELD - 1}")
        assert before.content == payload[SIZE - WITHHELD - 100 : SIZE - WITHHELD]
        fetched = 1_000_000 + WITHHELD + 100
        wait_until(lambda: archive.bytes_sent(f"/{NAME}/{PAYLOAD}") >= fetched)
        assert not last.done()
        archive.behave()
        assert last.result() == payload[-100:]


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-99", 206, 0, 100),
        ("bytes=0-99,50-149,100-199", 206, 0, 200),
        (f"bytes={SIZE}-", 416, 0, 0),
        ("bytes=5-1", 200, 0, 1000),
        ("bytes=" + "0-1," * 1000, 200, 0, 1000),
        (f"bytes={SIZE - 10**6}-{10**18}", 206, SIZE - 10**6, SIZE - 10**6 + 1000),
    ],
)
def test_ranges_are_those_of_the_whole(
    asked: str, status: int, start: int, stop: int, growing: RunningServer, payload: bytes
) -> None:
    answer = get(growing, Range=asked)
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    assert answer.raw.read(stop - start) == payload[start:stop]
    answer.close()


def test_many_ranges_come_in_parts(growing: RunningServer, payload: bytes) -> None:
    answer = get(growing, Range="bytes=0-9,5000000-5000009,18000000-18000009")
    assert answer.status_code == 206
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    for start in (0, 5_000_000, 18_000_000):
        assert payload[start : start + 10] in answer.content


@pytest.mark.parametrize("tag", ['"old"', "Fri, 20 Nov 2020 12:00:00 GMT"])
def test_who_has_a_part_of_an_older_file_gets_the_whole(tag: str, growing: RunningServer) -> None:
    answer = get(growing, Range="bytes=100-", If_Range=tag)
    assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(SIZE))
    assert get(growing, If_None_Match=tag).status_code == 200
    answer.close()


# --- which files


def test_a_file_that_was_to_come_later_is_fetched_when_somebody_asks_for_it(
    growing: RunningServer, archive: ArchiveServer, build: Path, url: str
) -> None:
    # Given a foreground that hangs, after which the delta would have its turn.
    with ThreadPoolExecutor(1) as pool:
        downloading = pool.submit(growing.call, "/download", archive_url=url)
        wait_until(lambda: "nton_payload" in growing.get(f"/api/v1/builds/{NAME}").text)
        assert not ranges_asked_for(archive, DELTA)
        assert get(growing, f"{NTON}/update.gz").content == (build / DELTA).read_bytes()
        # It is staged then, and not read again.
        staged = {"archive_url": url, "artifacts": "nton_payload"}
        wait_until(lambda: growing.call("/is_staged", **staged) == "True")
        assert not downloading.done()
        archive.behave()
        assert downloading.result() == "Success"
    assert growing.call("/wait_for_status", archive_url=url) == "Success"
    assert archive.bytes_sent(f"/{NAME}/{DELTA}") == 100_000


def test_a_link_leads_to_what_is_coming(
    server: RunningServer, archive: ArchiveServer, build: Path, url: str
) -> None:
    for name in ("stateful.tgz", DELTA):
        archive.misbehave(f"/{NAME}/{name}", Fault(stall_after=1000), times=1)
    stage(server, url, "stateful,nton_payload")
    answer = get(server, f"{NTON}/stateful.tgz")
    assert (answer.status_code, answer.headers["Content-Length"]) == (200, "200000")
    assert "ETag" not in answer.headers
    archive.behave()
    assert answer.content == (build / "stateful.tgz").read_bytes()


def test_a_file_is_waited_for_while_the_archive_is_still_listed(
    server: RunningServer, archive: ArchiveServer, url: str, payload: bytes
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/", Fault(hold=hold), times=1)
    stage(server, url)
    with ThreadPoolExecutor(2) as pool:
        there, not_there = pool.submit(get, server), pool.submit(get, server, f"{UPDATE}x")
        wait_until(lambda: clients(server) >= 3)
        assert not there.done() and not not_there.done()
        hold.set()
        assert there.result().content == payload
        assert not_there.result().status_code == 404


def test_what_a_builder_has_yet_to_upload_is_not_there(
    server: RunningServer, archive: ArchiveServer, url: str
) -> None:
    server.call("/stage?async=True&wait=60", archive_url=url, files="later.bin")
    assert get(server, f"/static/{NAME}/later.bin").status_code == 404


def test_a_file_of_unknown_length_is_sent_once_it_is_published(
    server: RunningServer, archive: ArchiveServer, url: str, payload: bytes
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(chunked=True, head_too=True), times=1)
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(chunked=True, hold=hold), times=1)
    stage(server, url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, server)
        wait_until(lambda: len([r for r in archive.requests if r.path.endswith(PAYLOAD)]) == 2)
        assert not waiting.done()
        hold.set()
        answer = waiting.result()
    assert answer.content == payload
    assert answer.headers["ETag"].startswith('"')


def test_whenever_somebody_asks_while_many_files_are_published_each_is_there(
    server: RunningServer, archive: ArchiveServer, build: Path, url: str
) -> None:
    names = [f"many/{number}.txt" for number in range(200)]
    (build / "many").mkdir()
    for name in names:
        (build / name).write_text(name)
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{names[-1]}", Fault(hold=hold), times=1)
    server.call("/stage?async=True", archive_url=url, files="many/*")
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda name: get(server, f"/static/{NAME}/{name}"), names[:-1] * 3)
        for name, answer in zip(names[:-1] * 3, answers, strict=True):
            assert (answer.status_code, answer.text) == (200, name)
    hold.set()
    assert get(server, f"/static/{NAME}/{names[-1]}").text == names[-1]
    assert server.call("/wait_for_status", archive_url=url) == "Success"
    assert archive.bytes_sent(f"/{NAME}/many/*.txt") == sum(map(len, names))


# --- bad days


def test_a_fetch_that_fails_before_anything_is_sent_is_told_in_words(
    server: RunningServer, archive: ArchiveServer, url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/", Fault(hold=hold), times=1)
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(status=403))
    stage(server, url)
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(get, server) for _ in range(10)]
        wait_until(lambda: clients(server) >= 10)
        hold.set()
        for answer in answers:
            assert answer.result().status_code == 502
            assert "403" in answer.result().text and "\n" not in answer.result().text


def test_a_fetch_that_fails_cuts_its_readers(
    growing: RunningServer, archive: ArchiveServer, payload: bytes
) -> None:
    answers = [get(growing), get(growing, Range="bytes=500000-")]
    assert [read(answer, 1000) for answer in answers] == [payload[:1000], payload[500_000:501_000]]
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(status=403))
    archive.down()
    for answer in answers:
        with pytest.raises(requests.exceptions.RequestException):
            read_to_the_end(answer)
    archive.up()
    assert growing.get(UPDATE).status_code in {404, 502}


def test_a_fetch_that_starts_over_cuts_its_readers_and_never_mixes(
    growing: RunningServer, archive: ArchiveServer, payload: bytes
) -> None:
    new = os.urandom(SIZE)
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(replace_with=new), times=1)
    answer = get(growing)
    data = read(answer, 1000)
    with ThreadPoolExecutor(1) as pool:
        # What is fetched for this range is of another file already.
        changed = pool.submit(get, growing, Range="bytes=19000000-19000099")
        with pytest.raises(requests.exceptions.RequestException):
            for piece in pieces(answer):
                data += piece
        wait_until(changed.done)
    assert payload.startswith(data)
    assert get(growing).content == new


def test_wrong_bytes_are_never_sent_to_the_end(
    server: RunningServer, archive: ArchiveServer, url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(hold=hold), times=1)
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(flip_at=SIZE // 2))
    stage(server, url)
    counts = [0] * 5

    def count_bytes(number: int) -> None:
        for piece in pieces(get(server)):
            counts[number] += len(piece)

    with ThreadPoolExecutor(len(counts)) as pool:
        readers = [pool.submit(count_bytes, number) for number in range(len(counts))]
        wait_until(lambda: clients(server) > len(counts))
        hold.set()
        for reader in readers:
            assert isinstance(reader.exception(), requests.exceptions.RequestException)
    assert max(counts) <= SIZE - WITHHELD
    refused = server.get("/wait_for_status", archive_url=url)
    assert (refused.status_code, "CRC32C" in refused.text) == (502, True)
    assert not list((server.static_directory / ".devserver" / "tmp").iterdir())


# --- many of them


def test_a_hundred_readers_cost_the_archive_one_read_and_leave_nothing_behind(
    growing: RunningServer, archive: ArchiveServer, url: str, payload: bytes
) -> None:
    process = psutil.Process(growing.process.pid)
    before = process.num_fds(), process.num_threads()
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: get(growing, Connection="close"), range(100)))
        assert {read(answer, 1000) for answer in answers} == {payload[:1000]}
        archive.behave()
        assert {answer.raw.read() for answer in answers} == {payload[1000:]}
    assert archive.bytes_sent(f"/{NAME}/{PAYLOAD}") == SIZE
    assert growing.call("/wait_for_status", archive_url=url) == "Success"
    assert_nothing_is_left(growing, before)


def test_a_hundred_that_hang_up_half_way_leave_nothing_behind(
    growing: RunningServer, archive: ArchiveServer, url: str, payload: bytes
) -> None:
    process = psutil.Process(growing.process.pid)
    before = process.num_fds(), process.num_threads()
    port = int(growing.url.rpartition(":")[2])
    request = f"GET {UPDATE} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=%d-\r\n\r\n"
    hanging = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    for number, connection in enumerate(hanging):
        connection.sendall((request % (number * 1000)).encode())
    for connection in hanging:
        assert connection.recv(1000).startswith(b"HTTP/1.1 206")
        connection.close()
    assert growing.get("/health").status_code == 200
    archive.behave()
    assert get(growing, Connection="close").content == payload
    assert archive.bytes_sent(f"/{NAME}/{PAYLOAD}") == SIZE
    assert growing.call("/wait_for_status", archive_url=url) == "Success"
    assert_nothing_is_left(growing, before)


def assert_nothing_is_left(server: RunningServer, before: tuple[int, int]) -> None:
    """Compare with ``before``: how many descriptors and threads there were while it was staging."""
    descriptors, threads = before
    process = psutil.Process(server.process.pid)
    temporary = server.static_directory / ".devserver" / "tmp"

    def are_closed() -> bool:
        read = [file.path for file in process.open_files() if str(temporary) in file.path]
        # Connections to the archive are kept for a while, and so are idle threads.
        return not read and process.num_fds() <= descriptors + ARCHIVE_CONNECTIONS

    wait_until(are_closed)
    assert process.num_threads() <= threads + 2 * ARCHIVE_CONNECTIONS
    assert not list(temporary.iterdir())


# --- files that change


def test_a_file_that_is_replaced_while_it_is_read_stays_the_one_it_was(
    server: RunningServer, archive: ArchiveServer, build: Path, url: str, payload: bytes
) -> None:
    staging = {"archive_url": url, "artifacts": "full_payload"}
    server.call("/stage", **staging)
    answer = get(server)
    data = read(answer, 1000)
    new = os.urandom(SIZE)
    (build / PAYLOAD).unlink()
    (build / PAYLOAD).write_bytes(new)
    assert server.call("/stage?clean=True", **staging) == "Success"
    assert get(server).content == new
    assert data + answer.raw.read() == payload


def test_a_build_is_not_dropped_while_its_file_is_coming(
    growing: RunningServer, archive: ArchiveServer, url: str, payload: bytes
) -> None:
    answer = get(growing)
    data = read(answer, 1000)
    staging = {"archive_url": url, "artifacts": "full_payload"}
    assert growing.get("/stage?clean=True", **staging).status_code == 409
    archive.behave()
    assert data + answer.raw.read() == payload


def test_a_reader_goes_on_though_another_file_of_the_artifact_has_failed(
    server: RunningServer, archive: ArchiveServer, build: Path, url: str, payload: bytes
) -> None:
    (build / "other.bin").write_bytes(b"other")
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/other.bin", Fault(hold=hold), times=1)
    archive.misbehave(f"/{NAME}/other.bin", Fault(status=403, head_too=True))
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(stall_after=1_000_000), times=1)
    files = {"archive_url": url, "files": "*.bin"}
    server.call("/stage?async=True", **files)
    path = f"/static/{NAME}/{PAYLOAD}"
    answer = get(server, path)
    data = read(answer, 1000)
    (build / "other.bin").write_bytes(b"changed")
    hold.set()
    wait_until(lambda: server.get("/is_staged", **files).status_code == 502)
    archive.behave()
    assert data + answer.raw.read() == payload


# --- readers that are slow, while more is asked of the build


@pytest.fixture
def busy(server: RunningServer, url: str) -> RunningServer:
    """A server that waits for something of the build; what else is asked of it goes together."""
    server.call("/stage?async=True&wait=60", archive_url=url, files="later.bin")
    return server


@pytest.fixture
def slow(busy: RunningServer, archive: ArchiveServer, url: str) -> Iterator[socket.socket]:
    """Who reads the payload, and takes next to nothing of what is there.

    That is all but the first 5,000,000 bytes, of which only 1,000,000 come.
    """
    fault = Fault(stall_after=1_000_000, cut_after=1_000_000)
    archive.misbehave(f"/{NAME}/{PAYLOAD}", fault, times=1)
    stage(busy, url)
    assert len(get(busy, Range=f"bytes=5000000-{SIZE - WITHHELD - 1}").content) > 14_000_000
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(busy.url.rpartition(":")[2])))
        connection.sendall(
            f"GET {UPDATE} HTTP/1.1\r\nHost: x\r\nRange: bytes=5000000-\r\n\r\n".encode()
        )
        assert connection.recv(1).startswith(b"H")
        yield connection


@pytest.mark.usefixtures("slow")
def test_a_failure_that_somebody_has_not_noticed_yet_is_not_that_of_the_next_try(
    busy: RunningServer, archive: ArchiveServer, build: Path, url: str, payload: bytes
) -> None:
    staging = {"archive_url": url, "artifacts": "full_payload"}
    (build / PAYLOAD).unlink()
    archive.behave()
    wait_until(lambda: busy.get("/is_staged", **staging).status_code == 502)
    (build / PAYLOAD).write_bytes(payload)
    assert busy.call("/stage", **staging) == "Success"
    assert get(busy).content == payload


@pytest.mark.usefixtures("slow")
def test_what_somebody_still_reads_is_not_taken_for_the_file_of_now(
    busy: RunningServer, archive: ArchiveServer, build: Path, url: str, payload: bytes
) -> None:
    archive.behave()
    busy.call("/stage", archive_url=url, artifacts="full_payload")
    new = os.urandom(SIZE + 1)
    (build / PAYLOAD).unlink()
    (build / PAYLOAD).write_bytes(new)
    busy.call("/stage", archive_url=url, files=PAYLOAD)
    assert get(busy, f"/static/{NAME}/{PAYLOAD}").content == new
    assert get(busy).content == payload


# --- the end of the server


def test_the_end_of_the_server_cuts_readers_and_the_next_one_takes_up_what_is_missing(
    serve: Serve, growing: RunningServer, archive: ArchiveServer, url: str, payload: bytes
) -> None:
    answer = get(growing)
    read(answer, 1000)
    growing.kill()
    with pytest.raises(requests.exceptions.RequestException):
        read_to_the_end(answer)
    archive.behave()
    again = serve("--allow-archive", archive.url)
    assert again.get(UPDATE).status_code == 404
    assert again.call("/wait_for_status", archive_url=url) == "Success"
    assert again.get(UPDATE).content == payload
    assert not list((again.static_directory / ".devserver" / "tmp").iterdir())


def test_a_server_that_is_to_end_does_not_wait_for_readers_for_ever(
    growing: RunningServer,
) -> None:
    answer = get(growing)
    read(answer, 1000)
    assert growing.stop() == 0
    with pytest.raises(requests.exceptions.RequestException):
        read_to_the_end(answer)
