"""Upkeep within a server: one thing at a time, once for all who ask, and now and then by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from faulty_storage import FailingStorage, Trouble
from stored_uploads import StoredUploads, sha1

from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.storage import StorageError
from artifacts.blobs.upkeep import Upkeep
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from artifacts.database.tables import leases
from artifacts.errors import Busy

SECONDS = 30


class HeldTimers:
    """Timers whose time comes when a test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._changed = threading.Condition()
        self._due: list[Callable[[], None]] = []

    def at(self, due: float, lane: str, work: Callable[[], None]) -> None:
        with self._changed:
            self.asked.append(due - time.monotonic())
            self._due.append(work)
            self._changed.notify()

    def let_time_pass(self) -> None:
        """Have done what is to be done next, as soon as there is something."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._due, SECONDS)
            work = self._due.pop()
        work()

    def wait_for_next(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._due, SECONDS)


@pytest.fixture
def timers() -> HeldTimers:
    return HeldTimers()


@pytest.fixture
def storage(tmp_path: Path) -> FailingStorage:
    return FailingStorage(DirectoryStorage(tmp_path / "blobs"))


@pytest.fixture
def uploads(tmp_path: Path, storage: FailingStorage) -> Iterator[StoredUploads]:
    database = Database.in_directory(tmp_path)
    yield StoredUploads(database, storage, ProcessLocks())
    database.close()


@pytest.fixture
def upkeep(uploads: StoredUploads, timers: HeldTimers) -> Iterator[Upkeep]:
    made = Upkeep(uploads, timers)
    yield made
    made.close(SECONDS)


def send_unused(uploads: StoredUploads, data: bytes) -> str:
    uploads.send(data)
    with uploads.database.writing() as connection:
        connection.execute(leases.delete())
    return sha1(data)


def test_who_asks_while_it_is_under_way_is_told_the_same(
    upkeep: Upkeep, uploads: StoredUploads, storage: FailingStorage
) -> None:
    send_unused(uploads, b"unused")
    go_on = threading.Event()
    storage.misbehave("delete", Trouble(hold=go_on))
    asked = [upkeep.collect_garbage() for _ in range(10)]
    go_on.set()
    assert [each.result(SECONDS).blobs for each in asked] == [1] * 10
    assert upkeep.collect_garbage().result(SECONDS).blobs == 0
    assert [call for call in storage.calls if call[0] == "delete"] == [("delete", sha1(b"unused"))]


def test_different_things_are_done_one_after_the_other(
    upkeep: Upkeep, uploads: StoredUploads, storage: FailingStorage
) -> None:
    uploads.send(b"a blob")
    go_on = threading.Event()
    storage.misbehave("open", Trouble(hold=go_on), times=1)
    look, repair = upkeep.check(repair=False), upkeep.check(repair=True)
    collected = upkeep.collect_garbage()
    assert upkeep.check(repair=True) is repair and look is not repair
    assert not repair.done() and not collected.done()
    go_on.set()
    for each in (look, repair, collected):
        each.result(SECONDS)
    assert storage.most_at_once == 1


def test_how_far_a_check_is_can_be_told(
    upkeep: Upkeep, uploads: StoredUploads, storage: FailingStorage
) -> None:
    uploads.send(b"12345")
    assert upkeep.progress is None
    go_on, opened = threading.Event(), threading.Event()
    storage.misbehave("open", Trouble(hold=go_on))
    open_blob = storage.open

    def tell(*about: str) -> object:
        opened.set()
        return open_blob(*about)

    storage.open = tell  # type: ignore[method-assign, assignment]
    checked = upkeep.check(repair=False)
    assert opened.wait(SECONDS)
    progress = upkeep.progress
    assert progress is not None
    assert (progress.blobs_done, progress.blobs_total, progress.bytes_total) == (0, 1, 5)
    go_on.set()
    assert checked.result(SECONDS).bytes == 5
    assert upkeep.progress is None


def test_garbage_is_collected_some_minutes_after_the_start_and_then_about_once_an_hour(
    upkeep: Upkeep, uploads: StoredUploads, timers: HeldTimers
) -> None:
    upkeep.start()
    for number in range(3):
        checksum = send_unused(uploads, b"%d" % number)
        timers.let_time_pass()
        timers.wait_for_next()
        assert not uploads.is_stored(checksum)
    minutes = [seconds / 60 for seconds in timers.asked]
    assert 3 < minutes[0] < 10
    assert all(40 < each < 80 for each in minutes[1:])
    assert len(set(minutes[1:])) == 3


def test_a_failure_is_not_the_end_of_it(
    upkeep: Upkeep, uploads: StoredUploads, storage: FailingStorage, timers: HeldTimers
) -> None:
    upkeep.start()
    checksum = send_unused(uploads, b"unused")
    for error in (StorageError("the storage is away"), ZeroDivisionError()):
        storage.misbehave("list", Trouble(error=error), times=1)
        timers.let_time_pass()
        timers.wait_for_next()
    timers.let_time_pass()
    timers.wait_for_next()
    assert not uploads.is_stored(checksum)


def test_who_waits_when_the_server_ends_is_told_so(
    upkeep: Upkeep, uploads: StoredUploads, storage: FailingStorage, timers: HeldTimers
) -> None:
    for number in range(3):
        send_unused(uploads, b"%d" % number)
    go_on, ended = threading.Event(), threading.Event()
    storage.misbehave("delete", Trouble(hold=go_on))
    upkeep.start()
    collected: Future[object] = upkeep.collect_garbage()  # type: ignore[assignment]
    collected.add_done_callback(lambda _: ended.set())
    upkeep.stop()
    go_on.set()
    assert ended.wait(SECONDS)
    assert isinstance(collected.exception(), Busy)
    assert len(timers.asked) == 1
    upkeep.close(SECONDS)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upkeep-")]
