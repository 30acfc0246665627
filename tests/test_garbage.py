"""Collecting garbage: what nobody needs goes, and nothing that anybody was told to be there."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from faulty_storage import FailingStorage, Trouble
from real_postgres import Postgres
from real_servers import S3, emulated_s3
from sqlalchemy import insert
from stored_uploads import DAY, HOUR, ORGANIZATION, StoredUploads, sha1

from artifacts.blobs import blob_store, garbage, inventory
from artifacts.blobs import files as stored_files
from artifacts.blobs.blob_store import LEASE_SECONDS, BlobStore
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.garbage import Collected
from artifacts.blobs.storage import BlobStorage, StorageError, StoredBlob
from artifacts.blobs.storages import open_storage
from artifacts.config import Config
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from artifacts.database.postgresql_locks import PostgresqlLocks
from artifacts.database.tables import assemblies, blob_index, blobs, files, leases, owners
from artifacts.errors import Busy

SECONDS = 30


@pytest.fixture(params=["directory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStorage]:
    """An empty storage: a directory, or a bucket where a test asks for both."""
    location = str(tmp_path / "blobs")
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        location = f"s3://{s3.create_bucket(f'garbage-{next(_numbers)}').name}/blobs"
    opened = open_storage(Config(blob_storage=location, data_dir=tmp_path))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with emulated_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


_numbers = count(1)
every_storage = pytest.mark.parametrize("storage", ["directory", "s3"], indirect=True)


@pytest.fixture
def uploads(database: Database, storage: BlobStorage) -> StoredUploads:
    return StoredUploads(database, storage, ProcessLocks())


def test_a_blob_that_no_file_uses_goes_once_its_lease_is_over(uploads: StoredUploads) -> None:
    checksum = uploads.send(b"never assembled")
    uploads.later = LEASE_SECONDS - 60
    assert uploads.collect() == Collected()
    assert uploads.is_recorded(checksum) and uploads.is_stored(checksum)

    uploads.later = LEASE_SECONDS + 60
    assert uploads.collect() == Collected(blobs=1, bytes=len(b"never assembled"))
    assert not uploads.is_recorded(checksum) and not uploads.is_stored(checksum)
    assert uploads.count(owners) == uploads.count(leases) == 0


@every_storage
def test_a_blob_that_a_file_uses_stays_without_a_lease(uploads: StoredUploads) -> None:
    used, unused = uploads.send(b"used"), uploads.send(b"unused")
    uploads.add_debug_file("crash_lab", [b"used"])
    uploads.later = 30 * DAY
    assert uploads.collect() == Collected(blobs=1, bytes=len(b"unused"), leases=1)
    assert uploads.is_recorded(used) and uploads.is_stored(used)
    assert not uploads.is_stored(unused)
    assert uploads.count(leases) == 0


def test_what_a_client_was_told_to_be_there_can_be_assembled_a_day_later(
    uploads: StoredUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksum = uploads.send(b"confirmed")
    almost_over = time.time() + LEASE_SECONDS - 60
    monkeypatch.setattr(time, "time", lambda: almost_over)
    told = uploads.blobs.lease_owned(ORGANIZATION, [checksum])
    assert told == {checksum: len(b"confirmed")}

    uploads.later = LEASE_SECONDS - 60
    assert uploads.collect().blobs == 0
    uploads.add_debug_file("crash_lab", [b"confirmed"])
    uploads.later = LEASE_SECONDS + 60
    assert uploads.collect().blobs == 0
    assert uploads.is_stored(checksum)


def test_a_lease_that_lasts_long_is_not_prolonged_and_takes_no_turn_to_write(
    tmp_path: Path, storage: BlobStorage
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'devserver.db'}", wait_seconds=0.1)
    uploads = StoredUploads(database, storage, ProcessLocks())
    checksums = [uploads.send(b"%d" % number) for number in range(3)]
    with database.writing():
        told = uploads.blobs.lease_owned(ORGANIZATION, checksums)
        assert uploads.blobs.lease_owned("another", checksums) == {}
    assert told == dict.fromkeys(checksums, 1)
    database.close()


def test_many_are_leased_some_at_a_time(
    uploads: StoredUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_store, "_LEASED_AT_ONCE", 3)
    checksums = [uploads.send(b"%d" % number) for number in range(10)]
    others = uploads.send(b"another's", "another")
    forget_leases(uploads)
    with_writing, transactions = uploads.database.writing, []

    def writing() -> Any:
        transactions.append(1)
        return with_writing()

    monkeypatch.setattr(uploads.database, "writing", writing)
    told = uploads.blobs.lease_owned(ORGANIZATION, [*checksums, others, sha1(b"unknown")])
    assert told == dict.fromkeys(checksums, 1)
    assert len(transactions) == 4
    assert uploads.count(leases) == 10


def test_a_file_that_nothing_names_goes_after_a_day_and_its_blobs_with_it(
    uploads: StoredUploads,
) -> None:
    for data in (b"of both", b"of one"):
        uploads.send(data)
    uploads.add_file([b"of both", b"of one"])
    uploads.add_build_file("lamp", "R1", "image", [b"of both"])
    uploads.later = DAY - 60
    assert uploads.collect() == Collected()
    uploads.later = DAY + 60
    expected = Collected(files=1, blobs=1, bytes=len(b"of one"), leases=1)
    assert uploads.collect() == expected
    assert uploads.count(files) == uploads.count(blob_index) == 1
    assert uploads.is_stored(sha1(b"of both")) and not uploads.is_stored(sha1(b"of one"))


@every_storage
def test_bytes_that_were_never_recorded_go_after_an_hour(uploads: StoredUploads) -> None:
    data = b"the server was killed before it recorded this"
    spooled = uploads.storage.spool_directory / "spooled"
    spooled.write_bytes(data)
    uploads.storage.put(sha1(data), spooled)
    uploads.later = HOUR - 60
    assert uploads.collect() == Collected()
    uploads.later = HOUR + 60
    assert uploads.collect() == Collected(unrecorded_blobs=1, bytes=len(data))
    assert not uploads.is_stored(sha1(data))


def test_the_blobs_of_another_database_are_left(
    uploads: StoredUploads, tmp_path: Path, storage: BlobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "_MAX_UNRECORDED", 2)
    for number in range(3):
        uploads.send(b"%d" % number)
    (tmp_path / "other").mkdir()
    wrong = Database.in_directory(tmp_path / "other")
    mistaken = StoredUploads(wrong, storage, ProcessLocks())
    mistaken.later = 30 * DAY
    mistaken.send(b"another one")
    mistaken.add_debug_file("crash_lab", [b"another one"])
    assert mistaken.collect().unrecorded_blobs_left == 3
    assert len(list(storage.list())) == 4
    wrong.close()


def test_expired_outcomes_of_assembling_go(uploads: StoredUploads) -> None:
    rows = [
        {"offer": f"{number}", "state": "error", "detail": "", "expires_at": time.time() + seconds}
        for number, seconds in enumerate([-1.0, HOUR])
    ]
    with uploads.database.writing() as connection:
        connection.execute(insert(assemblies), rows)
    assert uploads.collect() == Collected(assemblies=1)
    assert uploads.count(assemblies) == 1


def test_temporary_files_go_after_a_day(uploads: StoredUploads) -> None:
    spool = uploads.storage.spool_directory
    (spool / "left").write_bytes(b"left behind")
    (spool / "directory").mkdir()
    (spool / "link").symlink_to(spool / "left")
    uploads.later = DAY - 60
    assert uploads.collect() == Collected()
    (spool / "fresh").write_bytes(b"being written")
    os.utime(spool / "fresh", (time.time() + HOUR,) * 2)
    uploads.later = DAY + 60
    assert uploads.collect() == Collected(temporary_files=1, bytes=len(b"left behind"))
    assert {path.name for path in spool.iterdir()} == {"fresh", "directory", "link"}


def test_a_lease_that_is_just_prolonged_is_not_waited_for(
    postgres_url: str, storage: BlobStorage
) -> None:
    database = Database(postgres_url)
    uploads = StoredUploads(database, storage, ProcessLocks())
    prolonged = uploads.send(b"prolonged")
    for data in (b"prolonged", b"over"):
        uploads.send(data)
        uploads.add_debug_file(data.decode(), [data])
    uploads.later = 2 * DAY
    with ThreadPoolExecutor() as pool, database.writing() as connection:
        expires_at = time.time() + 30 * DAY
        is_it = leases.c.checksum == prolonged
        connection.execute(leases.update().where(is_it).values(expires_at=expires_at))
        assert pool.submit(uploads.collect).result(SECONDS).leases == 1
    assert uploads.count(leases) == 1
    database.close()


def test_more_than_a_page_of_everything_goes(
    uploads: StoredUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(garbage, "_ROWS_AT_ONCE", 3)
    kept = [b"kept %d" % number for number in range(10)]
    for number in range(10):
        uploads.send(kept[number])
        uploads.send(b"unused %d" % number)
        uploads.add_file([kept[number], kept[0]])
    uploads.add_debug_file("crash_lab", kept)
    uploads.later = 30 * DAY
    collected = uploads.collect()
    assert (collected.blobs, collected.files, collected.leases) == (10, 10, 10)
    assert uploads.count(blobs) == len(list(uploads.storage.list())) == 10
    assert asdict(uploads.collect()) == asdict(Collected())


class HeldAtLock:
    """Locks; who asks for one first has to wait until ``go_on``, and has not got it meanwhile."""

    def __init__(self) -> None:
        self._locks = ProcessLocks()
        self._guard = threading.Lock()
        self._held = False
        self.is_held, self.go_on = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        with self._guard:
            is_first, self._held = not self._held, True
        if is_first:
            self.is_held.set()
            assert self.go_on.wait(SECONDS)
        with self._locks.holding(name):
            yield

    def close(self) -> None:
        pass


@every_storage
@pytest.mark.parametrize("way", ["sent again", "confirmed", "asked for"])
def test_a_blob_that_is_wanted_after_it_was_found_unused_stays(
    way: str, uploads: StoredUploads, storage: BlobStorage
) -> None:
    data = b"unused for long"
    checksum = uploads.send(data)
    forget_leases(uploads)
    locks = HeldAtLock()
    collecting = StoredUploads(uploads.database, storage, locks)
    with ThreadPoolExecutor() as pool:
        collected = pool.submit(collecting.collect)
        assert locks.is_held.wait(SECONDS)
        if way == "sent again":
            uploads.send(data)
        elif way == "confirmed":
            assert uploads.blobs.keep("another", checksum, len(data), None)
        else:
            assert uploads.blobs.lease_owned(ORGANIZATION, [checksum])
        locks.go_on.set()
        assert collected.result(SECONDS) == Collected()
    assert uploads.is_recorded(checksum) and uploads.is_stored(checksum)


class HeldAtDelete(DirectoryStorage):
    """A directory that removes nothing before ``go_on``."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.is_held, self.go_on = threading.Event(), threading.Event()

    def delete(self, checksum: str) -> None:
        self.is_held.set()
        assert self.go_on.wait(SECONDS)
        super().delete(checksum)


