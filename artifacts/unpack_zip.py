"""Unpacking zip archives: the directory first, then the members while the file comes."""

from __future__ import annotations

import bz2
import io
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from artifacts.decompress import (
    BLOCK_BYTES,
    DECOMPRESSION_ERRORS,
    READ_AHEAD_BYTES,
    Decompressor,
    open_deflate,
    open_zstd,
)
from artifacts.errors import ArchiveError
from artifacts.tree_writer import Header, TreeWriter, path_of
from artifacts.unpack_limits import UnpackUsage
from artifacts.zip_directory import LOCAL_HEADER_BYTES, ZipDirectory, ZipEntry, read_at

# What a zip archive begins with: a member, or the end record of an empty one.
ZIP_MAGICS = (b"PK\3\4", b"PK\5\6")
_MAX_LINK_BYTES = 4096
_STORED = 0
_DECOMPRESSORS: dict[int, Callable[[], Decompressor]] = {
    8: open_deflate,
    12: bz2.BZ2Decompressor,
    93: open_zstd,
}
_OTHER_METHODS = {6: "implode", 9: "deflate64", 14: "lzma", 95: "xz", 98: "PPMd", 99: "AES"}
_ENCRYPTED = 1 << 0 | 1 << 6  # the old way, and PKWARE's strong one


def unpack_zip(
    reader: io.RawIOBase | io.BufferedIOBase,
    tree: TreeWriter,
    *,
    wanted: Callable[[str], bool],
    usage: UnpackUsage,
) -> None:
    """Unpack the zip archive that is all of ``reader``, which can seek; as ``extract.unpack``.

    Members are unpacked in the order in which they are in the archive. Nothing is read of those
    that are not wanted.
    """
    with buffered_reader(reader) as buffered:
        seen = set()
        for entry in ZipDirectory.read(buffered, usage):
            path = path_of(entry.name)
            is_the_root = path == "" and entry.name.endswith("/")
            if is_the_root or not wanted(path):
                continue
            if path in seen:
                raise ArchiveError(f"{entry} is there twice")
            seen.add(path)
            _add(tree, path, entry, buffered)


@contextmanager
def buffered_reader(reader: io.RawIOBase | io.BufferedIOBase) -> Iterator[io.BufferedIOBase]:
    """Lend ``reader`` with a buffer; it is not closed."""
    if isinstance(reader, io.BufferedIOBase):
        yield reader
    else:
        buffered = io.BufferedReader(reader, READ_AHEAD_BYTES)
        try:
            yield buffered
        finally:
            buffered.detach()  # or it would close the reader


def _add(tree: TreeWriter, path: str, entry: ZipEntry, reader: io.BufferedIOBase) -> None:
    if has_backslash(entry):
        raise ArchiveError(f"{entry} has a backslash in its name")
    _check_not_encrypted(entry)
    header = Header(entry.name, stat.S_IMODE(entry.unix_mode), entry.modified_at)
    kind = kind_of(entry)
    if kind == stat.S_IFDIR:
        if entry.size:
            raise ArchiveError(f"{entry} is a directory, but has bytes like a file")
        tree.add_directory(path, header)
    elif kind == stat.S_IFREG:
        extents = [(0, entry.size)]
        tree.add_file(path, header, entry.size, extents, lambda _: content_of(reader, entry))
    elif kind == stat.S_IFLNK:
        tree.add_symbolic_link(path, header, link_target(reader, entry))
    else:
        raise ArchiveError(f"{entry} is a device, a FIFO or another special file")


def has_backslash(entry: ZipEntry) -> bool:
    """Whether its name has what some programs take for a separator."""
    return "\\" in entry.name


def kind_of(entry: ZipEntry) -> int:
    """Return what a member is, as ``stat.S_IFMT`` has it; what does not say is a regular file."""
    if entry.name.endswith("/"):
        return stat.S_IFDIR
    return stat.S_IFMT(entry.unix_mode) or stat.S_IFREG


def link_target(reader: io.BufferedIOBase, entry: ZipEntry) -> str:
    """Return where a symbolic link leads, which is not checked; raise ArchiveError as below."""
    if entry.size > _MAX_LINK_BYTES:
        raise ArchiveError(f"{entry} is a link of over {_MAX_LINK_BYTES:,} bytes")
    return b"".join(content_of(reader, entry)).decode("utf-8", "surrogateescape")


def content_of(reader: io.BufferedIOBase, entry: ZipEntry) -> Iterator[bytes]:
    """Yield the bytes of a member in blocks; raise ArchiveError unless they are those declared."""
    _check_not_encrypted(entry)
    blocks = _stored(reader, entry)
    if not is_stored(entry):
        blocks = _decompressed(blocks, entry)
    size = crc32 = 0
    for block in blocks:
        size += len(block)
        if size > entry.size:
            raise _damaged(entry, f"it unpacks to more than the {entry.size:,} bytes that it says")
        crc32 = zlib.crc32(block, crc32)
        yield block
    if size < entry.size:
        raise _damaged(entry, f"it unpacks to {size:,} bytes instead of {entry.size:,}")
    if crc32 != entry.crc32:
        raise _damaged(entry, f"its CRC-32 is {crc32:08x} instead of {entry.crc32:08x}")


def is_stored(entry: ZipEntry) -> bool:
    """Whether its bytes stand in the archive as they are."""
    return entry.method == _STORED and not entry.flags & _ENCRYPTED


def _check_not_encrypted(entry: ZipEntry) -> None:
    if entry.flags & _ENCRYPTED:
        raise ArchiveError(f"{entry} is encrypted")


def stored_start(reader: io.BufferedIOBase, entry: ZipEntry) -> int:
    """Return where a member's bytes begin in the archive; raise ArchiveError for a bad header."""
    header = read_at(reader, entry.offset, LOCAL_HEADER_BYTES)
    # The rest of it may be wrong, or not be known yet when it was written: the directory counts.
    names_bytes = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = entry.offset + LOCAL_HEADER_BYTES + names_bytes
    if not header.startswith(ZIP_MAGICS[0]) or start + entry.stored_bytes > entry.stop:
        raise _damaged(entry, "it is not where the directory says")
    return start


def _stored(reader: io.BufferedIOBase, entry: ZipEntry) -> Iterator[bytes]:
    reader.seek(stored_start(reader, entry))
    left = entry.stored_bytes
    while left > 0:
        block = reader.read(min(left, BLOCK_BYTES))
        if not block:
            raise ArchiveError(f"{entry} ends early: the archive is cut off")
        left -= len(block)
        yield block


def _decompressed(blocks: Iterator[bytes], entry: ZipEntry) -> Iterator[bytes]:
    if entry.method not in _DECOMPRESSORS:
        name = _OTHER_METHODS.get(entry.method, "unknown")
        method = f"method {entry.method} ({name})"
        raise ArchiveError(f"{entry} is compressed by {method}, which cannot be unpacked here")
    decompressor = _DECOMPRESSORS[entry.method]()
    while not decompressor.eof:
        data = next(blocks, b"") if decompressor.needs_input else b""
        if decompressor.needs_input and not data:
            raise _damaged(entry, "its compressed data is cut off")
        try:
            output = decompressor.decompress(data, BLOCK_BYTES)
        except DECOMPRESSION_ERRORS as error:
            raise _damaged(entry, str(error)) from error
        if output:
            yield output
    if decompressor.unused_data or next(blocks, b""):
        raise _damaged(entry, "there is more behind its compressed data")


def _damaged(entry: ZipEntry, problem: str) -> ArchiveError:
    return ArchiveError(f"{entry} is damaged: {problem}")
