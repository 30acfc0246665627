"""Locks among the servers that share a database in PostgreSQL: its advisory locks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from artifacts.database.database import DatabaseUnavailable, failures_in_words
from artifacts.database.engine import make_engine
from artifacts.database.locks import ProcessLocks, lock_number, still_held

# Each lock that is held, or waited for, has one. Of one server; PostgreSQL allows 100 in all.
_CONNECTIONS = 24
_LOCK_NOT_AVAILABLE = "55P03"

_TRY = text("SELECT pg_try_advisory_lock(:number)")
_WAIT = text("SELECT pg_advisory_lock(:number)")
_LET_GO = text("SELECT pg_advisory_unlock(:number)")
_LIMIT = text("SELECT set_config('lock_timeout', :limit, false)")


class PostgresqlLocks(ProcessLocks):
    """Locks that PostgreSQL keeps for as long as a connection lasts."""

    def __init__(self, url: URL, **more: float) -> None:
        """Take the database's URL; connections are made as they are needed."""
        super().__init__(**more)
        engine = make_engine(url, connections=_CONNECTIONS)
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextlib.contextmanager
    def _holding_of_all(self, name: str, deadline: float) -> Iterator[None]:
        number = {"number": lock_number(name)}
        with contextlib.ExitStack() as leaving:
            with failures_in_words():
                connection = leaving.enter_context(self._engine.connect())
                if not connection.execute(_TRY, number).scalar_one():
                    _wait(connection, name, number, deadline)
            try:
                yield
            finally:
                _let_go(connection, name, number)

    def close(self) -> None:
        """Close the connections that no lock is held by."""
        self._engine.dispose()


def _wait(connection: Connection, name: str, number: dict[str, int], deadline: float) -> None:
    # 0 would be no limit.
    milliseconds = max(1, round((deadline - time.monotonic()) * 1000))
    connection.execute(_LIMIT, {"limit": f"{milliseconds}ms"})
    try:
        connection.execute(_WAIT, number)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise still_held(name) from error


def _let_go(connection: Connection, name: str, number: dict[str, int]) -> None:
    """Give the lock back; raise DatabaseUnavailable if it was there no more."""
    with failures_in_words():
        try:
            was_held = connection.execute(_LET_GO, number).scalar_one()
        except BaseException:
            # Should it hold the lock still, nobody else is to get it from the pool.
            connection.invalidate()
            raise
    if not was_held:
        raise DatabaseUnavailable(f"the lock of {name} was lost; ask again")
