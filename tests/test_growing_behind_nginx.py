"""Behind nginx, devserver sends what is still on its way, and nginx what is staged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from archive_server import ArchiveServer, Fault
from conftest import Serve
from deployed_nginx import ACCEL_PREFIX, deployed_nginx, reached_at
from polling import wait_until
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET

NAME = f"{TARGET}/{BUILD}"
IN_ARCHIVE = f"/{NAME}/{FULL_PAYLOAD}"
PUBLISHED = f"/static/{NAME}/update.gz"
SECONDS = 30

Start = Callable[..., RunningServer]


@pytest.fixture(params=[True, False], ids=["nginx", "accel"])
def start(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Iterator[Start]:
    """Start a devserver, and return it as it is reached through nginx."""
    with ExitStack() as running:

        def start_both(*options: str) -> RunningServer:
            server = serve("--accel-redirect", ACCEL_PREFIX, *options)
            url = running.enter_context(
                deployed_nginx(
                    server.url,
                    server.static_directory,
                    tmp_path / "nginx",
                    serves_published=request.param,
                )
            )
            return reached_at(url, server)

        yield start_both


@pytest.fixture
def payload(archive_directory: Path) -> bytes:
    return (archive_directory / NAME / FULL_PAYLOAD).read_bytes()


def test_a_file_is_read_while_it_grows(
    start: Start, archive: ArchiveServer, build_url: str, payload: bytes
) -> None:
    server = start("--allow-archive", archive.url)
    archive.misbehave(IN_ARCHIVE, Fault(stall_after=3_000_000), times=1)
    server.call("/stage?async=True", archive_url=build_url, artifacts="full_payload")
    with requests.get(server.url + PUBLISHED, stream=True, timeout=SECONDS) as growing:
        assert growing.headers["Content-Length"] == str(len(payload))
        assert growing.headers["Content-Security-Policy"] == "sandbox"
        assert "ETag" not in growing.headers
        assert growing.raw.read(2_000_000) == payload[:2_000_000]
        part = requests.get(
            server.url + PUBLISHED, headers={"Range": "bytes=1000-1999"}, timeout=SECONDS
        )
        assert (part.status_code, part.content) == (206, payload[1000:2000])
        archive.behave()
        assert growing.raw.read() == payload[2_000_000:]
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    staged = server.get(PUBLISHED)
    assert (staged.content, staged.headers["ETag"][:1]) == (payload, '"')


def test_the_readers_of_a_fetch_that_fails_are_cut(
    start: Start, archive: ArchiveServer, build_url: str, payload: bytes
) -> None:
    server = start("--allow-archive", archive.url, "--tries", "1")
    archive.misbehave(IN_ARCHIVE, Fault(stall_after=3_000_000), times=1)
    server.call("/stage?async=True", archive_url=build_url, artifacts="full_payload")
    with requests.get(server.url + PUBLISHED, stream=True, timeout=SECONDS) as growing:
        assert growing.raw.read(2_000_000) == payload[:2_000_000]
        archive.down()
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for _ in growing.iter_content(65536):
                pass
    assert server.get("/wait_for_status", archive_url=build_url).status_code != 200


def test_what_nobody_has_staged_is_staged_by_asking(
    start: Start, archive: ArchiveServer, payload: bytes
) -> None:
    server = start("--archive-root", archive.url)
    assert server.get(PUBLISHED).content == payload
    assert server.get(f"/static/{NAME}/no-such-file").status_code == 404
    # Whoever has all of it may have it a moment before it is published.
    wait_until(lambda: "ETag" in server.get(PUBLISHED).headers)
    assert server.get(PUBLISHED).content == payload
    assert archive.bytes_sent(IN_ARCHIVE) == len(payload)
