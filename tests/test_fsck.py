"""Checking blobs: what is damaged is found, told, and with ``repair`` asked for again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_storage import FailingStorage, Trouble
from stored_uploads import HOUR, ORGANIZATION, StoredUploads, sha1

from artifacts.blobs import check, inventory
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.incomplete import IncompleteFile
from artifacts.blobs.storage import BlobStorage, OpenedBlob, StorageError, StoredBlob
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from artifacts.database.tables import blobs
from artifacts.errors import Busy

GOOD, BAD, SHORT, LONG, GONE = b"good " * 500, b"bad", b"short", b"long", b"gone"


@pytest.fixture
def storage(tmp_path: Path) -> BlobStorage:
    return DirectoryStorage(tmp_path / "blobs")


@pytest.fixture
def uploads(database: Database, storage: BlobStorage) -> StoredUploads:
    return StoredUploads(database, storage, ProcessLocks())


def put(uploads: StoredUploads, checksum: str, data: bytes) -> None:
    """Put bytes into the storage, whatever they are named."""
    spooled = uploads.storage.spool_directory / "put"
    spooled.write_bytes(data)
    uploads.storage.put(checksum, spooled)


@pytest.fixture
def damaged(uploads: StoredUploads) -> StoredUploads:
    """Uploads with one whole blob, and one of each that is not."""
    for data in (GOOD, BAD, SHORT, LONG, GONE):
        uploads.send(data)
    put(uploads, sha1(BAD), b"BAD")
    put(uploads, sha1(SHORT), SHORT[:-1])
    put(uploads, sha1(LONG), LONG * 1_000_000)
    uploads.storage.delete(sha1(GONE))
    return uploads


def test_what_is_whole_is_found_whole(uploads: StoredUploads) -> None:
    for number in range(20):
        uploads.send(b"%d" % number * 100_000)
    uploads.send(b"")
    uploads.add_debug_file("crash_lab", [b"1" * 100_000, b""])
    report = uploads.check(repair=True)
    assert (report.blobs, report.bytes) == (21, 30 * 100_000)
    assert not report.is_bad and report.findings == [] and report.dropped == 0
    assert uploads.count(blobs) == 21


def test_what_is_damaged_or_missing_is_told_and_left(damaged: StoredUploads) -> None:
    report = damaged.check()
    assert (report.damaged, report.missing, report.dropped) == (3, 1, 0)
    assert report.is_bad
    words = {finding.checksum: finding.words for finding in report.findings}
    assert words.keys() == {sha1(BAD), sha1(SHORT), sha1(LONG), sha1(GONE)}
    assert sha1(b"BAD") in words[sha1(BAD)]
    assert "4 bytes" in words[sha1(SHORT)] and "more" in words[sha1(LONG)]
    assert "not in the storage" in words[sha1(GONE)]
    assert damaged.count(blobs) == 5 and damaged.is_stored(sha1(BAD))


def test_what_is_dropped_is_asked_for_again_and_then_whole(damaged: StoredUploads) -> None:
    chunks = [GOOD, BAD, SHORT, LONG, GONE]
    damaged.add_debug_file("crash_lab", chunks)
    assert damaged.check(repair=True).dropped == 4
    names = [sha1(chunk) for chunk in chunks]
    assert damaged.blobs.lease_owned(ORGANIZATION, names).keys() == {sha1(GOOD)}
    assert not damaged.is_stored(sha1(BAD))
    again = damaged.check()
    assert (again.blobs, again.damaged, again.missing) == (1, 0, 0)
    assert again.is_bad and [file.name for file in again.incomplete] == ["crash_lab"]

    for chunk in chunks[1:]:
        damaged.send(chunk)
    whole = damaged.check()
    assert not whole.is_bad and whole.blobs == 5


@pytest.mark.parametrize("repair", [False, True])
def test_builds_and_debug_files_that_lack_blobs_are_named(
    repair: bool, damaged: StoredUploads
) -> None:
    damaged.add_debug_file("crash_lab", [GOOD, BAD])
    damaged.add_debug_file("whole", [GOOD])
    damaged.add_build_file("lamp", "R1-1.0.0", "image", [GOOD, GONE])
    damaged.add_build_file("lamp", "R2-2.0.0", "image", [GOOD, GOOD])
    assert damaged.check(repair=repair).incomplete == [
        IncompleteFile(ORGANIZATION, "builds", "lamp/R1-1.0.0", "image"),
        IncompleteFile(ORGANIZATION, "devices", None, "crash_lab"),
    ]


def test_bytes_that_are_not_on_record_are_counted_and_are_no_harm(uploads: StoredUploads) -> None:
    put(uploads, sha1(b"just being stored"), b"just being stored")
    assert uploads.check().unrecorded == 0
    uploads.later = HOUR + 60
    report = uploads.check(repair=True)
    assert report.unrecorded == 1 and not report.is_bad
    assert uploads.is_stored(sha1(b"just being stored"))


class SentAnew(DirectoryStorage):
    """A directory whose blobs somebody replaces just after they were read for the first time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.uploads: StoredUploads | None = None

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> OpenedBlob:
        opened = super().open(checksum, start, stop)
        if (uploads := self.uploads) is not None:
            self.uploads = None
            uploads.blobs.drop(checksum)
            uploads.send(BAD)
        return opened


