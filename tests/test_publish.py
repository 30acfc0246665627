"""``devserver publish``: what is missing is sent, and the build can be staged from ``store://``."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from chunk_proxy import ChunkProxy
from click.testing import CliRunner
from conftest import Serve
from running_server import REPOSITORY, RunningServer
from stored_files import StoredFiles
from test_command_line import devserver
from upload_client import make_token, sha1_of, stored_blobs

from artifacts.commands.local_files import Hashing, find_files
from artifacts.errors import DevserverError
from artifacts.tokens import READ
from devserver import main

MIB = 2**20
CHUNK = 8 * MIB
NAME = "lamp-release/R1-1.0.0"
URL = f"store://{NAME}"


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve("--catalog", "everything", "--tries", "2")


@pytest.fixture
def token(server: RunningServer) -> str:
    return make_token(server)


@pytest.fixture
def proxy(server: RunningServer) -> Iterator[ChunkProxy]:
    with ChunkProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A directory with files of all kinds."""
    build = tmp_path / "out"
    noise = random.Random(1)
    contents = {
        "image.bin": noise.randbytes(2 * CHUNK + 12_345),
        "zeros.img": bytes(3 * CHUNK),
        "empty": b"",
        "tests/__init__.py": b"",
        "tests/notes + 100% ünï?#.txt": b"first build",
        "tests/copy.txt": b"first build",
    }
    for name, content in contents.items():
        path = build / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return build


def contents_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def chunks_of(directory: Path) -> set[str]:
    contents = contents_of(directory).values()
    starts = [(content, start) for content in contents for start in range(0, len(content), CHUNK)]
    return {sha1_of(content[start : start + CHUNK]) for content, start in starts} | {sha1_of(b"")}


def command(*arguments: str | Path, url: str, token: str) -> list[str]:
    return ["publish", *map(str, arguments), "--server", url, "--token", token]


def published(*arguments: str | Path, url: str, token: str) -> dict[str, object]:
    """Publish, which has to succeed; return what is told of it."""
    ended = devserver(*command(*arguments, "--json", url=url, token=token))
    assert ended.returncode == 0, ended.stderr
    told: dict[str, object] = json.loads(ended.stdout)
    return told


def refusal(*arguments: str | Path, url: str, token: str) -> str:
    """Publish, which has to fail; return why."""
    ended = devserver(*command(*arguments, url=url, token=token))
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr.strip().split("\n")[-1]


def assert_staged_as(server: RunningServer, build: Path, name: str = NAME) -> None:
    assert server.call("/download", archive_url=f"store://{name}") == "Success"
    assert contents_of(server.static_directory / name) == contents_of(build)


# --- what is published


def test_a_directory_is_published_and_staged(
    server: RunningServer, token: str, build: Path
) -> None:
    ended = devserver(*command(NAME, build, url=server.url, token=token))
    assert (ended.returncode, ended.stdout) == (0, f"{URL}\n")
    assert "published" in ended.stderr
    assert_staged_as(server, build)


def test_files_are_called_by_their_own_names(
    server: RunningServer, token: str, build: Path
) -> None:
    told = published(
        *(NAME, build / "image.bin", build / "tests/copy.txt"), url=server.url, token=token
    )
    image = (build / "image.bin").read_bytes()
    assert told == {
        "archive_url": URL,
        "bytes": len(image) + 11,
        "bytes_sent": len(image) + 11,
        "files": [
            {"name": "image.bin", "size": len(image), "sha1": sha1_of(image)},
            {"name": "copy.txt", "size": 11, "sha1": sha1_of(b"first build")},
        ],
    }
    assert server.call("/download", archive_url=URL) == "Success"
    assert server.call("/list_image_dir", archive_url=URL) == "copy.txt\nimage.bin"


