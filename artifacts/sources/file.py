"""The source ``file``: builds in directories of this machine, or mounted on it."""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Iterator
from pathlib import Path

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    BuildNotFound,
    NotAllowed,
    TransientArchiveError,
)
from artifacts.sources.source import ArchiveFile

_MAX_FILES = 1_000_000


class FileSource:
    """Reads builds below ``file:///…``; follows links as long as they stay on the allow list."""

    def __init__(self, allow_list: AllowList) -> None:
        self._allow_list = allow_list

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        directory = _path(archive_url)
        self._check_resolved(directory)
        if not directory.is_dir():
            raise BuildNotFound(f"no such build: {archive_url}")
        files: list[ArchiveFile] = []
        try:
            for path in _files_below(directory):
                if len(files) >= _MAX_FILES:
                    raise ArchiveError(f"{archive_url} has over {_MAX_FILES} files")
                files.append(_describe(path.relative_to(directory).as_posix(), path.stat()))
        except OSError as error:
            raise ArchiveError(f"cannot list {archive_url}: {error.strerror}") from error
        return files

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        path = _path(archive_url) / name
        self._check_resolved(path)
        try:
            return _describe(name, path.stat())
        except FileNotFoundError as error:
            raise ArchiveFileMissing(f"{archive_url} has no file {name}") from error
        except OSError as error:
            raise ArchiveError(f"cannot read {archive_url}/{name}: {error.strerror}") from error

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> FileRange:
        path = _path(archive_url) / file.name
        self._check_resolved(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise ArchiveFileMissing(f"{archive_url} has no file {file.name}") from error
        except OSError as error:
            message = f"cannot read {archive_url}/{file.name}: {error.strerror}"
            raise ArchiveError(message) from error
        status = os.fstat(descriptor)
        now = _describe(file.name, status)
        if not stat_module.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise ArchiveError(f"{archive_url}/{file.name} is not a regular file")
        if file.generation not in {None, now.generation}:
            os.close(descriptor)
            raise ArchiveFileChanged(f"{archive_url}/{file.name} changed while it was read")
        return FileRange(descriptor, now, start, min(stop or status.st_size, status.st_size))

    def close(self) -> None:
        pass

    def _check_resolved(self, path: Path) -> None:
        resolved = path.resolve()
        roots = (_path(prefix).resolve() for prefix in self._allow_list.prefixes_of("file"))
        if not any(resolved.is_relative_to(root) for root in roots):
            raise NotAllowed(
                f"{path} is a link to {resolved}, which is not allowed", code="archive_not_allowed"
            )


class FileRange:
    """Bytes of an open file."""

    end_is_told = True

    def __init__(self, descriptor: int, file: ArchiveFile, start: int, stop: int) -> None:
        self.file = file
        self.start = start
        self.stop: int | None = stop
        self._position = start
        self._reader = os.fdopen(descriptor, "rb", buffering=0)
        self._reader.seek(start)

    def read(self, max_bytes: int) -> bytes:
        assert self.stop is not None
        try:
            block = self._reader.read(min(max_bytes, self.stop - self._position)) or b""
        except OSError as error:
            raise TransientArchiveError(
                f"cannot read {self.file.name}: {error.strerror}"
            ) from error
        self._position += len(block)
        return block

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> FileRange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _path(archive_url: ArchiveUrl) -> Path:
    return Path("/", *archive_url.segments)


def _describe(name: str, status: os.stat_result) -> ArchiveFile:
    return ArchiveFile(
        name=name,
        size=status.st_size,
        size_is_exact=True,
        generation=f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}",
        has_ranges=True,
    )


def _files_below(directory: Path) -> Iterator[Path]:
    """Regular files, and links to such; directories that are links are not entered."""
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(Path(entry.path))
            elif entry.is_file():
                yield Path(entry.path)
