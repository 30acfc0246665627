"""Builds published to this server are staged from ``store://`` as from any archive."""

from __future__ import annotations

import io
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import Serve
from faulty_storage import Trouble
from polling import wait_until
from running_server import RunningServer
from stored_files import StoredFiles

from artifacts.archive_url import ArchiveUrl
from artifacts.blobs.files import AssembledFile
from artifacts.blobs.storage import StorageError
from artifacts.blobs.store_source import StoreSource
from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET
from artifacts.database.database import DatabaseUnavailable
from artifacts.errors import ArchiveError, TransientArchiveError
from artifacts.fetch import Fetch, FetchLimits
from artifacts.retries import RetryLimits
from artifacts.workers import Workers

MIB = 2**20
NAME = f"{TARGET}/{BUILD}"
URL = f"store://{NAME}"
SMALL = "lamp-release/R1-1.0.0"
SMALL_URL = f"store://{SMALL}"


def add_in_chunks(stored: StoredFiles, path: Path, chunk_bytes: int = MIB) -> AssembledFile:
    content = path.read_bytes()
    return stored.add(content, [chunk_bytes] * (len(content) // chunk_bytes))


def publish_sample(stored: StoredFiles, archive_directory: Path) -> None:
    for path in sorted((archive_directory / NAME).iterdir()):
        stored.publish(NAME, path.name, add_in_chunks(stored, path))


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve("--tries", "2")


@pytest.fixture
def stored(server: RunningServer) -> Iterator[StoredFiles]:
    """What the server keeps of uploads, from beside it."""
    with StoredFiles(server.directory / "data") as stored:
        yield stored


@pytest.fixture
def anything(serve: Serve) -> RunningServer:
    """A server that stages whatever files there are; its uploads are ``stored_beside``."""
    return serve("--catalog", "everything", "--tries", "2", name="anything")


@pytest.fixture
def stored_beside(anything: RunningServer) -> Iterator[StoredFiles]:
    with StoredFiles(anything.directory / "data") as stored:
        yield stored


# --- as any archive


def test_a_published_build_is_staged(
    server: RunningServer, stored: StoredFiles, archive_directory: Path
) -> None:
    publish_sample(stored, archive_directory)
    assert server.call("/is_staged", archive_url=URL, artifacts="full_payload") == "False"
    assert server.call("/download", archive_url=URL) == "Success"
    assert server.call("/wait_for_status", archive_url=URL) == "Success"
    assert server.call("/is_staged", archive_url=URL, artifacts="full_payload,autotest") == "True"
    payload = (archive_directory / NAME / FULL_PAYLOAD).read_bytes()
    assert server.file(f"{NAME}/update.gz") == payload
    assert "autotest/server/autoserv" in server.call("/list_image_dir", archive_url=URL)
    assert server.call("/latestbuild", target=TARGET) == BUILD


def test_files_of_a_published_build_are_staged_by_name(
    server: RunningServer, stored: StoredFiles, archive_directory: Path
) -> None:
    publish_sample(stored, archive_directory)
    assert server.call("/stage", archive_url=URL, files="stateful.*") == "Success"
    staged = server.file(f"{NAME}/stateful.tgz")
    assert staged == (archive_directory / NAME / "stateful.tgz").read_bytes()
    missing = server.get("/stage", archive_url=URL, files="nothing.bin")
    assert (missing.status_code, "nothing.bin" in missing.text) == (404, True)


def test_members_of_an_archive_file_are_read_though_it_is_not_staged(serve: Serve) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("big", random.Random(1).randbytes(4 * MIB))
        archive.writestr("notes.txt", "read me")
    content = packed.getvalue()
    server = serve("--archive-root", "store://")
    with StoredFiles(server.directory / "data") as stored:
        stored.publish(SMALL, "image.zip", stored.add(content, [MIB] * 4))
    assert server.call(f"/members/{SMALL}/image.zip") == "big\nnotes.txt"
    assert server.call(f"/extract/{SMALL}/image.zip", file="notes.txt") == "read me"
    assert server.call("/is_staged", archive_url=SMALL_URL, files="image.zip") == "False"


def test_store_is_allowed_whatever_archives_are(serve: Serve) -> None:
    server = serve("--allow-archive", "gs://nothing-else")
    answer = server.get("/download", archive_url=SMALL_URL)
    assert (answer.status_code, "no such build" in answer.text) == (404, True)


def test_the_store_may_be_the_archive_root(serve: Serve) -> None:
    server = serve("--archive-root", "store://", "--catalog", "everything")
    with StoredFiles(server.directory / "data") as stored:
        stored.publish(SMALL, "notes.txt", stored.add(b"first build"))
    assert server.file(f"{SMALL}/notes.txt") == b"first build"
    # The bytes are sent before that is recorded.
    wait_until(lambda: server.call("/is_staged", archive_url=SMALL, files="notes.txt") == "True")


@pytest.mark.parametrize("url", ["store://bucket/target/build", "store://build", "store://"])
def test_a_published_build_has_a_target_and_a_build_and_nothing_else(
    url: str, server: RunningServer
) -> None:
    answer = server.get("/download", archive_url=url)
    assert (answer.status_code, "target" in answer.text) == (400, True)


def test_files_of_all_sizes_come_as_they_were_published(
    anything: RunningServer, stored_beside: StoredFiles
) -> None:
    contents = {
        "empty": b"",
        "one byte": b"x",
        "zeros": bytes(20 * MIB),
        "whole/chunks": random.Random(2).randbytes(16 * MIB),
        "and/some more": random.Random(3).randbytes(24 * MIB + 12_345),
    }
    for name, content in contents.items():
        sizes = [8 * MIB] * (len(content) // (8 * MIB))
        stored_beside.publish(SMALL, name, stored_beside.add(content, sizes))
    uneven = random.Random(4).randbytes(12 * MIB)
    stored_beside.publish(SMALL, "uneven", stored_beside.add(uneven, [1, 0, 5 * MIB, 3, MIB]))
    assert anything.call("/download", archive_url=SMALL_URL) == "Success"
    for name, content in {**contents, "uneven": uneven}.items():
        assert anything.file(f"{SMALL}/{name}") == content


# --- while it is being published


def test_a_build_that_is_being_published_is_waited_for(
    server: RunningServer, stored: StoredFiles, archive_directory: Path
) -> None:
    files = {
        path.name: add_in_chunks(stored, path) for path in (archive_directory / NAME).iterdir()
    }
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.call, "/download", archive_url=URL, wait=60)
        stored.publish(NAME, FULL_PAYLOAD, files.pop(FULL_PAYLOAD))
        wait_until(lambda: server.get(f"/static/{NAME}/update.gz").status_code == 200)
        assert not answer.done()
        for name, file in files.items():
            stored.publish(NAME, name, file)
        assert answer.result(60) == "Success"


def test_a_build_that_nobody_publishes_is_404_after_waiting(server: RunningServer) -> None:
    answer = server.get("/download", archive_url=SMALL_URL, wait=1)
    assert (answer.status_code, SMALL in answer.text) == (404, True)


# --- what is damaged or lost


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "damaged"])
def test_a_build_with_a_bad_blob_is_502_in_words_and_fine_once_that_is_sent_again(
    is_lost: bool, anything: RunningServer, stored_beside: StoredFiles
) -> None:
    content = random.Random(9).randbytes(3 * MIB)
    file = stored_beside.add(content, [MIB, MIB])
    stored_beside.publish(SMALL, "image.bin", file)
    bad = file.parts[1].checksum
    path = stored_beside.path_of(bad)
    if is_lost:
        path.unlink()
    else:
        path.write_bytes(bytes(MIB))
    answer = anything.get("/download", archive_url=SMALL_URL)
    assert answer.status_code == 502
    for words in (f"{SMALL_URL}/image.bin", bad, "publish"):
        assert words in answer.text
    assert anything.get(f"/static/{SMALL}/image.bin").status_code == 404
    assert stored_beside.files.missing_blobs(file) == [bad]

    stored_beside.keep(content[MIB : 2 * MIB])
    assert anything.call("/download", archive_url=SMALL_URL) == "Success"
    assert anything.file(f"{SMALL}/image.bin") == content


