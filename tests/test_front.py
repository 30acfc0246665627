"""The server's front: who gets a worker, who waits, who is turned away, and how it all ends."""

from __future__ import annotations

import logging
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from polling import wait_until
from raw_client import RawClient
from small_server import (
    Environ,
    Held,
    open_files,
    port_of,
    serve_file,
    serving_threads,
    small_server,
)

from artifacts.errors import NotFound
from artifacts.serving.answer import text_answer, text_error
from artifacts.serving.deliverer import Deliverer
from artifacts.serving.delivery import Delivery
from artifacts.serving.front import ClientLimits
from artifacts.serving.http_server import HttpServer
from artifacts.serving.waiting import Wait

BIG_BYTES = 30_000_000


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.let_go.set()


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(bytes(BIG_BYTES))
    return path


def wait_for(future: Future[str], seconds: float = 60) -> Wait:
    def answer(outcome: Future[str]) -> object:
        error = outcome.exception()
        return text_answer(outcome.result()) if error is None else text_error(error)

    return Wait(future, seconds, answer)  # type: ignore[arg-type]


def ask(server: HttpServer, target: str) -> tuple[int, str]:
    with RawClient(port_of(server)) as client:
        reply = client.get(target).reply()
        return reply.status, reply.text


def clients_of(server: HttpServer) -> int:
    return len(server.connections_open)


def has_come(server: HttpServer, target: bytes) -> bool:
    """Whether a request for ``target`` is there, and no worker has read it."""
    return any(target in client.inbox.head for client in list(server.connections_open))


@pytest.mark.parametrize(("target", "kind"), [("/a", "text/plain"), ("/api/a", "application/json")])
def test_who_waits_too_long_for_a_worker_is_turned_away(target: str, kind: str, held: Held) -> None:
    with (
        small_server(threads=2, limits=ClientLimits(queue_seconds=0.1), held=held) as server,
        RawClient(port_of(server)) as first,
        RawClient(port_of(server)) as second,
        RawClient(port_of(server)) as third,
    ):
        first.get("/held")
        second.get("/held")
        held.wait_for_begun(2)
        refused = third.get(target).reply()
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["content-type"].startswith(kind)
        assert "all workers are busy" in refused.text
        assert third.is_hung_up_on
        held.let_go.set()
        assert (first.reply().text, second.reply().text) == ("late", "late")
        assert ask(server, "/a")[0] == 200
        assert first.get("/a").reply().status == 200


def test_only_so_many_wait_for_a_worker_and_who_is_refused_takes_nobodys_place(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artifacts.serving.work_queue._MAX_QUEUED", 2)
    held_first = Held()
    limits = ClientLimits(queue_seconds=60)
    with (
        small_server(threads=1, limits=limits, first=held_first, held=held) as server,
        ExitStack() as stack,
    ):

        def client() -> RawClient:
            return stack.enter_context(RawClient(port_of(server)))

        first = client().get("/first")
        held_first.wait_for_begun()
        waiting = [client().get("/held") for _ in range(2)]
        wait_until(lambda: clients_of(server) == 3)
        assert [client().get("/a").reply().status for _ in range(5)] == [503] * 5
        held_first.let_go.set()
        held.wait_for_begun()
        # One of those who waited is with the worker now.
        another = client().get("/another")
        wait_until(lambda: has_come(server, b"/another"))
        held.let_go.set()
        assert [c.reply().text for c in (first, *waiting)] == ["late"] * 3
        assert another.reply().status == 200


@pytest.mark.parametrize(
    ("begun", "kind"),
    [
        (b"G", b"text/plain"),
        (b"GET /a HTTP/1.1\r\nHost:", b"text/plain"),
        (b"GET /api/a HTTP/1.1\r\n", b"application/json"),
        (
            b"POST /api/a HTTP/1.1\r\nHost: lab\r\nContent-Length: 5\r\n\r\nfour",
            b"application/json",
        ),
    ],
)
def test_a_request_that_does_not_end_is_408_and_needs_no_worker(begun: bytes, kind: bytes) -> None:
    with (
        small_server(threads=1, limits=ClientLimits(request_seconds=0.2)) as server,
        RawClient(port_of(server)) as client,
    ):
        client.send(begun)
        assert ask(server, "/a")[0] == 200
        answer = client.rest()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert kind in answer


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"GET /a HTTP/1.1\r\nHost: lab\r\n\r\n"])
def test_an_idle_client_is_hung_up_on(begun: bytes) -> None:
    with (
        small_server(limits=ClientLimits(request_seconds=0.2)) as server,
        RawClient(port_of(server)) as client,
    ):
        client.send(begun)
        if begun.startswith(b"GET"):
            assert client.reply().status == 200
        assert client.is_hung_up_on


