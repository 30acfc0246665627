"""``/extract`` and ``/members`` of archive files that are staged."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests
from conftest import missing_tool
from polling import wait_until
from running_server import RunningServer
from unpacking import (
    COMPRESSIONS,
    MIB,
    directory,
    hard_link,
    member,
    symbolic_link,
    tar_of,
)
from zip_files import Zipped, link, zip_of

TARGET, BUILD = "lamp-release", "R1-2.0.0"
NAME = f"{TARGET}/{BUILD}"
DATA = os.urandom(3 * MIB + 17)
WHEN = 1_000_000_000
SPARSE = bytes(2 * MIB) + b"end"
TAR = tar_of(
    directory("./"),
    directory("./dir"),
    member("./dir/a.txt", b"first", mtime=WHEN),
    member("./big", DATA, mtime=WHEN),
    member("dir//a.txt", b"hello", mtime=WHEN),
    member("empty"),
    symbolic_link("dir/link", "../big"),
    symbolic_link("dir/loop", "loop"),
    symbolic_link("out", "../../etc/passwd"),
    symbolic_link("absolute", "/etc/passwd"),
    symbolic_link("nowhere", "dir/nothing"),
    symbolic_link("other", "dir"),
    hard_link("hard", "big"),
    hard_link("too-early", "later"),
    member("later", b"later", mtime=4e9),
    member("../evil", b"evil"),
    member("/evil", b"evil"),
    member("two\nlines", b"evil"),
    member("device", type=tarfile.CHRTYPE),
)
PATHS = [
    *("absolute", "big", "dir/a.txt", "dir/link", "dir/loop", "empty", "hard", "later"),
    *("nowhere", "other", "out"),
]
ZIP_DATE = (2001 - 1980) << 9 | 9 << 5 | 9
ZIP = zip_of(
    Zipped(name="dir/", mode=0o40755),
    Zipped(name="./dir/a.txt", data=b"hello", date=ZIP_DATE),
    Zipped(name="big", data=DATA, method=8),
    Zipped(name="stored", data=DATA),
    Zipped(name="empty"),
    Zipped(name="locked", data=b"locked", flags=1),
    Zipped(name="imploded", data=b"imploded", method=6),
    Zipped(name="wrong", data=b"wrong", method=8, crc32=1),
    Zipped(name="big-wrong", data=bytes(3 * MIB), method=8, crc32=1),
    Zipped(name="short", data=b"short", stored=b"sho"),
    Zipped(name="../evil", data=b"evil"),
    Zipped(name="back\\slash", data=b"evil"),
    link("link", "dir/a.txt"),
    link("dir/up", "../link"),
    link("out", "../x"),
)
ARCHIVES = {
    **{f"archive.tar.{name}": compress(TAR) for name, compress in COMPRESSIONS.items()},
    "below/archive.zip": ZIP,
    "no-archive": b"neither nor",
    "cut.tar": TAR[: 2 * MIB],
    "cut.tar.gz": gzip.compress(TAR)[: 2 * MIB],
    "cut.zip": ZIP[:-1],
    "twice.zip": zip_of(Zipped(name="a"), Zipped(name="./a")),
    "empty.tar": tar_of(),
    "empty.zip": zip_of(),
    "bomb.tar.gz": gzip.compress(tar_of(member("zeros", bytes(40 * MIB)))),
    "bomb.zip": zip_of(Zipped(name="zeros", data=bytes(40 * MIB), method=8)),
    "many.tar.gz": gzip.compress(tar_of(*(member(f"{n}") for n in range(101)))),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has staged all of the archives, and a file that is one only by its name."""
    directory = tmp_path_factory.mktemp("members")
    build = directory / "archive" / NAME
    for name, data in ARCHIVES.items():
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).write_bytes(data)
    server = serving(directory)
    try:
        yield server
    finally:
        server.stop()


def serving(directory: Path, *options: str) -> RunningServer:
    root = f"file://{directory}/archive"
    server = RunningServer(
        directory / "server",
        *("--allow-archive", root, "--catalog", "everything"),
        *("--max-unpacked", "32MiB", "--max-members", "100"),
        *options,
    )
    try:
        server.call("/stage", archive_url=f"{root}/{NAME}", files="**")
    except BaseException:
        server.stop()
        raise
    return server


def extract(
    server: RunningServer, archive: str, file: str, method: str = "GET", **headers: str
) -> requests.Response:
    return server.session.request(
        method,
        f"{server.url}/extract/{NAME}/{archive}",
        params={"file": file},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        timeout=60,
    )


def open_files(server: RunningServer) -> int:
    return psutil.Process(server.process.pid).num_fds()


