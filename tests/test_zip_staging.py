"""Staging zip archives: they are unpacked while they come, end first, and never half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import wait_until
from running_server import RunningServer
from zip_files import Zipped, link, zip_of

from artifacts.commands.sample_build import BUILD, TARGET

NAME = f"{TARGET}/{BUILD}"
PATH = f"/{NAME}/image.zip"
MIB = 2**20
CATALOG = """
[artifacts.image]
files = ["image.zip"]
unpack = true
directory = "image"

[artifacts.last]
files = ["image.zip"]
unpack = true
include = ["dir/last"]
"""
CONTENTS = {
    "first": os.urandom(20 * MIB),
    "dir/zeros": bytes(2 * MIB),
    "dir/last": os.urandom(7 * MIB),
}
MEMBERS = [Zipped(name=name, data=data, method=8) for name, data in CONTENTS.items()]
ZIP = zip_of(*MEMBERS, link("link", "dir/last"), comment=b"built by us")
OTHER_ZIP = zip_of(Zipped(name="other", data=os.urandom(9 * MIB)), Zipped(name="first"))


@pytest.fixture
def server(serve: Serve, tmp_path: Path, archive: ArchiveServer) -> RunningServer:
    return serving(serve, tmp_path, archive)


@pytest.fixture
def zip_file(archive_directory: Path) -> Path:
    file = archive_directory / PATH.lstrip("/")
    file.write_bytes(ZIP)
    return file


def serving(serve: Serve, tmp_path: Path, archive: ArchiveServer, *options: str) -> RunningServer:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG)
    return serve(
        *("--allow-archive", archive.url, "--catalog", str(catalog), "--tries", "3"),
        *options,
    )


def staged_files(server: RunningServer) -> dict[str, bytes]:
    top = server.static_directory / NAME
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def expected_files() -> dict[str, bytes]:
    return {f"image/{name}": data for name, data in CONTENTS.items()}


def assert_nothing_is_left(server: RunningServer) -> None:
    assert list((server.static_directory / ".devserver" / "tmp").iterdir()) == []


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("head", [True, False], ids=["HEAD", "no HEAD"])
def test_a_zip_is_staged_whatever_the_archive_can_do(
    serve: Serve,
    tmp_path: Path,
    archive_directory: Path,
    zip_file: Path,
    ranges: bool,
    head: bool,
) -> None:
    with ArchiveServer(archive_directory, ranges=ranges, head=head) as archive:
        server = serving(serve, tmp_path, archive)
        url = f"{archive.url}/{NAME}"
        assert server.call("/stage", archive_url=url, artifacts="image") == "Success"
        assert staged_files(server) == expected_files()
        assert server.file(f"{NAME}/image/link") == CONTENTS["dir/last"]
        assert archive.bytes_sent(PATH) == len(ZIP)
        assert_nothing_is_left(server)


def test_the_directory_and_what_is_wanted_do_not_wait_for_what_comes_before(
    serve: Serve, tmp_path: Path, archive: ArchiveServer, zip_file: Path, build_url: str
) -> None:
    server = serving(serve, tmp_path, archive, "--stall-timeout", "60")
    # Given an archive that does not get on with the first bytes of it.
    archive.misbehave(PATH, Fault(stall_after=1000), times=1)
    asked = {"archive_url": build_url, "artifacts": "last"}
    assert server.call("/stage", **asked, **{"async": "True"}) == "Success"

    # When the last member has been unpacked, though nothing is published before all is there.
    def is_unpacked() -> bool:
        last = (server.static_directory / ".devserver/tmp").glob("tree-*/dir/last")
        return [path.stat().st_size for path in last] == [len(CONTENTS["dir/last"])]

    wait_until(is_unpacked)
    assert server.call("/is_staged", **asked) == "False"
    assert staged_files(server) == {}

    archive.behave()
    assert server.call("/stage", **asked) == "Success"
    assert staged_files(server) == {"dir/last": CONTENTS["dir/last"]}
    assert archive.bytes_sent(PATH) == len(ZIP)


def test_a_zip_that_changes_on_the_way_is_unpacked_anew(
    server: RunningServer, archive: ArchiveServer, zip_file: Path, build_url: str
) -> None:
    archive.misbehave(PATH, Fault(), times=1)
    archive.misbehave(PATH, Fault(replace_with=OTHER_ZIP), times=1)
    assert server.call("/stage", archive_url=build_url, artifacts="image") == "Success"
    assert set(staged_files(server)) == {"image/other", "image/first"}
    assert server.file(f"{NAME}/image/first") == b""
    assert_nothing_is_left(server)


@pytest.mark.parametrize("flip_at", [50, 5 * MIB, len(ZIP) - 40, len(ZIP) - 15])
def test_wrong_bytes_are_fetched_again_and_never_published(
    serve: Serve, tmp_path: Path, archive_directory: Path, zip_file: Path, flip_at: int
) -> None:
    with ArchiveServer(archive_directory, goog_hash=True) as archive:
        server = serving(serve, tmp_path, archive)
        archive.misbehave(PATH, Fault(flip_at=flip_at), times=1)
        url = f"{archive.url}/{NAME}"
        assert server.call("/stage", archive_url=url, artifacts="image") == "Success"
        assert staged_files(server) == expected_files()
        assert_nothing_is_left(server)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ZIP[:-1], "image.zip: the archive ends early"),
        (ZIP[: 5 * MIB], "image.zip: the archive ends early"),
        (zip_of(Zipped(name="../evil")), "image.zip: the archive's member '../evil' has '..'"),
        (b"<html>", "image.zip: neither a tar archive, compressed or not, nor a zip archive"),
    ],
    ids=["without its last byte", "without its end", "hostile", "no archive"],
)
def test_a_zip_that_cannot_be_unpacked_is_refused_whole(
    server: RunningServer, zip_file: Path, build_url: str, data: bytes, words: str
) -> None:
    zip_file.write_bytes(data)
    answer = server.get("/stage", archive_url=build_url, artifacts="image")
    assert answer.status_code == 502
    assert words in answer.text and "\n" not in answer.text
    assert staged_files(server) == {}
    assert_nothing_is_left(server)


def test_a_zip_that_is_staged_as_it_is_is_unpacked_without_fetching_it_again(
    server: RunningServer, archive: ArchiveServer, zip_file: Path, build_url: str
) -> None:
    assert server.call("/stage", archive_url=build_url, files="image.zip") == "Success"
    assert server.call("/stage", archive_url=build_url, artifacts="image") == "Success"
    assert staged_files(server) == {"image.zip": ZIP, **expected_files()}
    assert archive.bytes_sent(PATH) == len(ZIP)


def test_limits_hold_for_a_zip(
    serve: Serve, tmp_path: Path, archive: ArchiveServer, zip_file: Path, build_url: str
) -> None:
    server = serving(serve, tmp_path, archive, "--max-unpacked", "20MiB", "--max-members", "4")
    answer = server.get("/stage", archive_url=build_url, artifacts="image")
    assert (answer.status_code, "over 20,971,520 bytes" in answer.text) == (502, True)
    assert staged_files(server) == {}
