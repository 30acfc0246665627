"""The central directory of a zip archive, strictly read.

The file's last bytes, the *end record*, say where the directory is; where numbers get large, a
zip64 end record before it does. The directory alone is believed: what local headers say of the
members may differ, and is not even looked at (PKWARE's APPNOTE, sections 4.3 to 4.5).

Nothing is guessed. All numbers have to agree, everything has to be where it is said to be, and no
two things in one place: what two programs could take for two different archives is refused.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from artifacts.errors import ArchiveError
from artifacts.unpack_limits import UnpackUsage

MAX_DIRECTORY_BYTES = 2**26  # with all comments and extra fields; it is kept in memory
LOCAL_HEADER_BYTES = 30  # before its name and extra field

_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END_SIGNATURE, _ENTRY_SIGNATURE = b"PK\5\6", b"PK\1\2"
_ZIP64_END_SIGNATURE, _ZIP64_LOCATOR_SIGNATURE = b"PK\6\6", b"PK\6\7"
_MAX_COMMENT_BYTES = 2**16 - 1
_MAX_TAIL_BYTES = _ZIP64_END.size + _ZIP64_LOCATOR.size + _END.size + _MAX_COMMENT_BYTES
# A number that is all ones stands in a zip64 record instead.
_ONES_16, _ONES_32 = 2**16 - 1, 2**32 - 1
_ZIP64, _TIMESTAMP, _UNICODE_PATH = 0x0001, 0x5455, 0x7075
_EXTRA_KINDS = {_ZIP64, _TIMESTAMP, _UNICODE_PATH}
_NAME_IS_UTF8, _NAME_IS_MASKED = 1 << 11, 1 << 13
_UNIXES = {3, 19}


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A member as the directory describes it, none of which is to be trusted.

    Attributes:
        name: with a slash at the end for a directory.
        flags: the general purpose bits.
        method: what it is compressed by, as a number.
        crc32: of its bytes, unpacked.
        stored_bytes: how many bytes it takes in the archive, without its local header.
        size: in bytes, unpacked.
        offset: where its local header is in the archive.
        stop: where the next header, or the directory, begins.
        unix_mode: type and permissions if it was made on a Unix, else 0.
        modified_at: seconds since 1970; 0 where the archive does not say.
    """

    name: str
    flags: int
    method: int
    crc32: int
    stored_bytes: int
    size: int
    offset: int
    stop: int
    unix_mode: int
    modified_at: float

    def __str__(self) -> str:
        return f"the archive's member {self.name!r:.200}"


class _Record(NamedTuple):
    """The numbers of an entry, as they stand in the directory, but zip64's put in."""

    signature: bytes
    made_by: int
    version_needed: int
    flags: int
    method: int
    time: int
    date: int
    crc32: int
    stored_bytes: int
    size: int
    name_bytes: int
    extra_bytes: int
    comment_bytes: int
    disk: int
    internal_attributes: int
    external_attributes: int
    offset: int


class _Place(NamedTuple):
    """Where an end record says that the directory is, and how many entries it has."""

    entries: int
    start: int
    stop: int


