"""What all tests share: servers that are ended, builds to stage, tools that may be missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_server import ArchiveServer
from real_postgres import Postgres, find_programs, running_postgres
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, TARGET, make_sample_build
from artifacts.database.database import Database

Serve = Callable[..., RunningServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers in the test's directory; all of them are ended after it."""
    started: list[RunningServer] = []

    def start(*options: str, name: str = "server", **more: Any) -> RunningServer:
        started.append(RunningServer(tmp_path / name, *options, **more))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def sample_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one realistic build, made once; not to be changed."""
    archive = tmp_path_factory.mktemp("archive")
    make_sample_build(archive, payload_bytes=5_000_000)
    return archive


@pytest.fixture
def archive_directory(tmp_path: Path, sample_archive: Path) -> Path:
    """A directory with a copy of the sample build, the test's own."""
    copy = tmp_path / "archive"
    shutil.copytree(sample_archive, copy)
    return copy


@pytest.fixture
def archive(archive_directory: Path) -> Iterator[ArchiveServer]:
    """An HTTP archive with the sample build, behaving until told otherwise."""
    with ArchiveServer(archive_directory) as server:
        yield server


@pytest.fixture
def build_url(archive: ArchiveServer) -> str:
    return f"{archive.url}/{TARGET}/{BUILD}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL, one for all tests of a process; to be left running."""
    programs = find_programs()
    if programs is None:
        missing_tool("PostgreSQL")
    assert programs is not None
    with running_postgres(programs) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database in PostgreSQL, the test's own."""
    url = postgres.make_database()
    yield url
    postgres.remove_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, for ``--database-url``; the test runs on SQLite and PostgreSQL.

    Where a test cannot tell the databases apart, it does without.
    """
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'devserver.db'}"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with its tables, and nothing in them; the test runs on SQLite and PostgreSQL."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An empty directory to unpack into, the only thing in the one around it."""
    tree = tmp_path / "outside" / "tree"
    tree.mkdir(parents=True)
    return tree


def missing_tool(what: str) -> None:
    """Skip a test for want of a tool: loudly here, and as a failure where tools are required."""
    message = f"{what} is not installed: this is NOT tested"
    if os.environ.get("DEVSERVER_REQUIRE_TOOLS"):
        pytest.fail(message)
    pytest.skip(message)