def test_a_large_body_that_stops_keeps_its_worker_for_a_bounded_time() -> None:
    limits = ClientLimits(request_seconds=0.3)
    with (
        small_server(threads=1, limits=limits) as server,
        RawClient(port_of(server)) as client,
    ):
        client.get("/a", "POST", Content_Length="100000").send(b"a" * 5000)
        assert client.reply().status == 408
        assert client.is_hung_up_on
        assert ask(server, "/a")[0] == 200


@pytest.mark.parametrize("more", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_bodies_that_stop_leave_workers_to_others(more: str) -> None:
    limits = ClientLimits(body_queue_seconds=0.2, max_bodies=2)
    with small_server(threads=1, limits=limits) as server, ExitStack() as stack:
        stalled = [stack.enter_context(RawClient(port_of(server))) for _ in range(12)]
        for client in stalled:
            client.send(f"POST /a HTTP/1.1\r\nHost: lab\r\n{more}\r\n\r\n".encode())
        # Two of them are read; the others are told to come again, in the end.
        wait_until(lambda: len(answered(stalled)) == 10)
        assert {client.reply().status for client in answered(stalled)} == {503}
        assert ask(server, "/a")[0] == 200


def answered(clients: list[RawClient]) -> list[RawClient]:
    """Return those who can read something."""
    readable, _, _ = select.select([client.socket for client in clients], [], [], 0)
    return [client for client in clients if client.socket in readable]


def test_a_large_body_that_is_cut_short_is_not_answered_as_if_it_were_whole() -> None:
    bodies = []

    def keep(environ: Environ) -> str:
        bodies.append(environ["wsgi.input"].read())
        return "kept"

    with small_server(threads=1, keep=keep) as server:
        with RawClient(port_of(server)) as client:
            client.get("/keep", "POST", Content_Length="100000").send(b"a" * 5000)
            client.socket.shutdown(socket.SHUT_WR)
            assert b" 400 " in client.rest().split(b"\r\n")[0]
        assert bodies == []


def test_a_large_body_waits_until_others_have_been_read() -> None:
    limits = ClientLimits(max_bodies=1)
    with small_server(threads=2, limits=limits) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port_of(server))) for _ in range(3)]
        for client in clients:
            client.get("/a", "POST", Content_Length="100000").send(b"a" * 5000)
        for client in clients:
            assert client.send(b"a" * 95_000).reply().status == 200


def test_whoever_waits_with_a_large_body_is_told_of_the_end() -> None:
    limits = ClientLimits(max_bodies=1)
    with small_server(threads=2, limits=limits) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port_of(server))) for _ in range(3)]
        for client in clients:
            client.get("/a", "POST", Content_Length="100000")
        assert ask(server, "/a")[0] == 200
        ending = threading.Thread(target=server.stop)
        ending.start()
        wait_until(lambda: answered(clients) != [])
        assert answered(clients)[0].reply().status == 503
        for client in clients:
            client.close()
        ending.join()


def test_a_body_that_nobody_reads_does_not_hold_up_its_answer(big_file: Path) -> None:
    with small_server(file=serve_file(big_file)) as server:
        assert ask(server, "/a")[0] == 200
        wait_until(lambda: clients_of(server) == 0)
        open_before = open_files()
        with RawClient(port_of(server)) as client:
            client.get("/file", "GET", Content_Length="100000")
            reply = client.reply()
            assert (len(reply.body), reply.headers["connection"]) == (BIG_BYTES, "close")
        wait_until(lambda: open_files() <= open_before)


