"""Safe, streaming unpacking of tar archives.

Bytes travel through four layers, and each bounds what a hostile archive can make the next one do:

    reader → Decompressed → TarStream → tarfile (parses headers, nothing else) → _Tree

Decompressed takes and gives at most a block at a time, so that a bomb costs no memory. TarStream
bounds what the headers of one member may take, and says where the archive ends early. tarfile never
touches the disk: _Tree writes, below one directory, through nothing but directories that it made.
"""

from __future__ import annotations

import errno
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import google_crc32c

from artifacts.decompress import BLOCK_BYTES, Decompressed
from artifacts.errors import ArchiveError
from artifacts.tar_stream import TarMember, TarStream

FREE_HEADER_BYTES = 2**12  # of one member; what is more counts against max_bytes
MAX_PATH_CHARACTERS = 4096

_CONTROL_OR_NOT_UTF8 = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# What is the archive's fault and not the disk's. EEXIST: two names that the filesystem takes for
# one, as macOS does when they differ by case.
_NAME_ERRORS = {errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ, errno.EMLINK, errno.ENOTDIR}


@dataclass(frozen=True)
class UnpackLimits:
    max_bytes: int = 100 * 2**30  # all members' bytes together, unpacked
    max_members: int = 1_000_000


@dataclass(frozen=True)
class UnpackedMember:
    path: str  # below the directory, POSIX, no leading or trailing slash
    size: int  # bytes (0 for symbolic links)
    crc32c: int  # of the bytes, computed as they are written
    link: str | None  # target of a symbolic link, else None


def unpack(
    reader: io.RawIOBase | io.BufferedIOBase,
    directory: Path,
    *,
    wanted: Callable[[str], bool],
    limits: UnpackLimits,
) -> list[UnpackedMember]:
    """Unpack the tar archive (plain, gz, bz2 or xz, by its first bytes) that ``reader`` yields.

    ``reader`` is blocking, read once from where it stands, and not closed. ``directory`` exists, is
    empty, and nobody else's. ``wanted`` is asked for each member's path, directories included, and
    those it declines are neither written nor checked; they do count against ``limits``.

    Files and links come back in the archive's order; a member that a later one of the same path
    replaced does not. A hard link comes back as the file it is. Directories are made and not
    listed. Owners and times are ignored; files get mode 644 or, where executable, up to 755.

    Raises:
        ArchiveError: it is not a tar archive, ends early, is damaged, exceeds a limit, or has a
            member that is not safe to write: a name or link that leads out of the directory, a
            device. What is in the directory by then is not to be used.
        OSError: the disk refuses. What ``reader`` raises comes through unchanged, too.
    """
    stream = TarStream(Decompressed(reader))
    tree = _Tree(directory, stream)
    usage = _Usage(limits)
    for member in stream.members():
        usage.add_member(member)
        path = _path(member.name)
        is_the_root = path == "" and member.name != "" and member.isdir()
        if not is_the_root and wanted(path):
            tree.add(path, member)
    # A record's padding is free; more of it, or what else follows, counts as a member's bytes do.
    stream.take(BLOCK_BYTES)
    while rest := stream.take(BLOCK_BYTES):
        usage.add_bytes(len(rest))
    return list(tree.members.values())


@dataclass
class _Usage:
    limits: UnpackLimits
    member_count: int = 0
    byte_count: int = 0

    def add_member(self, member: TarMember) -> None:
        self.member_count += 1
        if self.member_count > self.limits.max_members:
            raise ArchiveError(f"the archive has over {self.limits.max_members:,} members")
        # A sparse file may be the larger of the two in the archive or on disk.
        size = member.size if member.isreg() else 0
        self.add_bytes(max(size, member.stored_bytes - tarfile.BLOCKSIZE + 1))
        self.add_bytes(member.header_bytes - FREE_HEADER_BYTES)

    def add_bytes(self, count: int) -> None:
        self.byte_count += max(count, 0)
        if self.byte_count > self.limits.max_bytes:
            raise ArchiveError(f"the archive unpacks to over {self.limits.max_bytes:,} bytes")


