"""With ``--archive-root``, reading a file of a build that nobody has staged stages it."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import clients, wait_until
from real_servers import emulated_google_storage, emulated_s3
from running_server import RunningServer

NAME = "board-release/R1-1.0.0"
STATIC = f"/static/{NAME}"
PAYLOAD, DELTA = "x_full_y.bin", "x_R1-1.0.0_R1-1.0.0_delta.bin"
SIZE = 10_000_000
MEMBERS = {"a.txt": b"a", "deep/b.txt": b"bb"}
CATALOG = """
[artifacts.update]
files = ["*_full_*.bin"]
publish_as = "update.gz"

[artifacts.delta]
files = ["*_delta.bin"]
directory = "au"
publish_as = "update.gz"
links = { "au/stateful.tgz" = "stateful.tgz" }

[artifacts.stateful]
files = ["stateful.tgz"]

[artifacts.parts]
files = ["part_*.bin"]

[artifacts.tests]
files = ["tests.tar"]
directory = "tests"
unpack = true

[artifacts.one_test]
files = ["tests.tar"]
include = ["deep/*"]
unpack = true
"""


@pytest.fixture
def files() -> dict[str, bytes]:
    """What the build has in the archive."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as members:
        for name, content in MEMBERS.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return {
        PAYLOAD: os.urandom(SIZE),
        DELTA: os.urandom(100_000),
        "stateful.tgz": os.urandom(200_000),
        "part_1.bin": b"part 1",
        "part_2.bin": b"part 2",
        "debug/deep/x.sym": b"symbols",
        "tests.tar": tar.getvalue(),
    }


@pytest.fixture
def root(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = tmp_path / "archive" / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "catalog.toml").write_text(CATALOG)
    return tmp_path / "archive"


@pytest.fixture
def archive(root: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(root, goog_hash=True) as server:
        yield server
        server.behave()


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer, tmp_path: Path) -> RunningServer:
    return serve_root(serve, archive.url, tmp_path)


def serve_root(serve: Serve, archive_root: str, tmp_path: Path) -> RunningServer:
    options = ("--archive-root", archive_root, "--catalog", str(tmp_path / "catalog.toml"))
    return serve(*options, "--tries", "2", "--shutdown-timeout", "1")


def head(server: RunningServer, path: str) -> requests.Response:
    return server.session.head(f"{server.url}{STATIC}/{path}", timeout=60)


def artifacts_of(server: RunningServer) -> dict[str, str]:
    """What the build consists of by now, and the state of each part."""
    described = server.get(f"/api/v1/builds/{NAME}")
    if described.status_code == 404:
        return {}
    return {artifact["name"]: artifact["state"] for artifact in described.json()["artifacts"]}


def staged_of(server: RunningServer) -> set[str]:
    wait_until(lambda: set(artifacts_of(server).values()) <= {"staged"})
    return set(artifacts_of(server))


def requests_for(archive: ArchiveServer) -> Counter[tuple[str, str]]:
    return Counter((r.method, r.path.removeprefix(f"/{NAME}/")) for r in archive.requests)


def assert_nothing_is_known(server: RunningServer) -> None:
    assert artifacts_of(server) == {}
    assert server.get("/wait_for_status", archive_url=NAME).status_code == 404
    assert server.call("/is_staged", archive_url=NAME, files="nothing") == "False"
    assert server.get("/api/v1/builds").json() == {"builds": []}
    assert [path.name for path in server.static_directory.iterdir()] == [".devserver"]
    assert not list((server.static_directory / ".devserver" / "builds").iterdir())


# --- which file is meant


