"""``--accel-redirect``: what devserver answers when nginx is to send the bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
from running_server import RunningServer

NAME = "lamp-release/R1-1.0.0"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a build that has odd names."""
    directory = tmp_path_factory.mktemp("accel")
    build = directory / "archive" / NAME
    (build / "more").mkdir(parents=True)
    (build / "image.tar.gz").write_bytes(b"image")
    (build / "more" / "50% ä+b?c.txt").write_bytes(b"odd")
    archive = f"file://{directory / 'archive'}"
    options = ("--accel-redirect", "/.published/", "--catalog", "everything")
    server = RunningServer(directory, "--allow-archive", archive, *options)
    try:
        server.call("/download", archive_url=f"{archive}/{NAME}")
        server.call("/wait_for_status", archive_url=f"{archive}/{NAME}")
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_staged_file_is_named_instead_of_sent(
    server: RunningServer, method: Literal["GET", "HEAD"]
) -> None:
    answer = server.session.request(method, f"{server.url}/static/{NAME}/image.tar.gz")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["X-Accel-Redirect"] == f"/.published/{NAME}/image.tar.gz"
    assert answer.headers["Content-Length"] == "0"
    assert answer.headers["Content-Type"] == "application/gzip"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox"
    # These are nginx's own, for its own conditions.
    assert not {"ETag", "Last-Modified", "Accept-Ranges"} & set(answer.headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-0"},
        {"Range": "bytes=99-"},
        {"If-None-Match": "*"},
        {"If-Match": '"other"'},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
    ],
)
def test_ranges_and_conditions_are_left_to_nginx(
    server: RunningServer, headers: dict[str, str]
) -> None:
    answer = server.session.get(f"{server.url}/static/{NAME}/image.tar.gz", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["X-Accel-Redirect"].endswith("/image.tar.gz")


def test_names_are_encoded(server: RunningServer) -> None:
    answer = server.get(f"/static/{NAME}/more/50%25%20%C3%A4+b%3Fc.txt")
    expected = f"/.published/{NAME}/more/50%25%20%C3%A4%2Bb%3Fc.txt"
    assert answer.headers["X-Accel-Redirect"] == expected


def test_what_is_no_staged_file_is_answered_as_ever(server: RunningServer) -> None:
    listed = server.get(f"/static/{NAME}/")
    assert "image.tar.gz" in listed.text
    missing = server.get(f"/static/{NAME}/nothing")
    assert (missing.status_code, "nothing staged" in missing.text) == (404, True)
    for answer in (listed, missing):
        assert "X-Accel-Redirect" not in answer.headers