@pytest.fixture
def fetched(tmp_path: Path) -> Iterator[StoredFiles]:
    with StoredFiles(tmp_path / "data") as stored:
        yield stored


def source_of(stored: StoredFiles) -> StoreSource:
    return StoreSource(stored.database, stored.blobs)


@pytest.fixture
def fetch(fetched: StoredFiles, tmp_path: Path) -> Iterator[Fetch]:
    """An idle fetch of a published file of nine blobs."""
    (tmp_path / "tmp").mkdir()
    content = random.Random(8).randbytes(9 * 4 * MIB - 100)
    fetched.publish(SMALL, "image.bin", fetched.add(content, [4 * MIB] * 8))
    source, url = source_of(fetched), ArchiveUrl.parse(SMALL_URL)
    connections, writeback = Workers("connection", 16), Workers("writeback", 1)
    fetch = Fetch(
        *(source, url, source.stat(url, "image.bin"), tmp_path / "tmp", connections, writeback),
        FetchLimits(8, RetryLimits(3, 0.01)),
    )
    fetched.storage.opened.clear()
    yield fetch
    fetch.discard()
    assert connections.close(timeout_seconds=10)
    assert writeback.close(timeout_seconds=10)


def test_a_fetch_reads_each_blob_whole_and_once_and_eight_at_a_time(
    fetched: StoredFiles, fetch: Fetch
) -> None:
    fetched.storage.misbehave("open", Trouble(hold=threading.Event()))
    fetch.start()
    wait_until(lambda: fetched.storage.most_at_once == 8)
    fetched.storage.behave()
    fetch.wait()
    parts = {(checksum, start) for checksum, start, _ in fetched.storage.opened}
    assert len(fetched.storage.opened) == len(parts) == 9
    assert {start for _, start in parts} == {0}


