"""Workers: as many threads as are needed and allowed, urgent work first, and an end to them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from artifacts.errors import Busy
from artifacts.workers import Workers

TIMEOUT_SECONDS = 30
NAME = "tested"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{NAME}-")]


@pytest.fixture
def make_workers() -> Iterator[Callable[..., Workers]]:
    made: list[Workers] = []

    def make(limit: int, **more: float) -> Workers:
        made.append(Workers(NAME, limit, **more))
        return made[-1]

    yield make
    for workers in made:
        assert workers.close(TIMEOUT_SECONDS)
    for thread in threads():
        thread.join(TIMEOUT_SECONDS)
    assert threads() == []


class Hold:
    """Work that goes on until it is let go."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.let_go = threading.Event()

    def __call__(self) -> None:
        self.has_begun.set()
        assert self.let_go.wait(TIMEOUT_SECONDS)


def held(workers: Workers) -> Hold:
    hold = Hold()
    workers.submit(hold)
    assert hold.has_begun.wait(TIMEOUT_SECONDS)
    return hold


MakeWorkers = Callable[..., Workers]


def test_threads_grow_to_the_limit_and_not_over_it(make_workers: MakeWorkers) -> None:
    workers = make_workers(3)
    together = threading.Barrier(3)
    guard = threading.Lock()
    running, most, left = 0, 0, threading.Semaphore(0)

    def work() -> None:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        together.wait(TIMEOUT_SECONDS)
        with guard:
            running -= 1
        left.release()

    for _ in range(12):
        workers.submit(work)
    for _ in range(12):
        assert left.acquire(timeout=TIMEOUT_SECONDS)
    assert most == 3


def test_no_thread_is_started_before_there_is_work(make_workers: MakeWorkers) -> None:
    workers = make_workers(3)
    assert threads() == []
    assert workers.busy == 0
    hold = held(workers)
    assert len(threads()) == workers.busy == 1
    hold.let_go.set()


def test_urgent_work_comes_first_and_each_kind_in_its_order(make_workers: MakeWorkers) -> None:
    workers = make_workers(1)
    order: list[str] = []
    is_done = threading.Event()
    hold = held(workers)
    for name in ("later 1", "later 2"):
        workers.submit(lambda name=name: order.append(name), urgent=False)  # type: ignore[misc]
    for name in ("urgent 1", "urgent 2"):
        workers.submit(lambda name=name: order.append(name))  # type: ignore[misc]
    workers.submit(is_done.set, urgent=False)
    hold.let_go.set()
    assert is_done.wait(TIMEOUT_SECONDS)
    assert order == ["urgent 1", "urgent 2", "later 1", "later 2"]


def test_idle_threads_end_and_others_are_started_when_there_is_work_again(
    make_workers: MakeWorkers,
) -> None:
    workers = make_workers(2, idle_seconds=0)
    names = set()
    for _ in range(3):
        hold = held(workers)
        (thread,) = threads()
        names.add(thread.name)
        hold.let_go.set()
        thread.join(TIMEOUT_SECONDS)
        assert not thread.is_alive()
        assert workers.busy == 0
    assert len(names) == 3


def test_an_idle_thread_is_used_again(make_workers: MakeWorkers) -> None:
    workers = make_workers(1, idle_seconds=3600)
    used = set(workers.map(lambda _: threading.current_thread().name, range(5)))
    assert len(used) == 1


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit("end"), KeyboardInterrupt()])
def test_work_that_raises_is_logged_and_the_thread_goes_on(
    make_workers: MakeWorkers, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    workers = make_workers(1, idle_seconds=3600)
    names = []

    def fail() -> None:
        names.append(threading.current_thread().name)
        raise error

    workers.submit(fail)
    names += workers.map(lambda _: threading.current_thread().name, [0])
    assert names[0] == names[1]
    (record,) = [record for record in caplog.records if record.name == "artifacts.workers"]
    assert record.levelno == logging.ERROR
    assert names[0] in record.getMessage()
    assert record.exc_info is not None and record.exc_info[1] is error


def test_closed_workers_take_nothing_more(make_workers: MakeWorkers) -> None:
    workers = make_workers(1)
    assert workers.close(TIMEOUT_SECONDS)
    with pytest.raises(Busy, match="shutting down"):
        workers.submit(lambda: None)
    with pytest.raises(Busy):
        workers.map(lambda item: item, [1])
    assert threads() == []


def test_closing_waits_for_what_runs_and_drops_what_is_queued(make_workers: MakeWorkers) -> None:
    workers = make_workers(1)
    done: list[str] = []
    hold = held(workers)
    workers.submit(lambda: done.append("urgent"))
    workers.submit(lambda: done.append("later"), urgent=False)
    assert not workers.close(timeout_seconds=0)
    hold.let_go.set()
    assert workers.close(TIMEOUT_SECONDS)
    assert done == []
    assert workers.busy == 0


def test_closing_does_not_wait_longer_than_it_is_told(make_workers: MakeWorkers) -> None:
    workers = make_workers(1)
    hold = held(workers)
    assert not workers.close(timeout_seconds=0.01)
    assert workers.busy == 1
    hold.let_go.set()


def test_closing_ends_idle_threads_at_once(make_workers: MakeWorkers) -> None:
    workers = make_workers(2, idle_seconds=3600)
    workers.map(lambda item: item, range(4))
    assert workers.close(TIMEOUT_SECONDS)


def test_map_returns_results_in_the_order_of_the_items(make_workers: MakeWorkers) -> None:
    workers = make_workers(4)
    together = threading.Barrier(4)

    def double(item: int) -> int:
        together.wait(TIMEOUT_SECONDS)  # several at a time, or never
        return 2 * item

    assert workers.map(double, range(8)) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert workers.map(double, []) == []


def test_map_raises_what_the_first_failing_call_raised(make_workers: MakeWorkers) -> None:
    workers = make_workers(2)

    def fail_from_two_on(item: int) -> int:
        if item >= 2:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 2"):
        workers.map(fail_from_two_on, range(5))
    assert workers.map(fail_from_two_on, [0, 1]) == [0, 1]


def test_closing_tells_whoever_waits_for_what_is_dropped(make_workers: MakeWorkers) -> None:
    workers = make_workers(1)
    hold = held(workers)
    are_queued = threading.Event()

    def items() -> Iterator[int]:
        yield from range(3)
        are_queued.set()

    with ThreadPoolExecutor(1) as pool:
        mapped = pool.submit(workers.map, lambda item: item, items())
        assert are_queued.wait(TIMEOUT_SECONDS)
        workers.close(timeout_seconds=0)
        error = mapped.exception(timeout=TIMEOUT_SECONDS)
        hold.let_go.set()
    assert isinstance(error, Busy)
