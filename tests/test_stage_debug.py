"""``/stage_debug``: staging the debug symbols of a build."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from archive_server import ArchiveServer, Fault
from conftest import Serve
from crash_client import IDENTIFIER, crash_lab_symbols, make_build
from polling import wait_until
from running_server import RunningServer

SYMBOLS = f"debug/breakpad/crash_lab/{IDENTIFIER}/crash_lab.sym"


@pytest.fixture
def builds(tmp_path: Path) -> Path:
    directory = tmp_path / "builds"
    directory.mkdir()
    return directory


@pytest.fixture
def build_archive(builds: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(builds) as server:
        yield server


@pytest.fixture
def server(serve: Serve, build_archive: ArchiveServer) -> RunningServer:
    return serve("--allow-archive", build_archive.url)


def test_the_symbols_of_breakpad_are_unpacked_into_the_build(
    server: RunningServer, build_archive: ArchiveServer, builds: Path
) -> None:
    name = make_build(builds, "R1-1.0.0", crash_lab_symbols())
    url = f"{build_archive.url}/{name}"
    assert server.call("/stage_debug", archive_url=url) == "Success"
    assert server.call("/list_image_dir", archive_url=url) == SYMBOLS
    assert server.file(f"{name}/{SYMBOLS}") == crash_lab_symbols()[SYMBOLS.partition("pad/")[2]]
    assert server.call("/is_staged", archive_url=url, artifacts="symbols") == "True"
    described = server.get(f"/api/v1/builds/{name}").json()
    assert [(a["name"], a["state"]) for a in described["artifacts"]] == [("symbols", "staged")]
    # Nothing is asked of the archive for what is there.
    requested = len(build_archive.requests)
    assert server.call("/stage_debug", archive_url=url) == "Success"
    assert len(build_archive.requests) == requested


def test_each_build_keeps_its_own_symbols(
    server: RunningServer, build_archive: ArchiveServer, builds: Path
) -> None:
    contents = {"R1-1.0.0": b"MODULE of the first\n", "R1-2.0.0": b"MODULE of the second\n"}
    for build, content in contents.items():
        name = make_build(builds, build, {f"crash_lab/{IDENTIFIER}/crash_lab.sym": content})
        assert server.call("/stage_debug", archive_url=f"{build_archive.url}/{name}") == "Success"
    for build, content in contents.items():
        assert server.file(f"lamp-release/{build}/{SYMBOLS}") == content


def test_many_who_ask_cost_the_archive_one_read(
    server: RunningServer, build_archive: ArchiveServer, builds: Path
) -> None:
    name = make_build(builds, "R1-1.0.0", crash_lab_symbols())
    url = f"{build_archive.url}/{name}"
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(server.call, "/stage_debug", archive_url=url) for _ in range(30)]
        assert {future.result() for future in asked} == {"Success"}
    assert build_archive.bytes_sent(f"/{name}/debug.tgz") == (
        (builds / name / "debug.tgz").stat().st_size
    )


def test_what_the_builder_is_still_uploading_is_waited_for(
    server: RunningServer, build_archive: ArchiveServer, builds: Path
) -> None:
    name = make_build(builds, "R1-1.0.0", crash_lab_symbols())
    archive, aside = builds / name / "debug.tgz", builds / "debug.tgz"
    archive.rename(aside)
    url = f"{build_archive.url}/{name}"
    assert server.get("/stage_debug", archive_url=url).status_code == 404
    with ThreadPoolExecutor(1) as pool:
        looks = len(build_archive.requests)
        asked = pool.submit(server.call, "/stage_debug", archive_url=url, wait="60")
        wait_until(lambda: len(build_archive.requests) > looks + 1)
        aside.rename(archive)
        assert asked.result() == "Success"
    assert server.call("/list_image_dir", archive_url=url) == SYMBOLS


@pytest.mark.parametrize("name", ["debug.tgz", "debug_breakpad.tar.gz"])
@pytest.mark.parametrize("catalog", ["chromeos", "everything"])
def test_symbols_are_found_by_their_later_names_too(
    serve: Serve, builds: Path, name: str, catalog: str
) -> None:
    server = serve("--catalog", catalog, "--allow-archive", f"file://{builds}")
    build = make_build(builds, "R1-1.0.0", crash_lab_symbols(), name)
    url = f"file://{builds}/{build}"
    assert server.call("/stage_debug", archive_url=url) == "Success"
    assert server.call("/list_image_dir", archive_url=url) == SYMBOLS


def test_a_failure_is_told_and_tried_again_when_asked_again(
    server: RunningServer, build_archive: ArchiveServer, builds: Path
) -> None:
    name = make_build(builds, "R1-1.0.0", crash_lab_symbols())
    url = f"{build_archive.url}/{name}"
    (builds / name / "debug.tgz").rename(builds / "whole")
    (builds / name / "debug.tgz").write_bytes((builds / "whole").read_bytes()[:-100])
    response = server.get("/stage_debug", archive_url=url)
    assert response.status_code == 502 and "debug.tgz" in response.text
    assert not (server.static_directory / name / SYMBOLS).exists()
    (builds / "whole").replace(builds / name / "debug.tgz")
    assert server.call("/stage_debug", archive_url=url) == "Success"


def test_a_server_that_is_killed_takes_it_up_again(
    serve: Serve, build_archive: ArchiveServer, builds: Path
) -> None:
    name = make_build(builds, "R1-1.0.0", crash_lab_symbols())
    url = f"{build_archive.url}/{name}"
    hold = threading.Event()
    build_archive.misbehave(f"/{name}/debug.tgz", Fault(hold=hold), times=1)
    server = serve("--allow-archive", build_archive.url)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.get, "/stage_debug", archive_url=url)
        wait_until(lambda: any("debug.tgz" in str(r) for r in build_archive.requests))
        server.kill()
        assert isinstance(asked.exception(), requests.RequestException)
    hold.set()
    again = serve("--allow-archive", build_archive.url)
    assert again.call("/wait_for_status", archive_url=url) == "Success"
    assert again.call("/list_image_dir", archive_url=url) == SYMBOLS


def test_what_is_wrong_with_a_call_is_told(server: RunningServer) -> None:
    assert server.get("/stage_debug").status_code == 400
    assert server.get("/stage_debug", archive_url="gs://x").status_code == 400
    assert server.get("/stage_debug", archive_url="http://other/t/b").status_code == 403
    cross_site = {"Origin": "http://evil"}
    refused = requests.get(f"{server.url}/stage_debug", headers=cross_site, timeout=60)
    assert refused.status_code == 403
    assert requests.head(f"{server.url}/stage_debug", timeout=60).status_code == 405
