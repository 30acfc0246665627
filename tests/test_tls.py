"""HTTPS: everything as over HTTP, and a client that shakes hands slowly holds nobody up."""

from __future__ import annotations

import contextlib
import json
import os
import random
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from polling import wait_until
from raw_client import RawClient
from real_servers import make_certificate
from running_server import REPOSITORY, RunningServer
from small_server import open_files, port_of, serve_file, serving_threads, small_server

from artifacts.commands.sample_build import BUILD, TARGET
from artifacts.serving.answer import text_answer
from artifacts.serving.front import ClientLimits
from artifacts.serving.http_server import HttpServer
from artifacts.serving.waiting import Wait

NAME = f"{TARGET}/{BUILD}"
CONTENT = random.Random(4).randbytes(12_000_000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture(scope="module")
def tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content") / "content.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def waited_for() -> Future[str]:
    return Future()


@pytest.fixture
def server(certificate: Path, content: Path, waited_for: Future[str]) -> Iterator[HttpServer]:
    wait = Wait(waited_for, 60, lambda future: text_answer(future.result()))
    with small_server(
        threads=2,
        certificate=(certificate, certificate),
        file=serve_file(content),
        wait=lambda _: wait,
        large=lambda _: "a" * 5_000_000,
    ) as server:
        yield server


def clients_of(server: HttpServer) -> int:
    return len(server.connections_open)


def test_files_and_ranges_are_the_same_over_one_connection(
    server: HttpServer, tls: ssl.SSLContext
) -> None:
    with RawClient(port_of(server), tls=tls) as client:
        for _ in range(2):
            assert client.get("/file").reply().body == CONTENT
            part = client.get("/file", Range="bytes=100000-4999999").reply()
            assert (part.status, part.body) == (206, CONTENT[100_000:5_000_000])
            head = client.get("/file", "HEAD").reply("HEAD")
            assert head.headers["content-length"] == str(len(CONTENT))
        last = client.get("/file", Range="bytes=-5", Connection="close").reply()
        assert last.body == CONTENT[-5:]
        assert client.is_hung_up_on


@pytest.mark.parametrize("count", [1, 10, 2000])
def test_pipelined_requests_are_answered_in_their_order(
    count: int, server: HttpServer, tls: ssl.SSLContext
) -> None:
    with RawClient(port_of(server), tls=tls) as client:
        # Several records, and requests that are in two of them.
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: lab\r\n\r\n" % n for n in range(count)))
        for n in range(count):
            assert json.loads(client.reply().body)[1] == f"/{n}"


def test_a_request_may_come_byte_by_byte(server: HttpServer, tls: ssl.SSLContext) -> None:
    with RawClient(port_of(server), tls=tls) as client:
        for byte in b"POST /a HTTP/1.1\r\nHost: lab\r\nContent-Length: 4\r\n\r\nbody":
            client.send(bytes([byte]))
        assert json.loads(client.reply().body)[-1] == "body"


def test_bodies_come_whole(server: HttpServer, tls: ssl.SSLContext) -> None:
    with RawClient(port_of(server), tls=tls) as client:
        for length in (16_384, 16_385, 65_536, 65_537, 1_000_000):
            body = "b" * length
            client.get("/a", "POST", Content_Length=str(length)).send(body.encode())
            assert json.loads(client.reply().body)[-1] == body
        client.get("/a", "POST", Content_Length="4", Expect="100-continue")
        assert client.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.send(b"body").reply().status == 200


def test_a_wait_needs_no_worker(
    server: HttpServer, tls: ssl.SSLContext, waited_for: Future[str]
) -> None:
    with ExitStack() as stack:
        waiting = [stack.enter_context(RawClient(port_of(server), tls=tls)) for _ in range(20)]
        for client in waiting:
            client.get("/wait").get("/a")
        with RawClient(port_of(server), tls=tls) as other:
            assert other.get("/a").reply().status == 200
        waited_for.set_result("there")
        for client in waiting:
            assert client.reply().text == "there"
            assert client.reply().status == 200


def hang_up_in_order(client: RawClient) -> None:
    """Hang up as TLS wants it: say so first."""
    assert isinstance(client.socket, ssl.SSLSocket)
    client.socket.settimeout(0)
    # The server may have said so, too, by the time this looks.
    with contextlib.suppress(ssl.SSLWantReadError):
        client.socket.unwrap()
    client.close()


@pytest.mark.parametrize("hang_up", [RawClient.close, RawClient.reset, hang_up_in_order])
def test_a_client_that_hangs_up_while_it_waits_is_let_go(
    hang_up: object, server: HttpServer, tls: ssl.SSLContext
) -> None:
    client = RawClient(port_of(server), tls=tls).get("/wait")
    wait_until(lambda: clients_of(server) == 1)
    with RawClient(port_of(server), tls=tls) as other:
        assert other.get("/a").reply().status == 200
    hang_up(client)  # type: ignore[operator]
    wait_until(lambda: clients_of(server) == 0)


def test_slow_clients_hold_nobody_up_and_get_everything(
    server: HttpServer, tls: ssl.SSLContext
) -> None:
    with ExitStack() as stack:
        slow = []
        for target in ("/file", "/large", "/file", "/large", "/file"):
            client = stack.enter_context(RawClient(port_of(server), is_slow=True, tls=tls))
            slow.append((client.get(target).wait_for_answer(), target))
        with RawClient(port_of(server), tls=tls) as other:
            assert other.get("/a").reply().status == 200
            assert other.get("/file").reply().body == CONTENT
        for client, target in slow:
            expected = CONTENT if target == "/file" else b"a" * 5_000_000
            assert client.hurry().reply().body == expected
            assert client.get("/a").reply().status == 200


def test_a_client_that_takes_nothing_is_cut(
    certificate: Path, content: Path, tls: ssl.SSLContext
) -> None:
    with small_server(
        certificate=(certificate, certificate),
        limits=ClientLimits(taking_seconds=0.5),
        file=serve_file(content),
    ) as server:
        open_before = open_files()
        client = RawClient(port_of(server), is_slow=True, tls=tls)
        client.get("/file").wait_for_answer()
        wait_until(lambda: clients_of(server) == 0)
        assert len(client.hurry().rest()) < len(CONTENT)
        client.close()
        wait_until(lambda: open_files() <= open_before)


def test_plain_http_is_told_where_it_is(server: HttpServer, tls: ssl.SSLContext) -> None:
    with RawClient(port_of(server)) as client:
        reply = client.get("/a").reply()
        assert reply.status == 400
        assert "https://" in reply.text
        assert client.is_hung_up_on
    with RawClient(port_of(server), tls=tls) as client:
        assert client.get("/a").reply().status == 200


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00", b"SSH-2.0-OpenSSH_9.2p1\r\n"])
def test_those_who_never_finish_their_handshake_hold_nobody_up(
    hello: bytes, certificate: Path, tls: ssl.SSLContext
) -> None:
    with (
        small_server(
            threads=1,
            certificate=(certificate, certificate),
            limits=ClientLimits(request_seconds=0.5),
        ) as server,
        ExitStack() as stack,
    ):
        silent = [stack.enter_context(RawClient(port_of(server))) for _ in range(50)]
        for client in silent:
            client.send(hello)
        with RawClient(port_of(server), tls=tls) as client:
            assert client.get("/a").reply().status == 200
        for client in silent:
            client.rest()
        wait_until(lambda: clients_of(server) == 0)


def test_an_idle_client_is_hung_up_on(certificate: Path, tls: ssl.SSLContext) -> None:
    limits = ClientLimits(request_seconds=0.5)
    with (
        small_server(certificate=(certificate, certificate), limits=limits) as server,
        RawClient(port_of(server), tls=tls) as idle,
        RawClient(port_of(server), tls=tls) as kept,
        RawClient(port_of(server), tls=tls) as half,
    ):
        assert kept.get("/a").reply().status == 200
        assert half.send(b"GET /a HTTP/1.1\r\n").reply().status == 408
        assert idle.is_hung_up_on and kept.is_hung_up_on


def test_the_server_ends_whatever_its_clients_do(
    certificate: Path, content: Path, tls: ssl.SSLContext, waited_for: Future[str]
) -> None:
    open_before = open_files()
    wait = Wait(waited_for, 60, lambda future: text_answer(future.result()))
    with (
        ExitStack() as stack,
        small_server(
            certificate=(certificate, certificate), file=serve_file(content), wait=lambda _: wait
        ) as server,
    ):
        shaking = stack.enter_context(RawClient(port_of(server)))
        idle = stack.enter_context(RawClient(port_of(server), tls=tls))
        waiting = stack.enter_context(RawClient(port_of(server), tls=tls)).get("/wait")
        slow = stack.enter_context(RawClient(port_of(server), is_slow=True, tls=tls)).get("/file")
        slow.wait_for_answer()
        wait_until(lambda: clients_of(server) == 4)
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(server.stop, 1)
            assert idle.is_hung_up_on and shaking.is_hung_up_on
            stopping.result(timeout=60)
        waiting.rest()
        assert len(slow.rest()) < len(CONTENT)
        assert serving_threads() == set()
    assert open_files() <= open_before


@pytest.fixture
def running(tmp_path: Path, certificate: Path, sample_archive: Path) -> Iterator[RunningServer]:
    server = RunningServer(
        tmp_path / "server",
        *("--allow-archive", f"file://{sample_archive}"),
        *("--tls-certificate", str(certificate.with_suffix(".certificate"))),
        *("--tls-key", str(certificate.with_suffix(".key"))),
    )
    yield server
    server.stop()


def test_a_lab_works_over_https(
    running: RunningServer, certificate: Path, sample_archive: Path
) -> None:
    url = f"https://127.0.0.1:{running.port}"
    archive_url = f"file://{sample_archive}/{NAME}"
    environment = {**os.environ, "REQUESTS_CA_BUNDLE": str(certificate)}
    for arguments in (("stage", archive_url, "--files", "stateful.tgz"), ("status",)):
        ended = subprocess.run(
            [sys.executable, str(REPOSITORY / "devserver.py"), *arguments, "--server", url],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
    assert NAME in ended.stdout
    expected = (sample_archive / NAME / "stateful.tgz").read_bytes()
    for _ in range(3):
        file_url = f"{url}/static/{NAME}/stateful.tgz"
        answer = requests.get(file_url, verify=str(certificate), timeout=60)
        assert answer.content == expected
    assert ' "GET /static/' in running.log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-certificate", "{missing}"], "cannot read {missing}: No such file or directory"),
        (["--tls-certificate", "{good}", "--tls-key", "{missing}"], "cannot read {missing}"),
        (["--tls-certificate", "{only}"], "is no certificate with its key"),
        (["--tls-certificate", "{only}", "--tls-key", "{other}"], "is no certificate with its key"),
        (["--tls-certificate", "{garbage}"], "is no certificate with its key"),
        (["--tls-key", "{good}"], "--tls-certificate"),
    ],
)
def test_a_certificate_that_is_none_ends_the_server_with_2(
    options: list[str], words: str, certificate: Path, tmp_path: Path
) -> None:
    (tmp_path / "garbage").write_text("this is no certificate")
    files = {
        "missing": tmp_path / "missing",
        "good": certificate,
        "only": certificate.with_suffix(".certificate"),
        "other": make_certificate(tmp_path / "other.pem").with_suffix(".key"),
        "garbage": tmp_path / "garbage",
    }
    ended = subprocess.run(
        [
            *(sys.executable, str(REPOSITORY / "devserver.py"), "serve", "--port", "0"),
            *("--data-dir", str(tmp_path / "data")),
            *(option.format(**files) for option in options),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("devserver: ")
    assert words.format(**files) in line