TARS = [name for name in ARCHIVES if name.startswith("archive.tar")]
EVERY_KIND = pytest.mark.parametrize("archive", [*TARS, "below/archive.zip"])


@EVERY_KIND
def test_a_member_comes_as_if_it_were_unpacked(server: RunningServer, archive: str) -> None:
    big = extract(server, archive, "big")
    assert (big.status_code, big.content) == (200, DATA)
    assert extract(server, archive, "empty").content == b""
    small = extract(server, archive, "dir/a.txt")
    assert (small.status_code, small.content) == (200, b"hello")
    assert small.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert small.headers["X-Content-Type-Options"] == "nosniff"
    assert small.headers["Content-Security-Policy"] == "sandbox"
    assert small.headers["Accept-Ranges"] == "bytes"
    assert small.headers["Content-Length"] == "5"
    assert " Sep 2001 " in small.headers["Last-Modified"]


@EVERY_KIND
def test_a_member_is_found_by_any_spelling_of_its_path(server: RunningServer, archive: str) -> None:
    for spelled in ("dir/a.txt", "./dir/a.txt", "dir//./a.txt"):
        assert extract(server, archive, spelled).content == b"hello"


@EVERY_KIND
def test_ranges_and_conditions_are_those_of_static(server: RunningServer, archive: str) -> None:
    whole = extract(server, archive, "big")
    etag = whole.headers["ETag"]
    ranged = extract(server, archive, "big", Range="bytes=1000000-1000009")
    assert (ranged.status_code, ranged.content) == (206, DATA[1_000_000:1_000_010])
    assert ranged.headers["Content-Range"] == f"bytes 1000000-1000009/{len(DATA)}"
    last = extract(server, archive, "big", Range="bytes=-7", If_Range=etag)
    assert (last.status_code, last.content) == (206, DATA[-7:])
    several = extract(server, archive, "big", Range="bytes=0-9,2000000-2000009")
    assert DATA[:10] in several.content and DATA[2_000_000:2_000_010] in several.content
    assert extract(server, archive, "big", Range=f"bytes={len(DATA)}-").status_code == 416
    assert extract(server, archive, "big", If_None_Match=etag).status_code == 304
    assert extract(server, archive, "big", If_Match='"other"').status_code == 412
    other = extract(server, archive, "big", Range="bytes=0-9", If_Range='"other"')
    assert (other.status_code, len(other.content)) == (200, len(DATA))


@EVERY_KIND
def test_trying_a_link_out_tells_all_but_the_bytes(server: RunningServer, archive: str) -> None:
    head = extract(server, archive, "big", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    whole = extract(server, archive, "big")
    for header in ("Content-Length", "ETag", "Content-Type", "Accept-Ranges"):
        assert head.headers[header] == whole.headers[header]
    assert extract(server, archive, "nothing", "HEAD").status_code == 404


def test_different_members_have_different_tags(server: RunningServer) -> None:
    tags = [
        extract(server, archive, file).headers["ETag"]
        for archive in ("archive.tar.plain", "archive.tar.gz")
        for file in ("big", "dir/a.txt", "empty", "later")
    ]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("archive", TARS)
def test_what_is_in_a_tar_is_listed_by_the_paths_it_would_have(
    server: RunningServer, archive: str
) -> None:
    listed = server.get(f"/members/{NAME}/{archive}")
    assert listed.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert listed.text.split("\n") == PATHS


def test_what_is_in_a_zip_is_listed(server: RunningServer) -> None:
    listed = server.call(f"/members/{NAME}/below/archive.zip").split("\n")
    assert listed == sorted(listed)
    assert {"dir/a.txt", "big", "empty", "link", "dir/up", "locked"} < set(listed)
    assert not {"dir", "../evil", "back\\slash"} & set(listed)


def test_an_archive_may_be_empty(server: RunningServer) -> None:
    for archive in ("empty.tar", "empty.zip"):
        assert server.call(f"/members/{NAME}/{archive}") == ""
        assert extract(server, archive, "a").status_code == 404


@pytest.mark.parametrize("archive", TARS)
def test_links_are_followed_within_a_tar(server: RunningServer, archive: str) -> None:
    for path in ("hard", "dir/link", "other/link"):
        assert extract(server, archive, path).content == DATA, path
    assert extract(server, archive, "other/a.txt").content == b"hello"


def test_links_are_followed_within_a_zip(server: RunningServer) -> None:
    for path in ("link", "dir/up"):
        assert extract(server, "below/archive.zip", path).content == b"hello", path
    answer = extract(server, "below/archive.zip", "out")
    assert answer.status_code == 404 and "out of the archive" in answer.text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nothing", "there is no 'nothing'"),
        ("big/more", "there is no"),
        ("dir", "is a directory"),
        ("other", "is a directory"),
        ("dir/loop", "round and round"),
        ("out", "out of the archive"),
        ("absolute", "out of the archive"),
        ("nowhere", "there is no"),
        ("device", "not a file"),
        ("too-early", "not a file"),
        ("evil", "there is no"),
    ],
)
@pytest.mark.parametrize("archive", ["archive.tar.plain", "archive.tar.gz"])
def test_what_is_no_file_of_the_archive_is_404_in_words(
    server: RunningServer, archive: str, path: str, words: str
) -> None:
    answer = extract(server, archive, path)
    assert answer.status_code == 404
    assert words in answer.text and archive in answer.text and "\n" not in answer.text


