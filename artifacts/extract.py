"""Safe, streaming unpacking of tar archives.

Bytes travel through four layers, and each bounds what a hostile archive can make the next one do:

    reader → _Decompressed → _TarStream → tarfile (parses headers, nothing else) → _Tree

_Decompressed takes and gives at most a block at a time, so that a bomb costs no memory. _TarStream
bounds what the headers of one member may take, and says where the archive ends early. tarfile never
touches the disk: _Tree writes, below one directory, through nothing but directories that it made.
"""

from __future__ import annotations

import bz2
import errno
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, cast

import google_crc32c

from artifacts.errors import ArchiveError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 2**20
MAX_HEADER_BYTES = 2**20  # of one member: its long name, its pax records, its sparse map
FREE_HEADER_BYTES = 2**12  # of one member; what is more counts against max_bytes
MAX_GLOBAL_HEADER_BYTES = 2**14  # of all global pax headers; every member is shown all of them
MAX_PATH_CHARACTERS = 4096
MAX_XZ_MEMORY_BYTES = 2**28  # xz -9 needs a quarter of it

_CONTROL_OR_NOT_UTF8 = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_PAX_TYPES = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_PAX_RECORD = re.compile(rb"([0-9]{1,8}) [^=\n]+=")
_MANY_DIGITS = re.compile(rb"(?<![0-9])[0-9]{256}")
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
    stream = _TarStream(_Decompressed(reader))
    tree = _Tree(directory, stream)
    usage = _Usage(limits)
    with tarfile.TarFile(
        fileobj=cast(IO[bytes], stream),
        tarinfo=_Header,
        encoding="utf-8",
        errors="surrogateescape",
    ) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]
            stored_bytes = archive.offset - stream.tell()
            if member.size < 0 or stored_bytes < 0:
                raise ArchiveError(f"{_named(member)} is damaged: its size is negative")
            usage.add_member(member.size if member.isreg() else 0, stored_bytes)
            usage.add_bytes(stream.allow_headers() - FREE_HEADER_BYTES)
            path = _path(member.name)
            is_the_root = path == "" and member.name != "" and member.isdir()
            if not is_the_root and wanted(path):
                tree.add(path, member, stored_bytes)
            stream.seek(archive.offset)
    stream.check_end()
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

    def add_member(self, size: int, stored_bytes: int) -> None:
        self.member_count += 1
        if self.member_count > self.limits.max_members:
            raise ArchiveError(f"the archive has over {self.limits.max_members:,} members")
        # A sparse file may be the larger of the two in the archive or on disk.
        self.add_bytes(max(size, stored_bytes - tarfile.BLOCKSIZE + 1))

    def add_bytes(self, count: int) -> None:
        self.byte_count += max(count, 0)
        if self.byte_count > self.limits.max_bytes:
            raise ArchiveError(f"the archive unpacks to over {self.limits.max_bytes:,} bytes")


