"""``/extract`` and ``/members`` of archive files that nobody has staged: what is read of them."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests
import urllib3
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import wait_until
from real_servers import emulated_google_storage, emulated_s3
from running_server import RunningServer
from unpacking import MIB, member, symbolic_link, tar_of
from zip_files import Zipped, link, zip_of

TARGET, BUILD = "lamp-release", "R1-2.0.0"
NAME = f"{TARGET}/{BUILD}"
TAR, ZIP, TGZ, SMALL = (f"/{NAME}/{file}" for file in ("big.tar", "big.zip", "packed.tgz", "s.tar"))
LARGE = f"/{NAME}/large.tar"
CONTENT = os.urandom(MIB)
OTHER = os.urandom(MIB)


def big_tar(wanted: bytes = CONTENT) -> bytes:
    """100 MB in 95 members; the one that is wanted is in the middle."""
    members = [member(f"filler/{n}", bytes(MIB)) for n in range(94)]
    members.insert(47, member("wanted.txt", wanted, mtime=1e9))
    return tar_of(*members, symbolic_link("link", "wanted.txt"))


def big_zip(wanted: bytes = CONTENT, **fields: int) -> bytes:
    members = [Zipped(name=f"filler/{n}", data=bytes(MIB)) for n in range(30)]
    members.insert(15, Zipped(name="wanted.txt", data=wanted, method=8, **fields))
    return zip_of(*members, link("link", "wanted.txt"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build, made once; not to be changed."""
    build = tmp_path_factory.mktemp("files")
    (build / "big.tar").write_bytes(big_tar())
    (build / "big.zip").write_bytes(big_zip())
    packed = [member("wanted.txt", CONTENT), member("filler", bytes(MIB))]
    (build / "packed.tgz").write_bytes(gzip.compress(tar_of(*packed)))
    small = [member(f"{n}", bytes(10_000)) for n in range(1000)]
    (build / "s.tar").write_bytes(tar_of(*small, member("wanted.txt", CONTENT)))
    return build


@pytest.fixture
def directory(tmp_path: Path, files: Path) -> Path:
    """An archive with that build, each file of which may be replaced."""
    build = tmp_path / "archive" / NAME
    build.mkdir(parents=True)
    for file in files.iterdir():
        (build / file.name).hardlink_to(file)
    return tmp_path / "archive"


@pytest.fixture
def archive(directory: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(directory) as server:
        yield server


@pytest.fixture
def large(tmp_path: Path) -> Iterator[ArchiveServer]:
    """An archive with one file: 60 MB, a third of which is one member."""
    file = tmp_path / "large" / LARGE.lstrip("/")
    file.parent.mkdir(parents=True)
    members = [member(name, bytes(20 * MIB)) for name in ("before", "large", "behind")]
    file.write_bytes(tar_of(*members))
    with ArchiveServer(tmp_path / "large") as server:
        yield server


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer) -> RunningServer:
    return serving(serve, archive)


def serving(serve: Serve, archive: ArchiveServer, *options: str) -> RunningServer:
    return serve(
        *("--archive-root", archive.url, "--catalog", "everything"),
        *("--tries", "4", "--stall-timeout", "0.5"),
        *options,
    )


def extract(
    server: RunningServer, path: str, file: str = "wanted.txt", method: str = "GET", **headers: str
) -> requests.Response:
    return server.session.request(
        method,
        f"{server.url}/extract{path}",
        params={"file": file},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        timeout=60,
    )


def is_staged(server: RunningServer, archive: ArchiveServer, path: str) -> bool:
    files = path.rpartition("/")[2]
    answer = server.get("/is_staged", archive_url=f"{archive.url}/{NAME}", files=files)
    return answer.text == "True"


def assert_nothing_is_known(server: RunningServer) -> None:
    """Demand that no trace is left of a build that was only asked about."""
    assert server.get("/api/v1/builds").json() == {"builds": []}
    assert [path.name for path in server.static_directory.iterdir()] == [".devserver"]
    assert list((server.static_directory / ".devserver" / "tmp").iterdir()) == []


