"""What tests of unpacking share: archives to unpack, and what there is to say of the outcome."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from hypothesis import strategies as st

from artifacts.decompress import zstd
from artifacts.errors import ArchiveError
from artifacts.extract import unpack
from artifacts.tree_writer import UnpackedMember
from artifacts.unpack_limits import UnpackLimits

MIB = 2**20
Member = tuple[tarfile.TarInfo, bytes]
Edit = tuple[list[tuple[int, int]], int | None]  # bytes to flip, length to cut to
Compress = Callable[[bytes], bytes]

COMPRESSIONS: dict[str, Compress] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


class Stream(io.RawIOBase):
    """Bytes as they come from a network: a few at a time, once, and perhaps with an accident."""

    def __init__(
        self, data: bytes, *, piece_bytes: int = 7001, failure: Exception | None = None
    ) -> None:
        self._data = io.BytesIO(data)
        self._piece_bytes = piece_bytes
        self._failure = failure
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._piece_bytes]
        count = self._data.readinto(view)
        self.bytes_read += count
        if count == 0 and self._failure is not None:
            raise self._failure
        return count


class SeekableStream(Stream):
    """A file that comes from a network, readable anywhere; remembers what was read of it."""

    def __init__(self, data: bytes, **more: Any) -> None:
        super().__init__(data, **more)
        self.reads: list[range] = []

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._data.seek(offset, whence)

    def tell(self) -> int:
        return self._data.tell()

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        count = super().readinto(buffer)
        self.reads.append(range(start, start + count))
        return count


def member(name: str, data: bytes = b"", **fields: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def directory(name: str, **fields: Any) -> Member:
    return member(name, type=tarfile.DIRTYPE, **fields)


def symbolic_link(name: str, target: str, **fields: Any) -> Member:
    return member(name, type=tarfile.SYMTYPE, linkname=target, **fields)


def hard_link(name: str, target: str) -> Member:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar_of(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def unpack_into(
    tree: Path,
    archive: bytes | io.RawIOBase | io.BufferedIOBase,
    *,
    wanted: Callable[[str], bool] = lambda path: True,
    **limits: int,
) -> list[UnpackedMember]:
    reader = Stream(archive) if isinstance(archive, bytes) else archive
    return unpack(reader, tree, wanted=wanted, limits=UnpackLimits(**limits))


def unpacked(path: str, data: bytes) -> UnpackedMember:
    return UnpackedMember(path, len(data), google_crc32c.value(data), None)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def assert_nothing_was_written_outside(tree: Path) -> None:
    assert list(tree.parent.iterdir()) == [tree]
    for path in tree.rglob("*"):
        assert path.resolve().is_relative_to(tree.resolve()), f"{path} leads out"


def assert_refused(
    tree: Path, archive: bytes | io.RawIOBase, words: str, **more: Any
) -> ArchiveError:
    with pytest.raises(ArchiveError, match=words) as refusal:
        unpack_into(tree, archive, **more)
    assert "\n" not in str(refusal.value)
    assert_nothing_was_written_outside(tree)
    return refusal.value


edits = st.tuples(
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), max_size=3),
    st.none() | st.integers(0, 2**20),
)


def edited(archive: bytes, edit: Edit) -> bytes:
    flips, length = edit
    damaged = bytearray(archive)
    for position, bits in flips:
        damaged[position % len(archive)] ^= bits
    return bytes(damaged if length is None else damaged[: length % len(archive)])


def unpack_or_refuse(
    archive: bytes, stream: Callable[[bytes], io.RawIOBase] = Stream
) -> list[UnpackedMember] | None:
    """Unpack; return the members, having checked them, or None where the archive is refused."""
    with tempfile.TemporaryDirectory() as outside:
        tree = Path(outside).resolve() / "tree"
        tree.mkdir()
        try:
            members = unpack_into(tree, stream(archive), max_bytes=MIB)
        except ArchiveError:
            members = None
        assert_nothing_was_written_outside(tree)
        for found in members or []:
            if found.link is not None:
                assert os.readlink(tree / found.path) == found.link
            else:
                assert unpacked(found.path, (tree / found.path).read_bytes()) == found
        return members
