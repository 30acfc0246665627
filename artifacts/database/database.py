"""The database: transactions on SQLite or PostgreSQL, and its failures in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Insert, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from artifacts.config import ConfigError
from artifacts.database.tables import metadata
from artifacts.errors import Busy

# For which a transaction waits for others to end theirs, and for a connection.
_WAIT_SECONDS = 10
_CONNECTIONS = 32
_WRITES = "devserver_writes"


class DatabaseUnavailable(Busy):
    """The database is locked, away, or full: what was to be recorded is not."""

    code = "database_unavailable"


class Database:
    """The database of a server; threads may share it. Transactions do not nest.

    ``is_shared``: whether servers on other machines may use it, too.
    """

    def __init__(self, url: str) -> None:
        """Open ``url``, ``sqlite:////path`` or ``postgresql://user@host/name``; make its tables.

        Raises:
            ConfigError: it is not such a URL, or its driver is not installed.
            DatabaseUnavailable: it cannot be opened.
        """
        parsed = _parse(url)
        self.is_shared = parsed.get_backend_name() == "postgresql"
        self._dialect = postgresql if self.is_shared else sqlite
        self._engine = _make_engine(parsed)
        with self._in_words():
            metadata.create_all(self._engine)

    @classmethod
    def in_directory(cls, directory: Path) -> Database:
        """Open the default database, a file in the data directory."""
        return cls(f"sqlite:///{directory.absolute() / 'devserver.db'}")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads; it waits for nobody.

        Raises:
            DatabaseUnavailable: the database does not answer in time.
        """
        with self._in_words(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: all of it is durable at the end of the block, or nothing.

        Errors of constraints come as SQLAlchemy's IntegrityError.

        Raises:
            DatabaseUnavailable: others hold the database for too long, or it cannot be written.
        """
        with self._in_words(), self._engine.connect() as connection:
            writing = connection.execution_options(**{_WRITES: True})
            with writing.begin():
                yield writing

    def insert(self, table: Table) -> Any:
        """Return an INSERT that has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
        statement: Insert = self._dialect.insert(table)
        return statement

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise DatabaseUnavailable("the database is busy; ask again") from error
        except DBAPIError as error:
            if not _is_unavailable(error):
                raise
            raise DatabaseUnavailable(
                f"the database cannot be used ({_words_of(error)}); ask again"
            ) from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"not the URL of a database: {url!r}") from error
    backend = parsed.get_backend_name()
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database:
        return parsed.set(drivername="sqlite")
    raise ConfigError(
        f"the database must be sqlite:////PATH or postgresql://HOST/NAME, not {url!r}"
    )


def _make_engine(url: URL) -> Engine:
    is_sqlite = url.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = {"connect_timeout": _WAIT_SECONDS}
    if is_sqlite:
        # The transactions are ours to begin: see _set_up_sqlite.
        arguments = {"timeout": _WAIT_SECONDS, "isolation_level": None}
    try:
        engine = create_engine(
            url,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=_WAIT_SECONDS,
            pool_pre_ping=not is_sqlite,
            connect_args=arguments,
        )
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            "PostgreSQL needs the extra 'postgresql': pip install 'devserver[postgresql]'"
        ) from error
    if is_sqlite:
        _set_up_sqlite(engine)
    return engine


def _set_up_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        # Readers and a writer do not wait for each other; what is committed survives a crash.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first, and then writes, may find that it cannot: whoever is going
        # to write says so at the beginning, and waits for its turn.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _is_unavailable(error: DBAPIError) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OperationalError", "InterfaceError"}) or error.connection_invalidated


def _words_of(error: DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]
