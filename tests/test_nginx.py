"""Behind nginx, with the configuration that is to be deployed.

What clients see of /static through it is in test_static.py.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from archive_server import ArchiveServer, Fault
from conftest import Serve, missing_tool
from deployed_nginx import ACCEL_PREFIX, CONFIGURATION, deployed_nginx, reached_at
from lab_client import LabClient
from polling import clients, wait_until
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET
from artifacts.config import Config
from artifacts.serving.file_answer import content_type

NAME = f"{TARGET}/{BUILD}"
SECONDS = 30

Front = Callable[..., str]
Stage = Callable[..., RunningServer]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """Put an nginx before a server; all of them are ended after the test."""
    with ExitStack() as running:

        def start(upstream_url: str, static_directory: Path, **more: object) -> str:
            directory = tmp_path / "nginx"
            return running.enter_context(
                deployed_nginx(upstream_url, static_directory, directory, **more)
            )

        yield start


@pytest.fixture
def behind(serve: Serve, archive: ArchiveServer, front: Front) -> RunningServer:
    """A devserver as it is reached through nginx; nothing is staged."""
    server = serve(
        "--allow-archive", archive.url, "--threads", "4", "--accel-redirect", ACCEL_PREFIX
    )
    return reached_at(front(server.url, server.static_directory), server)


def stage(server: RunningServer, archive_url: str) -> None:
    server.call("/download", archive_url=archive_url)
    server.call("/wait_for_status", archive_url=archive_url)


# --- files


@pytest.mark.parametrize("serves_published", [True, False])
def test_names_with_odd_characters_are_served(
    serves_published: bool, serve: Serve, front: Front, tmp_path: Path
) -> None:
    names = ["with blank", "a+b", "what?", "ä€", "50%", "a%3Fb", "x;y=1&z", "#1", "a..b", "q'\"\\"]
    build = tmp_path / "archive" / NAME / "more"
    build.mkdir(parents=True)
    for name in names:
        (build / name).write_text(name)
    archive = f"file://{tmp_path / 'archive'}"
    options = ("--catalog", "everything", "--accel-redirect", ACCEL_PREFIX)
    server = serve("--allow-archive", archive, *options)
    stage(server, f"{archive}/{NAME}")
    url = front(server.url, server.static_directory, serves_published=serves_published)
    for name in names:
        answer = requests.get(f"{url}/static/{NAME}/more/{quote(name)}", timeout=SECONDS)
        assert (answer.status_code, answer.content) == (200, name.encode())
        assert answer.headers["Content-Security-Policy"] == "sandbox"
    # Not every client encodes everything, and some encode even slashes.
    assert requests.get(f"{url}/static/{NAME}/more/a+b", timeout=SECONDS).text == "a+b"
    assert requests.get(f"{url}/static/{NAME}/more%2Fa%2Bb", timeout=SECONDS).text == "a+b"


def test_types_are_those_that_devserver_says() -> None:
    types = re.search(r"types \{(.*?)\}", CONFIGURATION.read_text(), re.DOTALL)
    assert types is not None
    for line in types[1].strip().splitlines():
        kind, extensions = re.fullmatch(r'\s*(".*"|\S+)\s+(.*);', line).groups()
        for extension in extensions.split():
            assert content_type(f"name.{extension}") == kind.strip('"'), extension
    assert content_type("control") == content_type("image.bin") == "application/octet-stream"


@pytest.mark.parametrize("serves_published", [True, False])
def test_links_within_a_build_are_followed(
    serves_published: bool, serve: Serve, archive: ArchiveServer, build_url: str, front: Front
) -> None:
    server = serve("--allow-archive", archive.url, "--accel-redirect", ACCEL_PREFIX)
    stage(server, build_url)
    links = [
        path.relative_to(server.static_directory).as_posix()
        for path in (server.static_directory / NAME).rglob("*")
        if path.is_symlink() and path.is_file()
    ]
    assert links
    url = front(server.url, server.static_directory, serves_published=serves_published)
    for link in links:
        answer = requests.get(f"{url}/static/{quote(link)}", timeout=SECONDS)
        assert answer.content == (server.static_directory / link).read_bytes()


def test_a_listed_file_replaced_by_a_link_is_not_followed(
    serve: Serve, archive: ArchiveServer, build_url: str, front: Front
) -> None:
    server = serve("--allow-archive", archive.url, "--accel-redirect", ACCEL_PREFIX)
    server.call("/stage", archive_url=build_url, artifacts="stateful")
    staged = server.static_directory / NAME / "stateful.tgz"
    staged.unlink()
    staged.symlink_to("/etc/passwd")
    url = front(server.url, server.static_directory, serves_published=False)
    answer = requests.get(f"{url}/static/{NAME}/stateful.tgz", timeout=SECONDS)
    assert (answer.status_code, answer.text) == (404, "nothing staged there")


def test_clients_do_not_get_at_the_static_directory_past_devserver(behind: RunningServer) -> None:
    for path in (".published/.devserver/lock", ".published/", "static/.devserver/lock"):
        assert behind.get(f"/{path}").status_code == 404


def test_what_is_dropped_or_staged_anew_is_so_at_once(
    serve: Serve, front: Front, tmp_path: Path
) -> None:
    image = tmp_path / "archive" / NAME / "image.bin"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"one")
    archive = f"file://{tmp_path / 'archive'}"
    server = serve("--allow-archive", archive, "--catalog", "everything")
    behind = reached_at(front(server.url, server.static_directory), server)
    stage(behind, f"{archive}/{NAME}")
    before = behind.get(f"/static/{NAME}/image.bin")
    image.write_bytes(b"another")
    behind.call("/stage", archive_url=f"{archive}/{NAME}", files="image.bin", clean="True")
    after = behind.get(f"/static/{NAME}/image.bin")
    assert (before.content, after.content) == (b"one", b"another")
    assert before.headers["ETag"] != after.headers["ETag"]

    assert behind.session.delete(f"{behind.url}/api/v1/builds/{NAME}").status_code == 204
    assert behind.get(f"/static/{NAME}/image.bin").status_code == 404


def test_a_read_that_nginx_answers_alone_keeps_the_build_in_use(
    serve: Serve, archive: ArchiveServer, build_url: str, front: Front
) -> None:
    with tempfile.TemporaryDirectory(prefix="nginx-") as short:
        log_socket = Path(short) / "log"
        options = ("--nginx-log", str(log_socket))
        staging = serve("--allow-archive", archive.url)
        stage(staging, build_url)
        staging.stop()
        server = serve("--allow-archive", archive.url, *options)
        url = front(server.url, server.static_directory, log_socket=log_socket)
        set_last_use(server, 1_000_000_000)

        def last_used() -> str:
            return server.get("/api/v1/builds").json()["builds"][0]["last_used"]

        # What nginx does not find is no use.
        assert requests.get(f"{url}/static/{TARGET}/R0/x", timeout=SECONDS).status_code == 404
        assert last_used() == "2001-09-09T01:46:40+00:00"

        assert requests.head(f"{url}/static/{NAME}/update.gz", timeout=SECONDS).ok
        wait_until(lambda: last_used() > "2026")
        assert "update.gz" not in server.log, "devserver was asked"

        # Another process takes the socket over.
        server.stop()
        assert requests.head(f"{url}/static/{NAME}/update.gz", timeout=SECONDS).ok
        server = serve("--allow-archive", archive.url, *options)
        set_last_use(server, 1_000_000_000)

        def is_noted() -> bool:
            # One read a second is told, and what was said to the socket that is gone is lost.
            requests.head(f"{url}/static/{NAME}/update.gz", timeout=SECONDS)
            return last_used() > "2026"

        wait_until(is_noted)


def set_last_use(server: RunningServer, seconds: float) -> None:
    stamp = server.static_directory / ".devserver" / "builds" / NAME / "staged.timestamp"
    os.utime(stamp, (seconds, seconds))


def test_nginx_may_be_another_user(sample_archive: Path) -> None:
    if os.geteuid() != 0:
        missing_tool("the right to be another user")
    # Directories of tests are their user's alone.
    with tempfile.TemporaryDirectory(prefix="nginx-") as directory:
        Path(directory).chmod(0o755)
        log_socket = Path(directory) / "log"
        options = ("--allow-archive", f"file://{sample_archive}", "--nginx-log", str(log_socket))
        server = RunningServer(Path(directory) / "server", *options)
        try:
            stage(server, f"file://{sample_archive}/{NAME}")
            server.stop()
            server = RunningServer(Path(directory) / "server", *options)
            set_last_use(server, 1)
            with deployed_nginx(
                server.url,
                server.static_directory,
                Path(directory) / "nginx",
                log_socket=log_socket,
                user="nobody",
            ) as url:
                for path in ("update.gz", "autotest/server/autoserv"):
                    assert requests.get(f"{url}/static/{NAME}/{path}", timeout=SECONDS).ok
            assert "/static/" not in server.log, "devserver was asked"
            stamp = server.static_directory / ".devserver/builds" / NAME / "staged.timestamp"
            wait_until(lambda: stamp.stat().st_mtime > 1)
        finally:
            server.stop()


# --- waits, and requests on their way through


def test_waits_go_through_and_those_who_hang_up_are_let_go(
    behind: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(hold=hold), times=1)
    waits = f"GET /wait_for_status?archive_url={build_url} HTTP/1.1\r\nHost: lab\r\n\r\n"
    behind.call("/stage?async=True", archive_url=build_url, artifacts="full_payload")
    open_before = clients(behind)
    with ThreadPoolExecutor(20) as pool:
        waiters = [
            pool.submit(behind.call, "/wait_for_status", archive_url=build_url) for _ in range(20)
        ]
        gone = LabClient(behind).connect()
        gone.sendall(waits.encode())
        wait_until(lambda: clients(behind) >= open_before + 21)
        gone.close()
        wait_until(lambda: clients(behind) <= open_before + 20)
        assert not any(waiter.done() for waiter in waiters)
        hold.set()
        assert {waiter.result() for waiter in waiters} == {"Success"}
    assert behind.get(f"/static/{NAME}/update.gz").status_code == 200


def test_nginx_waits_longer_than_devserver() -> None:
    limit = re.search(r"proxy_read_timeout (\d+)s;", CONFIGURATION.read_text())
    # A builder is waited for as long as what comes then.
    assert limit is not None and int(limit[1]) > 2 * Config().wait_timeout


@pytest.mark.parametrize("way", ["1.0", "1.0 kept", "1.1", "1.1 kept"])
def test_clients_old_and_new_get_through(way: str, behind: RunningServer) -> None:
    client = LabClient(behind, way)
    for _ in range(2):
        assert client.call("health") == '{\n "status": "ok"\n}'
    client.close()


def test_calls_that_name_many_files_get_through(behind: RunningServer, build_url: str) -> None:
    files = ",".join(f"{'x' * 50}-{number}" for number in range(500))
    answer = behind.get("/is_staged", archive_url=build_url, files=files)
    assert (answer.status_code, answer.text) == (200, "False")


def test_pages_of_other_sites_change_nothing_and_its_own_may(
    behind: RunningServer, build_url: str
) -> None:
    def download(origin: str) -> requests.Response:
        call, headers = f"{behind.url}/download", {"Origin": origin}
        return behind.session.get(call, params={"archive_url": build_url}, headers=headers)

    for other in ("https://evil.example", "http://127.0.0.1", "http://127.0.0.1:8080"):
        assert download(other).status_code == 403
    assert download(behind.url).text == "Success"


def test_bodies_get_through_and_refusals_are_devservers(
    behind: RunningServer, build_url: str
) -> None:
    form = {"archive_url": build_url, "artifacts": "stateful"}
    assert behind.session.post(f"{behind.url}/stage", data=form).text == "Success"
    wanted = {"archive_url": build_url, "artifacts": ["stateful"]}
    assert behind.session.post(f"{behind.url}/api/v1/builds/{NAME}", json=wanted).status_code == 202
    for size in (2_000_000, 20_000_000):
        # nginx says that the connection stays, and closes it after a body that was refused:
        # whoever posts over it again may lose that race.
        refused = requests.post(f"{behind.url}/download", data=bytes(size), timeout=60)
        assert refused.status_code == 413
        assert "nginx" not in refused.text
    posted = behind.session.post(f"{behind.url}/static/{NAME}/stateful.tgz", data=b"x")
    assert (posted.status_code, posted.headers["Allow"]) == (405, "GET, HEAD")


# --- the end of devserver


def test_what_is_published_is_served_while_devserver_is_away(
    serve: Serve, archive: ArchiveServer, build_url: str, front: Front
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        options = ("--allow-archive", archive.url, "--port", str(probe.getsockname()[1]))
    server = serve(*options)
    stage(server, build_url)
    behind = reached_at(front(server.url, server.static_directory), server)
    assert behind.get("/health").status_code == 200
    server.stop()

    assert len(behind.get(f"/static/{NAME}/update.gz").content) == 5_000_000
    for path in ("/health", f"/static/{NAME}/", "/static/a/b/c"):
        refused = behind.get(path)
        assert refused.status_code == 503
        assert refused.text == "devserver does not answer; ask again"
        assert int(refused.headers["Retry-After"]) > 0

    serve(*options)
    assert behind.call("/wait_for_status", archive_url=build_url) == "Success"


def test_a_cut_is_a_cut(archive: ArchiveServer, front: Front, tmp_path: Path) -> None:
    url = front(archive.url, tmp_path)
    path = f"/{NAME}/{FULL_PAYLOAD}"
    for fault in (Fault(cut_after=1_000_000), Fault(cut_after=1_000_000, chunked=True)):
        archive.misbehave(path, fault, times=1)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            requests.get(url + path, timeout=SECONDS)
    assert len(requests.get(url + path, timeout=SECONDS).content) == 5_000_000


def test_what_has_come_is_passed_on_before_the_rest_comes(
    archive: ArchiveServer, front: Front, tmp_path: Path
) -> None:
    url = front(archive.url, tmp_path)
    path = f"/{NAME}/{FULL_PAYLOAD}"
    archive.misbehave(path, Fault(stall_after=1_234_567), times=1)
    with requests.get(url + path, stream=True, timeout=SECONDS) as answer:
        assert answer.headers["Content-Length"] == "5000000"
        assert len(answer.raw.read(1_234_567)) == 1_234_567
        archive.behave()
        assert len(answer.raw.read()) == 5_000_000 - 1_234_567


def test_no_request_is_sent_twice(archive: ArchiveServer, front: Front, tmp_path: Path) -> None:
    url = front(archive.url, tmp_path)
    path = f"/{NAME}/{FULL_PAYLOAD}"
    # Also not if the connection has been in use before, and might have been closed by now.
    assert requests.head(url + path, timeout=SECONDS).status_code == 200
    archive.misbehave(path, Fault(reset=True))
    assert requests.get(url + path, timeout=SECONDS).status_code == 503
    assert [request.method for request in archive.requests] == ["HEAD", "GET"]


def test_uploads_are_passed_on_while_they_come(front: Front, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(SECONDS)
        url = front(f"http://127.0.0.1:{upstream.getsockname()[1]}", tmp_path)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as client:
            client.sendall(b"POST /x HTTP/1.1\r\nHost: lab\r\nContent-Length: 2000000\r\n\r\n")
            client.sendall(bytes(1_000_000))
            connection, _ = upstream.accept()
            with connection, connection.makefile("rb") as received:
                connection.settimeout(SECONDS)
                while received.readline() != b"\r\n":
                    pass
                assert len(received.read(1_000_000)) == 1_000_000
                client.sendall(bytes(1_000_000))
                assert len(received.read(1_000_000)) == 1_000_000
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert client.recv(100).startswith(b"HTTP/1.1 200")
