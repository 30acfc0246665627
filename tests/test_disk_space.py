"""Room on the disk: checked before a plan starts, and survived when it ends on the way."""

from __future__ import annotations

import contextlib
import gzip
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_server import ArchiveServer
from conftest import Serve, missing_tool
from polling import wait_until
from real_servers import emulated_s3
from running_server import REPOSITORY

from artifacts.commands.sample_build import BUILD, TARGET
from artifacts.decompress import zstd

NAME = f"{TARGET}/{BUILD}"
DISK_BYTES = 20 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    directory = tmp_path / "server" / "static"
    directory.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        missing_tool("the right to mount a small file system")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def make_build(directory: Path, build: str, size_bytes: int) -> None:
    (directory / "board" / build).mkdir(parents=True)
    (directory / "board" / build / "x_full_y.bin").write_bytes(os.urandom(size_bytes))


def test_a_plan_that_does_not_fit_is_507_with_the_numbers(
    serve: Serve, small_disk: Path, archive_directory: Path
) -> None:
    make_build(archive_directory, "R1-1.0.0", 30_000_000)
    make_build(archive_directory, "R1-2.0.0", 5_000_000)
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/board/R1-1.0.0"
    failure = server.get("/download", archive_url=url)
    assert failure.status_code == 507
    assert "30.0 MB" in failure.text and "free" in failure.text
    assert server.get("/wait_for_status", archive_url=url).status_code == 507
    assert not list((small_disk / ".devserver" / "tmp").iterdir())
    fits = f"file://{archive_directory}/board/R1-2.0.0"
    assert server.call("/download", archive_url=fits) == "Success"


def test_a_disk_that_fills_up_on_the_way_fails_cleanly_and_the_server_lives_on(
    serve: Serve, small_disk: Path, archive_directory: Path
) -> None:
    make_build(archive_directory, "R1-1.0.0", 30_000_000)
    make_build(archive_directory, "R1-2.0.0", 5_000_000)
    # Nothing tells the size beforehand.
    with ArchiveServer(archive_directory, head=False) as archive:
        server = serve("--allow-archive", archive.url)
        for build in ("R1-1.0.0", "R1-2.0.0"):
            archive.listing_override(f"/board/{build}/UPLOADED", b"x_full_y.bin", "text/plain")
        url = f"{archive.url}/board/R1-1.0.0"
        failure = server.get("/download", archive_url=url)
        assert failure.status_code == 507, failure.text
        assert "disk is full" in failure.text
        assert server.get("/wait_for_status", archive_url=url).status_code == 507
        assert not list((small_disk / ".devserver" / "tmp").iterdir())
        assert server.call("/download", archive_url=f"{archive.url}/board/R1-2.0.0") == "Success"
        assert server.get("/ready").status_code == 503 or server.get("/ready").status_code == 200


