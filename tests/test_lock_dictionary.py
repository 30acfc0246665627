"""A lock dictionary: one holder a key, any number of keys, and nothing left behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from artifacts.lock_dictionary import LockDictionary

TIMEOUT_SECONDS = 30


def test_a_key_has_one_holder_at_a_time() -> None:
    locks: LockDictionary[str] = LockDictionary()
    together = threading.Barrier(8)
    holders = 0
    seen: list[int] = []

    def hold() -> None:
        nonlocal holders
        together.wait(TIMEOUT_SECONDS)
        for _ in range(200):
            with locks.holding("build"):
                holders += 1
                seen.append(holders)
                holders -= 1

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(hold) for _ in range(8)]:
            future.result(TIMEOUT_SECONDS)
    assert set(seen) == {1}
    assert len(seen) == 1600
    assert len(locks) == 0


def test_keys_do_not_wait_for_one_another() -> None:
    locks: LockDictionary[str] = LockDictionary()
    together = threading.Barrier(4)

    def hold(key: str) -> int:
        with locks.holding(key):
            together.wait(TIMEOUT_SECONDS)
            return len(locks)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(hold, key) for key in "abcd"]:
            assert future.result(TIMEOUT_SECONDS) <= 4
    assert len(locks) == 0


def test_whoever_waits_gets_the_lock_when_it_is_let_go() -> None:
    locks: LockDictionary[str] = LockDictionary()
    order: list[str] = []
    is_about_to_wait = threading.Event()

    def wait() -> None:
        is_about_to_wait.set()
        with locks.holding("build"):
            order.append("waiter")

    waiter = threading.Thread(target=wait, name="waiter")
    with locks.holding("build"):
        waiter.start()
        assert is_about_to_wait.wait(TIMEOUT_SECONDS)
        order.append("holder")
    waiter.join(TIMEOUT_SECONDS)
    assert order == ["holder", "waiter"]
    assert len(locks) == 0


def test_a_holder_may_take_the_lock_again() -> None:
    locks: LockDictionary[str] = LockDictionary()
    with locks.holding("build"), locks.holding("build"):
        assert len(locks) == 1
    assert len(locks) == 0


def test_equal_keys_are_one_key() -> None:
    locks: LockDictionary[tuple[str, str]] = LockDictionary()
    with locks.holding(("target", "build")), locks.holding(("target", "".join("build"))):
        assert len(locks) == 1


def test_an_error_lets_the_lock_go() -> None:
    locks: LockDictionary[str] = LockDictionary()
    with pytest.raises(ZeroDivisionError), locks.holding("build"):
        raise ZeroDivisionError
    assert len(locks) == 0
    with ThreadPoolExecutor(1) as pool, locks.holding("other"):

        def hold() -> bool:
            with locks.holding("build"):
                return True

        assert pool.submit(hold).result(TIMEOUT_SECONDS)


def test_whoever_does_not_get_the_lock_in_time_gives_up_and_leaves_nothing() -> None:
    locks: LockDictionary[str] = LockDictionary()

    def hold() -> None:
        with locks.holding("build", timeout_seconds=0.01):
            pass

    with ThreadPoolExecutor(1) as pool:
        with locks.holding("build"), pytest.raises(TimeoutError, match="build"):
            pool.submit(hold).result(TIMEOUT_SECONDS)
        assert len(locks) == 0
        pool.submit(hold).result(TIMEOUT_SECONDS)


def test_the_dictionary_does_not_grow_with_the_keys_ever_used() -> None:
    locks: LockDictionary[int] = LockDictionary()
    for key in range(1000):
        with locks.holding(key):
            assert len(locks) == 1
    assert len(locks) == 0
