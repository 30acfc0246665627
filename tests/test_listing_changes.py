"""An archive whose listing changes while it is read, or between reading it and fetching."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import wait_until
from running_server import RunningServer

NAME = "board/R1-1.0.0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    build = tmp_path / "root" / NAME
    (build / "nested").mkdir(parents=True)
    (build / "first").write_bytes(b"first")
    (build / "nested" / "second").write_bytes(b"second")
    return tmp_path / "root"


def stage_all(server: RunningServer, archive: ArchiveServer) -> tuple[int, str]:
    answer = server.get("/stage", archive_url=f"{archive.url}/{NAME}", files="**")
    return answer.status_code, answer.text


def test_a_directory_that_goes_while_the_listing_is_read_is_passed_over(
    serve: Serve, root: Path
) -> None:
    with ArchiveServer(root) as archive:
        server = serve("--allow-archive", archive.url)
        archive.misbehave(f"/{NAME}/nested/", Fault(status=404))
        assert stage_all(server, archive) == (200, "Success")
        assert server.call("/list_image_dir", archive_url=f"{archive.url}/{NAME}") == "first"


def test_a_file_that_goes_after_it_was_listed_is_named_and_staged_once_it_is_back(
    serve: Serve, root: Path
) -> None:
    with ArchiveServer(root) as archive:
        server = serve("--allow-archive", archive.url)
        archive.misbehave(f"/{NAME}/nested/second", Fault(status=404, head_too=True))
        status, text = stage_all(server, archive)
        assert (status, "nested/second" in text) == (502, True), text
        url = f"{archive.url}/{NAME}"
        assert server.get("/wait_for_status", archive_url=url).status_code == 502
        assert server.get(f"/static/{NAME}/nested/second").status_code == 404
        archive.behave()
        assert stage_all(server, archive) == (200, "Success")
        assert server.file(f"{NAME}/nested/second") == b"second"


def test_a_file_that_grows_after_it_was_listed_is_staged_as_it_is_now(
    serve: Serve, root: Path
) -> None:
    with ArchiveServer(root) as archive:
        server = serve("--allow-archive", archive.url)
        now = b"second, and more by now" * 1000
        archive.misbehave(f"/{NAME}/nested/second", Fault(replace_with=now), times=1)
        assert stage_all(server, archive) == (200, "Success")
        assert server.file(f"{NAME}/nested/second") == now


def test_a_file_that_changes_while_others_of_its_glob_come_is_told_in_words(
    serve: Serve, root: Path
) -> None:
    holds = {name: threading.Event() for name in ("first", "nested/second")}
    with ArchiveServer(root) as archive, ThreadPoolExecutor() as pool:
        server = serve("--allow-archive", archive.url)
        url = f"{archive.url}/{NAME}"
        archive.misbehave(f"/{NAME}/nested/second", Fault(hold=holds["nested/second"]), times=1)
        everything = pool.submit(stage_all, server, archive)

        def first_is_published() -> bool:
            head = server.session.head(f"{server.url}/static/{NAME}/first", timeout=60)
            return "ETag" in head.headers

        wait_until(first_is_published)
        (root / NAME / "first").write_bytes(b"replaced")
        archive.misbehave(f"/{NAME}/first", Fault(hold=holds["first"]), times=1)
        first = pool.submit(server.get, "/stage", archive_url=url, files="first")
        wait_until(lambda: not first_is_published())
        holds["nested/second"].set()
        status, text = everything.result(60)
        assert (status, "first" in text, "replaced" in text) == (502, True, True), text
        holds["first"].set()
        assert first.result(60).text == "Success"
        assert stage_all(server, archive) == (200, "Success")
        assert server.file(f"{NAME}/first") == b"replaced"


def test_a_name_that_is_listed_twice_is_one_file(serve: Serve, root: Path) -> None:
    with ArchiveServer(root) as archive:
        server = serve("--allow-archive", archive.url)
        archive.listing_override(f"/{NAME}/UPLOADED", b"first\nfirst\r\nfirst\n", "text/plain")
        assert stage_all(server, archive) == (200, "Success")
        assert server.call("/list_image_dir", archive_url=f"{archive.url}/{NAME}") == "first"


def test_a_name_that_is_listed_as_a_file_and_as_a_directory_fails_in_words(
    serve: Serve, root: Path
) -> None:
    with ArchiveServer(root) as archive:
        server = serve("--allow-archive", archive.url)
        names = b"first\nfirst/second\n"
        archive.listing_override(f"/{NAME}/UPLOADED", names, "text/plain")
        archive.listing_override(f"/{NAME}/first/second", b"second", "text/plain")
        status, text = stage_all(server, archive)
        assert status in {409, 502} and "first" in text, (status, text)
        assert server.get("/health").status_code == 200