class ZipDirectory:
    """The entries of an archive, to be iterated over in the order of their offsets.

    Iterating raises ArchiveError where two overlap. An entry is parsed when its turn comes: a
    million of them at once would take much memory.
    """

    def __init__(self, data: bytes, start: int, count: int, usage: UnpackUsage) -> None:
        """Check that ``data``, which is at ``start`` in the archive, is ``count`` entries.

        All their sizes are added to ``usage``. Raises ArchiveError.
        """
        self._data = data
        self._start = start
        # Of each entry: where its local header is in the archive, and where it is itself in data.
        self._offsets, self._positions = array("Q"), array("Q")
        position = 0
        for _ in range(count):
            record = self._record(position)
            usage.add_bytes(record.size)
            self._offsets.append(record.offset)
            self._positions.append(position)
            position = _end(position, record)
        if position != len(data):
            raise self._damaged(position, f"there is more than the {count:,} entries that it says")

    @classmethod
    def read(cls, reader: io.BufferedIOBase, usage: UnpackUsage) -> ZipDirectory:
        """Read the directory of the archive that is all of ``reader``, which can seek.

        Raises:
            ArchiveError: there is none, or more than one, or it is not sound, or over a limit.
        """
        size = reader.seek(0, os.SEEK_END)
        tail_start = max(0, size - _MAX_TAIL_BYTES)
        place = _find_directory(read_at(reader, tail_start, size - tail_start), tail_start)
        usage.add_members(place.entries)
        if place.stop - place.start > MAX_DIRECTORY_BYTES:
            raise ArchiveError(f"the archive's directory takes over {MAX_DIRECTORY_BYTES:,} bytes")
        data = read_at(reader, place.start, place.stop - place.start)
        return cls(data, place.start, place.entries, usage)

    def __iter__(self) -> Iterator[ZipEntry]:
        in_order = sorted(range(len(self._offsets)), key=self._offsets.__getitem__)
        stops = [*(self._offsets[index] for index in in_order[1:]), self._start]
        for index, stop in zip(in_order, stops, strict=False):
            yield self._entry(self._positions[index], stop)

    def _entry(self, position: int, stop: int) -> ZipEntry:
        record = self._record(position)
        name, extra = self._name_and_extra(position, record)
        entry = ZipEntry(
            _decode_name(record, name, extra.get(_UNICODE_PATH, b"")),
            record.flags,
            record.method,
            record.crc32,
            record.stored_bytes,
            record.size,
            record.offset,
            stop,
            record.external_attributes >> 16 if _is_of_unix(record) else 0,
            _modified_at(record, extra.get(_TIMESTAMP, b"")),
        )
        if entry.offset + LOCAL_HEADER_BYTES + entry.stored_bytes > stop:
            raise ArchiveError(f"{entry} overlaps with what is behind it: the archive is damaged")
        return entry

    def _record(self, position: int) -> _Record:
        if position + _ENTRY.size > len(self._data):
            raise self._damaged(position, "it has fewer entries than it says")
        record = _Record._make(_ENTRY.unpack_from(self._data, position))
        if record.signature != _ENTRY_SIGNATURE or _end(position, record) > len(self._data):
            raise self._damaged(position, "there is no entry")
        if record.flags & _NAME_IS_MASKED:
            raise ArchiveError("the archive's directory is encrypted")
        numbers = (record.size, record.stored_bytes, record.offset)
        if record.disk == _ONES_16 or _ONES_32 in numbers:
            _, extra = self._name_and_extra(position, record)
            try:
                record = _with_zip64(record, extra.get(_ZIP64, b""))
            except struct.error as error:
                raise self._damaged(position, "an entry lacks its zip64 numbers") from error
        if record.disk != 0:
            raise _in_parts()
        return record

    def _name_and_extra(self, position: int, record: _Record) -> tuple[bytes, dict[int, bytes]]:
        """Return an entry's name, and its extra fields by their kind."""
        position += _ENTRY.size
        name = self._data[position : position + record.name_bytes]
        position += record.name_bytes
        stop = position + record.extra_bytes
        fields: dict[int, bytes] = {}
        while position + 4 <= stop:
            kind, length = struct.unpack_from("<2H", self._data, position)
            position += 4 + length
            if position > stop or kind in fields:
                raise self._damaged(position, "a bad extra field")
            if kind in _EXTRA_KINDS:  # of others there may be several, as padding
                fields[kind] = self._data[position - length : position]
        return name, fields

    def _damaged(self, position: int, problem: str) -> ArchiveError:
        return ArchiveError(
            f"the archive's directory is damaged at byte {self._start + position:,}: {problem}"
        )


def read_at(reader: io.BufferedIOBase, position: int, count: int) -> bytes:
    """Return ``count`` bytes; raise ArchiveError where there are fewer."""
    reader.seek(position)
    data = reader.read(count)
    if len(data) < count:
        raise ArchiveError(f"the archive ends early, after byte {position + len(data):,}")
    return data


def _find_directory(tail: bytes, tail_start: int) -> _Place:
    """Return what the end record in ``tail``, the file's last bytes, says."""
    places: list[_Place] = []
    refusal = ArchiveError("the archive ends early: it has no directory at its end")
    position = tail.find(_END_SIGNATURE)
    while position >= 0:
        if position + _END.size <= len(tail):
            *_, comment_bytes = _END.unpack_from(tail, position)
            if position + _END.size + comment_bytes == len(tail):
                try:
                    places.append(_read_end(tail, tail_start, position))
                except ArchiveError as error:
                    refusal = error
        position = tail.find(_END_SIGNATURE, position + 1)
    if len(places) > 1:
        # One of them is in the other's comment, and programs differ on which of them counts.
        raise ArchiveError("the archive has two directories: which one is meant cannot be told")
    if not places:
        raise refusal
    return places[0]


