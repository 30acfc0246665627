"""An archive that misbehaves: right bytes in the end, or a clear error in bounded time."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import wait_until
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET

NAME = f"{TARGET}/{BUILD}"
PAYLOAD = f"/{NAME}/{FULL_PAYLOAD}"
PAYLOAD_BYTES = 20_000_000
TMP = Path(".devserver") / "tmp"


@pytest.fixture
def archive_directory(archive_directory: Path) -> Path:
    payload = bytes(range(256)) * (PAYLOAD_BYTES // 256)
    (archive_directory / NAME / FULL_PAYLOAD).write_bytes(payload)
    (archive_directory / NAME / "SHA256SUMS").unlink()
    return archive_directory


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer) -> RunningServer:
    return serve(
        *("--allow-archive", archive.url),
        *("--tries", "3", "--stall-timeout", "0.5", "--connect-timeout", "1"),
    )


def stage(server: RunningServer, build_url: str, name: str = "full_payload") -> tuple[int, str]:
    response = server.get("/stage", archive_url=build_url, artifacts=name)
    return response.status_code, response.text


def assert_nothing_is_left(server: RunningServer) -> None:
    assert not list((server.static_directory / TMP).iterdir())
    # The thread that gave the answer may be on its way out still.
    wait_until(lambda: server.get("/check_health").json()["staging_thread_count"] == 0)


PASSING = {
    "refused for a while": (Fault(status=503), 2),
    "told to come back later": (Fault(status=429, retry_after=1), 1),
    "internal error": (Fault(status=500), 2),
    "reset before the answer": (Fault(reset=True), 2),
    "cut": (Fault(cut_after=3_000_000), 2),
    "cut by reset": (Fault(cut_after=3_000_000, rst=True), 2),
    "stalled": (Fault(stall_after=2_500_000), 1),
    "cut early": (Fault(cut_after=10), 2),
    "ranges ignored once": (Fault(ignore_range=True), 1),
    "wrong Content-Range": (Fault(content_range="bytes 5-9/10"), 1),
    "a flipped byte": (Fault(flip_at=12_345_678), 1),
}


@pytest.mark.parametrize("case", PASSING)
def test_a_passing_fault_is_hidden(
    case: str, serve: Serve, archive_directory: Path, tmp_path: Path
) -> None:
    fault, times = PASSING[case]
    with ArchiveServer(archive_directory, goog_hash=True) as archive:
        server = serve(
            *("--allow-archive", archive.url),
            *("--tries", "4", "--stall-timeout", "0.5"),
        )
        archive.misbehave(PAYLOAD, fault, times=times)
        assert stage(server, f"{archive.url}/{NAME}") == (200, "Success")
        expected = (archive_directory / NAME / FULL_PAYLOAD).read_bytes()
        assert server.file(f"{NAME}/update.gz") == expected
        assert_nothing_is_left(server)


LASTING = {
    "denied": (Fault(status=403), 502, "403"),
    "gone though listed": (Fault(status=404), 502, "has no"),
    "out of order": (Fault(status=500), 502, "500"),
    "reset": (Fault(reset=True), 502, ""),
    "stalled": (Fault(stall_after=0), 502, ""),
    "cut before it gets anywhere": (Fault(cut_after=10), 502, ""),
    "wrong Content-Range": (Fault(content_range="bytes 5-9/10"), 502, ""),
    "shorter than it says": (Fault(claim_length=PAYLOAD_BYTES + 1000), 502, ""),
}


@pytest.mark.parametrize("case", LASTING)
def test_a_lasting_fault_is_an_error_in_bounded_time(
    case: str, server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    fault, status, word = LASTING[case]
    archive.misbehave(PAYLOAD, fault)
    begun_at = time.monotonic()
    answered, text = stage(server, build_url)
    assert (answered, word in text) == (status, True), text
    assert FULL_PAYLOAD in text and "\n" not in text
    assert time.monotonic() - begun_at < 30
    assert server.get(f"/static/{NAME}/update.gz").status_code == 404
    assert_nothing_is_left(server)
    archive.behave()
    assert stage(server, build_url) == (200, "Success")


def test_wrong_bytes_are_fetched_again_then_reported_and_never_published(
    serve: Serve, archive_directory: Path
) -> None:
    with ArchiveServer(archive_directory, goog_hash=True) as archive:
        server = serve("--allow-archive", archive.url, "--tries", "2")
        archive.misbehave(PAYLOAD, Fault(flip_at=PAYLOAD_BYTES - 1))
        status, text = stage(server, f"{archive.url}/{NAME}")
        assert (status, "CRC32C" in text) == (502, True), text
        assert archive.bytes_sent(PAYLOAD) > PAYLOAD_BYTES
        assert server.get(f"/static/{NAME}/update.gz").status_code == 404
        assert not (server.static_directory / NAME / "update.gz").exists()
        assert_nothing_is_left(server)


@pytest.mark.parametrize("sums", ["SHA256SUMS", f"{FULL_PAYLOAD}.sha256"])
def test_checksums_beside_a_file_are_checked(
    sums: str, server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    line = f"{'0' * 64}  {FULL_PAYLOAD}\n"
    (archive_directory / NAME / sums).write_text(line)
    status, text = stage(server, build_url)
    assert (status, "SHA256" in text) == (502, True), text


def test_a_file_that_changes_between_two_ranges_is_fetched_anew(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    new = b"new" * 7_000_000
    archive.misbehave(PAYLOAD, Fault(cut_after=3_000_000), times=1)
    archive.misbehave(PAYLOAD, Fault(replace_with=new), times=1)
    assert stage(server, build_url) == (200, "Success")
    assert server.file(f"{NAME}/update.gz") == new


def test_a_file_that_changes_is_not_mixed_even_if_if_range_is_not_honoured(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    new = b"\xff" * PAYLOAD_BYTES
    archive.misbehave(PAYLOAD, Fault(cut_after=3_000_000), times=1)
    archive.misbehave(PAYLOAD, Fault(replace_with=new, ignore_if_range=True), times=1)
    assert stage(server, build_url) == (200, "Success")
    assert server.file(f"{NAME}/update.gz") == new


def test_an_archive_that_is_down_is_502_after_bounded_tries(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.down()
    begun_at = time.monotonic()
    failure = server.get("/download", archive_url=build_url)
    assert failure.status_code == 502
    assert time.monotonic() - begun_at < 20
    assert server.get("/wait_for_status", archive_url=build_url).status_code == 502
    archive.up()
    assert server.call("/download", archive_url=build_url) == "Success"


def test_an_archive_without_ranges_gets_one_connection(
    serve: Serve, archive_directory: Path
) -> None:
    with ArchiveServer(archive_directory, ranges=False) as archive:
        server = serve("--allow-archive", archive.url)
        assert stage(server, f"{archive.url}/{NAME}") == (200, "Success")
        gets = [r for r in archive.requests if r.path == PAYLOAD and r.method == "GET"]
        assert len(gets) == 1
        archive.misbehave(PAYLOAD, Fault(cut_after=9_000_000), times=1)
        staged = server.get(
            "/stage?clean=True", archive_url=f"{archive.url}/{NAME}", artifacts="full_payload"
        )
        assert staged.text == "Success"
        expected = (archive_directory / NAME / FULL_PAYLOAD).read_bytes()
        assert server.file(f"{NAME}/update.gz") == expected


def test_an_archive_without_validators_is_never_resumed_in_the_middle(
    serve: Serve, archive_directory: Path
) -> None:
    with ArchiveServer(archive_directory, validators=False) as archive:
        server = serve("--allow-archive", archive.url)
        archive.misbehave(PAYLOAD, Fault(cut_after=9_000_000), times=1)
        assert stage(server, f"{archive.url}/{NAME}") == (200, "Success")
        gets = [r for r in archive.requests if r.path == PAYLOAD and r.method == "GET"]
        assert [request.range_header for request in gets] == [None, None]


def test_a_server_without_head_is_no_obstacle(serve: Serve, archive_directory: Path) -> None:
    with ArchiveServer(archive_directory, head=False) as archive:
        server = serve("--allow-archive", archive.url)
        assert stage(server, f"{archive.url}/{NAME}") == (200, "Success")
        expected = (archive_directory / NAME / FULL_PAYLOAD).read_bytes()
        assert server.file(f"{NAME}/update.gz") == expected


def test_a_body_without_length_is_believed_when_its_end_can_be_told(
    serve: Serve, archive_directory: Path
) -> None:
    with ArchiveServer(archive_directory, head=False) as archive:
        server = serve("--allow-archive", archive.url, "--tries", "2")
        archive.listing_override(f"/{NAME}/UPLOADED", FULL_PAYLOAD.encode(), "text/plain")
        archive.misbehave(PAYLOAD, Fault(no_length=True, chunked=True), times=1)
        assert stage(server, f"{archive.url}/{NAME}") == (200, "Success")
        expected = (archive_directory / NAME / FULL_PAYLOAD).read_bytes()
        assert server.file(f"{NAME}/update.gz") == expected


@pytest.mark.parametrize(
    "fault",
    [Fault(no_length=True), Fault(no_length=True, chunked=True, cut_after=1_000_000)],
    ids=["ended by closing", "chunked and cut"],
)
def test_a_body_whose_end_cannot_be_told_is_refused(
    fault: Fault, serve: Serve, archive_directory: Path
) -> None:
    with ArchiveServer(archive_directory, head=False, validators=False) as archive:
        server = serve("--allow-archive", archive.url, "--tries", "2")
        archive.listing_override(f"/{NAME}/UPLOADED", FULL_PAYLOAD.encode(), "text/plain")
        archive.misbehave(PAYLOAD, fault)
        assert stage(server, f"{archive.url}/{NAME}")[0] == 502
        assert server.get(f"/static/{NAME}/update.gz").status_code == 404


def test_only_the_piece_that_failed_is_read_again(serve: Serve, archive_directory: Path) -> None:
    payload = archive_directory / NAME / FULL_PAYLOAD
    payload.write_bytes(bytes(range(256)) * 250_000)
    with ArchiveServer(archive_directory, latency_seconds=0.02) as archive:
        server = serve("--allow-archive", archive.url)
        archive.misbehave(PAYLOAD, Fault(cut_after=1_000_000), times=3)
        assert stage(server, f"{archive.url}/{NAME}") == (200, "Success")
        assert server.file(f"{NAME}/update.gz") == payload.read_bytes()
        assert archive.bytes_sent(PAYLOAD) == payload.stat().st_size


def test_a_redirect_stays_on_the_allow_list(
    serve: Serve, archive_directory: Path, tmp_path: Path
) -> None:
    with ArchiveServer(archive_directory) as archive, ArchiveServer(archive_directory) as other:
        server = serve("--allow-archive", archive.url)
        archive.misbehave(PAYLOAD, Fault(redirect=f"{other.url}{PAYLOAD}", head_too=True))
        status, text = stage(server, f"{archive.url}/{NAME}")
        assert (status, "not allowed" in text) == (403, True)
        assert other.requests == []


@pytest.mark.parametrize("name", ["stateful", "autotest"])
def test_empty_files_are_staged_and_empty_archives_refused(
    name: str, server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    (archive_directory / NAME / "stateful.tgz").write_bytes(b"")
    (archive_directory / NAME / "autotest.tar.bz2").write_bytes(b"")
    status, text = stage(server, build_url, name)
    if name == "stateful":
        assert (status, server.file(f"{NAME}/stateful.tgz")) == (200, b"")
    else:
        assert (status, "neither a tar" in text) == (502, True), text


@pytest.mark.parametrize("damage", ["no archive at all", "ends early", "flipped on the way"])
def test_a_tarball_that_cannot_be_unpacked_is_refused_whole(
    damage: str,
    server: RunningServer,
    archive: ArchiveServer,
    archive_directory: Path,
    build_url: str,
) -> None:
    tarball = archive_directory / NAME / "autotest.tar.bz2"
    data = tarball.read_bytes()
    if damage == "no archive at all":
        tarball.write_bytes(b"<html>not found</html>")
    elif damage == "ends early":
        tarball.write_bytes(data[: len(data) // 2])
    else:
        archive.misbehave(f"/{NAME}/autotest.tar.bz2", Fault(flip_at=len(data) // 2))
    status, text = stage(server, build_url, "autotest")
    assert (status, "autotest.tar.bz2" in text) == (502, True), text
    assert not (server.static_directory / NAME / "autotest").exists()
    assert_nothing_is_left(server)


def test_bytes_flipped_once_do_not_spoil_an_unpacked_artifact(
    serve: Serve, archive_directory: Path
) -> None:
    with ArchiveServer(archive_directory, goog_hash=True) as archive:
        server = serve("--allow-archive", archive.url)
        archive.misbehave(f"/{NAME}/autotest.tar.bz2", Fault(flip_at=5000), times=1)
        assert stage(server, f"{archive.url}/{NAME}", "autotest") == (200, "Success")
        assert_nothing_is_left(server)


def test_an_archive_with_a_link_out_of_its_tree_is_refused_whole(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    with tarfile.open(archive_directory / NAME / "autotest.tar.bz2", "w:bz2") as tar:
        inside = tarfile.TarInfo("autotest/control")
        inside.size = 4
        tar.addfile(inside, io.BytesIO(b"test"))
        link = tarfile.TarInfo("autotest/out")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../../etc"
        tar.addfile(link)
    status, text = stage(server, build_url, "autotest")
    assert (status, "out" in text and "autotest.tar.bz2" in text) == (502, True), text
    assert server.get(f"/static/{NAME}/autotest/control").status_code == 404
    assert_nothing_is_left(server)