def test_more_clients_than_there_is_room_for_are_served_in_turn() -> None:
    with small_server(limits=ClientLimits(max_connections=2)) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port_of(server))).get("/a") for _ in range(7)]
        for n, client in enumerate(clients):
            assert client.reply().status == 200
            assert clients_of(server) <= 2, n
            client.close()


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowest_free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_clients_wait_while_no_more_files_can_be_opened(caplog: pytest.LogCaptureFixture) -> None:
    with small_server() as server, socket.socket() as client, RawClient(port_of(server)) as other:
        assert other.get("/a").reply().status == 200
        with no_more_files():
            client.connect(("127.0.0.1", port_of(server)))
            client.sendall(b"GET /a HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
            wait_until(lambda: "no more connections can be accepted" in caplog.text)
            assert other.get("/a").reply().status == 200
        client.settimeout(60)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(1)])
def test_an_application_that_fails_costs_its_client_only(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Environ) -> str:
        raise error

    with small_server(threads=1, fail=fail) as server:
        for _ in range(3):
            with RawClient(port_of(server)) as client:
                answer = client.get("/fail").rest()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 500 ")
            assert b"wrong" not in answer
        assert ask(server, "/a")[0] == 200
        wait_until(lambda: clients_of(server) == 0)
    assert caplog.text.count("Traceback") == 3


def test_a_wait_may_end_in_another_wait_and_that_in_a_file(big_file: Path) -> None:
    first: Future[None] = Future()
    second: Future[None] = Future()

    def wait(environ: Environ) -> Wait:
        file = serve_file(big_file)
        return Wait(first, 60, lambda _: Wait(second, 60, lambda _: file(environ)))

    with (
        small_server(threads=1, wait=wait) as server,
        RawClient(port_of(server)) as client,
        RawClient(port_of(server)) as head,
    ):
        assert client.get("/a").reply().status == head.get("/a").reply().status == 200
        open_before = open_files()
        for _ in range(2):
            client.get("/wait", Range="bytes=5-9")
            head.get("/wait", "HEAD")
            # Both are with a worker no more.
            assert ask(server, "/a")[0] == 200
            first.set_result(None) if not first.done() else None
            assert ask(server, "/a")[0] == 200
            second.set_result(None) if not second.done() else None
            reply = client.reply()
            assert (reply.status, reply.body) == (206, bytes(5))
            assert head.reply("HEAD").headers["content-length"] == str(BIG_BYTES)
        wait_until(lambda: open_files() <= open_before)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (NotFound("there is no such build"), 404, "there is no such build"),
        (ValueError("wrong"), 500, "internal error; the server's log says more"),
    ],
)
def test_a_wait_whose_end_fails_is_answered_in_words(
    error: Exception, status: int, words: str
) -> None:
    future: Future[str] = Future()

    def fail(_: Future[str]) -> object:
        raise error

    handlers = {
        "told": lambda _: wait_for(future),
        "raised": lambda _: Wait(future, 60, fail),  # type: ignore[arg-type]
        "over": lambda _: Wait(failed, 60, fail),  # type: ignore[arg-type]
    }
    failed: Future[str] = Future()
    failed.set_exception(error)
    with (
        small_server(**handlers) as server,  # type: ignore[arg-type]
        RawClient(port_of(server)) as told,
        RawClient(port_of(server)) as raised,
    ):
        told.get("/told")
        raised.get("/raised")
        assert ask(server, "/over") == (status, words)
        future.set_exception(error)
        for client in (told, raised):
            reply = client.reply()
            assert (reply.status, reply.text) == (status, words)
            assert client.get("/a").reply().status == 200