@pytest.mark.parametrize("archive", ["archive.tar.plain", "below/archive.zip"])
@pytest.mark.parametrize("path", ["../evil", "/evil", "two\nlines", "dir/../big", " ", "."])
def test_what_is_no_path_below_the_archive_is_400(
    server: RunningServer, archive: str, path: str
) -> None:
    answer = extract(server, archive, path)
    assert answer.status_code == 400
    assert "file" in answer.text and "\n" not in answer.text


def test_a_member_that_changes_its_mind_has_no_time(server: RunningServer) -> None:
    assert "Last-Modified" not in extract(server, "archive.tar.plain", "later").headers
    assert "Last-Modified" not in extract(server, "archive.tar.plain", "empty").headers


@pytest.mark.parametrize(
    ("archive", "path", "status", "words"),
    [
        ("no-archive", "a", 502, "no-archive: neither a tar archive"),
        ("cut.tar", "big", 502, "cut.tar: the archive ends early"),
        ("cut.tar.gz", "big", 502, "cut.tar.gz: the archive ends early"),
        ("cut.zip", "big", 502, "cut.zip: the archive ends early"),
        ("twice.zip", "a", 502, "twice.zip: the archive's member './a' is there twice"),
        ("bomb.tar.gz", "zeros", 502, "bomb.tar.gz: the archive unpacks to over"),
        ("bomb.zip", "zeros", 502, "bomb.zip: the archive unpacks to over"),
        ("many.tar.gz", "1", 502, "many.tar.gz: the archive has over 100 members"),
        ("below/archive.zip", "locked", 502, "'locked' is encrypted"),
        ("below/archive.zip", "imploded", 502, "(implode), which cannot be unpacked"),
        ("below/archive.zip", "wrong", 502, "its CRC-32 is"),
        ("below/archive.zip", "short", 502, "sizes contradict"),
        ("nothing.tar", "a", 404, "nothing.tar"),
        ("below", "a", 404, "below"),
        (".devserver", "a", 404, ".devserver"),
    ],
)
def test_what_cannot_be_had_is_told_in_words_with_its_status(
    server: RunningServer, archive: str, path: str, status: int, words: str
) -> None:
    answer = extract(server, archive, path)
    assert (answer.status_code, "\n" in answer.text) == (status, False)
    assert words in answer.text
    if archive != "below/archive.zip":
        assert server.get(f"/members/{NAME}/{archive}").status_code == status


def test_wrong_bytes_of_a_large_member_are_never_a_whole_answer(server: RunningServer) -> None:
    # Whether the answer has begun by the time that it is found out is a matter of luck.
    with suppress(requests.exceptions.RequestException):
        assert extract(server, "below/archive.zip", "big-wrong").status_code == 502


def test_arguments_and_methods(server: RunningServer) -> None:
    missing = server.get(f"/extract/{NAME}/archive.tar.gz")
    assert (missing.status_code, missing.text) == (400, "missing argument: file")
    for call in ("/extract", f"/extract/{NAME}", f"/members/{TARGET}"):
        assert server.get(call, file="a").status_code == 404
    assert server.get(f"/extract/{TARGET}/R9/archive.tar", file="a").status_code == 404
    assert server.get(f"/members/{TARGET}/R9/archive.tar").status_code == 404
    for call in (f"/extract/{NAME}/archive.tar.gz?file=big", f"/members/{NAME}/archive.tar.gz"):
        answer = server.session.post(server.url + call)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_a_sparse_file_comes_with_its_holes(tmp_path: Path) -> None:
    (tmp_path / "sparse").write_bytes(SPARSE)
    with (tmp_path / "sparse").open("r+b") as file:
        file.truncate(0)
        file.seek(len(SPARSE) - 3)
        file.write(b"end")
    build = tmp_path / "archive" / NAME
    build.mkdir(parents=True)
    for format in ("gnu", "posix"):
        archive = build / f"{format}.tar"
        command = ["tar", "--sparse", f"--format={format}", "-cf", str(archive), "sparse"]
        try:
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            missing_tool("GNU tar")
        for name, compress in (("tgz", gzip.compress), ("tbz", bz2.compress)):
            (build / f"{format}.{name}").write_bytes(compress(archive.read_bytes()))
    server = serving(tmp_path)
    try:
        for name in ("gnu.tar", "gnu.tgz", "gnu.tbz", "posix.tar", "posix.tgz", "posix.tbz"):
            assert extract(server, name, "sparse").content == SPARSE, name
    finally:
        server.stop()


