"""Writing so that nothing is lost: aside, fsync, rename, fsync of the directory; and who may."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from pathlib import Path

import psutil

from artifacts.errors import DevserverError, storage_error

# Of the lock of a data directory, in it.
LOCK_NAME = "lock"


def write_durably(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace ``path`` by ``data``: after a crash it holds either the old bytes or the new.

    ``mode``: the permissions of the file, less those that the umask takes away.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory, and those above it that are missing; they are durable when this returns."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for made in missing:
        fsync_directory(made.parent)


def make_empty_directory(directory: Path) -> None:
    """Make a directory for temporary files, or empty the one that a crash has left.

    Raises:
        InsufficientStorage, DevserverError: it cannot be made.
    """
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, str(directory)) from error


def link_into_place(source: Path, destination: Path) -> None:
    """Give ``source`` a second name, replacing what is there; a copy where links cannot be made."""
    aside = destination.with_name(f".{uuid.uuid4().hex}")
    try:
        try:
            os.link(source, aside)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            shutil.copyfile(source, aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        aside.replace(destination)
    finally:
        aside.unlink(missing_ok=True)


def boot_id() -> str:
    """Return what changes whenever this machine starts anew."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{psutil.boot_time():.0f}"


class DirectoryInUse(DevserverError):
    """Another process has the lock of a directory."""

    process: int | None = None
    """Its id; None while it is just taking the lock."""


class DirectoryLock:
    """The right to change a directory, held by one process at a time until it ends."""

    def __init__(self, directory: Path, lock_path: Path) -> None:
        """Take the lock.

        Raises:
            DirectoryInUse: another process has it.
            DevserverError: the directory cannot be written.
        """
        try:
            lock_path.parent.mkdir(parents=True, exist_ok=True)
            self._file = lock_path.open("a+", encoding="ascii")
        except OSError as error:
            reason = error.strerror or str(error)
            raise DevserverError(f"cannot write to {directory}: {reason}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            owner = self._file.read(20).strip()
            self._file.close()
            in_use = DirectoryInUse(
                f"another devserver (process {owner or 'unknown'}) works in {directory}: "
                "stop it, or give this one directories of its own"
            )
            in_use.process = int(owner) if owner.isdecimal() else None
            raise in_use from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def owner_of(data_directory: Path) -> int:
    """Return the id of the user that the server of a data directory runs as.

    That is whose lock is there. Where there is none yet, it is the directory's owner.
    """
    with contextlib.suppress(FileNotFoundError):
        # The directory may be root's, as volumes are, and the server's by its group.
        return (data_directory / LOCK_NAME).stat().st_uid
    return data_directory.stat().st_uid


def check_user(data_directory: Path, owner: int) -> None:
    """Raise DevserverError unless ``owner``, of a data directory, is this process's user.

    Files that others, root above all, leave there, the server could not write.
    """
    if owner != os.geteuid():
        raise DevserverError(
            f"{data_directory} belongs to another user (id {owner}); run this as that user"
        )


def file_identity(descriptor: int) -> tuple[int, int, int, int]:
    """Return what tells an open file from all others, and from what it is once it has changed."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