def test_a_reader_anywhere_has_whole_blobs_read_all_the_same(
    fetched: StoredFiles, fetch: Fetch
) -> None:
    fetched.storage.misbehave("open", Trouble(hold=threading.Event()), times=8)
    fetch.start()
    wait_until(lambda: fetched.storage.most_at_once == 8)
    with ThreadPoolExecutor(1) as pool, fetch.open_reader() as reader:
        reader.seek(33 * MIB)
        answer = pool.submit(reader.read, 10)
        fetched.storage.behave()
        assert len(answer.result(30)) == 10
    fetch.wait()
    assert {start for _, start, _ in fetched.storage.opened} == {0}


def test_a_storage_that_fails_in_passing_is_asked_again(fetched: StoredFiles, fetch: Fetch) -> None:
    fetched.storage.misbehave("open", Trouble(error=StorageError("it is restarting")), times=2)
    fetched.storage.misbehave("open", Trouble(cut_at=MIB + 1), times=1)
    fetch.start()
    fetch.wait()


def test_a_storage_that_fails_for_good_is_told_in_words(fetched: StoredFiles, fetch: Fetch) -> None:
    fetched.storage.misbehave("open", Trouble(error=StorageError("it is on fire")))
    fetch.start()
    with pytest.raises(ArchiveError, match=rf"{SMALL_URL}/image.bin: it is on fire \(3 tries\)"):
        fetch.wait()


def test_bytes_damaged_on_their_way_are_read_again_and_nothing_is_dropped(
    fetched: StoredFiles, fetch: Fetch
) -> None:
    fetched.storage.misbehave("open", Trouble(flip_at=1000), times=1)
    fetch.start()
    fetch.wait()
    row = source_of(fetched).stat(ArchiveUrl.parse(SMALL_URL), "image.bin")
    assert row.part_bytes == 4 * MIB
    known = fetched.files.find("lab", row.generation or "")
    assert known is not None
    assert fetched.files.missing_blobs(known) == []


def test_a_database_that_is_away_may_come_back(
    fetched: StoredFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, url = source_of(fetched), ArchiveUrl.parse(SMALL_URL)
    fetched.publish(SMALL, "notes.txt", fetched.add(b"first build"))
    file = source.stat(url, "notes.txt")

    def is_away() -> NoReturn:
        raise DatabaseUnavailable("the database is busy; ask again")

    asked: list[Callable[[], object]] = [
        *(lambda: source.list(url), lambda: source.stat(url, "notes.txt")),
        lambda: source.open(url, file),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(fetched.database, "reading", is_away)
        for ask in asked:
            with pytest.raises(TransientArchiveError, match=f"{SMALL_URL}.*the database is busy"):
                ask()
    with source.open(url, file) as opened:
        assert opened.read(100) == b"first build"