def fill(disk: Path) -> Path:
    """Leave no room at all; return the file that takes it."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_build_that_finds_the_disk_full_is_507_and_can_be_staged_once_there_is_room(
    serve: Serve, small_disk: Path, archive_directory: Path
) -> None:
    make_build(archive_directory, "R1-1.0.0", 1_000_000)
    (archive_directory / "board" / "R1-1.0.0" / "stateful.tgz").write_bytes(b"state")
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/board/R1-1.0.0"
    server.call("/stage", archive_url=url, artifacts="full_payload")
    ballast = fill(small_disk)
    for query in ({"artifacts": "stateful"}, {"artifacts": "stateful", "wait": 1}):
        failure = server.get("/stage", archive_url=url, **query)
        assert (failure.status_code, "disk is full" in failure.text) == (507, True), failure.text
    assert server.call("/is_staged", archive_url=url, artifacts="full_payload") == "True"
    ballast.unlink()
    assert server.call("/stage?clean=True", archive_url=url, artifacts="stateful") == "Success"
    dropped = server.session.delete(f"{server.url}/api/v1/builds/board/R1-1.0.0")
    assert dropped.status_code == 204


def test_a_full_disk_can_be_freed_by_dropping_a_build(
    serve: Serve, small_disk: Path, archive_directory: Path
) -> None:
    make_build(archive_directory, "R1-1.0.0", 1_000_000)
    make_build(archive_directory, "R1-2.0.0", 500_000)
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/board"
    server.call("/stage", archive_url=f"{url}/R1-1.0.0", artifacts="full_payload")
    fill(small_disk)
    assert server.get("/download", archive_url=f"{url}/R1-2.0.0").status_code == 507
    dropped = server.session.delete(f"{server.url}/api/v1/builds/board/R1-1.0.0")
    assert dropped.status_code == 204, dropped.text
    assert server.get("/api/v1/builds").json() == {"builds": []}
    wait_until(lambda: not list((small_disk / ".devserver" / "trash").iterdir()))
    assert server.call("/download", archive_url=f"{url}/R1-2.0.0") == "Success"


def test_an_archive_that_unpacks_to_more_than_there_is_room_for_leaves_nothing(
    serve: Serve, small_disk: Path, archive_directory: Path, tmp_path: Path
) -> None:
    build = archive_directory / "board" / "R1-3.0.0"
    build.mkdir(parents=True)
    big = tmp_path / "autotest"
    big.mkdir()
    (big / "control").write_bytes(b"more than there is room for\n" * 2_200_000)
    tar = ["tar", "-cjf", str(build / "autotest.tar.bz2"), "-C", str(tmp_path), "autotest"]
    subprocess.run(tar, check=True)
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{build}"
    failure = server.get("/stage", archive_url=url, artifacts="autotest")
    assert failure.status_code == 507, failure.text
    assert server.get("/static/board/R1-3.0.0/autotest/control").status_code == 404
    assert not (small_disk / "board" / "R1-3.0.0" / "autotest").exists()
    assert server.get("/health").status_code == 200


def test_an_archive_of_more_zeros_than_there_is_room_for_is_unpacked_into_holes(
    serve: Serve, small_disk: Path, archive_directory: Path
) -> None:
    build = archive_directory / "board" / "R1-4.0.0"
    build.mkdir(parents=True)
    image = tarfile.TarInfo("autotest/image.bin")
    image.size = 500_000_000
    with (
        zstd.ZstdFile(build / "autotest.tar.zst", "w") as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
        open("/dev/zero", "rb") as zeros,
    ):
        tar.addfile(image, zeros)
    catalog = archive_directory / "catalog.toml"
    catalog.write_text('[artifacts.autotest]\nfiles = ["autotest.tar.zst"]\nunpack = true\n')
    server = serve("--allow-archive", f"file://{archive_directory}", "--catalog", str(catalog))
    assert server.call("/stage", archive_url=f"file://{build}", artifacts="autotest") == "Success"
    staged = (small_disk / "board" / "R1-4.0.0" / "autotest" / "image.bin").stat()
    assert staged.st_size == image.size
    assert staged.st_blocks * 512 < 1 << 20


def test_a_file_that_decompresses_to_more_than_there_is_room_for_leaves_nothing(
    serve: Serve, small_disk: Path, tmp_path: Path
) -> None:
    with emulated_s3(tmp_path) as s3:
        bucket = s3.create_bucket("images")
        packed = gzip.compress(bytes(60_000_000))
        bucket.put("board/R1-4.0.0/log.txt", packed, Content_Encoding="gzip")
        bucket.put("board/R1-4.0.0/data", os.urandom(8_000_000), Content_Encoding="gzip")
        server = serve()
        url = "s3://images/board/R1-4.0.0"
        failure = server.get("/stage", archive_url=url, files="log.txt")
        expected = server.get("/stage", archive_url=url, files="data")
    assert failure.status_code == 507, failure.text
    assert "disk is nearly full" in failure.text
    assert (expected.status_code, "needs 32.0 MB" in expected.text) == (507, True), expected.text
    assert server.get("/static/board/R1-4.0.0/log.txt").status_code == 404
    assert not list((small_disk / ".devserver" / "tmp").iterdir())
    assert server.get("/health").status_code == 200


def test_unpacking_keeps_to_its_limits(serve: Serve, archive_directory: Path) -> None:
    url = f"file://{archive_directory}/{NAME}"
    server = serve(
        *("--allow-archive", f"file://{archive_directory}"),
        *("--max-members", "10"),
    )
    failure = server.get("/stage", archive_url=url, artifacts="autotest")
    assert failure.status_code == 502
    assert "10" in failure.text


def test_a_read_only_static_directory_is_refused_at_start(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    started = subprocess.run(
        [
            *(sys.executable, str(REPOSITORY / "devserver.py"), "--port", "0"),
            *("--data-dir", str(tmp_path / "data"), "--static-dir", str(small_disk)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode == 1
    assert "Read-only file system" in started.stderr
    assert str(small_disk) in started.stderr and "Traceback" not in started.stderr
