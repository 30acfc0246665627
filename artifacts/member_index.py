"""The members of an archive file: where each is, and which one a path leads to.

Paths are those at which `unpack` would publish the members; what it would not publish, because its
name is not safe, is left out. Of members of one path the last counts in a tar archive; a zip
archive may not have such. Nothing is written: an index is made of headers alone.
"""

from __future__ import annotations

import enum
import io
import stat
from dataclasses import dataclass, field, replace

from artifacts.archive_url import MAX_PATH_CHARACTERS
from artifacts.decompress import MAGIC_BYTES, decompressed, is_compressed
from artifacts.errors import ArchiveError, NotFound
from artifacts.tar_stream import TarMember, TarStream
from artifacts.tree_writer import path_of, problem_of_name
from artifacts.unpack_limits import UnpackLimits, UnpackUsage
from artifacts.unpack_tar import count_member, count_rest, extents_of
from artifacts.unpack_zip import ZIP_MAGICS, buffered_reader, has_backslash, kind_of
from artifacts.zip_directory import ZipDirectory, ZipEntry

MAX_NAME_CHARACTERS = 2**27  # of all members together; they are kept in memory
_MEMBER_BYTES = 400  # what one takes in memory, roughly, without its path
_MAX_LINKS = 40  # that one path may go through, as Linux has it
_HEADER_READ_BYTES = 2**14  # a member's headers rarely take more; what follows may be skipped


class Form(enum.Enum):
    """How the bytes of a member stand in an archive."""

    TAR = enum.auto()
    COMPRESSED_TAR = enum.auto()
    ZIP = enum.auto()


class Kind(enum.Enum):
    FILE = enum.auto()
    SPARSE_FILE = enum.auto()
    LINK = enum.auto()  # a symbolic one; a hard link is the file that it stands for
    DIRECTORY = enum.auto()
    OTHER = enum.auto()  # a device, a FIFO, a hard link to nothing


_FILES = frozenset({Kind.FILE, Kind.SPARSE_FILE})


@dataclass(frozen=True, slots=True)
class Member:
    """A member as the archive describes it, none of which is to be trusted but the path.

    Attributes:
        size: in bytes, unpacked.
        modified_at: seconds since 1970; any number.
        start: where it begins in the archive, decompressed if it is a compressed tar archive: the
            bytes of a file; the headers of a sparse file, or of a member of a zip archive.
        link: where a symbolic link leads; None while that has not been read.
        entry: what the directory of a zip archive says of it.
    """

    path: str
    kind: Kind
    size: int
    modified_at: float
    start: int
    link: str | None = None
    entry: ZipEntry | None = None

    @property
    def stretch(self) -> tuple[int, int] | None:
        """Where in the archive it begins and ends; None where that is not known beforehand."""
        if self.entry is not None:
            return self.entry.offset, self.entry.stop
        return (self.start, self.start + self.size) if self.kind is Kind.FILE else None


@dataclass
class MemberIndex:
    """The members of one archive file, by path."""

    form: Form
    members: dict[str, Member] = field(default_factory=dict)
    name_characters: int = 0

    @property
    def memory_bytes(self) -> int:
        """What it takes in memory, roughly."""
        return self.name_characters + len(self.members) * _MEMBER_BYTES

    def add(self, member: Member) -> None:
        self.name_characters += len(member.path) + len(member.link or "")
        if self.name_characters > MAX_NAME_CHARACTERS:
            raise ArchiveError(
                f"the names of the archive's members take over {MAX_NAME_CHARACTERS:,} characters"
            )
        self.members[member.path] = member

    def paths(self) -> list[str]:
        """Return the paths of files and links, sorted."""
        listed = {*_FILES, Kind.LINK}
        return sorted(path for path, member in self.members.items() if member.kind in listed)

    def find(self, path: str) -> Member:
        """Return the file that ``path`` leads to, symbolic links followed.

        Or else a link whose ``link`` is None: where it leads is to be put into ``members`` first.

        Raises:
            NotFound: it leads to no file, or out of the archive.
        """
        ahead = path.split("/")[::-1]
        here: list[str] = []
        member: Member | None = None
        links = 0
        while ahead:
            segment = ahead.pop()
            if segment in ("", "."):
                continue
            if segment == "..":
                if not here:
                    raise NotFound(f"{path!r:.200} is a link that leads out of the archive")
                here.pop()
                continue
            here.append(segment)
            member = self.members.get("/".join(here))
            if member is None or member.kind is not Kind.LINK:
                continue
            if member.link is None:
                return member
            links += 1
            if links > _MAX_LINKS or len(member.link) > MAX_PATH_CHARACTERS:
                raise NotFound(f"{path!r:.200} is a link that leads round and round, or too far")
            if member.link.startswith("/"):
                raise NotFound(f"{path!r:.200} is a link that leads out of the archive")
            here.pop()
            ahead += member.link.split("/")[::-1]
        member = self.members.get("/".join(here))
        if not here or (member is not None and member.kind is Kind.DIRECTORY):
            raise NotFound(f"{path!r:.200} is a directory")
        if member is None:
            raise NotFound(f"there is no {path!r:.200} in it")
        if member.kind is Kind.OTHER:
            raise NotFound(f"{path!r:.200} is not a file, but a device or a hard link to nothing")
        return member