BY_RANGES = pytest.mark.parametrize(("path", "requests_at_most"), [(TAR, 110), (ZIP, 5)])


@BY_RANGES
def test_of_a_large_archive_only_what_is_needed_is_read(
    server: RunningServer, archive: ArchiveServer, path: str, requests_at_most: int
) -> None:
    answer = extract(server, path)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["ETag"].startswith('"')
    assert ("Last-Modified" in answer.headers) == (path == TAR)
    # Of 100 MB, or 32, a small share; and nothing is staged by it.
    assert archive.bytes_sent(path) < len(CONTENT) + 3_000_000
    assert len(archive.requests) <= requests_at_most
    assert_nothing_is_known(server)


@BY_RANGES
def test_what_was_read_once_is_known_for_the_next_one(
    server: RunningServer, archive: ArchiveServer, path: str, requests_at_most: int
) -> None:
    extract(server, path)
    archive.misbehave(path, Fault(status=404), times=None)
    sent = archive.bytes_sent(path)
    for name in ("wanted.txt", "link") if path == TAR else ("wanted.txt",):
        assert extract(server, path, name).content == CONTENT
    ranged = extract(server, path, Range="bytes=100-199")
    assert (ranged.status_code, ranged.content) == (206, CONTENT[100:200])
    listed = server.call(f"/members{path}").split("\n")
    assert {"wanted.txt", "link", "filler/0"} < set(listed)
    assert extract(server, path, "nothing").status_code == 404
    assert archive.bytes_sent(path) == sent


@BY_RANGES
def test_many_machines_cost_the_archive_as_much_as_one(
    server: RunningServer, archive: ArchiveServer, path: str, requests_at_most: int
) -> None:
    with ThreadPoolExecutor(50) as machines:
        got = machines.map(lambda _: extract(server, path).content, range(50))
        assert all(content == CONTENT for content in got)
    assert archive.bytes_sent(path) < len(CONTENT) + 3_000_000
    assert len(archive.requests) <= requests_at_most


@BY_RANGES
def test_trying_a_link_out_reads_headers_only(
    server: RunningServer, archive: ArchiveServer, path: str, requests_at_most: int
) -> None:
    head = extract(server, path, "wanted.txt", "HEAD")
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(CONTENT)))
    assert archive.bytes_sent(path) < 3_000_000
    assert head.headers["ETag"] == extract(server, path).headers["ETag"]
    assert_nothing_is_known(server)


def test_links_of_a_zip_are_followed(server: RunningServer, archive: ArchiveServer) -> None:
    assert extract(server, ZIP, "link").content == CONTENT
    assert archive.bytes_sent(ZIP) < 3_000_000


@pytest.mark.parametrize("path", [TGZ, SMALL])
def test_what_is_cheaper_to_stage_is_staged(
    server: RunningServer, archive: ArchiveServer, files: Path, path: str
) -> None:
    with ThreadPoolExecutor(20) as machines:
        got = machines.map(lambda _: extract(server, path).content, range(20))
        assert all(content == CONTENT for content in got)
    assert is_staged(server, archive, path)
    size = (files / path.rpartition("/")[2]).stat().st_size
    assert archive.bytes_sent(path) <= size * 3 // 2 + MIB
    assert server.file(f"{NAME}/{path.rpartition('/')[2]}")[:1000]


def test_an_archive_of_which_much_has_been_read_is_staged(
    server: RunningServer, archive: ArchiveServer, files: Path
) -> None:
    for number in range(30):
        assert extract(server, ZIP, f"filler/{number}").content == bytes(MIB)
    assert is_staged(server, archive, ZIP)
    size = (files / "big.zip").stat().st_size
    assert size < archive.bytes_sent(ZIP) < size * 3 // 2 + MIB


