"""A database that is locked, away, full, read-only or damaged: told in words, and got over."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Serve, missing_tool
from polling import wait_until
from real_postgres import Postgres, find_programs, running_postgres
from sqlalchemy import func, select
from test_command_line import devserver

from artifacts.database.database import Database, DatabaseUnavailable
from artifacts.database.engine import CONNECTIONS, parse_database_url
from artifacts.database.tables import assemblies, blobs
from artifacts.errors import InsufficientStorage

TIMEOUT_SECONDS = 30
DISK_BYTES = 1 << 20
WAL_LIMIT_BYTES = 64 << 20


@pytest.fixture
def impatient(database_url: str) -> Iterator[Database]:
    """A database that waits for nobody for long; the test runs on SQLite and PostgreSQL."""
    database = Database(database_url, wait_seconds=0.1)
    yield database
    database.close()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that the test may stop."""
    programs = find_programs()
    if programs is None:
        missing_tool("PostgreSQL")
    assert programs is not None
    with running_postgres(programs) as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        missing_tool("the right to mount a small file system")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def write(database: Database, number: int, size: int = 10) -> None:
    row = {"offer": f"{number:064}", "state": "error", "detail": "x" * size, "expires_at": 1.0}
    with database.writing() as connection:
        connection.execute(assemblies.insert(), row)


def count(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.execute(select(func.count()).select_from(assemblies)).scalar_one())


@contextlib.contextmanager
def locked(database: Database, postgres: Postgres) -> Iterator[None]:
    """Have somebody else keep all from writing."""
    name = database.url.database
    assert name is not None
    if not database.is_shared:
        with contextlib.closing(sqlite3.connect(name, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
        return
    with postgres.connect(name) as other, other.transaction():
        other.execute("LOCK TABLE assemblies IN SHARE MODE")
        yield


def test_a_database_that_somebody_else_has_locked_can_be_read_and_written_afterwards(
    impatient: Database, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(impatient, postgres):
        with pytest.raises(DatabaseUnavailable, match=r"cannot be used; ask again$"):
            write(impatient, 1)
        assert "lock" in caplog.text
        assert count(impatient) == 0
    write(impatient, 1)
    assert count(impatient) == 1


def test_of_many_that_find_it_locked_each_is_told_in_time(
    impatient: Database, postgres: Postgres
) -> None:
    def fails(number: int) -> bool:
        try:
            write(impatient, number)
        except DatabaseUnavailable as error:
            return error.status == 503 and error.retry_after_seconds is not None
        return False

    with locked(impatient, postgres), ThreadPoolExecutor(40) as pool:
        assert all(pool.map(fails, range(40), timeout=TIMEOUT_SECONDS))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write(impatient, number), range(8), timeout=TIMEOUT_SECONDS))
    assert count(impatient) == 8


def test_when_all_connections_are_in_use_it_is_busy_and_then_it_is_not(
    impatient: Database,
) -> None:
    done = threading.Event()
    reading = threading.Barrier(CONNECTIONS + 1)

    def read() -> None:
        with impatient.reading() as connection:
            connection.execute(select(blobs)).all()
            reading.wait(TIMEOUT_SECONDS)
            done.wait(TIMEOUT_SECONDS)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        readers = [pool.submit(read) for _ in range(CONNECTIONS)]
        reading.wait(TIMEOUT_SECONDS)
        try:
            with pytest.raises(DatabaseUnavailable, match="busy: many use it"):
                count(impatient)
        finally:
            done.set()
        for reader in readers:
            reader.result(TIMEOUT_SECONDS)
    assert count(impatient) == 0


def test_transactions_that_fail_leave_no_connection_behind(impatient: Database) -> None:
    for _ in range(2 * CONNECTIONS):
        with pytest.raises(ZeroDivisionError), impatient.writing() as connection:
            connection.execute(select(blobs))
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), impatient.reading() as connection:
            raise ZeroDivisionError
    write(impatient, 1)
    assert count(impatient) == 1


def test_a_server_whose_postgresql_is_away_says_so_and_recovers(
    serve: Serve, own_postgres: Postgres
) -> None:
    url = own_postgres.make_database()
    server = serve("--database-url", url)
    made = devserver(
        *("token", "create", "--org", "lab", "--scope", "project:releases", "--database-url", url)
    )
    authorization = {"Authorization": f"Bearer {made.stdout.strip()}"}
    call = f"{server.url}/api/0/organizations/lab/chunk-upload/"
    assert server.session.get(call, headers=authorization, timeout=30).status_code == 200

    own_postgres.stop()
    answer = server.session.get(call, headers=authorization, timeout=30)
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    # Where it is, is nothing for those who may be strangers; the log has it.
    assert answer.json()["detail"] == "the database cannot be used; ask again"
    ready = server.get("/ready")
    assert ready.status_code == 503
    assert "the database cannot be used" in ready.text
    assert str(own_postgres.directory) not in ready.text
    wait_until(lambda: str(own_postgres.directory) in server.log)
    assert server.get("/health").status_code == 200

    own_postgres.start()
    assert server.session.get(call, headers=authorization, timeout=30).status_code == 200
    assert server.get("/ready").status_code == 200


