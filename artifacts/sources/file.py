"""The source ``file``: builds in directories of this machine, or mounted on it."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Iterator
from pathlib import Path

from artifacts.archive_url import AllowList, ArchiveUrl, check_relative_path
from artifacts.closing import Closing
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    BadRequest,
    BuildNotFound,
    NotAllowed,
    TransientArchiveError,
)
from artifacts.sources.source import ArchiveFile

_MAX_FILES = 1_000_000
# A FIFO that nobody writes to would block whoever opens it; it is opened, found out, and closed.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class FileSource:
    """Reads builds below ``file:///…``; follows links as long as they stay on the allow list."""

    def __init__(self, allow_list: AllowList) -> None:
        self._allow_list = allow_list

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        directory = _path(archive_url)
        self._resolve(directory)
        files: list[ArchiveFile] = []
        try:
            for path, status in _files_below(directory):
                if len(files) >= _MAX_FILES:
                    raise ArchiveError(f"{archive_url} has over {_MAX_FILES} files")
                files.append(_describe(path.relative_to(directory).as_posix(), status))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BuildNotFound(f"no such build: {archive_url}") from error
        except OSError as error:
            raise ArchiveError(f"cannot list {archive_url}: {error.strerror}") from error
        return files

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        path = self._resolve(_file_path(archive_url, name))
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(archive_url, name, error) from error
        _check_regular(archive_url, name, status)
        return _describe(name, status)

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> FileRange:
        path = _file_path(archive_url, file.name)
        self._resolve(path)
        try:
            descriptor = os.open(path, _FLAGS)
        except OSError as error:
            raise _unreadable(archive_url, file.name, error) from error
        try:
            status = os.fstat(descriptor)
            _check_regular(archive_url, file.name, status)
            # What was opened is what may be read, even if somebody has swapped links meanwhile.
            if not os.path.samestat(status, self._resolve(path).stat()):
                raise ArchiveFileChanged(f"{archive_url}/{file.name} changed while it was opened")
            now = _describe(file.name, status)
            if file.generation not in {None, now.generation}:
                raise ArchiveFileChanged(f"{archive_url}/{file.name} changed while it was fetched")
        except OSError as error:
            os.close(descriptor)
            raise _unreadable(archive_url, file.name, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        end = status.st_size if stop is None else min(stop, status.st_size)
        return FileRange(descriptor, f"{archive_url}/{file.name}", now, start, end)

    def close(self) -> None:
        pass

    def _resolve(self, path: Path) -> Path:
        """Follow all links, and return where they lead if that is on the allow list."""
        resolved = Path(os.path.realpath(path))
        roots = (os.path.realpath(_path(root)) for root in self._allow_list.prefixes_of("file"))
        if not any(resolved.is_relative_to(root) for root in roots):
            raise NotAllowed(
                f"{path} is a link to {resolved}, which is not allowed", code="archive_not_allowed"
            )
        return resolved


class FileRange(Closing):
    """Bytes of an open file."""

    end_is_told = True

    def __init__(
        self, descriptor: int, what: str, file: ArchiveFile, start: int, stop: int
    ) -> None:
        self.file = file
        self.start = start
        self.stop: int | None = max(start, stop)
        self._what = what
        self._left = self.stop - start
        self._reader = os.fdopen(descriptor, "rb", buffering=0)
        self._reader.seek(start)

    def read(self, max_bytes: int) -> bytes:
        try:
            block = self._reader.read(min(max_bytes, self._left)) or b""
            self._left -= len(block)
            if self._left == 0 or not block:
                self._check_unchanged()
        except OSError as error:
            raise TransientArchiveError(f"cannot read {self._what}: {error.strerror}") from error
        return block

    def _check_unchanged(self) -> None:
        """All bytes have to be of one generation: nobody may have written meanwhile."""
        if _describe(self.file.name, os.fstat(self._reader.fileno())) != self.file:
            raise TransientArchiveError(f"{self._what} changed while it was read")

    def close(self) -> None:
        self._reader.close()


def _path(archive_url: ArchiveUrl) -> Path:
    return Path("/", *archive_url.segments)


def _file_path(archive_url: ArchiveUrl, name: str) -> Path:
    try:
        check_relative_path(name, "file name")
    except BadRequest as error:
        raise ArchiveFileMissing(f"{archive_url} cannot have it: {error.message}") from error
    return _path(archive_url) / name


def _describe(name: str, status: os.stat_result) -> ArchiveFile:
    return ArchiveFile(
        name=name,
        size=status.st_size,
        size_is_exact=True,
        generation=f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}",
        has_ranges=True,
    )


def _check_regular(archive_url: ArchiveUrl, name: str, status: os.stat_result) -> None:
    if stat_module.S_ISDIR(status.st_mode):
        raise ArchiveFileMissing(f"{archive_url} has no file {name}, but a directory")
    if not stat_module.S_ISREG(status.st_mode):
        raise ArchiveError(f"{archive_url}/{name} is not a regular file")


def _unreadable(archive_url: ArchiveUrl, name: str, error: OSError) -> ArchiveError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ArchiveFileMissing(f"{archive_url} has no file {name}")
    return ArchiveError(f"cannot read {archive_url}/{name}: {error.strerror}")


def _files_below(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files, and links to such; directories that are links are not entered.

    What is gone before it is looked at, as a builder's temporary files may be, is passed over, and
    so are links that lead nowhere.
    """
    waiting = [directory]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            if parent == directory:
                raise
            continue
        for entry in found:
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path), entry.stat()
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ELOOP}:
                    raise
