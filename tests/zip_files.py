"""Zip archives made byte by byte, for tests: also such as no honest program would write."""

from __future__ import annotations

import stat
import struct
import zlib
from dataclasses import dataclass
from typing import Any

ONES_16, ONES_32 = 2**16 - 1, 2**32 - 1
UNIX, DOS = 3, 0


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


@dataclass(kw_only=True)
class Zipped:
    """One member; what is None is told truly. ``local_…`` is what its local header says instead."""

    name: bytes | str
    data: bytes = b""
    method: int = 0
    stored: bytes | None = None  # the data as it is in the archive
    mode: int = 0
    system: int = UNIX
    flags: int = 0
    crc32: int | None = None
    size: int | None = None
    stored_bytes: int | None = None
    offset: int | None = None
    disk: int = 0
    date: int = 0
    time: int = 0
    extra: bytes = b""
    comment: bytes = b""
    signature: bytes = b"PK\1\2"
    local_name: bytes | None = None
    local_numbers: tuple[int, int, int] | None = None  # CRC-32, bytes stored, size
    local_extra: bytes = b""
    local_signature: bytes = b"PK\3\4"
    gap: bytes = b""  # what stands before it in the archive

    @property
    def name_bytes(self) -> bytes:
        return self.name.encode() if isinstance(self.name, str) else self.name

    @property
    def all_flags(self) -> int:
        return self.flags | (1 << 11 if isinstance(self.name, str) else 0)

    @property
    def stored_data(self) -> bytes:
        if self.stored is not None:
            return self.stored
        return deflate(self.data) if self.method == 8 else self.data

    @property
    def numbers(self) -> tuple[int, int, int]:
        crc32 = zlib.crc32(self.data) if self.crc32 is None else self.crc32
        stored_bytes = len(self.stored_data) if self.stored_bytes is None else self.stored_bytes
        return crc32, stored_bytes, len(self.data) if self.size is None else self.size

    def local(self) -> bytes:
        name = self.name_bytes if self.local_name is None else self.local_name
        fields = (20, self.all_flags, self.method, self.time, self.date)
        numbers = self.numbers if self.local_numbers is None else self.local_numbers
        lengths = (len(name), len(self.local_extra))
        header = struct.pack("<4s5H3L2H", self.local_signature, *fields, *numbers, *lengths)
        return header + name + self.local_extra + self.stored_data

    def entry(self, offset: int) -> bytes:
        fields = (self.all_flags, self.method, self.time, self.date)
        lengths = (len(self.name_bytes), len(self.extra), len(self.comment))
        offset = offset if self.offset is None else self.offset
        header = struct.pack(
            "<4s6H3L5H2L",
            *(self.signature, self.system << 8 | 20, 20, *fields, *self.numbers),
            *(*lengths, self.disk, 0, self.mode << 16, offset),
        )
        return header + self.name_bytes + self.extra + self.comment


def link(name: str, target: bytes | str, **more: Any) -> Zipped:
    data = target.encode() if isinstance(target, str) else target
    return Zipped(name=name, data=data, mode=stat.S_IFLNK | 0o777, **more)


def extra_field(kind: int, data: bytes) -> bytes:
    return struct.pack("<2H", kind, len(data)) + data


def end_record(
    entries: int,
    size: int,
    start: int,
    comment: bytes = b"",
    *,
    entries_here: int | None = None,
    disk: int = 0,
    comment_bytes: int | None = None,
) -> bytes:
    here = entries if entries_here is None else entries_here
    length = len(comment) if comment_bytes is None else comment_bytes
    numbers = (disk, disk, here, entries, size, start, length)
    return struct.pack("<4s4H2LH", b"PK\5\6", *numbers) + comment


def zip64_end(
    entries: int, size: int, start: int, *, at: int | None = None, length: int = 44, disks: int = 1
) -> bytes:
    """The zip64 end record, its locator, and an end record that leaves the numbers to it."""
    numbers = (length, 45, 45, 0, 0, entries, entries, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + size if at is None else at, disks)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", *numbers)
    return record + locator + end_record(ONES_16, ONES_32, ONES_32)


def zip_parts(*members: Zipped) -> tuple[bytes, bytes]:
    """The members, and the directory."""
    body, directory = b"", b""
    for zipped in members:
        body += zipped.gap
        directory += zipped.entry(len(body))
        body += zipped.local()
    return body, directory


def zip_of(*members: Zipped, comment: bytes = b"", **end: Any) -> bytes:
    """An archive; ``end`` is what the end record says that is not true."""
    body, directory = zip_parts(*members)
    numbers = {"entries": len(members), "size": len(directory), "start": len(body)} | end
    return body + directory + end_record(**numbers, comment=comment)
