"""Unpacking tar archives as they stream by."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import cast

from artifacts.decompress import BLOCK_BYTES, decompressed
from artifacts.errors import ArchiveError
from artifacts.tar_stream import TarMember, TarStream
from artifacts.tree_writer import Header, TreeWriter, path_of
from artifacts.unpack_limits import UnpackUsage

FREE_HEADER_BYTES = 2**12  # of one member; what is more counts as a member's bytes do


def unpack_tar(
    reader: io.RawIOBase | io.BufferedIOBase,
    tree: TreeWriter,
    *,
    wanted: Callable[[str], bool],
    usage: UnpackUsage,
) -> None:
    """Unpack a tar archive, compressed or not; as ``extract.unpack``."""
    with decompressed(reader) as plain:
        stream = TarStream(plain)
        for member in stream.members():
            count_member(member, usage)
            path = path_of(member.name)
            is_the_root = path == "" and member.name != "" and member.isdir()
            if not is_the_root and wanted(path):
                _add(tree, path, member, stream)
        count_rest(stream, usage)


def count_member(member: TarMember, usage: UnpackUsage) -> None:
    """Add a member to ``usage``; raises ArchiveError over its limits."""
    usage.add_members(1)
    # A sparse file may be the larger of the two in the archive or on disk.
    size = member.size if member.isreg() else 0
    usage.add_bytes(max(size, member.stored_bytes - tarfile.BLOCKSIZE + 1))
    usage.add_bytes(member.header_bytes - FREE_HEADER_BYTES)


def count_rest(stream: TarStream, usage: UnpackUsage) -> None:
    """Read what is behind the last member, to the end, and add it to ``usage``."""
    # A record's padding is free; more of it, or what else follows, counts too.
    stream.take(BLOCK_BYTES)
    while rest := stream.take(BLOCK_BYTES):
        usage.add_bytes(len(rest))


def _add(tree: TreeWriter, path: str, member: TarMember, stream: TarStream) -> None:
    header = Header(member.name, member.mode, member.mtime)
    if member.isdir():
        tree.add_directory(path, header)
    elif member.isreg():
        tree.add_file(path, header, member.size, extents_of(member), stream.take_exactly)
    elif member.issym():
        tree.add_symbolic_link(path, header, member.linkname)
    elif member.islnk():
        tree.add_hard_link(path, header, member.linkname)
    else:
        raise ArchiveError(f"{member} is a device, a FIFO or another special file")


def extents_of(member: TarMember) -> list[tuple[int, int]]:
    """Return where the stored bytes go in the file: (offset, length) in order, holes between.

    Raises:
        ArchiveError: what the headers say of it is contradictory.
    """
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