def test_a_damaged_blob_that_is_sent_anew_meanwhile_stays(
    database: Database, tmp_path: Path
) -> None:
    storage = SentAnew(tmp_path / "blobs")
    uploads = StoredUploads(database, storage, ProcessLocks())
    uploads.send(BAD)
    put(uploads, sha1(BAD), b"BAD")
    storage.uploads = uploads
    report = uploads.check(repair=True)
    assert not report.is_bad and report.dropped == 0
    assert uploads.is_recorded(sha1(BAD)) and uploads.is_stored(sha1(BAD))


def test_a_blob_that_is_whole_is_not_dropped_whoever_says_that_it_is_damaged(
    uploads: StoredUploads,
) -> None:
    checksum = uploads.send(GOOD)
    assert uploads.blobs.drop(checksum) is None
    assert uploads.is_recorded(checksum) and uploads.is_stored(checksum)


def test_nothing_is_dropped_where_more_is_missing_than_there(
    uploads: StoredUploads, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_MAX_MISSING", 2)
    for number in range(3):
        uploads.send(b"%d" % number)
    elsewhere = DirectoryStorage(tmp_path / "not mounted")
    mistaken = StoredUploads(database, elsewhere, ProcessLocks())
    report = mistaken.check(repair=True)
    assert (report.missing, report.dropped, report.is_doubtful) == (3, 0, True)
    assert not uploads.check().is_bad


def test_what_cannot_be_read_is_told_and_dropped_while_others_can(
    database: Database, tmp_path: Path
) -> None:
    storage = FailingStorage(DirectoryStorage(tmp_path / "blobs"))
    uploads = StoredUploads(database, storage, ProcessLocks())
    chunks = [GOOD, BAD, b"another"]
    bad = [uploads.send(chunk) for chunk in chunks][1]
    uploads.add_debug_file("crash_lab", chunks)
    refusal = Trouble(error=StorageError("cannot read: Input/output error"))
    storage.misbehave("open", refusal, checksum=bad)
    storage.misbehave("delete", refusal)
    told = uploads.check()
    assert (told.blobs, told.unreadable, told.damaged, told.dropped) == (3, 1, 0, 0)
    assert told.is_bad and [file.name for file in told.incomplete] == ["crash_lab"]
    assert [(found.checksum, found.words) for found in told.findings] == [
        (bad, "cannot read: Input/output error")
    ]
    assert uploads.check(repair=True).dropped == 1
    assert uploads.blobs.lease_owned(ORGANIZATION, [bad]) == {}

    storage.behave()
    uploads.send(BAD)
    assert not uploads.check().is_bad


@pytest.mark.parametrize("whole_ones", [0, 5])
def test_what_cannot_be_read_stays_where_nothing_else_can(
    whole_ones: int, database: Database, tmp_path: Path
) -> None:
    storage = FailingStorage(DirectoryStorage(tmp_path / "blobs"))
    uploads = StoredUploads(database, storage, ProcessLocks())
    for number in range(whole_ones):
        uploads.send(b"%d" % number)
    bad = uploads.send(BAD)
    away = Trouble(error=StorageError("the storage does not answer"))
    storage.misbehave("open", away, checksum=bad)
    list_blobs = storage.list

    def go_away() -> Iterator[StoredBlob]:
        storage.misbehave("open", away)
        return list_blobs()

    # After the reading, and before what it has found is dropped.
    storage.list = go_away  # type: ignore[method-assign]
    if whole_ones:
        with pytest.raises(StorageError):
            uploads.check(repair=True)
    else:
        assert uploads.check(repair=True).is_doubtful
    assert uploads.is_recorded(bad)


def test_a_storage_that_is_away_is_not_asked_for_every_blob(
    database: Database, tmp_path: Path
) -> None:
    storage = FailingStorage(DirectoryStorage(tmp_path / "blobs"))
    uploads = StoredUploads(database, storage, ProcessLocks())
    for number in range(60):
        uploads.send(b"%d" % number)
    storage.misbehave("open", Trouble(error=StorageError("the storage does not answer")))
    with pytest.raises(StorageError):
        uploads.check(repair=True)
    assert sum(method == "open" for method, _ in storage.calls) < 30
    assert uploads.count(blobs) == 60


def test_a_storage_that_fails_says_nothing_about_its_blobs(
    uploads: StoredUploads, storage: BlobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksum = uploads.send(GOOD)

    def refuse(*_: object) -> OpenedBlob:
        raise StorageError("the storage does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(storage, "open", refuse)
        assert uploads.check(repair=True).is_doubtful
        with pytest.raises(StorageError):
            uploads.blobs.drop(checksum)
    assert not uploads.check().is_bad


def test_many_blobs_are_read_several_at_a_time_and_counted_each_once(
    uploads: StoredUploads, storage: BlobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_ROWS_AT_ONCE", 7)
    for number in range(30):
        uploads.send(b"%d" % number)
    together = threading.Barrier(2)
    opened: list[str] = []
    open_blob = storage.open

    def open_together(checksum: str) -> OpenedBlob:
        opened.append(checksum)
        if len(opened) <= 2:
            together.wait(30)
        return open_blob(checksum)

    monkeypatch.setattr(storage, "open", open_together)
    assert uploads.check().blobs == 30
    assert len(opened) == len(set(opened)) == 30


def test_a_check_ends_when_it_is_stopped(uploads: StoredUploads) -> None:
    uploads.send(GOOD)
    uploads.stopped.set()
    with pytest.raises(Busy):
        uploads.check()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("blob-check")]