def _read_end(tail: bytes, tail_start: int, position: int) -> _Place:
    _, disk, first_disk, entries_here, entries, size, start, _ = _END.unpack_from(tail, position)
    stop = tail_start + position
    locator_at = position - _ZIP64_LOCATOR.size
    if locator_at >= 0 and tail.startswith(_ZIP64_LOCATOR_SIGNATURE, locator_at):
        record_at = locator_at - _ZIP64_END.size
        narrow = (disk, first_disk, entries_here, entries, size, start)
        wide = _read_zip64_end(tail, tail_start, record_at)
        ones = (_ONES_16,) * 4 + (_ONES_32,) * 2
        if any(n not in (w, one) for n, w, one in zip(narrow, wide, ones, strict=True)):
            raise ArchiveError("the archive is damaged: its two end records contradict each other")
        disk, first_disk, entries_here, entries, size, start = wide
        stop = tail_start + record_at
    if disk or first_disk or entries_here != entries:
        raise _in_parts()
    if start + size != stop:
        raise ArchiveError(
            f"the archive is damaged: its directory ends at byte {start + size:,}, "
            f"but what belongs behind it begins at byte {stop:,}"
        )
    return _Place(entries, start, stop)


def _read_zip64_end(tail: bytes, tail_start: int, position: int) -> tuple[int, ...]:
    """Return the numbers of the zip64 end record at ``position``; its locator is behind it."""
    if position >= 0 and tail.startswith(_ZIP64_END_SIGNATURE, position):
        _, length, _, _, *numbers = _ZIP64_END.unpack_from(tail, position)
        _, disk, offset, disks = _ZIP64_LOCATOR.unpack_from(tail, position + _ZIP64_END.size)
        if disk or disks > 1:
            raise _in_parts()
        if offset == tail_start + position and length == _ZIP64_END.size - 12:
            return tuple(numbers)
    raise ArchiveError("the archive is damaged: its zip64 end record is not where it should be")


def _in_parts() -> ArchiveError:
    return ArchiveError("the archive is one part of several: such archives cannot be unpacked")


def _end(position: int, record: _Record) -> int:
    names_bytes = record.name_bytes + record.extra_bytes + record.comment_bytes
    return position + _ENTRY.size + names_bytes


def _is_of_unix(record: _Record) -> bool:
    return record.made_by >> 8 in _UNIXES


def _with_zip64(record: _Record, field: bytes) -> _Record:
    """Put in the numbers that a zip64 extra field has; struct.error where it does not."""
    numbers = [record.size, record.stored_bytes, record.offset]
    position = 0
    for index, number in enumerate(numbers):
        if number == _ONES_32:
            (numbers[index],) = struct.unpack_from("<Q", field, position)
            position += 8
    size, stored_bytes, offset = numbers
    disk = record.disk
    if disk == _ONES_16:
        (disk,) = struct.unpack_from("<L", field, position)
    return record._replace(size=size, stored_bytes=stored_bytes, offset=offset, disk=disk)


def _decode_name(record: _Record, name: bytes, unicode_path: bytes) -> str:
    if record.flags & _NAME_IS_UTF8:
        return name.decode("utf-8", "surrogateescape")
    # Info-ZIP's field holds as long as nobody has changed the name itself without it.
    if unicode_path[:5] == b"\1" + struct.pack("<L", zlib.crc32(name)):
        return unicode_path[5:].decode("utf-8", "surrogateescape")
    if _is_of_unix(record):
        # The program zip takes names as they are there, and does not say what they are.
        with suppress(UnicodeDecodeError):
            return name.decode("utf-8")
    return name.decode("cp437")


def _modified_at(record: _Record, timestamp: bytes) -> float:
    if len(timestamp) >= 5 and timestamp[0] & 1:
        (seconds,) = struct.unpack_from("<l", timestamp, 1)
        return float(seconds)
    date, time = record.date, record.time
    try:
        return datetime(
            *(1980 + (date >> 9), date >> 5 & 15, date & 31),
            *(time >> 11, time >> 5 & 63, (time & 31) * 2),
            tzinfo=UTC,
        ).timestamp()
    except ValueError:
        return 0.0