@pytest.mark.parametrize(
    ("path", "name", "staged"),
    [
        ("update.gz", PAYLOAD, {"update"}),
        ("au/update.gz", DELTA, {"delta"}),
        ("au/stateful.tgz", "stateful.tgz", {"delta", "stateful"}),
        ("stateful.tgz", "stateful.tgz", {"stateful"}),
        # Of an artifact of many files, only the one that is asked for.
        ("part_2.bin", "part_2.bin", {"part_2.bin"}),
        # By their names in the archive.
        ("debug/deep/x.sym", "debug/deep/x.sym", {"debug/deep/x.sym"}),
        (PAYLOAD, PAYLOAD, {PAYLOAD}),
        ("tests.tar", "tests.tar", {"tests.tar"}),
    ],
)
def test_a_file_is_staged_by_its_published_name_else_by_its_own(
    path: str, name: str, staged: set[str], server: RunningServer, files: dict[str, bytes]
) -> None:
    assert server.get(f"{STATIC}/{path}").content == files[name]
    assert staged_of(server) == staged
    assert server.call("/wait_for_status", archive_url=NAME) == "Success"
    assert head(server, path).headers["ETag"].startswith('"')


@pytest.mark.parametrize(
    ("path", "content", "staged"),
    [
        ("tests/a.txt", b"a", {"tests"}),
        ("tests/deep/b.txt", b"bb", {"tests"}),
        ("deep/b.txt", b"bb", {"one_test"}),
        ("tests/nothing", None, {"tests"}),
        ("tests/", None, set()),
        ("a.txt", None, set()),
    ],
)
def test_a_member_is_unpacked_where_one_can_be_expected(
    path: str,
    content: bytes | None,
    staged: set[str],
    server: RunningServer,
    archive: ArchiveServer,
) -> None:
    for _ in range(2):
        answer = server.get(f"{STATIC}/{path}")
        assert answer.status_code == (200 if content else 404)
        assert content in {None, answer.content}
    assert staged_of(server) == staged
    assert requests_for(archive)["GET", "tests.tar"] == len(staged)


@pytest.mark.parametrize("kind", ["file", "gs", "s3"])
def test_every_kind_of_archive_will_do(
    kind: str, serve: Serve, root: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    path = f"{STATIC}/update.gz"
    if kind == "file":
        assert serve_root(serve, f"file://{root}", tmp_path).get(path).content == files[PAYLOAD]
    elif kind == "gs":
        with emulated_google_storage() as client:
            blob = client.create_bucket("builds").blob(f"{NAME}/{PAYLOAD}")
            blob.upload_from_string(files[PAYLOAD])
            server = serve_root(serve, "gs://builds", tmp_path)
            assert head(server, "update.gz").headers["Content-Length"] == str(SIZE)
            assert server.get(path).content == files[PAYLOAD]
    else:
        with emulated_s3(tmp_path) as s3:
            s3.create_bucket("builds").put(f"some/where/{NAME}/{PAYLOAD}", files[PAYLOAD])
            server = serve_root(serve, "s3://builds/some/where", tmp_path)
            assert head(server, "update.gz").headers["Content-Length"] == str(SIZE)
            assert server.get(path).content == files[PAYLOAD]


# --- how it comes


def test_it_is_sent_as_it_comes(
    server: RunningServer, archive: ArchiveServer, files: dict[str, bytes]
) -> None:
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(stall_after=1_000_000), times=1)
    answer = server.session.get(f"{server.url}{STATIC}/update.gz", stream=True, timeout=60)
    assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(SIZE))
    begin = answer.raw.read(900_000)
    assert artifacts_of(server) == {"update": "fetching"}
    archive.behave()
    assert begin + answer.raw.read() == files[PAYLOAD]