def test_a_wait_is_bounded_by_its_own_time() -> None:
    future: Future[str] = Future()
    with (
        small_server(wait=lambda _: wait_for(future, 0.1)) as server,
        RawClient(port_of(server)) as client,
    ):
        assert client.get("/wait").reply().status == 504
        # It may ask again, over the same connection.
        future.set_result("there")
        assert client.get("/wait").reply().text == "there"


@pytest.mark.parametrize("ahead", [0, 1, 100])
def test_a_client_that_hangs_up_while_it_waits_is_let_go(ahead: int) -> None:
    future: Future[str] = Future()
    with small_server(wait=lambda _: wait_for(future)) as server:
        for hang_up in (RawClient.close, RawClient.reset):
            client = RawClient(port_of(server)).get("/wait")
            # Requests ahead of time do not hide it.
            for _ in range(ahead):
                client.get("/a")
            wait_until(lambda: clients_of(server) == 1)
            assert ask(server, "/a")[0] == 200
            hang_up(client)
            wait_until(lambda: clients_of(server) == 0)
        future.set_result("for nobody")
        assert ask(server, "/wait") == (200, "for nobody")


def test_clients_that_hang_up_while_they_are_queued_or_worked_for_leave_nothing(held: Held) -> None:
    with small_server(threads=1, held=held) as server:
        open_before = open_files()
        worked_for = RawClient(port_of(server)).get("/held")
        held.wait_for_begun()
        queued = [RawClient(port_of(server)).get("/held") for _ in range(5)]
        wait_until(lambda: clients_of(server) == 6)
        queued.pop().reset()
        for client in (worked_for, *queued):
            client.close()
        held.let_go.set()
        wait_until(lambda: clients_of(server) == 0)
        wait_until(lambda: open_files() <= open_before)
        assert ask(server, "/a")[0] == 200


def test_who_sends_too_much_ahead_of_an_answer_is_hung_up_on() -> None:
    future: Future[str] = Future()
    with (
        small_server(wait=lambda _: wait_for(future)) as server,
        RawClient(port_of(server)) as client,
    ):
        client.get("/wait")
        with pytest.raises(OSError):
            client.send(b"GET /a HTTP/1.1\r\nHost: lab\r\n\r\n" * 200_000)
        wait_until(lambda: clients_of(server) == 0)
        assert ask(server, "/a")[0] == 200


def test_the_log_tells_what_was_sent_of_each_answer(
    big_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "devserver.access")
    with (
        small_server(file=serve_file(big_file)) as server,
        RawClient(port_of(server)) as client,
    ):
        assert client.get("/api/a").reply().status == 200
        assert client.send(b"nonsense\r\n").rest().startswith(b"HTTP/1.1 400 ")
        with RawClient(port_of(server)) as other:
            head = other.get("/file", "HEAD").socket.recv(10_000)
        wait_until(lambda: len(access_log(caplog)) == 3)
    lines = access_log(caplog)
    assert '"GET /api/a HTTP/1.1" 200 ' in lines[0]
    assert '"nonsense" 400 ' in lines[1]
    assert f'"HEAD /file HTTP/1.1" 200 {len(head)} ' in lines[2]


def access_log(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "devserver.access"]


def test_a_large_answer_from_memory_is_taken_as_slowly_as_its_client_likes() -> None:
    text = "line\n" * 2_000_000
    with (
        small_server(threads=1, list=lambda _: text) as server,
        RawClient(port_of(server), is_slow=True) as client,
    ):
        client.get("/list").get("/a").wait_for_answer()
        assert ask(server, "/a")[0] == 200
        assert ask(server, "/list")[1] == text
        assert client.hurry().reply().text == text
        assert client.reply().status == 200


