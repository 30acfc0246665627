"""Locks by name: one holder among threads and processes, ended with it, waited for in bounds."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from polling import wait_until
from real_postgres import Postgres
from running_server import REPOSITORY
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection

from artifacts.blobs.uploads import open_locks
from artifacts.database.database import Database, DatabaseUnavailable
from artifacts.database.engine import parse_database_url
from artifacts.database.file_locks import FileLocks
from artifacts.database.locks import Locks
from artifacts.database.postgresql_locks import PostgresqlLocks
from artifacts.errors import Busy

TIMEOUT_SECONDS = 30

_HOLDER = """\
import sys
from artifacts.blobs.uploads import open_locks
from artifacts.database.database import Database

locks = open_locks(Database(sys.argv[1]))
with locks.holding(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""

_COUNTER = """\
import sys
from pathlib import Path
from artifacts.blobs.uploads import open_locks
from artifacts.database.database import Database

locks = open_locks(Database(sys.argv[1]))
counter = Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.read(1)
for _ in range(50):
    with locks.holding("counter"):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


class Holder:
    """Another process that takes a lock, and holds it until it is told to let go, or killed."""

    def __init__(self, database_url: str, name: str) -> None:
        self.process = _run(_HOLDER, database_url, name)
        self.is_holding = threading.Event()
        self._reader = threading.Thread(target=self._read, name="holder")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() == b"held\n":
            self.is_holding.set()

    def let_go(self) -> None:
        self.process.communicate(timeout=TIMEOUT_SECONDS)
        self._reader.join(TIMEOUT_SECONDS)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_SECONDS)
        self._reader.join(TIMEOUT_SECONDS)


def _run(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.fixture
def locks(database: Database) -> Iterator[Locks]:
    opened = open_locks(database)
    yield opened
    opened.close()


@pytest.fixture
def hold(database: Database) -> Iterator[Callable[[str], Holder]]:
    """Have another process take a lock; it is ended after the test."""
    holders: list[Holder] = []

    def start(name: str) -> Holder:
        holders.append(Holder(database.url.render_as_string(hide_password=False), name))
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()


def impatient(database: Database) -> Locks:
    """Locks for which nobody waits for long."""
    if database.is_shared:
        return PostgresqlLocks(database.url, wait_seconds=0.1)
    return FileLocks(Path(f"{database.url.database}.locks"), wait_seconds=0.1)


def test_a_lock_has_one_holder_among_threads(locks: Locks) -> None:
    together = threading.Barrier(8)
    holders = 0
    seen: list[int] = []

    def hold() -> None:
        nonlocal holders
        together.wait(TIMEOUT_SECONDS)
        for _ in range(20):
            with locks.holding("blob"):
                holders += 1
                seen.append(holders)
                holders -= 1

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(hold) for _ in range(8)]:
            future.result(TIMEOUT_SECONDS)
    assert seen == [1] * 160


def test_a_lock_has_one_holder_among_processes(database_url: str, tmp_path: Path) -> None:
    Database(database_url).close()
    counter = tmp_path / "counter"
    counter.write_text("0")
    counting = [_run(_COUNTER, database_url, str(counter)) for _ in range(3)]
    for process in counting:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for process in counting:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in counting:
        process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == 0
    assert counter.read_text() == "150"


def test_who_waits_gets_the_lock_when_another_process_lets_go(
    locks: Locks, hold: Callable[[str], Holder]
) -> None:
    holder = hold("blob")
    assert holder.is_holding.wait(TIMEOUT_SECONDS)
    is_held_here = threading.Event()

    def wait() -> None:
        with locks.holding("blob"):
            is_held_here.set()

    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(wait)
        assert not is_held_here.is_set()
        holder.let_go()
        waiter.result(TIMEOUT_SECONDS)


def test_another_process_waits_until_the_lock_is_let_go_here(
    locks: Locks, hold: Callable[[str], Holder]
) -> None:
    with locks.holding("blob"):
        holder = hold("blob")
        other = hold("another blob")
        assert other.is_holding.wait(TIMEOUT_SECONDS)
        assert not holder.is_holding.is_set()
    assert holder.is_holding.wait(TIMEOUT_SECONDS)


def test_a_lock_ends_with_the_process_that_holds_it(
    locks: Locks, hold: Callable[[str], Holder]
) -> None:
    holder = hold("blob")
    assert holder.is_holding.wait(TIMEOUT_SECONDS)
    holder.kill()
    with locks.holding("blob"):
        pass


def test_who_waits_for_too_long_is_told_so_and_other_names_are_free(
    database: Database, hold: Callable[[str], Holder]
) -> None:
    holder = hold("blob")
    assert holder.is_holding.wait(TIMEOUT_SECONDS)
    locks = impatient(database)
    with pytest.raises(Busy, match="blob is being changed by somebody else"), locks.holding("blob"):
        pass
    with locks.holding("another blob"):
        pass
    holder.let_go()
    with locks.holding("blob"):
        pass
    locks.close()


def test_a_thread_too_is_waited_for_in_bounded_time(database: Database) -> None:
    locks = impatient(database)

    def hold() -> None:
        with locks.holding("blob"):
            pass

    with (
        ThreadPoolExecutor(1) as pool,
        locks.holding("blob"),
        pytest.raises(Busy, match="blob is being changed by somebody else"),
    ):
        pool.submit(hold).result(TIMEOUT_SECONDS)
    locks.close()


def test_a_lock_that_is_taken_again_within_is_a_mistake_and_stays_held(
    locks: Locks, hold: Callable[[str], Holder]
) -> None:
    with locks.holding("blob"):
        with pytest.raises(RuntimeError, match="holds the lock"), locks.holding("blob"):
            pass
        holder = hold("blob")
        other = hold("another blob")
        assert other.is_holding.wait(TIMEOUT_SECONDS)
        assert not holder.is_holding.is_set()
    assert holder.is_holding.wait(TIMEOUT_SECONDS)


def test_an_error_lets_the_lock_go(locks: Locks, hold: Callable[[str], Holder]) -> None:
    with pytest.raises(ZeroDivisionError), locks.holding("blob"):
        raise ZeroDivisionError
    assert hold("blob").is_holding.wait(TIMEOUT_SECONDS)


def test_two_processes_that_want_each_others_locks_are_told_in_time(
    database: Database, hold: Callable[[str], Holder]
) -> None:
    locks = impatient(database)
    assert hold("theirs").is_holding.wait(TIMEOUT_SECONDS)
    with locks.holding("ours"):
        hold("ours")
        with pytest.raises(Busy), locks.holding("theirs"):
            pass
    locks.close()


def test_who_holds_a_lock_whose_connection_breaks_is_told(
    postgres: Postgres, postgres_url: str
) -> None:
    locks = PostgresqlLocks(parse_database_url(postgres_url))
    with pytest.raises(DatabaseUnavailable), locks.holding("blob"):
        postgres.cut_off_everybody(postgres_url)
    with locks.holding("blob"):
        pass
    locks.close()


def test_a_lock_is_taken_though_its_connection_broke_while_nobody_held_it(
    postgres: Postgres, postgres_url: str
) -> None:
    locks = PostgresqlLocks(parse_database_url(postgres_url))
    with locks.holding("blob"):
        pass
    postgres.cut_off_everybody(postgres_url)
    with locks.holding("blob"):
        pass
    locks.close()


def test_who_holds_a_lock_that_is_gone_while_its_connection_is_not_is_told(
    postgres_url: str,
) -> None:
    locks = PostgresqlLocks(parse_database_url(postgres_url))
    connections: list[DBAPIConnection] = []
    event.listen(locks._engine, "checkout", lambda used, *_: connections.append(used))
    with pytest.raises(DatabaseUnavailable, match="lock of blob was lost"), locks.holding("blob"):
        # As it is with what pools connections in front of the database, and changes them.
        connections[0].cursor().execute("SELECT pg_advisory_unlock_all()")
    with locks.holding("blob"):
        pass
    locks.close()


def test_a_lock_that_could_not_be_let_go_ends_with_its_connection(
    postgres_url: str,
) -> None:
    url = parse_database_url(postgres_url)
    locks = PostgresqlLocks(url)

    def fail(_: object, __: object, statement: str, *___: object) -> None:
        if "pg_advisory_unlock" in statement:
            raise InterruptedError

    event.listen(locks._engine, "before_cursor_execute", fail)
    with pytest.raises(InterruptedError), locks.holding("blob"):
        pass
    others = PostgresqlLocks(url, wait_seconds=0.1)
    with others.holding("blob"):
        pass
    others.close()
    locks.close()


def test_more_want_locks_than_there_are_connections_and_all_get_them(
    postgres_url: str,
) -> None:
    locks = PostgresqlLocks(parse_database_url(postgres_url))

    def hold(number: int) -> int:
        with locks.holding(f"blob {number}"):
            return number

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(hold, range(200), timeout=TIMEOUT_SECONDS)) == sum(range(200))
    locks.close()


def test_waiting_ends_when_the_locks_are_closed(tmp_path: Path) -> None:
    database = Database.in_directory(tmp_path)
    holder = Holder(database.url.render_as_string(), "blob")
    assert holder.is_holding.wait(TIMEOUT_SECONDS)
    locks = FileLocks(Path(f"{database.url.database}.locks"))

    def hold() -> None:
        with locks.holding("blob"):
            pass

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hold)
        wait_until(lambda: len(locks._threads) == 1)
        locks.close()
        with pytest.raises(Busy, match="shutting down"):
            waiting.result(TIMEOUT_SECONDS)
    holder.kill()
    database.close()
