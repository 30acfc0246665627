"""Files that are made of others, and kept: made aside, and moved to their place when whole."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from artifacts.disk import fsync_directory, make_directory
from artifacts.errors import storage_error

_ASIDE = ".aside-"


class KeptFiles:
    """A directory of such files.

    Attributes:
        directory: where they are; this one's alone.
    """

    def __init__(self, directory: Path) -> None:
        """Open it; what a crash has left aside is removed.

        Raises:
            InsufficientStorage, DevserverError: it cannot be made, or read.
        """
        self.directory = directory
        try:
            make_directory(directory)
            for aside in directory.glob(f"{_ASIDE}*"):
                aside.unlink()
        except OSError as error:
            raise storage_error(error, str(directory)) from error

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """Have a path to make a file at; what is there in the end is removed."""
        aside = self.directory / f"{_ASIDE}{uuid.uuid4().hex}"
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    @staticmethod
    def keep(aside: Path, final: Path) -> None:
        """Move a file, which is on the disk already, to its place below the directory.

        Raises:
            OSError: the disk refuses.
        """
        make_directory(final.parent)
        aside.replace(final)
        fsync_directory(final.parent)
