"""The database: transactions on SQLite or PostgreSQL, and its failures in words."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from artifacts.database.engine import (
    WAIT_SECONDS,
    WRITES,
    is_sqlite,
    make_engine,
    parse_database_url,
)
from artifacts.database.schema import is_up_to_date, schema_version, upgrade_schema
from artifacts.errors import Busy, InsufficientStorage
from artifacts.fair_lock import FairLock

_log = logging.getLogger(__name__)


class DatabaseUnavailable(Busy):
    """The database is locked, away, full or damaged: what was to be recorded is not."""

    code = "database_unavailable"


class Database:
    """The database of a server; threads may share it. Transactions do not nest.

    Attributes:
        url: of the database, with its driver.
        is_shared: whether servers on other machines may use it, too.
    """

    def __init__(self, url: str | URL, wait_seconds: float = WAIT_SECONDS) -> None:
        """Open a database; an empty one gets its tables, an older one is brought up to date.

        Args:
            url: ``sqlite:////path`` or ``postgresql://user@host/name``.
            wait_seconds: how long to wait for a connection, for a turn, and for a lock of others.

        Raises:
            ConfigError: it is not such a URL, or its driver is not installed.
            DatabaseUnavailable: it cannot be opened.
            DevserverError: it is that of a newer devserver.
        """
        self.url = parse_database_url(url)
        self.is_shared = not is_sqlite(self.url)
        self._dialect = postgresql if self.is_shared else sqlite
        # SQLite has one writer at a time, and those who wait for it look again and again. Which of
        # them finds it free is chance: without this, some would wait for very long.
        self._turn_to_write = None if self.is_shared else FairLock()
        self._wait_seconds = wait_seconds
        self._counting = threading.Lock()  # guards the number
        self._commits = 0
        self._engine = make_engine(self.url, wait_seconds=wait_seconds)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._bring_up_to_date()
            undo.pop_all()

    @classmethod
    def in_directory(cls, directory: Path) -> Database:
        """Open the default database, a file in the data directory."""
        return cls(URL.create("sqlite", database=str(directory.absolute() / "devserver.db")))

    def _bring_up_to_date(self) -> None:
        try:
            with self._engine.begin() as connection:
                if is_up_to_date(connection):
                    return
            engine = make_engine(self.url, connections=1, checks_foreign_keys=False)
            try:
                with _writing(engine) as connection:
                    upgrade_schema(connection)
            finally:
                engine.dispose()
        except DBAPIError as error:
            where = self.url.render_as_string(hide_password=True)
            raise DatabaseUnavailable(
                f"cannot open the database {where}: {words_of(error)}"
            ) from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads; it waits for nobody.

        Raises:
            DatabaseUnavailable: the database does not answer in time.
        """
        with failures_in_words(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: all of it is durable at the end of the block, or nothing.

        On SQLite there is one at a time: what takes long does not belong into the block. Errors of
        constraints come as SQLAlchemy's IntegrityError.

        Raises:
            DatabaseUnavailable: others hold the database for too long, or it cannot be written.
        """
        with self._turn(), failures_in_words():
            with _writing(self._engine) as connection:
                yield connection
            with self._counting:
                self._commits += 1

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._turn_to_write is None:
            yield
            return
        if not self._turn_to_write.acquire(self._wait_seconds):
            raise DatabaseUnavailable("the database is busy: many write to it; ask again")
        try:
            yield
        finally:
            self._turn_to_write.release()

    @property
    def commits(self) -> int:
        """How many transactions of this process have written; grows once they are durable.

        Where the database is not shared, what was read is true as long as this stays the same.
        """
        with self._counting:
            return self._commits

    def check(self) -> None:
        """Raise DatabaseUnavailable if the database cannot be read."""
        with self.reading() as connection:
            schema_version(connection)

    def insert(self, table: Table) -> Any:
        """Return an INSERT that has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
        statement: Insert = self._dialect.insert(table)
        return statement

    def close(self) -> None:
        self._engine.dispose()


@contextlib.contextmanager
def failures_in_words() -> Iterator[None]:
    """Raise DatabaseUnavailable where a database fails within the block; other errors as they are.

    Other errors are those of a statement, or of what it says: a constraint, a value that no column
    takes. What the database said is for the log alone: it names hosts, users and files, and whoever
    asks may be a stranger.
    """
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnavailable("the database is busy: many use it; ask again") from error
    except (OperationalError, InterfaceError, InternalError) as error:
        if "disk is full" in words_of(error):
            raise InsufficientStorage("the disk of the database is full") from error
        _log.warning("the database cannot be used: %s", words_of(error))
        raise DatabaseUnavailable("the database cannot be used; ask again") from error
    except DatabaseError as error:
        # What SQLite says of a file that is damaged is of no class below this one.
        if type(error) is not DatabaseError:
            raise
        _log.error("the database is damaged: %s", words_of(error))
        raise DatabaseUnavailable("the database is damaged; restore it from a backup") from error


def words_of(error: DBAPIError) -> str:
    """Return what a database said, on one line."""
    return str(error.orig).strip().partition("\n")[0]


@contextlib.contextmanager
def _writing(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        writing = connection.execution_options(**{WRITES: True})
        with writing.begin():
            yield writing