@pytest.mark.parametrize("path", [TAR, ZIP])
@pytest.mark.parametrize(
    "lacking",
    [{"ranges": False}, {"validators": False}, {"head": False}],
    ids=["no ranges", "no validators", "no HEAD"],
)
def test_an_archive_that_cannot_be_read_by_ranges_is_staged(
    serve: Serve, directory: Path, path: str, lacking: dict[str, bool]
) -> None:
    with ArchiveServer(directory, **lacking) as archive:
        server = serving(serve, archive)
        assert extract(server, path).content == CONTENT
        assert is_staged(server, archive, path)


@pytest.mark.parametrize("path", [TAR, ZIP])
def test_the_archive_may_be_a_directory(serve: Serve, directory: Path, path: str) -> None:
    server = serve("--archive-root", f"file://{directory}")
    assert extract(server, path).content == CONTENT
    assert_nothing_is_known(server)


def test_a_build_that_is_known_has_its_archive_with_it(
    serve: Serve, archive: ArchiveServer
) -> None:
    server = serve("--allow-archive", archive.url, "--catalog", "everything")
    assert extract(server, ZIP).status_code == 404
    assert archive.requests == []
    server.call("/stage", archive_url=f"{archive.url}/{NAME}", files="packed.tgz")
    assert extract(server, ZIP).content == CONTENT
    assert not is_staged(server, archive, ZIP)


PASSING = {
    "refused for a while": (Fault(status=503), 2),
    "told to come back later": (Fault(status=429, retry_after=1), 1),
    "reset before the answer": (Fault(reset=True), 2),
    "cut": (Fault(cut_after=5000), 3),
    "cut by reset": (Fault(cut_after=5000, rst=True), 2),
    "stalled": (Fault(stall_after=5000), 1),
    "wrong Content-Range": (Fault(content_range="bytes 5-9/10"), 1),
    "ranges ignored once": (Fault(ignore_range=True), 1),
}


@pytest.mark.parametrize("path", [TAR, ZIP])
@pytest.mark.parametrize("case", PASSING)
def test_a_passing_fault_is_hidden(
    server: RunningServer, archive: ArchiveServer, path: str, case: str
) -> None:
    fault, times = PASSING[case]
    # Given faults for the headers, and for the member.
    archive.misbehave(path, fault, times=times)
    assert extract(server, path, "wanted.txt", "HEAD").status_code in {200, 409}
    archive.misbehave(path, fault, times=times)
    assert extract(server, path).content == CONTENT


@pytest.mark.parametrize("path", [TAR, ZIP])
def test_an_archive_that_is_down_is_told_in_words(
    server: RunningServer, archive: ArchiveServer, path: str
) -> None:
    archive.down()
    answer = extract(server, path)
    assert answer.status_code == 502
    assert "\n" not in answer.text and "tries" in answer.text
    assert_nothing_is_known(server)


@pytest.mark.parametrize("path", [TAR, ZIP])
def test_a_file_that_is_replaced_between_two_questions_is_read_anew(
    server: RunningServer, archive: ArchiveServer, path: str
) -> None:
    old = extract(server, path)
    new_file = big_tar(OTHER) if path == TAR else big_zip(OTHER)
    # When it is another file by the time that the next member is read.
    archive.misbehave(path, Fault(replace_with=new_file), times=1)
    assert extract(server, path, "filler/3").content == bytes(MIB)
    new = extract(server, path)
    assert (old.content, new.content) == (CONTENT, OTHER)
    assert old.headers["ETag"] != new.headers["ETag"]


def test_a_file_that_is_replaced_while_a_member_is_read_is_never_mixed(
    server: RunningServer, archive: ArchiveServer
) -> None:
    extract(server, TAR, "wanted.txt", "HEAD")
    archive.misbehave(TAR, Fault(cut_after=1000), times=1)
    archive.misbehave(TAR, Fault(replace_with=big_tar(OTHER)), times=1)
    # The answer has not begun: it is looked for anew.
    assert extract(server, TAR).content == OTHER


