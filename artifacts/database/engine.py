"""Connections to SQLite or PostgreSQL, set up so that nothing waits for ever."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from artifacts.config import ConfigError

# For which a transaction waits for others to end theirs, and for a connection.
WAIT_SECONDS = 10
# Of one server; PostgreSQL allows 100 in all, unless told otherwise.
CONNECTIONS = 16
WRITES = "devserver_writes"

_POSTGRESQL_SETTINGS = {
    "statement_timeout": "60s",
    # Locks that another server holds end with its connection: if it hangs, and if it is cut off.
    "idle_in_transaction_session_timeout": "300s",
    "tcp_keepalives_idle": "30s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "3",
}
_POSTGRESQL_ARGUMENTS = {
    "application_name": "devserver",
    "connect_timeout": WAIT_SECONDS,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
# What the write-ahead log is cut back to after a transaction, or a reader, has made it larger.
_WAL_BYTES = 64 << 20
_SWITCHING_TRIES = 10


def parse_database_url(url: str | URL) -> URL:
    """Return a URL of SQLite or PostgreSQL, with its driver.

    Raises:
        ConfigError: it is none. The message does not have a password that the URL has.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(
            "not the URL of a database, sqlite:////PATH or postgresql://USER@HOST/NAME"
        ) from error
    backend = parsed.get_backend_name()
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    # In memory, each connection would have a database of its own.
    is_file = parsed.database and not parsed.database.startswith((":memory:", "file:"))
    if backend == "sqlite" and is_file:
        return parsed.set(drivername="sqlite")
    raise ConfigError(
        "the database must be sqlite:////PATH or postgresql://USER@HOST/NAME, "
        f"not {parsed.render_as_string(hide_password=True)}"
    )


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def make_engine(
    url: URL,
    connections: int = CONNECTIONS,
    wait_seconds: float = WAIT_SECONDS,
    *,
    checks_foreign_keys: bool = True,
) -> Engine:
    """Make what opens up to ``connections`` connections, when they are needed.

    Args:
        url: as ``parse_database_url`` returns it.
        wait_seconds: how long to wait for a connection, and then for what others have locked.
        checks_foreign_keys: only on SQLite can it be False. Then tables can be made anew in a
            migration without what refers to their rows being removed.

    Raises:
        ConfigError: the driver is not installed.
    """
    arguments = (
        # The transactions are ours to begin: see _begin.
        {"timeout": wait_seconds, "isolation_level": None}
        if is_sqlite(url)
        else {**_POSTGRESQL_ARGUMENTS, "options": _postgresql_options(url, wait_seconds)}
    )
    try:
        engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=wait_seconds,
            pool_pre_ping=not is_sqlite(url),
            connect_args=arguments,
        )
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            "PostgreSQL needs the extra 'postgresql': pip install 'devserver[postgresql]'"
        ) from error
    if is_sqlite(url):
        event.listen(engine, "connect", _configure_with if checks_foreign_keys else _configure)
        event.listen(engine, "begin", _begin)
    return engine


def _postgresql_options(url: URL, wait_seconds: float) -> str:
    """Return the settings of a session, as options; what the URL says goes over ours."""
    settings = {"lock_timeout": f"{round(wait_seconds * 1000)}ms", **_POSTGRESQL_SETTINGS}
    ours = [f"-c {name}={value}" for name, value in settings.items()]
    return " ".join([*ours, *url.normalized_query.get("options", ())])


def _configure(connection: sqlite3.Connection, _: Any) -> None:
    # Readers and a writer do not wait for each other; what is committed survives a crash.
    _use_write_ahead_log(connection)
    connection.execute("PRAGMA synchronous=FULL").close()
    connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}").close()


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch a new database over, which several may want to do at once."""
    for tries_left in reversed(range(_SWITCHING_TRIES)):
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError:
            if tries_left == 0:
                raise
            # Who is not alone is told so at once. A transaction waits until the other is done.
            connection.execute("BEGIN IMMEDIATE").close()
            connection.rollback()


def _configure_with(connection: sqlite3.Connection, record: Any) -> None:
    _configure(connection, record)
    connection.execute("PRAGMA foreign_keys=ON").close()


def _begin(connection: Connection) -> None:
    # A transaction that reads first, and then writes, may find that it cannot: whoever is going to
    # write says so at the beginning, and waits for its turn.
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
