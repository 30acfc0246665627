"""The directory in which uploads wait to be put into a blob storage."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from artifacts.errors import storage_error


class SpoolDirectory:
    """Opened: what a crash has left there is gone.

    Processes may share it, as they may share a storage, and each keeps a shared lock on it. Who
    opens it while nobody else has it open removes all that is there. What a crash leaves while
    others have it open stays for the collection of garbage, which goes by age; so does everything
    on file systems where directories cannot be locked.
    """

    def __init__(self, directory: Path) -> None:
        """Make the directory if need be, and tidy up.

        Raises:
            DevserverError: it cannot be made, or read.
        """
        self.path = directory
        with contextlib.ExitStack() as undo:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                undo.callback(os.close, descriptor)
                if _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    _empty(directory)
                # Waits at most for another one that empties it.
                _locked(descriptor, fcntl.LOCK_SH)
            except OSError as error:
                raise storage_error(error, str(directory)) from error
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()


def _empty(directory: Path) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry)


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True