def test_archives_of_real_programs_are_read(tmp_path: Path) -> None:
    build = tmp_path / "archive" / NAME
    tree = tmp_path / "tree"
    deep = "/".join(["d" * 90] * 4)
    (tree / deep).mkdir(parents=True)
    build.mkdir(parents=True)
    (tree / deep / "séance.txt").write_bytes(b"found")
    (tree / "link").symlink_to(f"{deep}/séance.txt")
    commands = {
        "gnu.tar.xz": ["tar", "-cJf", "%", "."],
        "posix.tar.zst": ["tar", "--zstd", "--format=posix", "-cf", "%", "."],
        "zip.zip": ["zip", "-qry", "%", "."],
    }
    for name, command in commands.items():
        try:
            here = [part.replace("%", f"{build}/{name}") for part in command]
            subprocess.run(here, cwd=tree, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            missing_tool(command[0])
    with zipfile.ZipFile(build / "python.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{deep}/séance.txt", b"found")
    server = serving(tmp_path)
    try:
        for name in (*commands, "python.zip"):
            assert f"{deep}/séance.txt" in server.call(f"/members/{NAME}/{name}").split("\n")
            assert extract(server, name, f"{deep}/séance.txt").content == b"found"
        for name in commands:
            assert extract(server, name, "link").content == b"found"
    finally:
        server.stop()


def test_many_machines_get_the_same_member_and_nothing_is_left(server: RunningServer) -> None:
    extract(server, "archive.tar.xz", "empty")
    before = open_files(server)
    with ThreadPoolExecutor(50) as machines:
        got = machines.map(lambda _: extract(server, "archive.tar.xz", "big").content, range(50))
        assert all(content == DATA for content in got)
    assert list((server.static_directory / ".devserver" / "tmp").iterdir()) == []
    server.session.close()
    # One file is kept open for the next machine, however many there were.
    wait_until(lambda: open_files(server) <= before + 1)


def test_an_archive_that_is_staged_anew_is_read_anew(tmp_path: Path) -> None:
    build = tmp_path / "archive" / NAME
    build.mkdir(parents=True)
    (build / "a.tar").write_bytes(tar_of(member("a", b"old")))
    server = serving(tmp_path)
    try:
        old = extract(server, "a.tar", "a")
        (build / "a.tar").write_bytes(tar_of(member("b", b"first"), member("a", b"new")))
        url = f"file://{tmp_path}/archive/{NAME}"
        server.call("/stage", archive_url=url, files="a.tar", clean="True")
        new = extract(server, "a.tar", "a")
        assert (old.content, new.content) == (b"old", b"new")
        assert old.headers["ETag"] != new.headers["ETag"]
        assert server.call(f"/members/{NAME}/a.tar") == "a\nb"
    finally:
        server.stop()


def test_a_file_in_the_place_of_a_staged_one_is_not_followed(tmp_path: Path) -> None:
    build = tmp_path / "archive" / NAME
    build.mkdir(parents=True)
    (build / "a.tar").write_bytes(tar_of(member("a", b"a")))
    server = serving(tmp_path)
    try:
        staged = server.static_directory / NAME / "a.tar"
        staged.unlink()
        secret = tmp_path / "secret.tar"
        secret.write_bytes(tar_of(member("secret", b"secret")))
        staged.symlink_to(secret)
        assert extract(server, "a.tar", "secret").status_code == 404
    finally:
        server.stop()


def test_a_stored_zip_inside_another_is_still_one_member(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a", b"inner")
    build = tmp_path / "archive" / NAME
    build.mkdir(parents=True)
    with zipfile.ZipFile(build / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    server = serving(tmp_path)
    try:
        assert server.call(f"/members/{NAME}/outer.zip") == "inner.zip"
        assert extract(server, "outer.zip", "inner.zip").content == inner.getvalue()
    finally:
        server.stop()
