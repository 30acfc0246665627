"""What a server keeps of uploads: opened together, closed together."""

from __future__ import annotations

import contextlib
from pathlib import Path

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.files import Files
from artifacts.blobs.storages import open_storage
from artifacts.config import Config
from artifacts.database.database import Database
from artifacts.database.file_locks import FileLocks
from artifacts.database.locks import Locks
from artifacts.database.postgresql_locks import PostgresqlLocks
from artifacts.errors import storage_error
from artifacts.tokens import Tokens


class Uploads:
    """Database, blob storage and what rests on them, as the configuration says."""

    def __init__(self, config: Config) -> None:
        """Open them.

        Raises:
            ConfigError: a URL is wrong.
            DevserverError: database or storage cannot be used.
        """
        with contextlib.ExitStack() as undo:
            self.database = open_database(config)
            undo.callback(self.database.close)
            self.storage = open_storage(config)
            undo.callback(self.storage.close)
            self.locks = open_locks(self.database)
            undo.callback(self.locks.close)
            self.tokens = Tokens(self.database)
            self.blobs = BlobStore(self.database, self.storage, self.locks)
            self.files = Files(self.database)
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()


def open_database(config: Config) -> Database:
    """Open the database that the configuration names; the one in the data directory by default.

    Raises:
        ConfigError: the URL is wrong.
        DevserverError: the directory cannot be made, or the database cannot be used.
    """
    if config.database_url is not None:
        return Database(config.database_url)
    try:
        config.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, f"the data directory {config.data_dir}") from error
    return Database.in_directory(config.data_dir)


def open_locks(database: Database) -> Locks:
    """Open the locks that all who use the database share."""
    if database.is_shared:
        return PostgresqlLocks(database.url)
    return FileLocks(Path(f"{database.url.database}.locks"))
