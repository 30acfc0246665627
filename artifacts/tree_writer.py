"""Writing the members of an archive below one directory, and nowhere else.

What an archive says of its members is not to be trusted: names, links, sizes, modes, times. All of
it is checked here, whatever the archive's format, and nothing is written through a directory that
was not made here.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import google_crc32c

from artifacts.archive_url import MAX_PATH_CHARACTERS, MAX_PATH_SEGMENTS
from artifacts.errors import ArchiveError

_CONTROL_OR_NOT_UTF8 = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# What is the archive's fault and not the disk's. EEXIST: two names that the filesystem takes for
# one, as macOS does when they differ by case.
_NAME_ERRORS = {errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ, errno.EMLINK, errno.ENOTDIR}
_ZEROS = bytes(2**20)
# A shorter run of zeros saves less space than a hole in the file costs to manage.
_MIN_HOLE_BYTES = 2**16
# How often to look whether the disk still has room.
_ROOM_CHECK_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class UnpackedMember:
    path: str  # below the directory, POSIX, no leading or trailing slash
    size: int  # bytes (0 for symbolic links)
    crc32c: int  # of the bytes, computed as they are written
    link: str | None  # target of a symbolic link, else None


@dataclass(frozen=True)
class Header:
    """What an archive says of a member.

    Attributes:
        name: as it stands in the archive.
        mode: permissions, as the archive has them.
        modified_at: seconds since 1970.
    """

    name: str
    mode: int
    modified_at: float

    def __str__(self) -> str:
        return f"the archive's member {self.name!r:.200}"


class TreeWriter:
    """What has been written below a directory; nothing else is trusted to be there.

    Paths are those that ``path_of`` makes of names. A file or link replaces an earlier one of the
    same path. All methods that add raise ArchiveError for what is not safe to write, and OSError
    where the disk refuses.
    """

    def __init__(self, directory: Path, check_room: Callable[[], None] = lambda: None) -> None:
        """``directory`` exists and is empty. ``check_room`` raises where the disk gets full."""
        self.members: dict[str, UnpackedMember] = {}
        self._root = str(directory)
        self._directories = {""}  # all made here, hence none of them a link
        self._check_room = check_room
        self._unchecked_bytes = _ROOM_CHECK_BYTES

    def add_directory(self, path: str, header: Header) -> None:
        _check_name(path, header)
        self._make_directories(path, header)

    def add_file(
        self,
        path: str,
        header: Header,
        size: int,
        extents: Sequence[tuple[int, int]],
        take: Callable[[int], Iterable[bytes]],
    ) -> None:
        """Write a file of ``size`` bytes.

        Args:
            extents: (offset, length) of what it stores, in order; between them are holes.
            take: yields the next so many bytes of what is stored.
        """
        self._make_place(path, header)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _blaming(header):
            descriptor = os.open(self._on_disk(path), flags, 0o600)
        try:
            os.fchmod(descriptor, header.mode & 0o755 | 0o644)
            crc32c = position = written = 0
            for offset, length in extents:
                crc32c = _extend_by_zeros(crc32c, offset - position)
                position = offset
                for data in take(length):
                    crc32c = google_crc32c.extend(crc32c, data)
                    if not _is_hole(data):
                        self._write(descriptor, data, position, is_next=position == written)
                        written = position + len(data)
                    position += len(data)
            crc32c = _extend_by_zeros(crc32c, size - position)
            if written < size:
                os.ftruncate(descriptor, size)
            modified_ns = _nanoseconds(header.modified_at)
            os.utime(descriptor, ns=(modified_ns, modified_ns))
        finally:
            os.close(descriptor)
        self.members[path] = UnpackedMember(path, size, crc32c, None)

    def add_symbolic_link(self, path: str, header: Header, target: str) -> None:
        _check_name(path, header)
        _check_symbolic_link(path, header, target)
        self._make_place(path, header)
        on_disk = self._on_disk(path)
        with _blaming(header):
            os.symlink(target, on_disk)
        modified_ns = _nanoseconds(header.modified_at)
        os.utime(on_disk, ns=(modified_ns, modified_ns), follow_symlinks=False)
        self.members[path] = UnpackedMember(path, 0, 0, target)

    def add_hard_link(self, path: str, header: Header, original_name: str) -> None:
        _check_name(path, header)
        original = self.members.get(path_of(original_name))
        if original is None or original.link is not None or original.path == path:
            raise ArchiveError(
                f"{header} is a hard link to {original_name!r:.200}, "
                "which is not another file unpacked before it"
            )
        self._make_place(path, header)
        with _blaming(header):
            os.link(self._on_disk(original.path), self._on_disk(path), follow_symlinks=False)
        self.members[path] = replace(original, path=path)

    # --- inside

    def _on_disk(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_place(self, path: str, header: Header) -> None:
        _check_name(path, header)
        self._make_directories(path.rpartition("/")[0], header)
        if path in self._directories:
            raise ArchiveError(f"{header} would replace a directory")
        if self.members.pop(path, None):
            os.unlink(self._on_disk(path))

    def _make_directories(self, path: str, header: Header) -> None:
        missing = []
        while path not in self._directories:
            missing.append(path)
            path = path.rpartition("/")[0]
        for path in reversed(missing):
            if path in self.members:
                problem = f"needs a directory {path!r:.200}, which is a file or link"
                raise ArchiveError(f"{header} {problem}")
            with _blaming(header):
                os.mkdir(self._on_disk(path))
            os.chmod(self._on_disk(path), 0o755)  # whatever the umask
            self._directories.add(path)

    def _write(self, descriptor: int, data: bytes, position: int, *, is_next: bool) -> None:
        self._unchecked_bytes += len(data)
        if self._unchecked_bytes >= _ROOM_CHECK_BYTES:
            self._check_room()
            self._unchecked_bytes = 0
        if not is_next:
            os.lseek(descriptor, position, os.SEEK_SET)
        written = os.write(descriptor, data)
        while written < len(data):
            written += os.write(descriptor, memoryview(data)[written:])


def path_of(name: str) -> str:
    """Return a member's name without what means nothing in it; not checked for what does harm."""
    return ("/" if name.startswith("/") else "") + "/".join(_segments(name))


