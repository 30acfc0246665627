"""Blob storages that are reached over the network, when they fail, stall, lie or are full.

Each method fails in words and in bounded time, leaves nothing half there, and works again after.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from archive_proxy import ArchiveProxy
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import wait_until
from real_servers import S3, S3_PAGE_FILES, emulated_google_storage, emulated_s3
from source_calls import assert_is_for_people
from upload_client import UploadClient, blobs_on_record, chunk

from artifacts.blobs import bucket_storage
from artifacts.blobs.storage import BlobMissing, BlobStorage, StorageError
from artifacts.blobs.storages import open_storage
from artifacts.config import Config
from artifacts.errors import Busy, DevserverError, InsufficientStorage
from artifacts.retries import RetryLimits

TRIES = 3
STALL_SECONDS = 0.3
CONTENT = bytes(range(256)) * 1000
SIZE = len(CONTENT)
CHECKSUM = hashlib.sha1(CONTENT).hexdigest()
OTHER = hashlib.sha1(b"other").hexdigest()


@dataclass(frozen=True)
class Remote:
    """A storage with the one blob of ``CONTENT``, and the proxy through which it is asked."""

    storage: BlobStorage
    proxy: ArchiveProxy
    location: str

    @property
    def bucket(self) -> str:
        return self.location.rpartition("/")[0]

    def put(self, content: bytes = b"other") -> None:
        spooled = self.storage.spool_directory / uuid.uuid4().hex
        spooled.write_bytes(content)
        self.storage.put(hashlib.sha1(content).hexdigest(), spooled)

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        with self.storage.open(CHECKSUM, start, stop) as opened:
            return b"".join(iter(lambda: opened.read(50_000), b""))

    def checksums(self) -> list[str]:
        return [blob.checksum for blob in self.storage.list()]


@pytest.fixture(scope="module")
def storages(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Remote]:
    """A storage of the kind that the parameter names; to be used as ``remote``."""
    directory = tmp_path_factory.mktemp("storage")
    with ExitStack() as servers:
        if request.param == "s3":
            url = servers.enter_context(emulated_s3(directory)).url
            S3(url).create_bucket("bucket")
            variable = "AWS_ENDPOINT_URL"
        else:
            servers.enter_context(emulated_google_storage()).create_bucket("bucket")
            variable = "STORAGE_EMULATOR_HOST"
            url = os.environ[variable]
        proxy = servers.enter_context(ArchiveProxy(url))
        environment = servers.enter_context(pytest.MonkeyPatch.context())
        environment.setenv(variable, proxy.url)
        environment.setattr(bucket_storage, "_LIMITS", RetryLimits(TRIES, 0.01))
        location = f"{request.param}://bucket/blobs"
        with opened(location, directory / "data") as storage:
            yield Remote(storage, proxy, location)


@pytest.fixture
def remote(storages: Remote) -> Iterator[Remote]:
    """A storage with the one blob of ``CONTENT``, whatever other tests have done to it."""
    storages.put(CONTENT)
    for checksum in set(storages.checksums()) - {CHECKSUM}:
        storages.storage.delete(checksum)
    yield storages
    storages.proxy.up()
    storages.proxy.behave()


@contextmanager
def opened(location: str, data_directory: Path) -> Iterator[BlobStorage]:
    config = Config(
        blob_storage=location,
        data_dir=data_directory,
        connect_timeout=STALL_SECONDS,
        stall_timeout=STALL_SECONDS,
    )
    storage = open_storage(config)
    try:
        yield storage
    finally:
        storage.close()


every_remote = pytest.mark.parametrize("storages", ["s3", "gs"], indirect=True)
only_s3 = pytest.mark.parametrize("storages", ["s3"], indirect=True)
only_gs = pytest.mark.parametrize("storages", ["gs"], indirect=True)

Call = Callable[[Remote], object]
CALLS: dict[str, Call] = {
    "put": lambda remote: remote.put(),
    "open": lambda remote: remote.storage.open(CHECKSUM),
    "open a range": lambda remote: remote.storage.open(CHECKSUM, 10, 20),
    "delete": lambda remote: remote.storage.delete(CHECKSUM),
    "list": lambda remote: remote.checksums(),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def failure_of(remote: Remote, call: Call) -> DevserverError:
    """Demand that a call fails as storages do; return how."""
    with pytest.raises(StorageError) as caught:
        call(remote)
    error = caught.value
    assert (error.status, type(error)) == (503, StorageError)
    assert_is_for_people(error, remote.bucket)
    return error


def assert_is_as_it_was(remote: Remote) -> None:
    """Demand that nothing has come of failed calls, and that all goes well again."""
    remote.proxy.behave()
    assert remote.checksums() == [CHECKSUM]
    assert remote.read() == CONTENT
    remote.put()
    assert sorted(remote.checksums()) == sorted([CHECKSUM, OTHER])
    remote.storage.delete(OTHER)
    assert remote.checksums() == [CHECKSUM]


# --- what passes


PASSING = {
    "refused": Fault(status=503),
    "too many requests": Fault(status=429),
    "an internal error": Fault(status=500),
    "reset": Fault(reset=True),
    "stalled": Fault(hold=threading.Event(), reset=True),
}


@every_remote
@every_call
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_fails_in_passing_is_tried_again(remote: Remote, call: Call, fault: Fault) -> None:
    remote.proxy.misbehave("*", fault, times=TRIES - 1 if fault.hold is None else 1)
    call(remote)


@every_remote
@every_call
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_fails_for_long_is_told_in_words(remote: Remote, call: Call, fault: Fault) -> None:
    remote.proxy.misbehave("*", fault)
    asked_before = len(remote.proxy.requests)
    error = failure_of(remote, call)
    assert "(3 tries)" in error.message
    assert len(remote.proxy.requests) - asked_before == TRIES
    assert_is_as_it_was(remote)


@every_remote
@every_call
def test_a_store_that_is_down_is_told_in_words(remote: Remote, call: Call) -> None:
    remote.proxy.down()
    assert "refused the connection" in failure_of(remote, call).message
    remote.proxy.up()
    assert_is_as_it_was(remote)


@every_remote
def test_the_end_of_the_storage_ends_the_waiting_for_another_try(
    remote: Remote, tmp_path: Path
) -> None:
    remote.proxy.misbehave("*", Fault(status=503, retry_after=30))
    asked_before = len(remote.proxy.requests)
    begun_at = time.monotonic()
    with ExitStack() as opening, ThreadPoolExecutor(1) as pool:
        storage = opening.enter_context(opened(remote.location, tmp_path))
        putting = pool.submit(Remote(storage, remote.proxy, remote.location).put)
        wait_until(lambda: len(remote.proxy.requests) > asked_before)
        opening.close()
        assert isinstance(putting.exception(20), Busy)
    assert time.monotonic() - begun_at < 20


# --- what does not


@every_remote
@every_call
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_store_that_denies_is_asked_once(remote: Remote, call: Call, status: int) -> None:
    remote.proxy.misbehave("*", Fault(status=status))
    asked_before = len(remote.proxy.requests)
    error = failure_of(remote, call)
    assert f"answered {status}" in error.message or "credentials" in error.message
    assert len(remote.proxy.requests) - asked_before == 1
    assert_is_as_it_was(remote)


@every_remote
@every_call
def test_a_bucket_that_is_not_there_is_no_blob_that_is_missing(
    remote: Remote, call: Call, tmp_path: Path
) -> None:
    scheme = remote.location.partition(":")[0]
    with opened(f"{scheme}://nowhere/blobs", tmp_path / "nowhere") as storage:
        nowhere = Remote(storage, remote.proxy, f"{scheme}://nowhere/blobs")
        assert "there is no bucket" in failure_of(nowhere, call).message


@every_remote
@every_call
def test_a_server_that_knows_nothing_does_not_say_that_a_blob_is_missing(
    remote: Remote, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ArchiveServer(tmp_path) as elsewhere:
        for variable in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
            monkeypatch.setenv(variable, elsewhere.url)
        with opened(remote.location, tmp_path / "data") as storage:
            failure_of(Remote(storage, remote.proxy, remote.location), call)


@every_remote
@every_call
def test_a_redirect_is_not_followed_with_what_is_not_for_everybody(
    remote: Remote, call: Call, tmp_path: Path
) -> None:
    with ArchiveServer(tmp_path) as elsewhere:
        remote.proxy.misbehave("*", Fault(redirect=f"{elsewhere.url}/x"))
        failure_of(remote, call)
        assert not any(request.method == "POST" for request in elsewhere.requests)
        assert not any("Authorization" in request.headers for request in elsewhere.requests)
    assert_is_as_it_was(remote)


@only_s3
def test_a_store_that_is_full_is_507(remote: Remote) -> None:
    remote.proxy.misbehave("*", Fault(status=507))
    with pytest.raises(InsufficientStorage) as caught:
        remote.put()
    assert_is_for_people(caught.value, remote.bucket, "answered 507")
    assert_is_as_it_was(remote)


@only_gs
def test_a_store_that_wants_credentials_says_so(remote: Remote) -> None:
    remote.proxy.misbehave("*", Fault(status=401))
    assert "this server has none" in failure_of(remote, CALLS["put"]).message


# --- bytes on their way there


BROKEN = {
    "cut": Fault(take_only=SIZE // 2),
    "not taken": Fault(take_only=1000, hold=threading.Event()),
    "not answered": Fault(take_only=100 * SIZE, hold=threading.Event()),
}


@every_remote
@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
def test_a_blob_that_does_not_arrive_is_not_there(remote: Remote, fault: Fault) -> None:
    remote.proxy.misbehave("*", fault)
    # More than connections take that nobody reads from.
    failure_of(remote, lambda remote: remote.put(CONTENT * 80))
    assert_is_as_it_was(remote)

    remote.proxy.misbehave("*", fault, times=1)
    remote.put()
    assert sorted(remote.checksums()) == sorted([CHECKSUM, OTHER])


@only_gs
def test_what_is_damaged_on_its_way_is_refused(remote: Remote) -> None:
    remote.proxy.misbehave("*", Fault(flip_sent_at=SIZE // 2))
    error = failure_of(remote, lambda remote: remote.put(CONTENT[::-1]))
    assert "CRC32C" in error.message
    assert_is_as_it_was(remote)


@only_s3
def test_what_is_sent_comes_with_its_checksum(remote: Remote) -> None:
    # The emulated store does not compare it.
    remote.put()
    sent = base64.b64encode(bytes.fromhex(OTHER)).decode()
    assert remote.proxy.requests[-1].headers["x-amz-checksum-sha1"] == sent


@every_remote
def test_a_blob_is_one_request_and_its_bytes_are_sent_as_they_are(remote: Remote) -> None:
    asked_before = len(remote.proxy.requests)
    remote.put(CONTENT[::-1])
    (request,) = remote.proxy.requests[asked_before:]
    assert SIZE <= int(request.headers["Content-Length"]) < SIZE + 2000
    assert "Transfer-Encoding" not in request.headers
    assert "Content-Encoding" not in request.headers


@every_remote
@pytest.mark.parametrize("said", [b"<html>Welcome</html>", b"", b"{}", b"[]", b'{"crc32c": "AA"}'])
def test_not_everything_that_says_200_has_stored_a_blob(remote: Remote, said: bytes) -> None:
    remote.proxy.misbehave("*", Fault(swap=said, lie_etag=""))
    failure_of(remote, CALLS["put"])


@every_remote
def test_a_file_that_cannot_be_read_is_told_in_words(remote: Remote) -> None:
    spooled = remote.storage.spool_directory / "nothing"
    with pytest.raises(StorageError) as caught:
        remote.storage.put(OTHER, spooled)
    assert_is_for_people(caught.value, str(spooled), "No such file")


# --- bytes on their way here


RANGES = [(0, None), (0, SIZE - 1), (1000, None), (1000, SIZE - 1000)]
CUTS = {
    "cut": Fault(cut_after=100_000),
    "cut at once": Fault(cut_after=0),
    "reset": Fault(cut_after=100_000, rst=True),
    "stalled": Fault(stall_after=100_000),
}


@every_remote
@pytest.mark.parametrize("fault", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_what_is_cut_is_taken_up_where_it_was(
    remote: Remote, fault: Fault, start: int, stop: int | None
) -> None:
    sent_before = remote.proxy.bytes_sent()
    remote.proxy.misbehave("*", fault, times=2 if fault.stall_after is None else 1)
    assert remote.read(start, stop) == CONTENT[start:stop]
    # A reset takes with it what has not been read yet.
    lost_bytes = 2 * 100_000 if fault.rst else 0
    assert remote.proxy.bytes_sent() - sent_before <= SIZE + lost_bytes


@every_remote
def test_what_is_cut_again_and_again_is_given_up(remote: Remote) -> None:
    for fault in (Fault(cut_after=100), Fault(cut_after=0)):
        remote.proxy.misbehave("*", fault)
        asked_before = len(remote.proxy.requests)
        error = failure_of(remote, lambda remote: remote.read())
        assert "cut the connection" in error.message
        assert len(remote.proxy.requests) - asked_before < 10
        assert_is_as_it_was(remote)


@every_remote
def test_a_blob_that_goes_while_it_is_read_is_missing(remote: Remote) -> None:
    remote.proxy.misbehave("*", Fault(cut_after=100_000), times=1)
    with remote.storage.open(CHECKSUM) as opened:
        assert opened.read(1000)
        remote.storage.delete(CHECKSUM)
        with pytest.raises(BlobMissing):
            while opened.read(50_000):
                pass


@every_remote
@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_a_store_that_ignores_ranges_does_not_lead_astray(
    remote: Remote, start: int, stop: int | None
) -> None:
    remote.proxy.misbehave("*", Fault(ignore_range=True))
    assert remote.read(start, stop) == CONTENT[start:stop]


@every_remote
def test_a_blob_ends_where_the_store_says_that_there_is_no_more(remote: Remote) -> None:
    remote.proxy.misbehave("*", Fault(status=416))
    assert remote.read(SIZE) == b""
    assert remote.read(SIZE + 5, SIZE + 10) == b""


@every_remote
def test_a_range_is_not_trusted_to_be_the_one_that_was_asked_for(remote: Remote) -> None:
    remote.proxy.misbehave("*", Fault(content_range=f"bytes 0-9/{SIZE}"))
    failure_of(remote, lambda remote: remote.read(10, 20))


@every_remote
def test_a_blob_whose_end_cannot_be_told_is_not_taken_for_whole(remote: Remote) -> None:
    remote.proxy.misbehave("*", Fault(no_length=True, cut_after=SIZE // 2))
    assert "length" in failure_of(remote, lambda remote: remote.read()).message
    remote.proxy.behave()
    remote.proxy.misbehave("*", Fault(chunked=True))
    assert remote.read() == CONTENT


# --- listing


@every_remote
@pytest.mark.parametrize("sent", [0, 1, 100])
def test_a_listing_that_is_cut_is_read_again(remote: Remote, sent: int) -> None:
    remote.proxy.misbehave("*", Fault(cut_after=sent), times=1)
    assert remote.checksums() == [CHECKSUM]


@every_remote
@pytest.mark.parametrize("answer", [b"", b"<html>", b"{}", b"[]", b"\xff\0"])
def test_what_is_no_listing_is_not_taken_for_an_empty_one(remote: Remote, answer: bytes) -> None:
    remote.proxy.misbehave("*", Fault(swap=answer))
    failure_of(remote, CALLS["list"])


@only_s3
def test_a_page_that_fails_does_not_begin_the_listing_anew(remote: Remote) -> None:
    for number in range(2 * S3_PAGE_FILES):
        remote.put(b"%d" % number)
    listing = remote.storage.list()
    listed = [next(listing)]
    remote.proxy.misbehave("*", Fault(status=503), times=2)
    listed += listing
    checksums = [blob.checksum for blob in listed]
    assert len(checksums) == len(set(checksums)) == 2 * S3_PAGE_FILES + 1


@only_gs
def test_a_listing_has_several_pages(remote: Remote) -> None:
    # The emulated store has but one.
    def page(content: bytes, **more: str) -> bytes:
        checksum = hashlib.sha1(content).hexdigest()
        name = f"blobs/{checksum[:2]}/{checksum[2:]}"
        item = {"name": name, "size": "5", "updated": "2026-01-02T03:04:05.678Z"}
        return json.dumps({"kind": "storage#objects", "items": [item], **more}).encode()

    for fault in (
        *(Fault(swap=page(b"1", nextPageToken="second")), Fault(status=503)),
        *(Fault(swap=page(b"2", nextPageToken="third")), Fault(swap=page(b"3"))),
    ):
        remote.proxy.misbehave("*", fault, times=1)
    asked_before = len(remote.proxy.requests)
    listed = list(remote.storage.list())
    assert [blob.checksum for blob in listed] == [
        hashlib.sha1(content).hexdigest() for content in (b"1", b"2", b"3")
    ]
    assert {(blob.size, blob.stored_at) for blob in listed} == {(5, 1767323045.678)}
    tokens = [request.target for request in remote.proxy.requests[asked_before:]]
    assert ["pageToken=second" in target for target in tokens] == [False, True, True, False]
    assert "pageToken=third" in tokens[3]


# --- connections


@every_remote
def test_nothing_is_asked_but_what_is_needed(remote: Remote) -> None:
    asked_before = len(remote.proxy.requests)
    remote.put()
    remote.read()
    remote.checksums()
    remote.storage.delete(OTHER)
    assert len(remote.proxy.requests) - asked_before == 4


@only_s3
def test_a_connection_is_used_again(remote: Remote) -> None:
    remote.checksums()
    connections_before = remote.proxy.connection_count
    for _ in range(5):
        remote.put()
        assert remote.read(5, 50_000) == CONTENT[5:50_000]
        assert remote.read() == CONTENT
        remote.checksums()
        remote.storage.delete(OTHER)
    assert remote.proxy.connection_count == connections_before


# --- behind a server


@every_remote
def test_a_server_says_to_uploaders_what_is_wrong_with_its_bucket(
    serve: Serve, remote: Remote
) -> None:
    remote.proxy.down()
    server = serve("--blob-storage", remote.location)
    assert server.get("/health").status_code == 200
    client = UploadClient(server)
    remote.proxy.up()
    remote.proxy.misbehave("*", Fault(status=403))
    refused = client.send(chunk(b"other"))
    assert (refused.status_code, list(refused.json())) == (503, ["detail"])
    assert "answered 403" in refused.json()["detail"]
    assert blobs_on_record(server) == set()

    remote.proxy.behave()
    assert client.send(chunk(b"other"), chunk(b"another")).status_code == 200
    assert OTHER in remote.checksums()
    assert OTHER in blobs_on_record(server)
    spool = server.directory / "data" / "spool"
    wait_until(lambda: list(spool.iterdir()) == [])

    remote.proxy.down()
    assert client.send(chunk(b"other")).status_code == 200  # it is there
    lost = client.send(chunk(b"lost"))
    assert (lost.status_code, "refused" in lost.json()["detail"]) == (503, True)


@only_s3
def test_a_server_that_is_killed_leaves_an_empty_spool_behind_its_next_start(
    serve: Serve, remote: Remote
) -> None:
    server = serve("--blob-storage", remote.location)
    client = UploadClient(server)
    spool = server.directory / "data" / "spool"
    remote.proxy.misbehave("*", Fault(take_only=1, hold=threading.Event()))
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.send, chunk(CONTENT[::-1]))
        wait_until(lambda: len(list(spool.iterdir())) == 1)
        server.kill()
        assert sending.exception(60) is not None
    assert len(list(spool.iterdir())) == 1
    remote.proxy.behave()

    again = serve("--blob-storage", remote.location)
    assert list(spool.iterdir()) == []
    assert UploadClient(again).send(chunk(CONTENT[::-1])).status_code == 200
