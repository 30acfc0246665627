"""Chunk upload when storage or database fail, stall or are slow, and when the server ends."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from faulty_storage import Trouble
from polling import wait_until
from raw_client import RawClient
from upload_client import (
    CHUNK_UPLOAD,
    Part,
    UploadClient,
    blobs_on_record,
    chunk,
    content_type,
    multipart,
    sha1_of,
    spooled_files,
    stored_blobs,
)
from upload_server import UploadServer, upload_server

from artifacts.blobs.limits import CHUNKS_PER_REQUEST, CONCURRENCY
from artifacts.blobs.storage import StorageError
from artifacts.errors import InsufficientStorage
from artifacts.serving.front import ClientLimits

MANY = [chunk(b"chunk %d" % n) for n in range(32)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UploadServer]:
    with upload_server(tmp_path) as server:
        yield server


@pytest.fixture
def client(server: UploadServer) -> UploadClient:
    return UploadClient(server)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def names(parts: list[Part]) -> set[str]:
    return {str(part.filename) for part in parts}


def puts(server: UploadServer) -> int:
    return sum(method == "put" for method, _ in server.storage.calls)


def test_the_chunks_of_a_request_are_stored_at_the_same_time(
    server: UploadServer, client: UploadClient, pool: ThreadPoolExecutor
) -> None:
    hold = threading.Event()
    server.storage.misbehave("put", Trouble(hold=hold))
    answer = pool.submit(client.send, *MANY)
    # One after another, there would never be a second one.
    wait_until(lambda: puts(server) == CONCURRENCY)
    hold.set()
    assert answer.result().status_code == 200
    assert server.storage.most_at_once == CONCURRENCY
    assert blobs_on_record(server) == names(MANY)


def test_reading_goes_on_while_chunks_are_stored(
    server: UploadServer, client: UploadClient
) -> None:
    body = multipart(MANY)
    hold = threading.Event()
    server.storage.misbehave("put", Trouble(hold=hold))
    with RawClient(server.port) as raw:
        client.begin(raw, len(body)).send(body)
        wait_until(lambda: puts(server) == CONCURRENCY)
        # What is not being stored yet is here all the same.
        wait_until(lambda: len(spooled_files(server)) == len(MANY))
        hold.set()
        assert raw.reply().status == 200
    assert spooled_files(server) == []


def test_requests_whose_chunks_are_being_stored_hold_no_workers(
    server: UploadServer, client: UploadClient
) -> None:
    hold = threading.Event()
    server.storage.misbehave("put", Trouble(hold=hold))
    # More than there are workers, let alone for bodies.
    waiting = [RawClient(server.port) for _ in range(24)]
    for raw, each in zip(waiting, MANY, strict=False):
        body = multipart([each])
        client.begin(raw, len(body)).send(body)
    wait_until(lambda: len(spooled_files(server)) == len(waiting))
    assert client.get(CHUNK_UPLOAD).status_code == 200
    hold.set()
    for raw in waiting:
        assert raw.reply().status == 200
        raw.close()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StorageError("the storage is away"), 503),
        (InsufficientStorage("the disk is full"), 507),
        # What nobody expected is not told, and not repeated by the client.
        (ZeroDivisionError(), 500),
    ],
)
def test_storage_that_fails_is_told_and_leaves_nothing_but_what_was_stored(
    server: UploadServer, client: UploadClient, error: Exception, status: int
) -> None:
    bad = MANY[3]
    server.storage.misbehave("put", Trouble(error=error), checksum=bad.filename)
    answer = client.send(*MANY)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json().keys() == {"detail"}
    good = names(MANY) - {bad.filename}
    wait_until(lambda: blobs_on_record(server) == good)
    assert stored_blobs(server).keys() == good
    wait_until(lambda: spooled_files(server) == [])
    # And no lock is left.
    server.storage.behave()
    assert client.send(bad).status_code == 200
    assert blobs_on_record(server) == names(MANY)


def test_storage_that_fails_after_all_leaves_a_chunk_to_be_sent_again(
    server: UploadServer, client: UploadClient
) -> None:
    trouble = Trouble(error_after=StorageError("the connection is lost"))
    server.storage.misbehave("put", trouble, times=1)
    assert client.send(MANY[0]).status_code == 503
    assert blobs_on_record(server) == set()
    assert client.send(MANY[0]).status_code == 200
    assert blobs_on_record(server) == names(MANY[:1])


def test_storage_that_stalls_is_given_up_on(
    server: UploadServer, client: UploadClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artifacts.blobs.api._STORE_SECONDS", 0.1)
    server.storage.misbehave("put", Trouble(hold=threading.Event()))
    answer = client.send(MANY[0])
    assert (answer.status_code, answer.json().keys()) == (504, {"detail"})
    # It is stored after all, once that goes on.
    server.storage.behave()
    wait_until(lambda: blobs_on_record(server) == names(MANY[:1]))
    wait_until(lambda: spooled_files(server) == [])


def test_a_spool_that_is_full_holds_clients_back_and_then_turns_them_away(
    server: UploadServer, client: UploadClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artifacts.blobs.spool._ROOM_SECONDS", 0.1)
    server.storage.misbehave("put", Trouble(hold=threading.Event()))
    held = []
    for begun in range(4):
        body = multipart(chunk(b"%d %d" % (begun, n)) for n in range(CHUNKS_PER_REQUEST))
        held.append(client.begin(RawClient(server.port), len(body)).send(body))
    wait_until(lambda: len(spooled_files(server)) == 4 * CHUNKS_PER_REQUEST)
    assert client.send(MANY[0]).status_code == 503
    assert len(spooled_files(server)) == 4 * CHUNKS_PER_REQUEST
    monkeypatch.setattr("artifacts.blobs.spool._ROOM_SECONDS", 60)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.send, MANY[0])
        server.storage.behave()
        assert waiting.result().status_code == 200
    for raw in held:
        assert raw.reply().status == 200
        raw.close()


def test_a_spool_that_cannot_be_written_is_503(server: UploadServer, client: UploadClient) -> None:
    spool = server.storage.spool_directory
    spool.rename(spool.with_name("away"))
    answer = client.send(*MANY[:2])
    assert (answer.status_code, answer.json().keys()) == (503, {"detail"})
    spool.with_name("away").rename(spool)
    assert client.send(*MANY[:2]).status_code == 200


def test_a_chunk_that_is_there_is_not_written_again(
    server: UploadServer, client: UploadClient
) -> None:
    assert client.send(*MANY).status_code == 200
    assert UploadClient(server, "other-lab").send(*MANY).status_code == 200
    assert puts(server) == len(MANY)
    # Not even aside.
    spool = server.storage.spool_directory
    spool.rename(spool.with_name("away"))
    assert client.send(*MANY).status_code == 200


def test_a_chunk_that_is_removed_while_it_comes_again_is_to_be_sent_once_more(
    server: UploadServer, client: UploadClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\xff" * 100_000
    assert client.send(chunk(data)).status_code == 200
    body = multipart([chunk(data)])
    has, looked = server.blobs.has, threading.Event()

    def look(checksum: str) -> bool:
        found = has(checksum)
        looked.set()
        return found

    monkeypatch.setattr(server.blobs, "has", look)
    with RawClient(server.port) as raw:
        client.begin(raw, len(body)).send(body[:-50_000])
        assert looked.wait(60)
        path = next(server.storage.spool_directory.parent.glob("??/*"))
        path.write_bytes(b"damaged")
        assert server.blobs.drop(sha1_of(data)) is not None
        assert raw.send(body[-50_000:]).reply().status == 503
    assert client.send(chunk(data)).status_code == 200
    assert stored_blobs(server) == {sha1_of(data): data}


def test_a_chunk_that_comes_twice_at_once_is_stored_once(
    server: UploadServer, client: UploadClient, pool: ThreadPoolExecutor
) -> None:
    hold = threading.Event()
    server.storage.misbehave("put", Trouble(hold=hold))
    others = [UploadClient(server, f"lab-{n}") for n in range(4)]
    answers = [pool.submit(each.send, MANY[0]) for each in [client, client, *others]]
    wait_until(lambda: len(spooled_files(server)) == len(answers))
    hold.set()
    assert {answer.result().status_code for answer in answers} == {200}
    assert puts(server) == 1
    assert spooled_files(server) == []


def test_a_chunk_whose_first_sender_fails_is_stored_for_the_second(
    server: UploadServer, client: UploadClient, pool: ThreadPoolExecutor
) -> None:
    hold = threading.Event()
    trouble = Trouble(hold=hold, error=StorageError("the storage is away"))
    server.storage.misbehave("put", trouble, times=1)
    answers = [pool.submit(client.send, MANY[0]) for _ in range(2)]
    wait_until(lambda: len(spooled_files(server)) == 2)
    hold.set()
    assert sorted(answer.result().status_code for answer in answers) == [200, 503]
    assert stored_blobs(server) == {str(MANY[0].filename): MANY[0].data}
    assert spooled_files(server) == []


def test_a_locked_database_is_503_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artifacts.database.engine.WAIT_SECONDS", 0.2)
    with (
        upload_server(tmp_path) as server,
        closing(sqlite3.connect(tmp_path / "data" / "devserver.db")) as other,
    ):
        client = UploadClient(server)
        other.execute("BEGIN EXCLUSIVE")
        answer = client.send(*MANY[:2])
        assert answer.status_code == 503
        assert answer.json().keys() == {"detail"}
        wait_until(lambda: spooled_files(server) == [])
        other.rollback()
        assert client.send(*MANY[:2]).status_code == 200
        assert stored_blobs(server).keys() == names(MANY[:2])


def test_what_waits_when_the_server_ends_is_told_so_and_leaves_nothing(tmp_path: Path) -> None:
    hold = threading.Event()
    with upload_server(tmp_path) as server:
        client = UploadClient(server)
        server.storage.misbehave("put", Trouble(hold=hold))
        body = multipart(MANY)
        raw = client.begin(RawClient(server.port), len(body)).send(body)
        wait_until(lambda: len(spooled_files(server)) == len(MANY))
    assert raw.reply().status == 503
    raw.close()
    assert spooled_files(server) == []
    assert stored_blobs(server).keys() == blobs_on_record(server)


def test_a_body_that_stops_coming_is_given_up_on(tmp_path: Path) -> None:
    with upload_server(tmp_path, ClientLimits(request_seconds=0.2)) as server:
        client = UploadClient(server)
        body = multipart([chunk(b"a" * 200_000)])
        with RawClient(server.port) as raw:
            client.begin(raw, len(body)).send(body[:100_000])
            assert raw.reply().status == 408
        assert spooled_files(server) == []


def test_a_multipart_of_any_bytes_is_answered(client: UploadClient) -> None:
    head = b"--" + content_type().partition("=")[2].encode()
    for body in (b"\0", head, head + b"\r\n", head + b"\r\n\r\n\r\n", head + b"--x"):
        assert client.send_body(body).status_code in {200, 400}