class _Tree:
    """What has been written below the directory; nothing else is trusted to be there."""

    def __init__(self, directory: Path, stream: TarStream) -> None:
        self.members: dict[str, UnpackedMember] = {}
        self._root = str(directory)
        self._stream = stream
        self._directories = {""}  # all made here, hence none of them a link

    def add(self, path: str, member: TarMember) -> None:
        _check_name(path, member)
        if member.isdir():
            self._make_directories(path, member)
            return
        self._make_directories(path.rpartition("/")[0], member)
        if path in self._directories:
            raise ArchiveError(f"{member} would replace a directory")
        if member.isreg():
            extents = _extents(member)
            self._make_way(path)
            crc32c = self._write_file(path, member, extents)
            self.members[path] = UnpackedMember(path, member.size, crc32c, None)
        elif member.issym():
            _check_symbolic_link(path, member)
            self._make_way(path)
            with _blaming(member):
                os.symlink(member.linkname, self._on_disk(path))
            self.members[path] = UnpackedMember(path, 0, 0, member.linkname)
        elif member.islnk():
            original = self.members.get(_path(member.linkname))
            if original is None or original.link is not None or original.path == path:
                raise ArchiveError(
                    f"{member} is a hard link to {member.linkname!r:.200}, "
                    "which is not another file unpacked before it"
                )
            self._make_way(path)
            with _blaming(member):
                os.link(self._on_disk(original.path), self._on_disk(path), follow_symlinks=False)
            self.members[path] = replace(original, path=path)
        else:
            raise ArchiveError(f"{member} is a device, a FIFO or another special file")

    def _on_disk(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_way(self, path: str) -> None:
        if self.members.pop(path, None):
            os.unlink(self._on_disk(path))

    def _make_directories(self, path: str, member: TarMember) -> None:
        missing = []
        while path not in self._directories:
            missing.append(path)
            path = path.rpartition("/")[0]
        for path in reversed(missing):
            if path in self.members:
                problem = f"needs a directory {path!r:.200}, which is a file or link"
                raise ArchiveError(f"{member} {problem}")
            with _blaming(member):
                os.mkdir(self._on_disk(path))
            os.chmod(self._on_disk(path), 0o755)  # whatever the umask
            self._directories.add(path)

    def _write_file(self, path: str, member: TarMember, extents: list[tuple[int, int]]) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _blaming(member):
            descriptor = os.open(self._on_disk(path), flags, 0o600)
        try:
            os.fchmod(descriptor, member.mode & 0o755 | 0o644)
            crc32c = position = 0
            for offset, length in extents:
                if offset > position:
                    crc32c = _extend_by_zeros(crc32c, offset - position)
                    os.lseek(descriptor, offset, os.SEEK_SET)
                for data in self._stream.take_exactly(length):
                    crc32c = google_crc32c.extend(crc32c, data)
                    _write(descriptor, data)
                position = offset + length
            if position < member.size:
                crc32c = _extend_by_zeros(crc32c, member.size - position)
                os.ftruncate(descriptor, member.size)
        finally:
            os.close(descriptor)
        return crc32c


def _write(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def _extend_by_zeros(crc32c: int, count: int) -> int:
    zeros = bytes(min(count, BLOCK_BYTES))
    for _ in range(count // BLOCK_BYTES):
        crc32c = google_crc32c.extend(crc32c, zeros)
    return int(google_crc32c.extend(crc32c, zeros[: count % BLOCK_BYTES]))


def _extents(member: TarMember) -> list[tuple[int, int]]:
    """Return where the stored bytes go in the file: (offset, length) in order, holes between."""
    sparse = cast(list[tuple[int, int]] | None, member.sparse)
    extents = [(0, member.size)] if sparse is None else [e for e in sparse if e[1] != 0]
    end = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise ArchiveError(f"{member} is damaged: its sparse map is out of order")
        end = offset + length
    unused_bytes = member.stored_bytes - sum(length for _, length in extents)
    if (
        end > member.size
        or unused_bytes < 0
        or (sparse is None and unused_bytes >= tarfile.BLOCKSIZE)
    ):
        raise ArchiveError(f"{member} is damaged: its sizes contradict each other")
    return extents


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment not in ("", ".")]


def _path(name: str) -> str:
    return ("/" if name.startswith("/") else "") + "/".join(_segments(name))


def _check_name(path: str, member: TarMember) -> None:
    if path == "":
        problem = "has no name"
    elif path.startswith("/"):
        problem = "has an absolute name"
    elif ".." in path.split("/"):
        problem = "has '..' in its name"
    elif _CONTROL_OR_NOT_UTF8.search(member.name):
        problem = "has control characters, or bytes that are not UTF-8, in its name"
    elif len(path) > MAX_PATH_CHARACTERS:
        problem = f"has a name of over {MAX_PATH_CHARACTERS:,} characters"
    else:
        return
    raise ArchiveError(f"{member} {problem}")


def _check_symbolic_link(path: str, member: TarMember) -> None:
    # Every link's own directory is real, so what its leading '..' mean can be told from its path,
    # and whatever other links it goes through start and stay below the root for the same reason.
    target = member.linkname
    segments = _segments(target)
    climbs = next((i for i, segment in enumerate(segments) if segment != ".."), len(segments))
    leads_out = target.startswith("/") or ".." in segments[climbs:] or climbs > path.count("/")
    if target == "" or leads_out or _CONTROL_OR_NOT_UTF8.search(target):
        problem = "links out of the tree" if leads_out else "has a malformed link"
        raise ArchiveError(f"{member} {problem}: {target!r:.200}")


@contextmanager
def _blaming(member: TarMember) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NAME_ERRORS:
            raise ArchiveError(f"{member} cannot be made: {error.strerror}") from error
        raise