def test_a_postgresql_that_is_cut_off_within_a_transaction_records_nothing_of_it(
    own_postgres: Postgres,
) -> None:
    database = Database(own_postgres.make_database())
    row = {"offer": "1", "state": "error", "detail": "", "expires_at": 1.0}
    with pytest.raises(DatabaseUnavailable), database.writing() as connection:
        connection.execute(assemblies.insert(), row)
        own_postgres.stop()
        connection.execute(assemblies.insert(), {**row, "offer": "2"})
    with pytest.raises(DatabaseUnavailable):
        count(database)
    own_postgres.start()
    assert count(database) == 0
    database.close()


def test_a_disk_that_is_full_is_told_and_nothing_half_recorded(small_disk: Path) -> None:
    database = Database.in_directory(small_disk)
    written = 0
    with pytest.raises(InsufficientStorage, match="full"):
        for number in range(100):
            write(database, number, size=30_000)
            written += 1
    assert count(database) == written
    database.close()
    # Opening it writes little, and reading nothing.
    database = Database.in_directory(small_disk)
    assert count(database) == written
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    write(database, 1000, size=30_000)
    assert count(database) == written + 1
    database.close()


def test_a_disk_that_becomes_read_only_is_told_and_got_over(small_disk: Path) -> None:
    database = Database.in_directory(small_disk)
    write(database, 1)
    database.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        DatabaseUnavailable, match=r"cannot open the database sqlite:.*devserver.db"
    ):
        Database.in_directory(small_disk)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    database = Database.in_directory(small_disk)
    write(database, 2)
    assert count(database) == 2
    database.close()


def test_a_server_does_not_start_on_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "devserver.db"
    file.write_bytes(b"these are my holiday pictures\n" * 1000)
    before = file.read_bytes()
    for arguments in (["--port", "0"], ["token", "list"]):
        ended = devserver(*arguments, "--data-dir", str(tmp_path))
        assert ended.returncode == 1
        assert f"cannot open the database sqlite:///{file}: file is not a database" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert file.read_bytes() == before


def test_a_database_that_is_damaged_meanwhile_is_told_in_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database.in_directory(tmp_path)
    for number in range(20):
        write(database, number, size=20_000)
    database.close()
    file = tmp_path / "devserver.db"
    database = Database.in_directory(tmp_path)
    with file.open("r+b") as damaging:
        damaging.seek(100_000)
        damaging.write(b"\xa5" * (file.stat().st_size - 100_000))
    with (
        pytest.raises(DatabaseUnavailable, match=r"is damaged; restore it"),
        database.reading() as connection,
    ):
        connection.execute(select(assemblies)).all()
    assert "malformed" in caplog.text
    database.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////nowhere/at/all.db", "sqlite:////nowhere/at/all.db: unable to open"),
        ("postgresql://devserver:geheim@127.0.0.1:1/lab", "devserver:***@127.0.0.1:1/lab: "),
        ("postgresql://devserver:geheim@/lab?host=/nowhere", "/nowhere"),
    ],
)
def test_a_server_does_not_start_without_its_database_and_tells_no_password(
    url: str, words: str, tmp_path: Path
) -> None:
    ended = devserver("--port", "0", "--data-dir", str(tmp_path), "--database-url", url)
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "geheim" not in ended.stderr and "Traceback" not in ended.stderr


def test_a_database_that_denies_its_tables_is_told(postgres: Postgres, postgres_url: str) -> None:
    url = parse_database_url(postgres_url)
    assert url.database is not None
    with postgres.connect(url.database) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.execute("CREATE ROLE guest LOGIN")
        with pytest.raises(DatabaseUnavailable, match="permission denied for schema public"):
            Database(url.set(username="guest"))
        connection.execute("DROP ROLE guest")


def test_the_write_ahead_log_is_cut_back_once_a_long_reader_is_done(tmp_path: Path) -> None:
    database = Database.in_directory(tmp_path)
    log = tmp_path / "devserver.db-wal"
    with database.reading() as connection:
        connection.execute(select(blobs)).all()
        for number in range(7):
            write(database, number, size=10 << 20)
        assert log.stat().st_size > WAL_LIMIT_BYTES
    for number in range(7, 10):
        write(database, number)
    assert log.stat().st_size <= WAL_LIMIT_BYTES
    database.close()