ways_to_remove = pytest.mark.parametrize("way", ["collected", "dropped", "unrecorded"])


def ready_to_remove(way: str, uploads: StoredUploads, data: bytes) -> Callable[[BlobStore], object]:
    """Have a chunk sent, and what lets its blob be removed one way; return how it is removed."""
    checksum = uploads.send(data)
    forget_leases(uploads)
    if way == "collected":
        return lambda blobs: blobs.collect(checksum, time.time())
    if way == "dropped":
        spooled = uploads.storage.spool_directory / "damaged"
        spooled.write_bytes(b"other bytes")
        uploads.storage.put(checksum, spooled)
        return lambda blobs: blobs.drop(checksum)
    with uploads.database.writing() as connection:
        connection.execute(blobs.delete())
    return lambda blobs: blobs.remove_unrecorded(checksum)


@ways_to_remove
def test_a_chunk_that_comes_while_its_blob_is_removed_is_there_afterwards(
    way: str, database: Database, tmp_path: Path
) -> None:
    storage = HeldAtDelete(tmp_path / "blobs")
    uploads = StoredUploads(database, storage, ProcessLocks())
    data = b"unused for long"
    remove = ready_to_remove(way, uploads, data)
    with ThreadPoolExecutor() as pool:
        removed = pool.submit(remove, uploads.blobs)
        assert storage.is_held.wait(SECONDS)
        assert not uploads.is_recorded(sha1(data)) and uploads.is_stored(sha1(data))
        asked = uploads.blobs.lease_owned(ORGANIZATION, [sha1(data)])
        sent = pool.submit(uploads.send, data)
        # It has to wait; this gives it the time to fail to.
        assert not wait([sent], timeout=0.2).done
        storage.go_on.set()
        assert removed.result(SECONDS)
        assert asked == {} and sent.result(SECONDS) == sha1(data)
    assert uploads.is_recorded(sha1(data)) and uploads.is_stored(sha1(data))