def test_a_hundred_that_ask_at_once_cost_one_listing_and_one_read(
    server: RunningServer, archive: ArchiveServer, files: dict[str, bytes]
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/", Fault(hold=hold), times=1)
    paths = ["update.gz", "stateful.tgz", "nothing", "debug/deep/x.sym"] * 25
    with ThreadPoolExecutor(100) as pool:
        asking = [pool.submit(server.get, f"{STATIC}/{path}") for path in paths]
        wait_until(lambda: clients(server) >= 100)
        hold.set()
        answers = [one.result() for one in asking]
    expected = [files[PAYLOAD], files["stateful.tgz"], None, files["debug/deep/x.sym"]] * 25
    for answer, content in zip(answers, expected, strict=True):
        if content is None:
            assert answer.status_code == 404
        else:
            assert answer.content == content
    asked = requests_for(archive)
    assert (asked["GET", ""], asked["GET", "UPLOADED"]) == (1, 1)
    for name in (PAYLOAD, "stateful.tgz", "debug/deep/x.sym"):
        assert archive.bytes_sent(f"/{NAME}/{name}") == len(files[name])


def test_it_joins_what_is_under_way(
    server: RunningServer, archive: ArchiveServer, files: dict[str, bytes]
) -> None:
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(stall_after=1_000_000), times=1)
    server.call("/stage?async=True", archive_url=NAME, artifacts="update")
    wait_until(lambda: archive.bytes_sent(f"/{NAME}/{PAYLOAD}") >= 1_000_000)
    answer = server.session.get(f"{server.url}{STATIC}/update.gz", stream=True, timeout=60)
    other = server.get(f"{STATIC}/stateful.tgz")
    assert other.content == files["stateful.tgz"]
    archive.behave()
    assert answer.content == files[PAYLOAD]
    assert archive.bytes_sent(f"/{NAME}/{PAYLOAD}") == SIZE


def test_head_changes_nothing(server: RunningServer, archive: ArchiveServer) -> None:
    for _ in range(10):
        answer = head(server, "update.gz")
        assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(SIZE))
        assert answer.headers["Content-Type"] == "application/gzip"
        assert "ETag" not in answer.headers
    assert head(server, "nothing").status_code == 404
    # Whether it is there nobody knows before it is unpacked.
    assert head(server, "tests/a.txt").status_code == 404
    assert_nothing_is_known(server)
    asked = requests_for(archive)
    assert (asked["GET", ""], asked["HEAD", PAYLOAD], asked["GET", PAYLOAD]) == (1, 1, 0)


def test_head_of_what_has_no_length_tells_none(
    server: RunningServer, archive: ArchiveServer
) -> None:
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(chunked=True, head_too=True))
    answer = head(server, "update.gz")
    assert (answer.status_code, answer.headers.get("Content-Length")) == (200, None)
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://elsewhere"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_pages_of_other_sites_cannot_have_a_browser_stage_anything(
    headers: dict[str, str], server: RunningServer
) -> None:
    path = f"{server.url}{STATIC}/update.gz"
    refused = server.session.get(path, headers=headers, timeout=60)
    assert (refused.status_code, "other sites" in refused.text) == (403, True)
    assert_nothing_is_known(server)
    assert server.get(f"{STATIC}/update.gz").status_code == 200
    assert server.session.get(path, headers=headers, timeout=60).status_code == 200


# --- what is not there


def test_of_what_the_archive_does_not_have_nothing_is_left(
    server: RunningServer, archive: ArchiveServer
) -> None:
    for _ in range(20):
        answer = server.get(f"{STATIC}/nothing")
        assert (answer.status_code, "\n" in answer.text) == (404, False)
        assert server.get("/static/board-release/R1-2.0.0/nothing").status_code == 404
    assert_nothing_is_known(server)
    assert requests_for(archive)["GET", ""] == 1
    assert [r.path for r in archive.requests].count("/board-release/R1-2.0.0/") == 1


def test_what_appears_in_the_archive_is_found_before_long(
    server: RunningServer, archive: ArchiveServer, root: Path
) -> None:
    assert server.get(f"{STATIC}/late.txt").status_code == 404
    (root / NAME / "late.txt").write_bytes(b"late")
    wait_until(lambda: server.get(f"{STATIC}/late.txt").content == b"late")


def test_an_archive_that_is_down_is_told_in_words_and_not_for_long(
    server: RunningServer, archive: ArchiveServer, files: dict[str, bytes]
) -> None:
    archive.down()
    answer = server.get(f"{STATIC}/update.gz")
    assert answer.status_code == 502
    assert "refused the connection" in answer.text and "\n" not in answer.text
    assert_nothing_is_known(server)
    archive.up()
    wait_until(lambda: server.get(f"{STATIC}/update.gz").status_code == 200)
    assert server.get(f"{STATIC}/update.gz").content == files[PAYLOAD]