def form_of(reader: io.RawIOBase) -> Form:
    """Tell by its first bytes which kind of archive ``reader``, at its start, would have to be."""
    head = b""
    while len(head) < MAGIC_BYTES and (more := reader.read(MAGIC_BYTES - len(head))):
        head += more
    reader.seek(0)
    if head.startswith(ZIP_MAGICS):
        return Form.ZIP
    return Form.COMPRESSED_TAR if is_compressed(head) else Form.TAR


def read_index(reader: io.RawIOBase, form: Form, limits: UnpackLimits) -> MemberIndex:
    """Read the headers of the archive that is all of ``reader``, which can seek; as `unpack`.

    Of a tar archive that is not compressed, and of a zip archive, only headers are read.

    Raises:
        ArchiveError: it is no archive, ends early, is damaged, or exceeds a limit.
        OSError: reading fails. What else ``reader`` raises comes through unchanged, too.
    """
    usage, index = UnpackUsage(limits), MemberIndex(form)
    if form is Form.ZIP:
        with buffered_reader(reader) as buffered:
            _add_entries(index, ZipDirectory.read(buffered, usage))
    elif form is Form.TAR:
        _add_members(index, TarStream(reader, _HEADER_READ_BYTES), usage)
    else:
        with decompressed(reader) as plain:
            stream = TarStream(plain)
            _add_members(index, stream, usage)
            count_rest(stream, usage)
    return index


def _add_members(index: MemberIndex, stream: TarStream, usage: UnpackUsage) -> None:
    for found in stream.members():
        count_member(found, usage)
        path = path_of(found.name)
        if problem_of_name(path, found.name) is None:
            index.add(_tar_member(index, path, found))


def _tar_member(index: MemberIndex, path: str, found: TarMember) -> Member:
    kind, start, link = Kind.OTHER, found.offset_data, None
    if found.isreg():
        extents_of(found)
        is_sparse = found.sparse is not None
        kind, start = (Kind.SPARSE_FILE, found.offset) if is_sparse else (Kind.FILE, start)
    elif found.isdir():
        kind = Kind.DIRECTORY
    elif found.issym():
        kind, link = Kind.LINK, found.linkname
    elif found.islnk():
        # What it stands for is what is there by now, whatever takes that one's place later.
        original = index.members.get(path_of(found.linkname))
        if original is not None and original.kind in _FILES:
            return replace(original, path=path)
    return Member(path, kind, found.size, found.mtime, start, link)


def _add_entries(index: MemberIndex, directory: ZipDirectory) -> None:
    kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFLNK: Kind.LINK, stat.S_IFDIR: Kind.DIRECTORY}
    for entry in directory:
        path = path_of(entry.name)
        if problem_of_name(path, entry.name) is None and not has_backslash(entry):
            if path in index.members:
                raise ArchiveError(f"{entry} is there twice")
            kind = kinds.get(kind_of(entry), Kind.OTHER)
            index.add(Member(path, kind, entry.size, entry.modified_at, entry.offset, entry=entry))
