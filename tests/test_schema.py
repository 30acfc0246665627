"""The schema: made and changed by migrations, at start, once; never taken for another one's."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from conftest import Serve
from running_server import REPOSITORY
from sqlalchemy import Engine, create_engine, inspect, text
from test_command_line import devserver

from artifacts.database import schema
from artifacts.database.database import Database, DatabaseUnavailable
from artifacts.database.engine import parse_database_url
from artifacts.database.tables import blobs, metadata, owners
from artifacts.errors import DevserverError

_OPENING = """\
import sys
from artifacts.database.database import Database

print("ready", flush=True)
sys.stdin.read(1)
Database(sys.argv[1]).close()
print("alembic" in sys.modules)
"""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Connections to the database that know nothing of devserver."""
    engine = create_engine(parse_database_url(database_url))
    yield engine
    engine.dispose()


def test_the_migrations_make_exactly_the_schema_of_the_program(
    database_url: str, engine: Engine
) -> None:
    Database(database_url).close()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    migrated = description(engine)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    assert migrated == description(engine)


def description(engine: Engine) -> dict[str, object]:
    """What a database says of its tables, the names of constraints included."""
    found = inspect(engine)
    return {
        name: (
            {
                column["name"]: (str(column["type"]), column["nullable"], column["default"])
                for column in found.get_columns(name)
            },
            found.get_pk_constraint(name),
            by_name(found.get_foreign_keys(name)),
            by_name(found.get_unique_constraints(name)),
            by_name(found.get_indexes(name)),
        )
        for name in found.get_table_names()
    }


def by_name(constraints: list[Any]) -> list[Any]:
    return sorted(constraints, key=lambda constraint: str(constraint["name"]))


def test_the_head_is_the_last_migration() -> None:
    config = Config()
    config.set_main_option(
        "script_location", str(REPOSITORY / "artifacts" / "database" / "migrations")
    )
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_a_database_that_is_up_to_date_is_opened_without_alembic(database_url: str) -> None:
    opened = [
        subprocess.run(
            [sys.executable, "-c", _OPENING, database_url],
            input="x",
            capture_output=True,
            text=True,
            timeout=60,
            cwd=REPOSITORY,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert opened == ["ready\nTrue\n", "ready\nFalse\n"]


def test_of_several_that_start_at_once_one_makes_the_tables(
    database_url: str, engine: Engine
) -> None:
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", _OPENING, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        for _ in range(4)
    ]
    for process in starting:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for process in starting:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in starting:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).all() == [
            (schema.HEAD,)
        ]
        assert set(metadata.tables) <= set(inspect(connection).get_table_names())


def test_a_database_of_a_newer_program_is_refused_and_left_alone(
    database_url: str, engine: Engine
) -> None:
    Database(database_url).close()
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DevserverError, match="newer devserver: its schema is 9999"):
        Database(database_url)
    with engine.connect() as connection:
        assert (
            connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
        )


def test_a_server_does_not_start_on_a_database_of_a_newer_one(serve: Serve, tmp_path: Path) -> None:
    serve().stop()
    file = tmp_path / "server" / "data" / "devserver.db"
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    ended = devserver("--data-dir", str(file.parent), "--port", "0")
    assert ended.returncode == 1
    assert "newer devserver" in ended.stderr and "Traceback" not in ended.stderr


def test_a_migration_that_fails_leaves_nothing_and_says_why(
    database_url: str, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE tokens (somebody_else INTEGER)"))
    with pytest.raises(DatabaseUnavailable, match=r"tokens.* already exists"):
        Database(database_url)
    assert inspect(engine).get_table_names() == ["tokens"]


@pytest.fixture
def newer_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Make this program one that has another migration, which begins with what is given."""

    def become(statements: str) -> None:
        migrations = tmp_path / "migrations"
        shutil.copytree(schema._MIGRATIONS, migrations)
        (migrations / "versions" / "next.py").write_text(
            _MIGRATION.format(head=schema.HEAD, statements=statements)
        )
        monkeypatch.setattr(schema, "_MIGRATIONS", migrations)
        monkeypatch.setattr(schema, "HEAD", "next")

    return become


_MIGRATION = """\
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{head}"


def upgrade() -> None:
    {statements}
    with op.batch_alter_table("blobs") as table:
        table.alter_column("size", nullable=True)
        table.add_column(sa.Column("note", sa.Text(), nullable=True))
"""


def test_a_database_of_an_older_program_is_brought_up_to_date_with_all_that_is_in_it(
    database_url: str,
    newer_program: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    record_a_blob(database_url)
    before = schema.HEAD
    newer_program("pass")
    with caplog.at_level(logging.INFO):
        newer = Database(database_url)
        Database(database_url).close()
    told = [record.message for record in caplog.records if "artifacts" in record.name]
    assert told == [f"brought the database from schema {before} to next"]
    with newer.reading() as connection:
        assert connection.execute(text("SELECT note FROM blobs")).all() == [(None,)]
        assert connection.execute(text("SELECT organization FROM owners")).all() == [("lab",)]
    newer.close()


def test_a_migration_that_fails_half_way_leaves_the_database_as_it_was(
    database_url: str, engine: Engine, newer_program: Callable[[str], None]
) -> None:
    record_a_blob(database_url)
    before, head = description(engine), schema.HEAD
    newer_program("op.drop_table('leases'); op.drop_table('nonsense')")
    with pytest.raises(DatabaseUnavailable, match="nonsense"):
        Database(database_url)
    assert description(engine) == before
    with engine.connect() as connection:
        assert connection.execute(text("SELECT organization FROM owners")).all() == [("lab",)]
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    assert version == head


def test_a_database_of_before_there_were_symcaches_keeps_what_is_in_it(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "HEAD", "0001")
        record_a_blob(database_url)
        assert "symcaches" not in inspect(engine).get_table_names()
    with contextlib.closing(Database(database_url)) as database, database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM symcaches")).scalar() == 0
        assert connection.execute(text("SELECT organization FROM owners")).all() == [("lab",)]


def record_a_blob(database_url: str) -> None:
    checksum = "a" * 40
    with contextlib.closing(Database(database_url)) as database, database.writing() as connection:
        blob = {"checksum": checksum, "size": 1, "stored_at": 1.0}
        connection.execute(blobs.insert(), blob)
        connection.execute(owners.insert(), {"checksum": checksum, "organization": "lab"})