def test_a_file_that_keeps_changing_is_told_in_words(
    server: RunningServer, archive: ArchiveServer
) -> None:
    # Each time, the second range is one of another file.
    for number in range(6):
        archive.misbehave(ZIP, Fault(), times=1)
        archive.misbehave(ZIP, Fault(replace_with=big_zip(bytes(100 + number))), times=1)
    answer = extract(server, ZIP)
    assert answer.status_code == 502
    assert "changed while it was fetched" in answer.text


def test_a_member_is_served_while_it_grows(serve: Serve, large: ArchiveServer) -> None:
    server = serving(serve, large, "--stall-timeout", "60")
    extract(server, LARGE, "large", "HEAD")
    large.misbehave(LARGE, Fault(stall_after=5 * MIB), times=1)
    with streamed(server, LARGE) as answer:
        assert answer.headers["Content-Length"] == str(20 * MIB)
        assert answer.raw.read(4 * MIB) == bytes(4 * MIB)
        # What has come is there for others, too, and what has not is not.
        ranged = extract(server, LARGE, "large", Range="bytes=4000000-4000099")
        assert (ranged.status_code, ranged.content) == (206, bytes(100))
        large.behave()
        assert answer.raw.read() == bytes(16 * MIB)
    assert large.bytes_sent(LARGE) < 22 * MIB


def test_a_member_that_cannot_be_read_to_its_end_is_cut(serve: Serve, large: ArchiveServer) -> None:
    server = serving(serve, large, "--tries", "2", "--stall-timeout", "60")
    extract(server, LARGE, "large", "HEAD")
    large.misbehave(LARGE, Fault(stall_after=5 * MIB), times=1)
    large.misbehave(LARGE, Fault(status=500))
    with streamed(server, LARGE) as answer:
        assert answer.raw.read(4 * MIB) == bytes(4 * MIB)
        large.down()
        with pytest.raises(urllib3.exceptions.ProtocolError):
            answer.raw.read()
    large.up()
    large.behave()
    assert extract(server, LARGE, "large").content == bytes(20 * MIB)


def test_machines_that_hang_up_half_way_leave_nothing(serve: Serve, large: ArchiveServer) -> None:
    server = serving(serve, large, "--stall-timeout", "60")
    extract(server, LARGE, "large", "HEAD")
    process = psutil.Process(server.process.pid)
    before = process.num_fds()
    large.misbehave(LARGE, Fault(stall_after=5 * MIB), times=1)
    for _ in range(20):
        with streamed(server, LARGE) as answer:
            assert len(answer.raw.read(MIB)) == MIB
    large.behave()
    assert extract(server, LARGE, "large").content == bytes(20 * MIB)
    # But for what is kept for the next one: the member, and a connection to the archive.
    server.session.close()
    wait_until(lambda: process.num_fds() <= before + 2)
    assert large.bytes_sent(LARGE) < 22 * MIB


@contextmanager
def streamed(server: RunningServer, path: str) -> Iterator[requests.Response]:
    """An answer whose body is to be read; its connection ends with it."""
    url = f"{server.url}/extract{path}?file=large"
    with requests.get(url, stream=True, timeout=60) as answer:
        assert answer.status_code == 200
        yield answer


def test_wrong_bytes_are_told_in_words(
    server: RunningServer, archive: ArchiveServer, directory: Path
) -> None:
    file = directory / NAME / "wrong.zip"
    file.write_bytes(big_zip(crc32=1))
    answer = extract(server, f"/{NAME}/wrong.zip")
    assert answer.status_code == 502 and "its CRC-32 is" in answer.text
    # The others are none the worse for it.
    assert extract(server, f"/{NAME}/wrong.zip", "filler/3").content == bytes(MIB)


def test_what_the_archive_does_not_have_is_404_and_leaves_no_trace(
    server: RunningServer, archive: ArchiveServer
) -> None:
    for path in (f"/{NAME}/nothing.tar", f"/{TARGET}/R9-9.9.9/big.tar", f"/{NAME}/.hidden.tar"):
        for call in ("/extract", "/members"):
            answer = server.get(f"{call}{path}", file="a")
            assert answer.status_code == 404, answer.text
            assert path.rpartition("/")[2] in answer.text
    # Asked for again at once, it is not looked for again.
    assert len(archive.requests) == 2
    assert_nothing_is_known(server)


