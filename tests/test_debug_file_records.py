"""Debug files on record: whose they are, and that many of them cost those who ask nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from stored_uploads import sha1

from artifacts.blobs.files import Files
from artifacts.database.database import Database
from artifacts.database.tables import debug_files, debug_objects, files
from artifacts.symbols.debug_files import DebugFiles
from artifacts.symbols.symcache_records import SymcacheRecords

DEBUG_ID = "8fd7dd32-7311-a6f8-bad5-{:012x}"


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    with closing(Database.in_directory(tmp_path)) as database:
        yield database


def record(database: Database, project: str, count: int, organization: str = "lab") -> DebugFiles:
    """Record debug files of one object each, the files numbered from 0."""
    named = [f"{organization} {project} {number}" for number in range(count)]
    whose = {"organization": organization}
    with database.writing() as connection:
        for number, name in enumerate(named):
            file = {**whose, "checksum": sha1(name.encode()), "size": 1, "crc32c": 0}
            file_id = connection.execute(files.insert(), {**file, "created_at": 0.0})
            (added,) = connection.execute(
                debug_files.insert(),
                {
                    **whose,
                    "project": project,
                    "file_id": file_id.inserted_primary_key[0],
                    "name": name,
                    "created_at": float(number),
                },
            ).inserted_primary_key
            found = {"debug_id": DEBUG_ID.format(number), "format": "elf", "kind": "exe"}
            found |= {"architecture": "x86_64", "features": "symtab"}
            connection.execute(
                debug_objects.insert(), {"debug_file_id": added, "number": 0, **found}
            )
    return DebugFiles(database, Files(database), SymcacheRecords(database))


def steps_of(call: Callable[[], object]) -> int:
    """Return how many hundreds of steps of its own SQLite takes for a call."""
    steps = 0

    def count_step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def count(connection: object, cursor: object, *_: object) -> None:
        cursor.connection.set_progress_handler(count_step, 100)  # type: ignore[attr-defined]

    event.listen(Engine, "before_cursor_execute", count)
    try:
        call()
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    return steps


def test_a_file_is_found_as_fast_in_a_large_project(sqlite: Database) -> None:
    def find(project: str) -> None:
        checksum = sha1(f"lab {project} 5".encode())
        with sqlite.reading() as connection:
            assert list(recorded.find(connection, "lab", project, [checksum])) == [checksum]

    recorded = record(sqlite, "small", 10)
    record(sqlite, "large", 2000)
    assert steps_of(lambda: find("large")) <= steps_of(lambda: find("small")) + 5


@pytest.mark.parametrize("debug_id", [None, DEBUG_ID.format(5)])
def test_a_large_project_is_listed_as_fast_as_a_smaller_one(
    sqlite: Database, debug_id: str | None
) -> None:
    recorded = record(sqlite, "smaller", 600)
    record(sqlite, "large", 3000)

    def list_of(project: str) -> None:
        listed = recorded.list("lab", project, debug_id, None)
        assert len(listed) == (500 if debug_id is None else 1)

    assert steps_of(lambda: list_of("large")) <= steps_of(lambda: list_of("smaller")) * 1.2 + 5


def test_the_files_of_another_organization_are_not_found(database: Database) -> None:
    recorded = record(database, "devices", 2)
    record(database, "devices", 1, "others")
    checksum = sha1(b"lab devices 0")
    with database.reading() as connection:
        assert recorded.find(connection, "others", "devices", [checksum]) == {}
        assert recorded.find(connection, "lab", "games", [checksum]) == {}
        assert list(recorded.find(connection, "lab", "devices", [checksum])) == [checksum]
    assert Files(database).find("others", checksum) is None
    assert Files(database).find("lab", checksum) is not None
    listed = [dif["sha1"] for dif in recorded.list("others", "devices", None, None)]
    assert listed == [sha1(b"others devices 0")]


def test_organizations_have_the_same_file_each_for_itself(database: Database) -> None:
    names = {}
    for organization in ("lab", "others"):
        row = {"organization": organization, "checksum": "a" * 40, "size": 1, "crc32c": 0}
        with database.writing() as connection:
            added = connection.execute(files.insert(), {**row, "created_at": 0.0})
            names[organization] = added.inserted_primary_key[0]
    for organization, file_id in names.items():
        found = Files(database).find(organization, "a" * 40)
        assert found is not None and found.id == file_id
