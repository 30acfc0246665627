"""A fair lock: one holder at a time, in the order of asking, and no turn lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from polling import wait_until

from artifacts.fair_lock import FairLock

TIMEOUT_SECONDS = 30


def test_it_has_one_holder_at_a_time() -> None:
    lock = FairLock()
    together = threading.Barrier(8)
    holders = 0
    seen: list[int] = []

    def hold() -> None:
        nonlocal holders
        together.wait(TIMEOUT_SECONDS)
        for _ in range(200):
            assert lock.acquire(TIMEOUT_SECONDS)
            holders += 1
            seen.append(holders)
            holders -= 1
            lock.release()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(hold) for _ in range(8)]:
            future.result(TIMEOUT_SECONDS)
    assert seen == [1] * 1600


def test_who_asks_first_gets_it_first() -> None:
    lock = FairLock()
    order: list[int] = []

    def hold(number: int) -> None:
        assert lock.acquire(TIMEOUT_SECONDS)
        order.append(number)
        lock.release()

    assert lock.acquire(0)
    threads = []
    for number in range(10):
        threads.append(threading.Thread(target=hold, args=(number,), name=f"holder-{number}"))
        threads[-1].start()
        wait_until(lambda: waiting(lock) == len(threads))
    lock.release()
    for thread in threads:
        thread.join(TIMEOUT_SECONDS)
    assert order == list(range(10))


def test_who_gives_up_leaves_the_turn_to_the_next() -> None:
    lock = FairLock()
    assert lock.acquire(0)
    assert not lock.acquire(0.01)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(lock.acquire, TIMEOUT_SECONDS)
        wait_until(lambda: waiting(lock) == 1)
        lock.release()
        assert waiter.result(TIMEOUT_SECONDS)
    lock.release()
    assert lock.acquire(0)


def waiting(lock: FairLock) -> int:
    return len(lock._turns)
