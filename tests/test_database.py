"""The database: transactions, constraints, many at once; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from artifacts.config import ConfigError
from artifacts.database.database import Database, DatabaseUnavailable
from artifacts.database.tables import blobs, builds, files, leases, owners, tokens

TIMEOUT_SECONDS = 30
THREADS = 32


def checksum(number: int) -> str:
    return f"{number:040x}"


def blob(number: int) -> dict[str, object]:
    return {"checksum": checksum(number), "size": 8 << 20, "stored_at": time.time()}


def count(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.execute(select(func.count()).select_from(blobs)).scalar_one())


def test_what_a_transaction_has_written_is_there_after_it(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(blobs.insert(), [blob(1), blob(2)])
    assert count(database) == 2


def test_nothing_of_a_transaction_that_fails_is_there(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.writing() as connection:
        connection.execute(blobs.insert(), blob(1))
        raise ZeroDivisionError
    assert count(database) == 0
    with pytest.raises(IntegrityError), database.writing() as connection:
        connection.execute(blobs.insert(), blob(1))
        connection.execute(blobs.insert(), blob(1))
    assert count(database) == 0


def test_what_is_written_survives_opening_the_database_again(database_url: str) -> None:
    first = Database(database_url)
    with first.writing() as connection:
        connection.execute(blobs.insert(), blob(1))
    first.close()
    second = Database(database_url)
    assert count(second) == 1
    second.close()


def test_what_has_to_be_unique_is(database: Database) -> None:
    now = time.time()
    token = {"name": "ci", "hash": "0" * 64, "organization": "lab", "scopes": "", "created_at": now}
    build = {"target": "x86", "build": "R1", "organization": "lab", "project": "builds"}
    file = {"organization": "lab", "checksum": checksum(1), "size": 1, "crc32c": 2**32 - 1}
    for table, row in (
        (tokens, token),
        (builds, {**build, "created_at": now}),
        (files, {**file, "created_at": now}),
        (blobs, blob(1)),
    ):
        with database.writing() as connection:
            connection.execute(table.insert(), row)
        with pytest.raises(IntegrityError), database.writing() as connection:
            connection.execute(table.insert(), row)


def test_nobody_owns_or_leases_a_blob_that_is_not_on_record(database: Database) -> None:
    for table, more in ((owners, {"organization": "lab"}), (leases, {"expires_at": 1.0})):
        with pytest.raises(IntegrityError), database.writing() as connection:
            connection.execute(table.insert(), {"checksum": checksum(1), **more})


def test_owners_and_leases_go_with_their_blob(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(blobs.insert(), blob(1))
        connection.execute(owners.insert(), {"checksum": checksum(1), "organization": "lab"})
        connection.execute(leases.insert(), {"checksum": checksum(1), "expires_at": 1.0})
    with database.writing() as connection:
        connection.execute(blobs.delete())
    with database.reading() as connection:
        assert connection.execute(select(owners)).all() == []
        assert connection.execute(select(leases)).all() == []


def test_what_is_on_record_already_can_be_left_or_changed(database: Database) -> None:
    insert = database.insert(blobs)
    with database.writing() as connection:
        connection.execute(blobs.insert(), blob(1))
        connection.execute(insert.on_conflict_do_nothing(), {**blob(1), "size": 2})
        assert connection.execute(select(blobs.c.size)).scalar_one() == 8 << 20
        changed = insert.on_conflict_do_update(
            index_elements=["checksum"], set_={"size": insert.excluded.size}
        )
        connection.execute(changed, {**blob(1), "size": 2})
    with database.reading() as connection:
        assert connection.execute(select(blobs.c.size)).scalar_one() == 2


def test_many_threads_write_at_once_and_nothing_is_lost(database: Database) -> None:
    together = threading.Barrier(THREADS)

    def write(thread: int) -> None:
        together.wait(TIMEOUT_SECONDS)
        for number in range(10):
            with database.writing() as connection:
                connection.execute(blobs.insert(), blob(thread * 10 + number))

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(write, thread) for thread in range(THREADS)]:
            future.result(TIMEOUT_SECONDS)
    assert count(database) == THREADS * 10


def test_of_many_threads_that_record_the_same_one_does(database: Database) -> None:
    together = threading.Barrier(THREADS)

    def record(_: int) -> bool:
        together.wait(TIMEOUT_SECONDS)
        with database.writing() as connection:
            inserted = connection.execute(
                database.insert(blobs).on_conflict_do_nothing().returning(blobs.c.checksum), blob(1)
            )
            return inserted.first() is not None

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(record, range(THREADS), timeout=TIMEOUT_SECONDS)) == 1
    assert count(database) == 1


def test_who_is_going_to_write_keeps_other_processes_from_writing_from_its_beginning(
    tmp_path: Path,
) -> None:
    # Each has its own turns to write, as two processes have.
    url = f"sqlite:///{tmp_path / 'devserver.db'}"
    with closing(Database(url)) as ours, closing(Database(url, wait_seconds=0.1)) as theirs:
        with ours.writing() as connection:
            # What it goes by is not to change before it has written.
            assert connection.execute(select(blobs)).all() == []
            with pytest.raises(DatabaseUnavailable), theirs.writing() as other:
                other.execute(blobs.insert(), blob(1))
            connection.execute(blobs.insert(), blob(1))
        assert count(theirs) == 1


def test_who_reads_does_not_wait_for_who_writes_and_sees_nothing_half_done(
    database: Database,
) -> None:
    with database.writing() as connection:
        connection.execute(blobs.insert(), blob(1))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(count, database).result(TIMEOUT_SECONDS) == 0
    assert count(database) == 1


def test_who_writes_does_not_wait_for_who_reads(database: Database) -> None:
    def write() -> None:
        with database.writing() as connection:
            connection.execute(blobs.insert(), blob(1))

    with database.reading() as connection, ThreadPoolExecutor(1) as pool:
        assert connection.execute(select(blobs)).all() == []
        pool.submit(write).result(TIMEOUT_SECONDS)


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense", "", "mysql://localhost/lab", "postgresql"),
        *("sqlite://", "sqlite:///:memory:", "sqlite:///file:lab?mode=memory&uri=true"),
    ],
)
def test_what_is_no_database_url_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match="database"):
        Database(url)