def problem_of_name(path: str, name: str) -> str | None:
    """Say why nothing may be written at ``path``, made of a member's ``name``; None if it may."""
    if path == "":
        return "has no name"
    if path.startswith("/"):
        return "has an absolute name"
    if ".." in path.split("/"):
        return "has '..' in its name"
    if _CONTROL_OR_NOT_UTF8.search(name):
        return "has control characters, or bytes that are not UTF-8, in its name"
    if path.count("/") >= MAX_PATH_SEGMENTS:
        return f"has a name of over {MAX_PATH_SEGMENTS} segments"
    if len(path) > MAX_PATH_CHARACTERS:
        return f"has a name of over {MAX_PATH_CHARACTERS:,} characters"
    return None


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment not in ("", ".")]


def _is_hole(data: bytes) -> bool:
    return len(data) >= _MIN_HOLE_BYTES and data[0] == 0 and _ZEROS.startswith(data)


def _extend_by_zeros(crc32c: int, count: int) -> int:
    for _ in range(count // len(_ZEROS)):
        crc32c = google_crc32c.extend(crc32c, _ZEROS)
    return int(google_crc32c.extend(crc32c, _ZEROS[: count % len(_ZEROS)])) if count else crc32c


def _nanoseconds(modified_at: float) -> int:
    """Return a time that a file may have: not before 1970, and not in the future."""
    return int(max(0, min(modified_at, time.time())) * 1e9)


def _check_name(path: str, header: Header) -> None:
    if problem := problem_of_name(path, header.name):
        raise ArchiveError(f"{header} {problem}")


def _check_symbolic_link(path: str, header: Header, target: str) -> None:
    # Every link's own directory is real, so what its leading '..' mean can be told from its path,
    # and whatever other links it goes through start and stay below the root for the same reason.
    segments = _segments(target)
    climbs = next((i for i, segment in enumerate(segments) if segment != ".."), len(segments))
    leads_out = target.startswith("/") or ".." in segments[climbs:] or climbs > path.count("/")
    if target == "" or leads_out or _CONTROL_OR_NOT_UTF8.search(target):
        problem = "links out of the tree" if leads_out else "has a malformed link"
        raise ArchiveError(f"{header} {problem}: {target!r:.200}")


@contextmanager
def _blaming(header: Header) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NAME_ERRORS:
            raise ArchiveError(f"{header} cannot be made: {error.strerror}") from error
        raise
