"""Timers: what is due is done, in its order and not before; what is not is dropped at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from artifacts.errors import Busy
from artifacts.timers import Timers

SECONDS = 30


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers("test", 4, 1)
    yield made
    made.close(SECONDS)


def test_work_is_done_when_it_is_due_and_not_before(timers: Timers) -> None:
    done = threading.Event()
    due = time.monotonic() + 0.1
    at: list[float] = []

    def work() -> None:
        at.append(time.monotonic())
        done.set()

    timers.at(due, "lane", work)
    assert done.wait(SECONDS)
    assert at[0] >= due


def test_what_is_due_sooner_is_done_first_whatever_was_asked_for_first(timers: Timers) -> None:
    done: list[int] = []
    ended = threading.Event()
    begun_at = time.monotonic() + 0.1
    timers.at(begun_at + 0.02, "lane", lambda: done.append(2))
    timers.at(begun_at + 0.04, "lane", ended.set)
    timers.at(begun_at, "lane", lambda: done.append(1))
    timers.at(0, "lane", lambda: done.append(0))
    assert ended.wait(SECONDS)
    assert done == [0, 1, 2]


def test_work_that_takes_long_does_not_stop_the_clock() -> None:
    timers, hold, done = Timers("test", 4, 2), threading.Event(), threading.Event()
    timers.at(0, "lane", lambda: hold.wait(SECONDS) and None)
    timers.at(0, "lane", done.set)
    assert done.wait(SECONDS)
    hold.set()
    assert timers.close(SECONDS)


def test_work_that_fails_is_not_the_end(timers: Timers) -> None:
    done = threading.Event()
    timers.at(0, "lane", lambda: [][0])
    timers.at(0, "lane", done.set)
    assert done.wait(SECONDS)


def test_at_the_end_what_is_not_due_is_dropped_and_nothing_more_is_taken() -> None:
    timers, called = Timers("test", 4, 2), threading.Event()
    timers.at(time.monotonic() + 3600, "lane", called.set)
    assert timers.close(SECONDS)
    assert not called.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-")]
    with pytest.raises(Busy):
        timers.at(0, "lane", called.set)


def test_work_that_hangs_holds_up_its_own_lane_and_no_other() -> None:
    timers, hold = Timers("test", 4, 2), threading.Event()
    begun: list[str] = []
    both_hang = threading.Barrier(3, timeout=SECONDS)
    others, last = threading.Event(), threading.Event()

    def hang() -> None:
        both_hang.wait()
        hold.wait(SECONDS)

    timers.at(0, "hangs", hang)
    timers.at(0, "hangs", hang)
    both_hang.wait()
    timers.at(0, "hangs", lambda: begun.append("held up"))
    timers.at(0, "hangs", last.set)
    timers.at(0, "other", others.set)
    assert others.wait(SECONDS)
    assert not begun
    hold.set()
    assert last.wait(SECONDS)
    assert timers.close(SECONDS)
    assert begun == ["held up"]
    assert not timers._lanes
