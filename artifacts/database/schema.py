"""Which schema a database has, and bringing it up to the one that this program knows.

The schema is that of ``tables.py``. Each change to it is a migration, one file below
``migrations/versions``, by which databases that are older are changed at start, in one transaction.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select, text

from artifacts.errors import DevserverError

# The newest migration. Alembic, which takes its time to import, is for databases of another.
HEAD = "0002"
_MIGRATIONS = Path(__file__).parent / "migrations"
# Of PostgreSQL; a number that nobody else will have chosen.
_UPGRADE_LOCK = int.from_bytes(b"devserve")
_log = logging.getLogger(__name__)
_version_table = Table("alembic_version", MetaData(), Column("version_num", String(32)))


def schema_version(connection: Connection) -> str | None:
    """Return the migration up to which a database has been brought; None for an empty one."""
    if not inspect(connection).has_table(_version_table.name):
        return None
    return connection.execute(select(_version_table.c.version_num)).scalar()


def is_up_to_date(connection: Connection) -> bool:
    """Return whether a database has the schema of this program."""
    return schema_version(connection) == HEAD


def upgrade_schema(connection: Connection) -> None:
    """Bring a database up to ``HEAD``, within a transaction that writes.

    If several do so at once, one does it, and the others wait for it.

    Raises:
        DevserverError: the database is newer than this program.
    """
    if connection.dialect.name == "postgresql":
        # However long it takes: until then, nobody can do anything else with the database.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = '300s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
    found = schema_version(connection)
    if found == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    # In the value of an option, % begins an interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise DevserverError(
            f"the database was made by a newer devserver: its schema is {found}, and this one "
            f"knows those up to {HEAD}; run the newer one, or restore the backup of the database "
            "from before the upgrade"
        )
    command.upgrade(config, HEAD)
    if found is not None:
        _log.info("brought the database from schema %s to %s", found, HEAD)