def test_names_with_dots_before_them_are_passed_over_below_directories(
    server: RunningServer, token: str, tmp_path: Path
) -> None:
    for name in ("out/.git/config", "out/.cache", "out/image.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    told = published(NAME, tmp_path / "out", url=server.url, token=token)
    assert [file["name"] for file in told["files"]] == ["image.bin"]  # type: ignore[attr-defined]
    assert "reserved" in refusal(NAME, tmp_path / "out/.cache", url=server.url, token=token)


def test_a_build_may_be_published_bit_by_bit(
    server: RunningServer, token: str, build: Path
) -> None:
    published(NAME, build / "image.bin", url=server.url, token=token)
    published(NAME, build, url=server.url, token=token)
    assert_staged_as(server, build)


# --- what is sent


def test_what_the_server_has_is_not_sent_again(
    proxy: ChunkProxy, token: str, build: Path, tmp_path: Path
) -> None:
    first = published(NAME, build, url=proxy.url, token=token)
    assert sorted(proxy.passed) == sorted(chunks_of(build))  # each once: zeros, and copies, too
    assert first["bytes_sent"] == 2 * CHUNK + 12_345 + CHUNK + 11

    assert published(NAME, build, url=proxy.url, token=token)["bytes_sent"] == 0
    (build / "more.txt").write_bytes(b"second build")
    second = published("lamp-release/R2-1.0.0", build, url=proxy.url, token=token)
    assert second["bytes_sent"] == len(b"second build")
    assert len(proxy.passed) == len(chunks_of(build))


def times_asked(proxy: ChunkProxy) -> int:
    return sum(request.path.endswith("/assemble/") for request in proxy.requests)


def test_of_files_with_the_same_bytes_one_is_asked_for_after_another(
    proxy: ChunkProxy, token: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for number in range(20):
        (tmp_path / "out" / f"file-{number}").write_bytes(b"all alike")
    asked_before_sending: list[int] = []
    proxy.on_chunks = lambda _: asked_before_sending.append(times_asked(proxy))
    assert published(NAME, tmp_path / "out", url=proxy.url, token=token)["bytes_sent"] == 9
    assert asked_before_sending == [1]
    before = times_asked(proxy)
    published(NAME, tmp_path / "out", url=proxy.url, token=token)
    assert times_asked(proxy) - before == 20


def test_a_file_that_changes_while_it_is_assembled_is_noticed(
    proxy: ChunkProxy, token: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    changed = tmp_path / "out/notes.txt"
    changed.write_bytes(b"first build")

    def change(_: int) -> None:
        # The chunk has been read by now.
        changed.write_bytes(b"second build")

    proxy.on_chunks = change
    assert "notes.txt has changed" in refusal(NAME, tmp_path / "out", url=proxy.url, token=token)
    assert times_asked(proxy) == 1


def test_another_organization_sends_its_own_chunks(
    server: RunningServer, proxy: ChunkProxy, token: str, build: Path
) -> None:
    published(NAME, build, url=proxy.url, token=token)
    others = make_token(server, "others")
    assert "another organization" in refusal(NAME, build, url=proxy.url, token=others)
    published("lamp-release/R1-others", build, url=proxy.url, token=others)
    assert sorted(proxy.passed) == sorted([*chunks_of(build)] * 2)


def test_many_requests_go_at_a_time(proxy: ChunkProxy, token: str, tmp_path: Path) -> None:
    together = threading.Barrier(8)
    proxy.on_chunks = lambda number: together.wait(30) if number <= 8 else None
    (tmp_path / "out").mkdir()
    for number in range(64):
        (tmp_path / "out" / f"file-{number}").write_bytes(b"%d" % number * 10_000)
    published(NAME, tmp_path / "out", url=proxy.url, token=token)
    assert not together.broken


def test_four_publishers_of_overlapping_builds_at_once(
    server: RunningServer, token: str, build: Path, tmp_path: Path
) -> None:
    builds = []
    for number in range(4):
        builds.append(tmp_path / f"out-{number}")
        builds[-1].mkdir()
        for shared in ("image.bin", "zeros.img"):
            os.link(build / shared, builds[-1] / shared)
        (builds[-1] / f"own-{number}").write_bytes(b"%d" % number * 100_000)
    with ThreadPoolExecutor(4) as pool:
        publishers = [
            pool.submit(published, f"lamp/R{n}", path, url=server.url, token=token)
            for n, path in enumerate(builds)
        ]
        for publisher in publishers:
            publisher.result(60)
    for number, path in enumerate(builds):
        assert_staged_as(server, path, f"lamp/R{number}")


def test_a_damaged_chunk_is_sent_again_when_its_build_is_published_again(
    server: RunningServer, proxy: ChunkProxy, token: str, build: Path
) -> None:
    published(NAME, build, url=proxy.url, token=token)
    notes = sha1_of(b"first build")
    with StoredFiles(server.directory / "data") as stored:
        stored.path_of(notes).write_bytes(b"worst build")
    assert notes in server.get("/download", archive_url=URL).text
    told = published(NAME, build, url=proxy.url, token=token)
    assert told["bytes_sent"] == len(b"first build")
    assert_staged_as(server, build)


# --- interruptions


def start(*arguments: str | Path, url: str, token: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, str(REPOSITORY / "devserver.py")),
            *command(*arguments, url=url, token=token),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class CutOff:
    """Lets two requests with chunks pass, and holds the third, which ends up nowhere."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.is_over = threading.Event()

    def __call__(self, number: int) -> None:
        if number > 2 and not self.is_over.is_set():
            self.is_reached.set()
            assert self.is_over.wait(60)
            raise ConnectionAbortedError("it was held until it was too late")


@pytest.fixture
def cut_off(proxy: ChunkProxy) -> Iterator[CutOff]:
    proxy.on_chunks = cut_off = CutOff()
    yield cut_off
    cut_off.is_over.set()


def test_after_a_kill_publishing_goes_on_where_it_was(
    server: RunningServer, proxy: ChunkProxy, cut_off: CutOff, token: str, build: Path
) -> None:
    with start(NAME, build, url=proxy.url, token=token) as client:
        assert cut_off.is_reached.wait(30)
        client.kill()
    cut_off.is_over.set()
    confirmed = set(proxy.confirmed)
    before = len(proxy.passed)
    published(NAME, build, url=proxy.url, token=token)
    assert confirmed.isdisjoint(proxy.passed[before:])
    assert set(proxy.confirmed) == chunks_of(build) == set(stored_blobs(server))
    assert_staged_as(server, build)


def test_a_server_that_is_killed_and_started_again_is_gone_on_with(
    serve: Serve,
    server: RunningServer,
    proxy: ChunkProxy,
    cut_off: CutOff,
    token: str,
    build: Path,
) -> None:
    with start(NAME, build, url=proxy.url, token=token) as client:
        assert cut_off.is_reached.wait(30)
        confirmed = set(proxy.confirmed)
        server.kill()
        cut_off.is_over.set()
        again = serve("--catalog", "everything")
        proxy.lead_to(again.url)
        told, errors = client.communicate(timeout=60)
    assert (client.returncode, told) == (0, f"{URL}\n"), errors
    assert all(proxy.confirmed.count(checksum) == 1 for checksum in confirmed)
    assert_staged_as(again, build)


def test_a_server_that_stays_away_is_given_up_in_words(
    server: RunningServer, proxy: ChunkProxy, cut_off: CutOff, token: str, build: Path
) -> None:
    with start(NAME, build, "--tries", "2", url=proxy.url, token=token) as client:
        assert cut_off.is_reached.wait(30)
        server.kill()
        cut_off.is_over.set()
        told, errors = client.communicate(timeout=60)
    assert (client.returncode, told) == (1, "")
    assert "no devserver answers" in errors and "Traceback" not in errors


@pytest.mark.parametrize("status", [502, 503, 504, 507])
def test_what_fails_in_passing_is_tried_again(
    status: int, proxy: ChunkProxy, token: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_bytes(b"first build")
    proxy.misbehave("/api/0/", Fault(status=status), times=1)
    proxy.misbehave("/api/0/*/assemble/", Fault(status=status), times=1)
    proxy.misbehave("/api/0/*/chunk-upload/", Fault(status=status), times=1)
    assert published(NAME, tmp_path / "notes.txt", url=proxy.url, token=token)["bytes_sent"] == 11


def test_a_cut_connection_is_tried_again(proxy: ChunkProxy, token: str, build: Path) -> None:
    cuts = iter([1, 2])

    def cut(_: int) -> None:
        if next(cuts, None):
            raise ConnectionAbortedError

    proxy.on_chunks = cut
    published(NAME, build, url=proxy.url, token=token)


@pytest.mark.parametrize("status", [400, 500])
def test_what_does_not_pass_is_told_at_once(
    status: int, proxy: ChunkProxy, token: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_bytes(b"first build")
    proxy.misbehave("/api/0/*/assemble/", Fault(status=status))
    assert refusal(NAME, tmp_path / "notes.txt", url=proxy.url, token=token)
    assert sum(request.path.endswith("/assemble/") for request in proxy.requests) == 1


# --- files that change


def test_a_file_that_has_more_than_it_says_is_not_published(
    server: RunningServer, token: str
) -> None:
    # Those of /proc say that they are empty.
    assert "has changed" in refusal(NAME, "/proc/self/status", url=server.url, token=token)


def test_a_file_that_changes_before_it_is_sent_is_noticed(
    server: RunningServer, proxy: ChunkProxy, token: str, build: Path
) -> None:
    changed = build / "image.bin"

    def change(number: int) -> None:
        if number == 1:
            changed.write_bytes(b"x" * changed.stat().st_size)

    proxy.on_chunks = change
    assert "image.bin has changed" in refusal(NAME, build, url=proxy.url, token=token)
    assert sha1_of(b"x" * CHUNK) not in stored_blobs(server)


@pytest.mark.parametrize("content", [b"longer than before", b"short", b"as long as it"])
def test_a_file_that_changes_while_it_is_hashed_is_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"as long as is")
    files = find_files([path])
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with Hashing(CHUNK, lambda count: None) as hashing, pytest.raises(DevserverError) as raised:
        hashing.hash(files)
    assert "notes.txt has changed" in raised.value.message


def test_a_name_is_set_once(server: RunningServer, token: str, build: Path) -> None:
    published(NAME, build, url=server.url, token=token)
    (build / "tests/copy.txt").write_bytes(b"other build")
    assert "tests/copy.txt" in refusal(NAME, build, url=server.url, token=token)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 256 * MIB)
    tracemalloc.start()
    try:
        with Hashing(CHUNK, lambda count: None) as hashing:
            (hashed,) = hashing.hash(find_files([path]))
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    assert [chunk.start for chunk in hashed.chunks] == list(range(0, 256 * MIB, CHUNK))
    assert {chunk.checksum for chunk in hashed.chunks} == {sha1_of(bytes(CHUNK))}
    assert hashed.checksum == sha1_of(bytes(256 * MIB))


# --- wrong use, and who may not


def test_wrong_use_is_told_without_asking_a_server(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "notes.txt").touch()
    os.mkfifo(tmp_path / "fifo")
    notes = str(tmp_path / "a/notes.txt")
    for arguments, word in (
        ([NAME], "FILE"),
        ([NAME, str(tmp_path / "nothing")], "nothing"),
        ([NAME, str(tmp_path / "empty")], "nothing to publish"),
        ([NAME, str(tmp_path / "fifo")], "no regular file"),
        ([NAME, notes, str(tmp_path / "b")], "would both be notes.txt"),
        (["lamp-release", notes], "lamp-release"),
        (["lamp-release/.hidden", notes], "reserved"),
        (["a/b/c", notes], "a/b/c"),
    ):
        ended = CliRunner().invoke(main, ["publish", *arguments, "--token", "x"])
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert word in ended.stderr
    ended = CliRunner().invoke(main, ["publish", NAME, notes], env={"DEVSERVER_TOKEN": ""})
    assert (ended.exit_code, "DEVSERVER_TOKEN" in ended.stderr) == (2, True)


def test_the_token_may_come_from_the_environment(
    server: RunningServer, token: str, build: Path
) -> None:
    environment = {"DEVSERVER_TOKEN": token, "DEVSERVER_SERVER": server.url}
    ended = devserver("publish", NAME, str(build), environment=environment)
    assert (ended.returncode, ended.stdout) == (0, f"{URL}\n"), ended.stderr


def test_who_may_not_publish_is_told_why(
    server: RunningServer, build: Path, archive: ArchiveServer
) -> None:
    assert "not known" in refusal(NAME, build, url=server.url, token="0" * 64)
    reader = make_token(server, scopes=[READ])
    assert "project:releases" in refusal(NAME, build, url=server.url, token=reader)
    nobody = refusal(NAME, build, url="http://127.0.0.1:1", token="x")
    assert "no devserver answers at http://127.0.0.1:1" in nobody
    assert refusal(NAME, build, url=archive.url, token="x")
