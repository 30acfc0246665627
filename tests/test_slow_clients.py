"""Clients that read slowly, stop, reset, or never ask; each gets what is its own, and no more."""

from __future__ import annotations

import os
import random
import re
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from conftest import Serve
from polling import clients, wait_until
from raw_client import RawClient
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, TARGET

NAME = f"{TARGET}/{BUILD}"
BIG = f"/static/{NAME}/big.bin"
# More than the system keeps of what a client does not read.
BIG_BYTES = 16_000_000
CONTENT = random.Random(1).randbytes(BIG_BYTES)
NEW_CONTENT = random.Random(2).randbytes(BIG_BYTES)
_ACCESS = re.compile(r'"(\S+) (\S+) HTTP/1.1" (\d+) (\d+) [\d.]+$', re.MULTILINE)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with one large file."""
    directory = tmp_path_factory.mktemp("big")
    path = directory / NAME / "big.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return directory


def stage(server: RunningServer, directory: Path, **more: str) -> None:
    url = f"file://{directory}/{NAME}"
    server.call("/stage", archive_url=url, files="big.bin", **more)


@pytest.fixture
def server(serve: Serve, directory: Path) -> RunningServer:
    # Few threads: who is slow must not need one.
    server = serve("--allow-archive", f"file://{directory}", "--threads", "4")
    stage(server, directory)
    return server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def slow_reader(server: RunningServer, stack: ExitStack, target: str = BIG) -> RawClient:
    """Return a client that has read the head and some bytes of an answer, and reads no more."""
    client = stack.enter_context(RawClient(server.port, is_slow=True)).get(target)
    client.read(1000)
    return client


def open_files(server: RunningServer) -> int:
    return int(psutil.Process(server.process.pid).num_fds())


def threads(server: RunningServer) -> int:
    return int(psutil.Process(server.process.pid).num_threads())


def answers_in_log(server: RunningServer, target: str) -> list[tuple[str, int, int]]:
    """Return method, status and bytes sent of the answers for a target."""
    found = _ACCESS.findall(server.log)
    return [
        (method, int(status), int(sent)) for method, path, status, sent in found if path == target
    ]


def test_clients_that_stop_reading_hold_nobody_up_and_get_everything_in_the_end(
    server: RunningServer, stack: ExitStack
) -> None:
    stopped = [slow_reader(server, stack) for _ in range(12)]
    assert server.get("/check_health").status_code == 200
    assert server.file(f"{NAME}/big.bin") == CONTENT
    for client in stopped:
        rest = client.hurry().read(BIG_BYTES - 1000)
        assert CONTENT.find(rest[:5000]) >= 0
        # What was read before was the head, and so much of the file is still to come.
        missing = BIG_BYTES - CONTENT.index(rest[:5000]) - len(rest)
        assert rest + client.read(missing) == CONTENT[-len(rest) - missing :]
        assert client.get("/health").reply().status == 200


def test_a_client_that_takes_nothing_for_too_long_is_cut(
    serve: Serve, directory: Path, stack: ExitStack
) -> None:
    server = serve("--allow-archive", f"file://{directory}", "--client-timeout", "1")
    stage(server, directory)
    wait_until(lambda: clients(server) == 1)
    open_before = open_files(server)
    stopped = [slow_reader(server, stack) for _ in range(3)]
    wait_until(lambda: clients(server) == 1)
    wait_until(lambda: open_files(server) <= open_before)
    received = [len(client.hurry().rest()) + 1000 for client in stopped]
    logged = answers_in_log(server, BIG)
    assert [status for _, status, _ in logged] == [200] * 3
    for count in received:
        assert count < BIG_BYTES
    assert sorted(sent for _, _, sent in logged) == sorted(received)


def test_clients_that_reset_leave_nothing(server: RunningServer, stack: ExitStack) -> None:
    server.get("/check_health")
    open_before = open_files(server)
    readers = [slow_reader(server, stack) for _ in range(20)]
    assert open_files(server) >= open_before + 40
    for client in readers:
        client.reset()
    wait_until(lambda: open_files(server) <= open_before)
    assert clients(server) == 1


def test_300_half_sent_heads_hold_nobody_up(server: RunningServer, stack: ExitStack) -> None:
    threads_before = threads(server)
    half = [stack.enter_context(RawClient(server.port)) for _ in range(300)]
    for n, client in enumerate(half):
        client.send(f"GET {BIG} HTTP/1.1\r\nHost: lab\r\nRange: bytes={n}-{n}\r\n".encode())
    wait_until(lambda: clients(server) == 301)
    assert server.get("/check_health").status_code == 200
    assert threads(server) <= threads_before + 4
    for n, client in enumerate(half):
        assert client.send(b"\r\n").reply().body == CONTENT[n : n + 1]


def test_300_slow_readers_hold_nobody_up_and_leave_nothing(
    server: RunningServer, stack: ExitStack
) -> None:
    server.get("/check_health")
    files_before, threads_before = open_files(server), threads(server)
    readers = [slow_reader(server, stack) for _ in range(300)]
    assert clients(server) == 301
    for _ in range(5):
        assert server.get("/check_health").status_code == 200
    assert server.file(f"{NAME}/big.bin") == CONTENT
    # The other workers, and those who wait for the disk; none for each client.
    assert threads(server) <= threads_before + 4 + 16
    for client in readers[:100]:
        client.reset()
    for client in readers[100:]:
        client.close()
    wait_until(lambda: open_files(server) <= files_before)
    assert clients(server) == 1


def test_the_end_gives_readers_their_time_and_then_cuts_them(
    serve: Serve, directory: Path, stack: ExitStack
) -> None:
    server = serve("--allow-archive", f"file://{directory}", "--shutdown-timeout", "3")
    stage(server, directory)
    reading, stopped = slow_reader(server, stack), slow_reader(server, stack)
    idle = stack.enter_context(RawClient(server.port))
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop)
        assert idle.is_hung_up_on
        assert reading.hurry().rest().endswith(CONTENT[1000:])
        assert stopping.result() == 0
    assert len(stopped.hurry().rest()) < BIG_BYTES - 1000


def test_the_log_tells_what_was_sent(server: RunningServer, stack: ExitStack) -> None:
    def ask(method: str = "GET", **headers: str) -> int:
        with RawClient(server.port) as client:
            return len(client.get(BIG, method, Connection="close", **headers).rest())

    etag = server.session.head(server.url + BIG).headers["ETag"]
    whole = ask()
    assert whole > BIG_BYTES
    expected = [
        ("GET", 200, whole),
        ("GET", 206, ask(Range="bytes=5-1004")),
        ("GET", 206, ask(Range="bytes=0-9,1000-1009")),
        ("HEAD", 200, ask("HEAD")),
        ("GET", 304, ask(If_None_Match=etag)),
        ("GET", 416, ask(Range=f"bytes={BIG_BYTES}-")),
    ]
    wait_until(lambda: len(answers_in_log(server, BIG)) == 7)
    assert answers_in_log(server, BIG)[1:] == expected

    # Of one that hangs up, what the system has taken for it, and no more.
    reader = slow_reader(server, stack)
    reader.reset()
    wait_until(lambda: len(answers_in_log(server, BIG)) == 8)
    method, status, sent = answers_in_log(server, BIG)[-1]
    assert (method, status) == ("GET", 200)
    assert 1000 <= sent < whole


def test_a_build_may_be_replaced_while_it_is_read(
    serve: Serve, directory: Path, stack: ExitStack, tmp_path: Path
) -> None:
    other = tmp_path / "archive"
    (other / NAME).mkdir(parents=True)
    archived = other / NAME / "big.bin"
    archived.write_bytes(CONTENT)
    server = serve("--allow-archive", f"file://{other}")
    stage(server, other)
    old_etag = server.session.head(server.url + BIG).headers["ETag"]
    reader = slow_reader(server, stack)
    archived.write_bytes(NEW_CONTENT)
    stage(server, other, clean="True")
    new = server.get(BIG)
    assert new.content == NEW_CONTENT
    assert new.headers["ETag"] != old_etag
    assert server.get(BIG).headers["ETag"] == new.headers["ETag"]
    # Whoever is reading has the old file, whole.
    assert reader.hurry().read(BIG_BYTES - 2000) in CONTENT
    # And a part of it is a part of the new one no more.
    with RawClient(server.port) as client:
        client.get(BIG, Range="bytes=0-99", If_Range=old_etag)
        reply = client.reply()
        assert (reply.status, reply.body) == (200, NEW_CONTENT)


def test_a_file_that_is_truncated_while_it_is_read_is_not_ended_in_order(
    server: RunningServer, stack: ExitStack
) -> None:
    readers = [slow_reader(server, stack) for _ in range(2)]
    os.truncate(server.static_directory / NAME / "big.bin", BIG_BYTES - 10)
    for reader in readers:
        received = reader.hurry().rest()
        # The connection ends before the length that was promised.
        assert len(received) < BIG_BYTES - 10
    wait_until(lambda: "the file has become shorter" in server.log)
    assert server.get("/check_health").status_code == 200


def test_clients_beyond_the_limit_of_open_files_are_served_in_turn(
    serve: Serve, directory: Path, stack: ExitStack
) -> None:
    server = serve("--allow-archive", f"file://{directory}", open_files=128)
    assert "only 16 clients are served at a time" in server.log
    assert "ulimit -n" in server.log
    stage(server, directory)
    server.session.close()
    readers = [slow_reader(server, stack) for _ in range(16)]
    later = [stack.enter_context(RawClient(server.port)).get("/health") for _ in range(24)]
    assert select.select([client.socket for client in later], [], [], 0.1)[0] == []
    readers.pop().close()
    for client in later:
        assert client.reply().status == 200
        client.close()
    assert all(reader.hurry().read(100_000) in CONTENT for reader in readers)
    assert "cannot be accepted" not in server.log