@pytest.mark.parametrize(
    "path",
    [
        f"{NAME}/.hidden",
        f"{NAME}/.devserver/lock",
        f"{NAME}/a/../b",
        ".devserver/builds/x",
        "archive/R1-1.0.0/x",
        "board-release",
        "board-release/R1-1.0.0",
        f"{NAME}/%00",
        "board-release/R%5c1/x",
        "board-release/%2e%2e/x",
    ],
)
def test_names_that_nothing_can_have_are_not_looked_for(
    path: str, server: RunningServer, archive: ArchiveServer
) -> None:
    request = requests.Request("GET", f"{server.url}/static/{path}").prepare()
    request.url = f"{server.url}/static/{path}"  # as it is
    assert server.session.send(request, timeout=60).status_code == 404
    assert not archive.requests


def test_a_build_of_another_archive_is_not_mixed_with_it(
    serve: Serve, archive: ArchiveServer, tmp_path: Path
) -> None:
    other = tmp_path / "other" / NAME
    other.mkdir(parents=True)
    (other / "stateful.tgz").write_bytes(b"other")
    options = ("--archive-root", archive.url, "--catalog", str(tmp_path / "catalog.toml"))
    server = serve(*options, "--allow-archive", f"file://{tmp_path}/other")
    server.call("/stage", archive_url=f"file://{other}", artifacts="stateful")
    assert server.get(f"{STATIC}/stateful.tgz").content == b"other"
    assert server.get(f"{STATIC}/update.gz").status_code == 404
    assert not archive.requests


def test_without_an_archive_root_nothing_is_staged_by_reading(
    serve: Serve, archive: ArchiveServer
) -> None:
    server = serve("--allow-archive", archive.url)
    assert server.get(f"{STATIC}/update.gz").status_code == 404
    assert not archive.requests


# --- what fails


def test_a_failure_is_told_in_words_and_tried_again_but_not_by_everyone(
    server: RunningServer, archive: ArchiveServer, files: dict[str, bytes]
) -> None:
    archive.misbehave(f"/{NAME}/{PAYLOAD}", Fault(status=403))
    with ThreadPoolExecutor(20) as pool:
        for answer in pool.map(server.get, [f"{STATIC}/update.gz"] * 100):
            assert (answer.status_code, "403" in answer.text) == (502, True)
    asked = requests_for(archive)
    assert asked["GET", PAYLOAD] <= 3
    assert asked["GET", ""] <= 3
    failure = server.get("/wait_for_status", archive_url=NAME)
    assert (failure.status_code, "403" in failure.text) == (502, True)
    archive.behave()
    wait_until(lambda: server.get(f"{STATIC}/update.gz").status_code == 200)
    assert server.get(f"{STATIC}/update.gz").content == files[PAYLOAD]
    assert server.call("/wait_for_status", archive_url=NAME) == "Success"


def test_a_file_for_which_there_is_no_room_is_507(serve: Serve, root: Path, tmp_path: Path) -> None:
    with (root / NAME / "huge.bin").open("wb") as huge:
        huge.truncate(8 << 40)
    server = serve_root(serve, f"file://{root}", tmp_path)
    answer = server.get(f"{STATIC}/huge.bin")
    assert (answer.status_code, "free" in answer.text) == (507, True)
    assert head(server, "huge.bin").headers["Content-Length"] == str(8 << 40)


def test_the_end_of_the_server_ends_who_waits_for_a_listing(
    server: RunningServer, archive: ArchiveServer
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/", Fault(hold=hold))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(server.get, f"{STATIC}/update.gz")
        wait_until(lambda: requests_for(archive)["GET", ""] == 1)
        assert server.stop() == 0
        assert asking.result().status_code == 503
    hold.set()
