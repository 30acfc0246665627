"""Room on the disk is promised once, and given back."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.errors import InsufficientStorage
from artifacts.space import Space


class SmallDisk(Space):
    """A disk with as many free bytes as the test says."""

    def __init__(self, free: int) -> None:
        super().__init__(Path())
        self.free = free

    def free_bytes(self) -> int:
        return self.free


def nothing_yet() -> int:
    return 0


def test_free_space_is_that_of_the_disk_which_the_directory_is_on(tmp_path: Path) -> None:
    free = Space(tmp_path).free_bytes()
    usage = shutil.disk_usage(tmp_path)
    assert 0 < free <= usage.total
    Space(tmp_path).reserve(1, "a build", nothing_yet).release()
    with pytest.raises(InsufficientStorage):
        Space(tmp_path).reserve(usage.total + 1, "a build", nothing_yet)


def test_what_fits_exactly_is_promised_and_a_byte_more_is_not() -> None:
    SmallDisk(100).reserve(100, "a build", nothing_yet)
    with pytest.raises(InsufficientStorage):
        SmallDisk(100).reserve(101, "a build", nothing_yet)


def test_two_plans_do_not_count_on_the_same_space() -> None:
    disk = SmallDisk(100)
    first = disk.reserve(60, "one build", nothing_yet)
    with pytest.raises(InsufficientStorage):
        disk.reserve(41, "another", nothing_yet)
    disk.reserve(40, "a third", nothing_yet)
    first.release()
    disk.reserve(60, "another", nothing_yet)


def test_what_is_written_already_is_not_counted_twice() -> None:
    disk = SmallDisk(100)
    written = 0
    reservation = disk.reserve(60, "one build", lambda: written)
    written, disk.free = 50, 50
    assert reservation.outstanding_bytes == 10
    disk.reserve(40, "another", nothing_yet)


def test_who_writes_more_than_was_planned_owes_nothing() -> None:
    disk = SmallDisk(100)
    written = 0
    reservation = disk.reserve(10, "one build", lambda: written)
    written, disk.free = 30, 70
    assert reservation.outstanding_bytes == 0
    disk.reserve(70, "another", nothing_yet)


def test_what_was_refused_is_not_held_against_others() -> None:
    disk = SmallDisk(100)
    with pytest.raises(InsufficientStorage):
        disk.reserve(101, "one build", nothing_yet)
    disk.reserve(100, "another", nothing_yet)


def test_releasing_twice_gives_back_once() -> None:
    disk = SmallDisk(100)
    first = disk.reserve(50, "one build", nothing_yet)
    disk.reserve(50, "another", nothing_yet)
    first.release()
    first.release()
    disk.reserve(50, "a third", nothing_yet)
    with pytest.raises(InsufficientStorage):
        disk.reserve(1, "a fourth", nothing_yet)


def test_a_refusal_says_what_is_needed_and_what_there_is() -> None:
    disk = SmallDisk(5_000_000_000)
    disk.reserve(2_000_000_000, "one build", nothing_yet)
    with pytest.raises(InsufficientStorage) as refusal:
        disk.reserve(4_000_000_000, "target/build", nothing_yet)
    assert refusal.value.status == 507
    assert refusal.value.message == (
        "not enough disk for target/build: it needs 4,000.0 MB, free are 5,000.0 MB, "
        "of which 2,000.0 MB are promised to others"
    )


@given(wanted=st.lists(st.integers(0, 60)), free=st.integers(0, 200))
def test_never_more_is_promised_than_there_is(wanted: list[int], free: int) -> None:
    disk, promised = SmallDisk(free), 0
    for needed in wanted:
        try:
            disk.reserve(needed, "a build", nothing_yet)
        except InsufficientStorage:
            assert promised + needed > free
        else:
            promised += needed
    assert promised <= free


def test_plans_made_at_the_same_time_do_not_count_on_the_same_space() -> None:
    disk = SmallDisk(100)
    together = threading.Barrier(8)

    def reserve() -> bool:
        together.wait(30)
        try:
            disk.reserve(30, "a build", nothing_yet)
        except InsufficientStorage:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(reserve) for _ in range(8)]
        assert sum(future.result(30) for future in futures) == 3