def test_a_slow_client_that_goes_on_reading_is_not_cut(
    big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, looks = [0.0], [0]
    cut_late = Deliverer._cut_late

    def count_look(deliverer: Deliverer) -> None:
        looks[0] += 1
        cut_late(deliverer)

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr("artifacts.serving.deliverer.time", clock)
    monkeypatch.setattr(Deliverer, "_cut_late", count_look)
    with (
        small_server(file=serve_file(big_file), limits=ClientLimits(taking_seconds=300)) as server,
        RawClient(port_of(server), is_slow=True) as client,
    ):
        client.get("/file")
        received = b""
        for _ in range(3):
            received += client.read(4_000_000)
            passed[0] += 200
            next_look = looks[0] + 1
            wait_until(lambda: looks[0] > next_look)  # noqa: B023
        head_bytes = received.index(b"\r\n\r\n") + 4
        received += client.hurry().read(head_bytes + BIG_BYTES - len(received))
        assert received[head_bytes:] == big_file.read_bytes()


def test_what_is_not_in_the_page_cache_is_read_ahead_and_sent(
    big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read_ahead = Delivery.read_ahead

    def note_read(delivery: Delivery) -> None:
        reads.append(threading.current_thread().name)
        read_ahead(delivery)

    monkeypatch.setattr("artifacts.serving.delivery._is_cached", lambda file, position: False)
    monkeypatch.setattr(Delivery, "read_ahead", note_read)
    with small_server(file=serve_file(big_file)) as server, RawClient(port_of(server)) as client:
        assert client.get("/file").reply().body == big_file.read_bytes()
    assert len(reads) == -(-big_file.stat().st_size // 2**20)
    assert all(name.startswith("disk-reader") for name in reads)


def test_the_server_ends_in_time_whatever_its_clients_do(big_file: Path, held: Held) -> None:
    def lingering(_: Environ) -> str:
        return "the last answer"

    open_before = open_files()
    future: Future[str] = Future()
    handlers = {
        "wait": lambda _: wait_for(future),
        "held": held,
        "file": serve_file(big_file),
        "lingering": lingering,
    }
    with (
        ExitStack() as stack,
        small_server(threads=1, **handlers) as server,  # type: ignore[arg-type]
    ):

        def client(*, is_slow: bool = False) -> RawClient:
            return stack.enter_context(RawClient(port_of(server), is_slow=is_slow))

        idle = client()
        kept = client()
        assert kept.get("/a").reply().status == 200
        half = client().send(b"GET / HTTP/1.1\r\nHo")
        waiting = client().get("/wait")
        lingers = client().get("/lingering", Connection="close")
        assert lingers.reply().text == "the last answer"
        sending = client(is_slow=True).get("/file").wait_for_answer()
        working = client().get("/held")
        held.wait_for_begun()
        queued = client().get("/queued")
        wait_until(lambda: has_come(server, b"/queued"))
        assert clients_of(server) == 8
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(server.stop, 2)
            assert idle.is_hung_up_on and kept.is_hung_up_on
            assert half.is_hung_up_on
            held.let_go.set()
            assert working.reply().text == "late"
            assert queued.reply().status == 200
            refused = waiting.reply()
            assert (refused.status, "shutting down" in refused.text) == (503, True)
            stopping.result(timeout=60)
        assert len(sending.rest()) < BIG_BYTES
        assert lingers.is_hung_up_on
        assert serving_threads() == set()
        assert clients_of(server) == 0
    assert open_files() <= open_before


def test_the_end_waits_for_a_client_that_goes_on_reading(big_file: Path) -> None:
    with (
        small_server(file=serve_file(big_file)) as server,
        RawClient(port_of(server)) as client,
        RawClient(port_of(server)) as idle,
        ThreadPoolExecutor(1) as pool,
    ):
        client.get("/file").wait_for_answer()
        stopping = pool.submit(server.stop, 60)
        assert idle.is_hung_up_on
        assert client.reply().body == bytes(BIG_BYTES)
        stopping.result(timeout=60)


def test_a_worker_that_never_ends_does_not_hold_up_the_end(held: Held) -> None:
    with small_server(threads=1, held=held) as server, RawClient(port_of(server)) as client:
        client.get("/held")
        held.wait_for_begun()
        let_go = threading.Timer(0.5, held.let_go.set)
        let_go.start()
        server.stop(timeout_seconds=0.1)
        assert client.rest() == b""
        assert serving_threads() == set()
        let_go.join()
