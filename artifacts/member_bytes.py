"""The bytes of one member, wherever and however they stand in their archive."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator

from artifacts.decompress import BLOCK_BYTES, decompressed
from artifacts.errors import ArchiveError
from artifacts.member_index import Form, Kind, Member
from artifacts.tar_stream import TarStream
from artifacts.unpack_tar import extents_of
from artifacts.unpack_zip import buffered_reader, content_of, link_target


def blocks_of(
    reader: io.RawIOBase, form: Form, member: Member
) -> Generator[tuple[int, bytes], None, None]:
    """Yield the bytes of a file in blocks, each with its offset in the file, in ascending order.

    What no block has is zeros. Whoever does not take all of them closes the generator. ``reader``
    is that of the archive whose index has ``member``.

    Raises:
        ArchiveError: the archive ends early, is damaged, or the member is encrypted or compressed
            in an unknown way. What was yielded is void then.
        OSError: reading fails. What else ``reader`` raises comes through unchanged, too.
    """
    if form is Form.COMPRESSED_TAR:
        with decompressed(reader) as plain:
            _skip(plain, member.start)
            yield from _of_tar(plain, member)
    elif form is Form.TAR:
        reader.seek(member.start)
        yield from _of_tar(reader, member)
    else:
        assert member.entry is not None
        with buffered_reader(reader) as buffered:
            yield from _numbered(content_of(buffered, member.entry))


def read_link(reader: io.RawIOBase, member: Member) -> str:
    """Return where a symbolic link of a zip archive leads, unchecked; raises as ``blocks_of``."""
    assert member.entry is not None
    with buffered_reader(reader) as buffered:
        return link_target(buffered, member.entry)


def _of_tar(plain: io.RawIOBase, member: Member) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a file that begins, or whose headers do, where ``plain`` stands."""
    if member.kind is Kind.FILE:
        yield from _numbered(_taken(plain, member.size))
        return
    stream = TarStream(plain)
    found = next(stream.members(), None)
    if found is None or found.size != member.size:
        raise ArchiveError(f"{member.path!r:.200} is not where it was in the archive")
    for offset, length in extents_of(found):
        for block in stream.take_exactly(length):
            yield offset, block
            offset += len(block)


def _numbered(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    offset = 0
    for block in blocks:
        yield offset, block
        offset += len(block)


def _skip(plain: io.RawIOBase, count: int) -> None:
    for _ in _taken(plain, count):
        pass


def _taken(plain: io.RawIOBase, count: int) -> Iterator[bytes]:
    while count > 0:
        block = plain.read(min(count, BLOCK_BYTES))
        if not block:
            raise ArchiveError("the archive ends early")
        count -= len(block)
        yield block
