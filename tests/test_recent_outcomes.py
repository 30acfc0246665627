"""What many ask for at once is done once, and remembered for a moment."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from artifacts.errors import ArchiveError, Busy, DevserverError
from artifacts.recent_outcomes import RecentOutcomes

SECONDS = 3.0


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("artifacts.recent_outcomes.time", clock)
    return clock


@pytest.fixture
def outcomes(clock: Clock) -> RecentOutcomes[str, int]:
    return RecentOutcomes(SECONDS, 100, lambda result: result)


def done(result: int | Exception) -> Future[int]:
    future: Future[int] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def test_it_is_done_once_for_all_who_ask_meanwhile_and_shortly_after(
    outcomes: RecentOutcomes[str, int], clock: Clock
) -> None:
    begun: list[Future[int]] = []

    def begin() -> Future[int]:
        begun.append(Future())
        return begun[-1]

    with ThreadPoolExecutor(20) as pool:
        asked = list(pool.map(lambda _: outcomes.get("a", begin), range(20)))
    assert len(begun) == 1 and not any(future.done() for future in asked)
    begun[0].set_result(7)
    clock.now += SECONDS - 0.1
    assert {future.result() for future in (*asked, outcomes.get("a", begin))} == {7}
    clock.now += 0.1
    assert not outcomes.get("a", begin).done()
    assert len(begun) == 2


def test_a_failure_is_remembered_as_long(outcomes: RecentOutcomes[str, int], clock: Clock) -> None:
    outcomes.get("a", lambda: done(ArchiveError("down")))
    assert isinstance(outcomes.get("a", lambda: done(1)).exception(), ArchiveError)
    assert isinstance(outcomes.failure_of("a"), ArchiveError)
    assert outcomes.failure_of("b") is None
    clock.now += SECONDS
    assert outcomes.failure_of("a") is None
    assert outcomes.get("a", lambda: done(1)).result() == 1
    assert outcomes.failure_of("a") is None


def test_that_the_server_was_busy_is_not_remembered(outcomes: RecentOutcomes[str, int]) -> None:
    outcomes.get("a", lambda: done(Busy("ending")))
    assert outcomes.get("a", lambda: done(1)).result() == 1


def test_what_cannot_be_begun_is_told_to_everyone(outcomes: RecentOutcomes[str, int]) -> None:
    begins, may_fail = threading.Event(), threading.Event()

    def begin() -> Future[int]:
        begins.set()
        assert may_fail.wait(10)
        raise Busy("no thread")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(outcomes.get, "a", begin)
        assert begins.wait(10)
        second = outcomes.get("a", begin)
        may_fail.set()
        assert isinstance(first.exception(), Busy)
        assert isinstance(second.exception(10), Busy)
    assert outcomes.get("a", lambda: done(1)).result() == 1


def test_the_latest_are_remembered_as_long_as_they_are_light_enough(
    outcomes: RecentOutcomes[str, int],
) -> None:
    begun: list[str] = []

    def get(key: str, weight: int) -> int:
        return outcomes.get(key, lambda: begun.append(key) or done(weight)).result()

    get("a", 50), get("b", 40), get("c", 30)
    get("c", 30), get("b", 40), get("a", 50)
    assert begun == ["a", "b", "c", "a"]
    get("too heavy", 101), get("too heavy", 101), get("a", 50)
    assert begun[4:] == ["too heavy", "too heavy"]


def test_there_is_an_end_to_what_is_under_way() -> None:
    outcomes: RecentOutcomes[int, int] = RecentOutcomes(SECONDS, 100)
    for key in range(1000):
        outcomes.get(key, Future)
    with pytest.raises(DevserverError, match="too much") as refused:
        outcomes.get(1000, Future)
    assert refused.value.status == 503
    assert not outcomes.get(999, Future).done()
