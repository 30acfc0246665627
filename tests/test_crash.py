"""After ``kill -9``: what was staged is staged, what was not is not, and nothing is left lying."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import wait_until
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET

NAME = f"{TARGET}/{BUILD}"


def staged_bytes(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def assert_no_rubbish(server: RunningServer) -> None:
    own = server.static_directory / ".devserver"
    assert not list((own / "tmp").iterdir())
    assert not list((own / "under_way").iterdir())
    wait_until(lambda: not list((own / "trash").iterdir()))


def test_what_was_verified_before_a_crash_is_not_fetched_again(
    serve: Serve, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(hold=hold), times=1)
    server = serve("--allow-archive", archive.url)
    server.call("/stage?async=True", archive_url=build_url, artifacts="full_payload")
    server.call("/stage", archive_url=build_url, artifacts="stateful,test_suites")
    server.kill()
    hold.set()

    again = serve("--allow-archive", archive.url)
    assert_no_rubbish(again)
    assert again.call("/is_staged", archive_url=build_url, artifacts="stateful") == "True"
    assert again.call("/is_staged", archive_url=build_url, artifacts="full_payload") == "False"
    assert again.get(f"/static/{NAME}/update.gz").status_code == 404
    assert again.get("/latestbuild", target=TARGET).status_code == 404
    sent_before = archive.bytes_sent(f"/{NAME}/stateful.tgz")
    assert again.call("/download", archive_url=build_url) == "Success"
    assert archive.bytes_sent(f"/{NAME}/stateful.tgz") == sent_before
    assert again.call("/wait_for_status", archive_url=build_url) == "Success"


def test_asking_for_the_status_takes_up_what_a_crash_cut_off(
    serve: Serve, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/autotest.tar.bz2", Fault(hold=hold), times=1)
    server = serve("--allow-archive", archive.url)
    assert server.call("/download", archive_url=build_url) == "Success"
    server.kill()
    hold.set()

    again = serve("--allow-archive", archive.url)
    assert again.call("/is_staged", archive_url=build_url, artifacts="autotest") == "False"
    assert again.call("/wait_for_status", archive_url=build_url) == "Success"
    assert again.call("/is_staged", archive_url=build_url, artifacts="autotest") == "True"
    assert again.call("/latestbuild", target=TARGET) == BUILD


def test_files_verified_one_by_one_survive_a_crash_one_by_one(
    serve: Serve, archive: ArchiveServer, archive_directory: Path
) -> None:
    build = archive_directory / "many" / "R1-1.0.0"
    build.mkdir(parents=True)
    for number in range(50):
        (build / f"file-{number}").write_bytes(b"%d" % number * 1000)
    url = f"{archive.url}/many/R1-1.0.0"
    hold = threading.Event()
    archive.misbehave("/many/R1-1.0.0/file-7", Fault(hold=hold), times=1)
    options = ("--allow-archive", archive.url, "--catalog", "everything")
    server = serve(*options)
    server.call("/stage?async=True", archive_url=url, artifacts="everything")
    published = server.static_directory / "many" / "R1-1.0.0"
    wait_until(lambda: published.exists() and len(list(published.iterdir())) == 49)
    manifest = server.static_directory / ".devserver/builds/many/R1-1.0.0/manifest.json"
    wait_until(lambda: manifest.read_text().count("file-") >= 2 * 40)
    server.kill()
    hold.set()

    again = serve(*options)
    assert again.call("/download", archive_url=url) == "Success"
    fetched_twice = [
        number
        for number in range(50)
        if archive.bytes_sent(f"/many/R1-1.0.0/file-{number}")
        > (build / f"file-{number}").stat().st_size
    ]
    assert len(fetched_twice) <= 10


@pytest.mark.parametrize("seed", range(12))
def test_a_crash_at_any_moment_loses_nothing_that_was_confirmed(
    seed: int, serve: Serve, archive_directory: Path
) -> None:
    moment = random.Random(seed).uniform(0.0, 0.25)
    with ArchiveServer(archive_directory, bytes_per_second=30_000_000) as archive:
        url = f"{archive.url}/{NAME}"
        server = serve("--allow-archive", archive.url)
        server.call("/stage?async=True", archive_url=url, artifacts="stateful,autotest")
        started = server.call("/stage?async=True", archive_url=url, artifacts="full_payload")
        assert started == "Success"
        threading.Event().wait(moment)
        confirmed = [
            name
            for name in ("full_payload", "stateful", "autotest")
            if server.call("/is_staged", archive_url=url, artifacts=name) == "True"
        ]
        server.kill()

        again = serve("--allow-archive", archive.url)
        assert_no_rubbish(again)
        for name in confirmed:
            assert again.call("/is_staged", archive_url=url, artifacts=name) == "True"
        if again.get(f"/api/v1/builds/{NAME}").status_code == 200:
            listed = set(again.call("/list_image_dir", archive_url=url).split("\n")) - {""}
            assert set(staged_bytes(again.static_directory / NAME)) == listed
        assert again.call("/download", archive_url=url) == "Success"
        assert again.call("/wait_for_status", archive_url=url) == "Success"
        whole = (archive_directory / NAME / FULL_PAYLOAD).read_bytes()
        assert again.file(f"{NAME}/update.gz") == whole
