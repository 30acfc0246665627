"""``/static``: ranges, conditions, indexes, and nothing but what manifests list.

Asked directly; through nginx, which sends what is published by itself; and through an nginx that
devserver tells each time what to send. What nginx does in its own way is said where it matters.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Literal

import pytest
from conftest import Serve
from deployed_nginx import ACCEL_PREFIX, deployed_nginx, reached_at
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET

NAME = f"{TARGET}/{BUILD}"
PAYLOAD = f"/static/{NAME}/update.gz"


Way = Literal["direct", "nginx", "accel"]


@pytest.fixture(scope="module", params=["direct", "nginx", "accel"])
def way(request: pytest.FixtureRequest) -> Way:
    return request.param


@pytest.fixture(scope="module")
def staged(
    way: Way, tmp_path_factory: pytest.TempPathFactory, sample_archive: Path
) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("static")
    options = [] if way == "direct" else ["--accel-redirect", ACCEL_PREFIX]
    server = RunningServer(directory, "--allow-archive", f"file://{sample_archive}", *options)
    try:
        url = f"file://{sample_archive}/{NAME}"
        server.call("/download", archive_url=url)
        server.call("/wait_for_status", archive_url=url)
        if way == "direct":
            yield server
            return
        with deployed_nginx(
            server.url,
            server.static_directory,
            directory / "nginx",
            serves_published=way == "nginx",
        ) as front_url:
            yield reached_at(front_url, server)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def payload(sample_archive: Path) -> bytes:
    return (sample_archive / NAME / FULL_PAYLOAD).read_bytes()


def get(server: RunningServer, path: str, method: str = "GET", **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.session.request(method, server.url + path, headers=named, timeout=60)


def test_a_file_comes_with_what_clients_need_to_know(staged: RunningServer, payload: bytes) -> None:
    answer = get(staged, PAYLOAD)
    assert (answer.status_code, answer.content) == (200, payload)
    headers = answer.headers
    assert headers["Content-Length"] == str(len(payload))
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Content-Type"] == "application/gzip"
    assert headers["ETag"].startswith('"') and headers["Last-Modified"].endswith("GMT")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "sandbox"

    head = get(staged, PAYLOAD, "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Length", "ETag", "Last-Modified", "Content-Type", "Accept-Ranges"):
        assert head.headers[name] == headers[name]


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=4999990-", 4_999_990, 5_000_000),
        ("bytes=-7", 4_999_993, 5_000_000),
        ("bytes=4999990-99999999", 4_999_990, 5_000_000),
    ],
)
def test_a_range_is_answered(
    wanted: str, start: int, stop: int, staged: RunningServer, payload: bytes
) -> None:
    answer = get(staged, PAYLOAD, Range=wanted)
    assert (answer.status_code, answer.content) == (206, payload[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(payload)}"
    assert answer.headers["Content-Length"] == str(stop - start)


def test_ranges_that_touch_come_as_one(staged: RunningServer, payload: bytes, way: Way) -> None:
    answer = get(staged, PAYLOAD, Range="bytes=0-9,10-19")
    assert answer.status_code == 206
    if way == "direct":
        assert answer.content == payload[:20]
    else:
        # nginx sends parts, as they were asked for.
        assert payload[:10] in answer.content and payload[10:20] in answer.content


def test_several_ranges_come_in_parts(staged: RunningServer, payload: bytes) -> None:
    answer = get(staged, PAYLOAD, Range="bytes=0-9,1000-1009,-5")
    assert answer.status_code == 206
    kind, _, boundary = answer.headers["Content-Type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    first, *parts, last = answer.content.split(f"--{boundary}".encode())
    assert (first, last) == (b"\r\n", b"--\r\n")
    bodies = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]
    assert bodies == [payload[:10], payload[1000:1010], payload[-5:]]
    ranges = [line for part in parts for line in part.split(b"\r\n") if b"Content-Range" in line]
    assert ranges[1] == f"Content-Range: bytes 1000-1009/{len(payload)}".encode()


def test_ranges_beyond_the_end_are_416(staged: RunningServer, payload: bytes, way: Way) -> None:
    answer = get(staged, PAYLOAD, Range="bytes=5000000-")
    assert answer.status_code == 416
    # nginx adds a page for people.
    assert answer.content == b"" or way != "direct"
    assert answer.headers["Content-Range"] == f"bytes */{len(payload)}"


@pytest.mark.parametrize("wanted", ["bytes=x-y", "lines=1-2", "bytes=9-1", "bytes=" + "1-2," * 99])
def test_ranges_that_make_no_sense_are_passed_over(
    wanted: str, staged: RunningServer, payload: bytes, way: Way
) -> None:
    answer = get(staged, PAYLOAD, Range=wanted)
    if way != "direct" and wanted in {"bytes=x-y", "bytes=9-1"}:
        # nginx refuses them, as RFC 9110, section 14.2, allows.
        assert answer.status_code == 416
        return
    assert (answer.status_code, len(answer.content)) == (200, len(payload))


def test_what_a_client_has_already_is_304(staged: RunningServer) -> None:
    first = get(staged, PAYLOAD, "HEAD")
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    for condition in (
        {"If_None_Match": etag},
        {"If_None_Match": f'"other", W/{etag}'},
        {"If_None_Match": "*"},
        {"If_Modified_Since": modified},
    ):
        answer = get(staged, PAYLOAD, **condition)
        assert (answer.status_code, answer.content) == (304, b""), condition
        assert answer.headers["ETag"] == etag
        assert "Content-Type" not in answer.headers
    changed = {"If_None_Match": '"other"', "If_Modified_Since": modified}
    assert get(staged, PAYLOAD, Range="bytes=0-0", **changed).status_code == 206
    assert get(staged, PAYLOAD, If_Match='"other"').status_code == 412


def test_a_range_of_another_file_is_not_mixed_in(staged: RunningServer, payload: bytes) -> None:
    head = get(staged, PAYLOAD, "HEAD")
    same = get(staged, PAYLOAD, Range="bytes=0-9", If_Range=head.headers["ETag"])
    assert (same.status_code, same.content) == (206, payload[:10])
    dated = get(staged, PAYLOAD, Range="bytes=0-9", If_Range=head.headers["Last-Modified"])
    assert dated.status_code == 206
    for other in ('"other"', f"W/{head.headers['ETag']}", formatdate(0, usegmt=True)):
        answer = get(staged, PAYLOAD, Range="bytes=0-9", If_Range=other)
        assert (answer.status_code, len(answer.content)) == (200, len(payload)), other


def test_directories_have_an_index(staged: RunningServer) -> None:
    page = get(staged, f"/static/{NAME}/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "update.gz" in page.text and "autotest/" in page.text
    listed = get(staged, f"/static/{NAME}", Accept="application/json").json()
    assert {"name": "update.gz", "type": "file", "size": 5_000_000} in listed
    assert {"name": "autotest", "type": "directory"} in listed
    targets = get(staged, "/static/", Accept="application/json").json()
    assert targets == [{"name": TARGET, "type": "directory"}]
    builds = get(staged, f"/static/{TARGET}/", Accept="application/json").json()
    assert builds == [{"name": BUILD, "type": "directory"}]
    assert get(staged, "/static/nothing/").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/static/.devserver/lock",
        "/static/../data/lock",
        f"/static/{NAME}/../../.devserver/lock",
        f"/static/{NAME}/%2e%2e/%2e%2e/.devserver/lock",
        f"/static/{NAME}/..%2f..%2f.devserver%2flock",
        f"/static/{NAME}//etc/passwd",
        f"/static/{NAME}/autotest/%00",
        f"/static/{NAME}/nothing",
        "/static/a/b/c",
        f"/static/{NAME}/update.gz/more",
    ],
)
def test_nothing_else_is_served(path: str, staged: RunningServer) -> None:
    port = int(staged.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        status = connection.recv(100).split(b" ")[1]
    assert status in {b"404", b"400"}, status


def test_files_that_no_manifest_lists_are_not_there(staged: RunningServer, way: Way) -> None:
    build = staged.static_directory / NAME
    (build / "by-hand").write_bytes(b"by hand")
    (build / "secret").symlink_to("/etc/passwd")
    (build / ".hidden").write_bytes(b"hidden")
    for name in ("by-hand", "secret", ".hidden"):
        # nginx knows of no manifests: what somebody puts there by hand, it sends.
        if way != "nginx" or name.startswith("."):
            assert get(staged, f"/static/{NAME}/{name}").status_code == 404
        assert name not in get(staged, f"/static/{NAME}/").text


def test_a_listed_file_replaced_by_a_link_is_not_followed(
    serve: Serve, archive_directory: Path
) -> None:
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/{NAME}"
    server.call("/stage", archive_url=url, artifacts="stateful")
    staged = server.static_directory / NAME / "stateful.tgz"
    staged.unlink()
    staged.symlink_to("/etc/passwd")
    assert server.get(f"/static/{NAME}/stateful.tgz").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_reading_is_allowed(method: str, staged: RunningServer) -> None:
    answer = staged.session.request(method, staged.url + PAYLOAD, data=b"x")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