class _Decompressor(Protocol):
    """What bz2 and lzma call their decompressors' methods; one decompressor reads one member."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _GzipDecompressor:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        output = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        # zlib may hold back more behind a full output even after it has taken all input.
        self.needs_input = len(output) < max_length and not self._inflate.unconsumed_tail
        return output


_DECOMPRESSORS: dict[bytes, Callable[[], _Decompressor]] = {
    b"\x1f\x8b\x08": _GzipDecompressor,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY_BYTES),
}
_MAGIC_BYTES = max(map(len, _DECOMPRESSORS))


class _Decompressed(io.RawIOBase):
    """The plain bytes of a stream that is compressed, in one or more members, or not at all."""

    def __init__(self, reader: io.RawIOBase | io.BufferedIOBase) -> None:
        self._reader = reader
        self._input = b""  # read ahead and not used yet
        while len(self._input) < _MAGIC_BYTES and (more := self._read_input()):
            self._input += more
        self._magic = next((m for m in _DECOMPRESSORS if self._input.startswith(m)), b"")
        self._decompressor = _DECOMPRESSORS[self._magic]() if self._magic else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        if not self._magic and not self._input:
            return self._reader.readinto(target) or 0
        if self._magic:
            output = self._decompress(min(len(target), BLOCK_BYTES))
        else:
            output, self._input = self._input[: len(target)], self._input[len(target) :]
        target[: len(output)] = output
        return len(output)

    def _read_input(self) -> bytes:
        return self._reader.read(BLOCK_BYTES // 4) or b""

    def _decompress(self, max_bytes: int) -> bytes:
        while self._decompressor is not None:
            if self._decompressor.eof:
                self._open_next_member(self._decompressor.unused_data)
                continue
            data = b""
            if self._decompressor.needs_input:
                data, self._input = self._input or self._read_input(), b""
                if not data:
                    raise ArchiveError("the archive ends early: its compressed data is cut off")
            try:
                output = self._decompressor.decompress(data, max_bytes)
            except (zlib.error, lzma.LZMAError, OSError) as error:  # OSError: bz2's bad data
                raise ArchiveError(f"the archive is damaged: {error}") from error
            if output:
                return output
        return b""

    def _open_next_member(self, unused: bytes) -> None:
        # Zeros may pad the members; what else is not another member is ignored, as gzip(1) does.
        self._input = unused.lstrip(b"\0")
        while len(self._input) < _MAGIC_BYTES and (more := self._read_input()):
            self._input = (self._input + more).lstrip(b"\0")
        more_members = self._input.startswith(self._magic)
        self._decompressor = _DECOMPRESSORS[self._magic]() if more_members else None


class _TarStream:
    """The uncompressed archive: tarfile gets its headers by ``read``, we the rest by ``take``."""

    def __init__(self, decompressed: io.RawIOBase) -> None:
        self.failure: Exception | None = None  # of reading, not of parsing what was read
        self._buffered = io.BufferedReader(decompressed, BLOCK_BYTES // 4)
        self._position = 0
        self._global_header_bytes = 0
        self._header_bytes = 0
        self._given_back = b""

    def allow_headers(self) -> int:
        """Let the next member have headers, and return how many bytes the last one's took."""
        header_bytes, self._header_bytes = self._header_bytes, 0
        return header_bytes

    def check_pax_records(self, size: int, *, are_global: bool) -> None:
        """Check, before tarfile reads them, that ``size`` bytes of sound pax records follow."""
        start = self._position
        self._global_header_bytes += size if are_global else 0
        if self._global_header_bytes > MAX_GLOBAL_HEADER_BYTES:
            raise _damaged(start, f"global headers take over {MAX_GLOBAL_HEADER_BYTES:,} bytes")
        records = self.read(-(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        _check_pax_records(records, start)
        self._given_back = records
        self._position = start
        self._header_bytes -= len(records)

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        start = self._position
        self._header_bytes += size
        if size < 0 or self._header_bytes > MAX_HEADER_BYTES:
            raise _damaged(start, f"a member's headers take over {MAX_HEADER_BYTES:,} bytes")
        data = self.take(size)
        if len(data) < size:
            raise ArchiveError("not a tar archive") if start == 0 else self._ends_early()
        return data

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, or what is left of them at the end."""
        data, self._given_back = self._given_back[:size], self._given_back[size:]
        if not data:
            try:
                data = self._buffered.read(size)
            except Exception as error:
                self.failure = error
                raise
        self._position += len(data)
        return data

    def take_exactly(self, size: int) -> Iterator[bytes]:
        while size > 0:
            data = self.take(min(size, BLOCK_BYTES))
            if not data:
                raise self._ends_early()
            size -= len(data)
            yield data

    def seek(self, position: int) -> None:
        """Skip forward to ``position``."""
        for _ in self.take_exactly(position - self._position):
            pass

    def check_end(self) -> None:
        """Check the second of the two blocks of zeros that end an archive; some tars write one."""
        start = self._position
        if self.take(tarfile.BLOCKSIZE).strip(b"\0"):
            raise _damaged(start, "after only one block of zeros there is more")

    def _ends_early(self) -> ArchiveError:
        return ArchiveError(f"the archive ends early, after byte {self._position:,}")


def _check_pax_records(data: bytes, start: int) -> None:
    # tarfile before 3.11.10 and 3.12.6 takes quadratic time and memory over records that overlap,
    # and over long runs of digits.
    position = 0
    while position < len(data) and data[position] != 0:
        match = _PAX_RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or match.end() >= end or data[end - 1 : end] != b"\n":
            break
        position = end
    else:
        if not _MANY_DIGITS.search(data):
            return
    raise _damaged(start + position, "a bad pax header")


class _Header(tarfile.TarInfo):
    """tarfile's header parser, except that a bad header is an error and not the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        stream = cast(_TarStream, archive.fileobj)
        start = stream.tell()
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except (tarfile.HeaderError, ValueError, IndexError, RecursionError) as error:
            if error is stream.failure:
                raise
            if start == 0 and isinstance(error, tarfile.InvalidHeaderError):  # type: ignore[attr-defined]
                raise ArchiveError("not a tar archive") from error
            raise _damaged(start, str(error)) from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # All versions of tarfile come through here between a header and what belongs to it.
        if self.size < 0:
            raise ValueError("a negative size")
        if self.type in _PAX_TYPES:
            stream = cast(_TarStream, archive.fileobj)
            stream.check_pax_records(self.size, are_global=self.type == tarfile.XGLTYPE)
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


class _Tree:
    """What has been written below the directory; nothing else is trusted to be there."""

    def __init__(self, directory: Path, stream: _TarStream) -> None:
        self.members: dict[str, UnpackedMember] = {}
        self._root = str(directory)
        self._stream = stream
        self._directories = {""}  # all made here, hence none of them a link

    def add(self, path: str, member: tarfile.TarInfo, stored_bytes: int) -> None:
        _check_name(path, member)
        if member.isdir():
            self._make_directories(path, member)
            return
        self._make_directories(path.rpartition("/")[0], member)
        if path in self._directories:
            raise ArchiveError(f"{_named(member)} would replace a directory")
        if member.isreg():
            extents = _extents(member, stored_bytes)
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
                    f"{_named(member)} is a hard link to {member.linkname!r:.200}, "
                    "which is not another file unpacked before it"
                )
            self._make_way(path)
            with _blaming(member):
                os.link(self._on_disk(original.path), self._on_disk(path), follow_symlinks=False)
            self.members[path] = replace(original, path=path)
        else:
            raise ArchiveError(f"{_named(member)} is a device, a FIFO or another special file")

    def _on_disk(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_way(self, path: str) -> None:
        if self.members.pop(path, None):
            os.unlink(self._on_disk(path))

    def _make_directories(self, path: str, member: tarfile.TarInfo) -> None:
        missing = []
        while path not in self._directories:
            missing.append(path)
            path = path.rpartition("/")[0]
        for path in reversed(missing):
            if path in self.members:
                problem = f"needs a directory {path!r:.200}, which is a file or link"
                raise ArchiveError(f"{_named(member)} {problem}")
            with _blaming(member):
                os.mkdir(self._on_disk(path))
            os.chmod(self._on_disk(path), 0o755)  # whatever the umask
            self._directories.add(path)

    def _write_file(
        self, path: str, member: tarfile.TarInfo, extents: list[tuple[int, int]]
    ) -> int:
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


def _extents(member: tarfile.TarInfo, stored_bytes: int) -> list[tuple[int, int]]:
    """Return where the stored bytes go in the file: (offset, length) in order, holes between."""
    sparse = cast(list[tuple[int, int]] | None, member.sparse)
    extents = [(0, member.size)] if sparse is None else [e for e in sparse if e[1] != 0]
    end = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise ArchiveError(f"{_named(member)} is damaged: its sparse map is out of order")
        end = offset + length
    unused_bytes = stored_bytes - sum(length for _, length in extents)
    if (
        end > member.size
        or unused_bytes < 0
        or (sparse is None and unused_bytes >= tarfile.BLOCKSIZE)
    ):
        raise ArchiveError(f"{_named(member)} is damaged: its sizes contradict each other")
    return extents


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment not in ("", ".")]


def _path(name: str) -> str:
    return ("/" if name.startswith("/") else "") + "/".join(_segments(name))


def _named(member: tarfile.TarInfo) -> str:
    return f"the archive's member {member.name!r:.200}"


def _damaged(position: int, problem: str) -> ArchiveError:
    return ArchiveError(f"the archive is damaged at byte {position:,}: {problem}")


def _check_name(path: str, member: tarfile.TarInfo) -> None:
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
    raise ArchiveError(f"{_named(member)} {problem}")


def _check_symbolic_link(path: str, member: tarfile.TarInfo) -> None:
    # Every link's own directory is real, so what its leading '..' mean can be told from its path,
    # and whatever other links it goes through start and stay below the root for the same reason.
    target = member.linkname
    segments = _segments(target)
    climbs = next((i for i, segment in enumerate(segments) if segment != ".."), len(segments))
    leads_out = target.startswith("/") or ".." in segments[climbs:] or climbs > path.count("/")
    if target == "" or leads_out or _CONTROL_OR_NOT_UTF8.search(target):
        problem = "links out of the tree" if leads_out else "has a malformed link"
        raise ArchiveError(f"{_named(member)} {problem}: {target!r:.200}")


@contextmanager
def _blaming(member: tarfile.TarInfo) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NAME_ERRORS:
            raise ArchiveError(f"{_named(member)} cannot be made: {error.strerror}") from error
        raise