def test_what_is_no_archive_is_told_in_words(
    server: RunningServer, archive: ArchiveServer, directory: Path
) -> None:
    (directory / NAME / "image.bin").write_bytes(b"image" * MIB)
    answer = extract(server, f"/{NAME}/image.bin")
    assert answer.status_code == 502
    assert "image.bin: neither a tar archive" in answer.text
    assert archive.bytes_sent(f"/{NAME}/image.bin") < 100_000
    (directory / NAME / "cut.tar").write_bytes(big_tar()[: 50 * MIB])
    answer = extract(server, f"/{NAME}/cut.tar")
    assert answer.status_code == 502
    assert "cut.tar: the archive ends early" in answer.text
    assert_nothing_is_known(server)


def test_nothing_is_staged_by_trying_out_nor_for_pages_of_other_sites(
    server: RunningServer, archive: ArchiveServer
) -> None:
    for method, headers in (("HEAD", {}), ("GET", {"Sec_Fetch_Site": "cross-site"})):
        assert extract(server, TGZ, "wanted.txt", method, **headers).status_code == 409
        # What need not be staged is answered.
        assert extract(server, ZIP, "wanted.txt", method, **headers).status_code == 200
    assert_nothing_is_known(server)


def test_an_archive_that_is_not_allowed_any_more_is_refused(
    serve: Serve, archive: ArchiveServer
) -> None:
    server = serve("--allow-archive", archive.url, "--catalog", "everything")
    server.call("/stage", archive_url=f"{archive.url}/{NAME}", files="packed.tgz")
    server.stop()
    server = serve("--allow-archive", "http://elsewhere")
    assert extract(server, TGZ).content == CONTENT
    assert extract(server, ZIP).status_code == 403


def test_a_member_that_is_larger_than_the_rest_is_staged_with_it(
    server: RunningServer, archive: ArchiveServer, directory: Path
) -> None:
    path = f"/{NAME}/one.tar"
    one = tar_of(member("a", b"a"), member("large", bytes(20 * MIB)))
    (directory / path.lstrip("/")).write_bytes(one)
    assert extract(server, path, "a").content == b"a"
    assert not is_staged(server, archive, path)
    assert extract(server, path, "large").content == bytes(20 * MIB)
    assert is_staged(server, archive, path)


def test_an_archive_in_s3_is_read_by_ranges(serve: Serve, files: Path, tmp_path: Path) -> None:
    with emulated_s3(tmp_path) as s3:
        bucket = s3.create_bucket("members")
        bucket.put(f"{NAME}/big.zip", (files / "big.zip").read_bytes())
        server = serve("--archive-root", "s3://members")
        assert extract(server, ZIP).content == CONTENT
        assert_nothing_is_known(server)


def test_an_archive_in_google_storage_is_read_by_ranges(serve: Serve, files: Path) -> None:
    with emulated_google_storage() as client:
        bucket = client.create_bucket("members")
        bucket.blob(f"{NAME}/big.zip").upload_from_filename(str(files / "big.zip"))
        server = serve("--archive-root", "gs://members")
        assert extract(server, ZIP).content == CONTENT
        assert_nothing_is_known(server)


def test_a_file_that_is_stored_compressed_is_staged_to_be_read(serve: Serve, files: Path) -> None:
    with emulated_google_storage() as client:
        blob = client.create_bucket("members").blob(f"{NAME}/big.zip")
        blob.content_encoding = "gzip"
        blob.upload_from_string(gzip.compress((files / "big.zip").read_bytes(), 1))
        server = serve("--archive-root", "gs://members")
        assert extract(server, ZIP).content == CONTENT
        assert server.file(f"{NAME}/big.zip") == (files / "big.zip").read_bytes()