@ways_to_remove
def test_a_chunk_that_comes_while_the_lock_is_lost_is_whole_or_asked_for_again(
    way: str, postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    database = Database(postgres_url)
    held = HeldAtDelete(tmp_path / "blobs")
    with contextlib.ExitStack() as undo:
        undo.callback(database.close)
        servers = []
        for storage in (held, DirectoryStorage(tmp_path / "blobs")):
            undo.callback(storage.close)
            locks = PostgresqlLocks(database.url)
            undo.callback(locks.close)
            servers.append(StoredUploads(database, storage, locks))
        one, other = servers
        data = b"unused for long"
        checksum = sha1(data)
        remove = ready_to_remove(way, other, data)
        with ThreadPoolExecutor() as pool:
            removed = pool.submit(remove, one.blobs)
            assert held.is_held.wait(SECONDS)
            postgres.cut_off_everybody(postgres_url)
            other.send(data)
            held.go_on.set()
            with pytest.raises(Busy):
                removed.result(SECONDS)
        assert not other.is_stored(checksum)
        assert other.blobs.lease_owned(ORGANIZATION, [checksum]) == {}
        other.send(data)
        assert other.blobs.find_damage(checksum) is None and other.is_recorded(checksum)


@pytest.mark.parametrize("round_", range(10))
def test_a_lease_is_granted_before_the_last_look_or_not_at_all(
    round_: int, uploads: StoredUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksums = [uploads.send(b"%d" % number) for number in range(5)]
    forget_leases(uploads)
    barrier = threading.Barrier(2)

    def at_once(call: Callable[[], Any]) -> Any:
        barrier.wait(SECONDS)
        return call()

    with ThreadPoolExecutor() as pool:
        collected = pool.submit(at_once, uploads.collect)
        told = pool.submit(at_once, lambda: uploads.blobs.lease_owned(ORGANIZATION, checksums))
        assert collected.result(SECONDS).blobs + len(told.result(SECONDS)) == 5
    for checksum in checksums:
        is_there = checksum in told.result()
        assert uploads.is_recorded(checksum) == uploads.is_stored(checksum) == is_there
    assert uploads.count(leases) == len(told.result())


def test_a_lease_that_is_asked_for_between_the_last_look_and_the_removal_is_not_granted(
    uploads: StoredUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksum = uploads.send(b"unused for long")
    forget_leases(uploads)
    looked, go_on = threading.Event(), threading.Event()
    is_needed = blob_store._is_needed

    def look(*about: Any) -> bool:
        needed = is_needed(*about)
        looked.set()
        assert go_on.wait(SECONDS)
        return needed

    monkeypatch.setattr(blob_store, "_is_needed", look)
    with ThreadPoolExecutor() as pool:
        collected = pool.submit(uploads.collect)
        assert looked.wait(SECONDS)
        asked = pool.submit(uploads.blobs.lease_owned, ORGANIZATION, [checksum])
        # It has to wait; this gives it the time to fail to.
        assert not wait([asked], timeout=0.2).done
        go_on.set()
        assert asked.result(SECONDS) == {}
        assert collected.result(SECONDS).blobs == 1


def test_a_file_that_gets_a_name_after_it_was_found_unnamed_stays(
    uploads: StoredUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads.send(b"a file")
    uploads.add_file([b"a file"])
    uploads.later = 2 * DAY
    remove = uploads.files.remove_unnamed

    def remove_after(file_id: int, before: float) -> bool:
        uploads.add_debug_file("crash_lab", [b"a file"])
        return remove(file_id, before)

    monkeypatch.setattr(uploads.files, "remove_unnamed", remove_after)
    assert uploads.collect() == Collected(leases=1)
    assert uploads.count(files) == 1


def test_a_file_that_comes_again_while_it_is_removed_is_recorded_anew(
    uploads: StoredUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads.send(b"a file")
    uploads.add_file([b"a file"])
    looking, go_on = threading.Event(), threading.Event()
    is_named = stored_files.is_named

    def look(file_id: int) -> Any:
        looking.set()
        assert go_on.wait(SECONDS)
        return is_named(file_id)

    monkeypatch.setattr(stored_files, "is_named", look)
    with ThreadPoolExecutor() as pool:
        removed = pool.submit(uploads.files.remove_unnamed, 1, time.time() + DAY)
        assert looking.wait(SECONDS)
        added = pool.submit(uploads.add_debug_file, "crash_lab", [b"a file"])
        # It has to wait; this gives it the time to fail to.
        assert not wait([added], timeout=0.2).done
        go_on.set()
        assert removed.result(SECONDS)
        added.result(SECONDS)
    assert uploads.count(files) == uploads.count(blob_index) == 1


def test_several_collect_at_the_same_time(
    uploads: StoredUploads, database: Database, tmp_path: Path
) -> None:
    data = [b"%d" % number for number in range(40)]
    for chunk in data:
        uploads.send(chunk)
    uploads.add_debug_file("crash_lab", data[:10])
    uploads.later = 30 * DAY
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(uploads.collect) for _ in range(4)]
        collected = [each.result(SECONDS) for each in running]
    assert sum(each.blobs for each in collected) == 30
    assert sum(each.unrecorded_blobs for each in collected) == 0
    assert uploads.count(blobs) == len(list(uploads.storage.list())) == 10


def test_a_blob_that_is_not_removed_is_told_and_holds_up_no_other(
    database: Database, tmp_path: Path
) -> None:
    storage = FailingStorage(DirectoryStorage(tmp_path / "blobs"))
    uploads = StoredUploads(database, storage, ProcessLocks())
    checksums = sorted(uploads.send(b"%d" % number) for number in range(3))
    uploads.later = 2 * DAY
    refusal = Trouble(error=StorageError("cannot remove it"))
    storage.misbehave("delete", refusal, checksum=checksums[0])
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot remove it"):
            uploads.collect()
        assert [blob.checksum for blob in storage.list()] == checksums[:1]
        assert uploads.count(blobs) == 0
    storage.behave()
    assert uploads.collect() == Collected(unrecorded_blobs=1, bytes=1)


def test_a_storage_that_is_away_is_not_asked_to_remove_every_blob(
    database: Database, tmp_path: Path
) -> None:
    storage = FailingStorage(DirectoryStorage(tmp_path / "blobs"))
    uploads = StoredUploads(database, storage, ProcessLocks())
    for number in range(40):
        uploads.send(b"%d" % number)
    uploads.later = 2 * DAY
    storage.misbehave("delete", Trouble(error=StorageError("the storage does not answer")))
    with pytest.raises(StorageError):
        uploads.collect()
    assert uploads.count(blobs) == 20
    storage.behave()
    assert uploads.collect() == Collected(blobs=20, unrecorded_blobs=20, bytes=70)
    assert not list(storage.list())


def test_collecting_ends_when_it_is_stopped(uploads: StoredUploads) -> None:
    checksum = uploads.send(b"unused")
    uploads.later = 2 * DAY
    uploads.stopped.set()
    with pytest.raises(Busy):
        uploads.collect()
    assert uploads.is_stored(checksum)


@pytest.mark.parametrize("work", ["collect", "check"])
def test_what_is_listed_is_not_listed_to_its_end_when_it_is_stopped(
    work: str, uploads: StoredUploads, storage: BlobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads.send(b"a blob")
    [blob] = storage.list()
    listed = []

    def list_many() -> Iterator[StoredBlob]:
        uploads.stopped.set()
        for _ in range(10_000):
            listed.append(blob)
            yield blob

    monkeypatch.setattr(storage, "list", list_many)
    with pytest.raises(Busy):
        uploads.collect() if work == "collect" else uploads.check()
    assert len(listed) < 10_000


def forget_leases(uploads: StoredUploads) -> None:
    with uploads.database.writing() as connection:
        connection.execute(leases.delete())
