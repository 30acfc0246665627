"""Unpacking zip archives: what honest ones come to, and what hostile or broken ones do not."""

from __future__ import annotations

import bz2
import io
import itertools
import os
import stat
import struct
import subprocess
import time
import tracemalloc
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import unpacking
from conftest import missing_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from unpacking import (
    MIB,
    Edit,
    SeekableStream,
    Stream,
    edited,
    edits,
    mode_of,
    unpack_into,
    unpack_or_refuse,
    unpacked,
)
from zip_files import (
    DOS,
    ONES_16,
    ONES_32,
    Zipped,
    deflate,
    end_record,
    extra_field,
    link,
    zip64_end,
    zip_of,
    zip_parts,
)

from artifacts.decompress import zstd
from artifacts.errors import ArchiveError, DevserverError
from artifacts.tree_writer import UnpackedMember

DATA = os.urandom(3 * MIB) + b"a line that comes again and again\n" * 100_000


def unzip_into(tree: Path, archive: bytes, **more: Any) -> list[UnpackedMember]:
    return unpack_into(tree, SeekableStream(archive), **more)


def assert_refused(tree: Path, archive: bytes, words: str, **more: Any) -> ArchiveError:
    return unpacking.assert_refused(tree, SeekableStream(archive), words, **more)


def written(
    *files: tuple[str | zipfile.ZipInfo, bytes], file: io.BytesIO | None = None, **more: Any
) -> bytes:
    """An archive as Python writes it."""
    archive = io.BytesIO() if file is None else file
    with zipfile.ZipFile(archive, "w", **more) as zip_file:
        for name, data in files:
            zip_file.writestr(name, data)
    return archive.getvalue()


# --- honest archives


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2], ids=str
)
def test_an_archive_is_unpacked_whatever_its_method(tree: Path, method: int) -> None:
    archive = written(
        ("build/image.bin", DATA), ("build/empty", b""), ("x", b"x"), compression=method
    )
    assert unzip_into(tree, archive) == [
        unpacked("build/image.bin", DATA),
        unpacked("build/empty", b""),
        unpacked("x", b"x"),
    ]
    assert (tree / "build/image.bin").read_bytes() == DATA


@pytest.mark.parametrize(
    ("method", "stored"),
    [(8, deflate(DATA)), (12, bz2.compress(DATA)), (93, zstd.compress(DATA))],
    ids=["deflate", "bzip2", "zstd"],
)
def test_what_is_compressed_comes_out_whole(tree: Path, method: int, stored: bytes) -> None:
    archive = zip_of(Zipped(name="a", data=DATA, method=method, stored=stored))
    assert unzip_into(tree, archive) == [unpacked("a", DATA)]


class Pipe(io.BytesIO):
    """Like a pipe: what is written to it cannot be corrected afterwards."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation("seek")

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")


def test_an_archive_that_was_written_to_a_pipe_has_its_numbers_in_the_directory(
    tree: Path,
) -> None:
    archive = written(("a", DATA), ("b", b"b"), file=Pipe(), compression=zipfile.ZIP_DEFLATED)
    assert unzip_into(tree, archive) == [unpacked("a", DATA), unpacked("b", b"b")]


@pytest.mark.parametrize("options", [[], ["-fz"], ["-0"], ["-Z", "bzip2"]], ids=str)
def test_what_the_program_zip_packs_is_unpacked(
    tree: Path, tmp_path: Path, options: list[str]
) -> None:
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    (source / "bin").mkdir()
    (source / "bin/tool").write_bytes(DATA[:MIB])
    (source / "bin/tool").chmod(0o4711)
    (source / "bin/naïve.txt").write_bytes(b"text")
    (source / "bin/link").symlink_to("../bin/tool")
    os.utime(source / "bin/tool", (1_700_000_001, 1_700_000_001))
    file = tmp_path / "packed.zip"
    try:
        subprocess.run(
            ["zip", "-r", "-y", "-q", *options, str(file), "."],
            cwd=source,
            check=True,
        )
    except FileNotFoundError:
        missing_tool("zip")
    members = unzip_into(tree, file.read_bytes())
    assert {m.path for m in members} == {"bin/tool", "bin/naïve.txt", "bin/link"}
    assert (tree / "bin/tool").read_bytes() == DATA[:MIB]
    assert (tree / "bin/tool").stat().st_mtime == 1_700_000_001
    assert mode_of(tree / "bin/tool") == 0o755
    assert os.readlink(tree / "bin/link") == "../bin/tool"
    assert (tree / "empty").is_dir()


def test_an_archive_may_be_read_from_a_file_and_is_not_closed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(written(("a", DATA)))
    for number, buffering in enumerate((0, -1)):
        into = tree / str(number)
        into.mkdir()
        with (tmp_path / "packed").open("rb", buffering=buffering) as file:
            assert unpack_into(into, file) == [unpacked("a", DATA)]
            assert not file.closed
            file.seek(0)


@pytest.mark.parametrize("comment", [b"", b"built by us", b"c" * ONES_16])
def test_an_empty_archive_is_an_archive(tree: Path, comment: bytes) -> None:
    assert unzip_into(tree, zip_of(comment=comment)) == []


@pytest.mark.parametrize("comment", [b"", b"signed", b"PK\5\6", b"PK\5\6" * 16_000])
def test_a_comment_may_follow(tree: Path, comment: bytes) -> None:
    archive = zip_of(Zipped(name="a", data=b"1"), comment=comment)
    assert unzip_into(tree, archive) == [unpacked("a", b"1")]


def test_modes_keep_only_who_may_execute(tree: Path) -> None:
    archive = zip_of(
        Zipped(name="setuid", mode=stat.S_IFREG | 0o7777),
        Zipped(name="secret", mode=stat.S_IFREG | 0o600),
        Zipped(name="without type", mode=0o100),
        Zipped(name="of DOS", mode=0o777, system=DOS),
        Zipped(name="of a Mac", mode=stat.S_IFREG | 0o755, system=19),
    )
    members = unzip_into(tree, archive)
    modes = [mode_of(tree / member.path) for member in members]
    assert modes == [0o755, 0o644, 0o744, 0o644, 0o755]


def test_directories_are_made(tree: Path) -> None:
    archive = zip_of(
        Zipped(name="./"),
        Zipped(name="by slash/", system=DOS),
        Zipped(name="by mode", mode=stat.S_IFDIR | 0o700),
        Zipped(name="deflated/", data=b"", method=8),
        Zipped(name="deep/down/file"),
    )
    assert unzip_into(tree, archive) == [unpacked("deep/down/file", b"")]
    names = {path.name for path in tree.iterdir()}
    assert names == {"by slash", "by mode", "deflated", "deep"}
    assert mode_of(tree / "by mode") == 0o755


def test_symbolic_links_of_a_unix_are_links_and_other_systems_have_none(tree: Path) -> None:
    archive = zip_of(
        link("lib/link", "../a", method=8),
        link("lib/text", "../a", system=DOS),
        link("séance", "naïve"),
    )
    assert unzip_into(tree, archive) == [
        UnpackedMember("lib/link", 0, 0, "../a"),
        unpacked("lib/text", b"../a"),
        UnpackedMember("séance", 0, 0, "naïve"),
    ]
    assert os.readlink(tree / "lib/link") == "../a"


TIMESTAMP = extra_field(0x5455, b"\1" + struct.pack("<l", 1_600_000_001))


@pytest.mark.parametrize(
    ("fields", "modified_at"),
    [
        ({"extra": TIMESTAMP, "date": 99 << 9}, 1_600_000_001),
        ({"extra": extra_field(0x5455, b"\2\0\0\0\0"), "date": 0x21}, 315_532_800),
        ({"extra": extra_field(0x5455, b"\1\0"), "date": 0x21}, 315_532_800),
        ({"date": 40 << 9 | 9 << 5 | 13, "time": 12 << 11 | 26 << 5 | 20}, 1_600_000_000),
        ({"date": 0, "time": 0}, 0),
        ({"date": ONES_16, "time": ONES_16}, 0),
        ({"extra": extra_field(0x5455, b"\1" + struct.pack("<l", -5))}, 0),
    ],
    ids=["extended", "extended without it", "extended, cut", "DOS", "none", "no date", "too early"],
)
def test_times_are_kept(tree: Path, fields: dict[str, Any], modified_at: float) -> None:
    unzip_into(tree, zip_of(Zipped(name="a", **fields), link("b", "a", **fields)))
    assert (tree / "a").stat().st_mtime == (tree / "b").lstat().st_mtime == modified_at


def test_a_time_in_the_future_is_none(tree: Path) -> None:
    unzip_into(tree, zip_of(Zipped(name="a", date=127 << 9 | 0x21)))
    assert (tree / "a").stat().st_mtime <= time.time()


def unicode_path(name: bytes, of: bytes) -> bytes:
    return extra_field(0x7075, b"\1" + struct.pack("<L", zlib.crc32(of)) + name)


@pytest.mark.parametrize(
    ("zipped", "path"),
    [
        (Zipped(name="naïve"), "naïve"),
        (Zipped(name=b"na\x8bve"), "naïve"),
        (Zipped(name="naïve".encode()), "naïve"),
        (Zipped(name="naïve".encode(), system=DOS), "na├»ve"),
        (Zipped(name=b"na_ve", extra=unicode_path("naïve".encode(), b"na_ve")), "naïve"),
        (Zipped(name=b"na_ve", extra=unicode_path("naïve".encode(), b"other")), "na_ve"),
        (Zipped(name=b"na_ve", extra=extra_field(0x7075, b"\2")), "na_ve"),
        (Zipped(name="right", extra=unicode_path(b"wrong", b"right")), "right"),
    ],
    ids=[
        *("UTF-8", "code page 437", "of a Unix", "of DOS"),
        *("Unicode path", "of another name", "malformed", "flag first"),
    ],
)
def test_names_beyond_ascii_are_told_by_flag_or_extra_field(
    tree: Path, zipped: Zipped, path: str
) -> None:
    assert unzip_into(tree, zip_of(zipped)) == [unpacked(path, b"")]


def test_extra_fields_of_no_interest_may_be_padding(tree: Path) -> None:
    archive = zip_of(Zipped(name="a", extra=bytes(4099) + b"", local_extra=bytes(7)))
    assert unzip_into(tree, archive) == [unpacked("a", b"")]


def test_the_directory_is_believed_and_not_the_local_headers(tree: Path) -> None:
    archive = zip_of(
        Zipped(
            name="a", data=b"data" * 99, method=8, local_name=b"../evil", local_numbers=(1, 2, 3)
        ),
        Zipped(name="b", data=b"b", local_numbers=(0, ONES_32, ONES_32), local_extra=b"odd"),
    )
    assert unzip_into(tree, archive) == [unpacked("a", b"data" * 99), unpacked("b", b"b")]


def test_what_the_directory_does_not_name_is_not_there(tree: Path) -> None:
    deleted = Zipped(name="deleted", data=b"deleted").local()
    archive = zip_of(Zipped(name="a", data=b"1", gap=deleted), Zipped(name="b", gap=deleted))
    assert unzip_into(tree, archive) == [unpacked("a", b"1"), unpacked("b", b"")]


def test_members_are_unpacked_in_the_order_of_the_file_which_is_read_once(tree: Path) -> None:
    members = [Zipped(name=f"{n}", data=DATA[: n * 50_000]) for n in range(30)]
    offsets = itertools.accumulate((len(m.local()) for m in members), initial=0)
    directory = b"".join(m.entry(o) for o, m in reversed(list(zip(offsets, members, strict=False))))
    body, _ = zip_parts(*members)
    archive = body + directory + end_record(30, len(directory), len(body))
    stream = SeekableStream(archive)
    unpacked_members = unpack_into(tree, stream)
    assert [m.path for m in unpacked_members] == [f"{n}" for n in range(30)]
    # First the beginning, the end and the directory; then everything in order.
    starts = [read.start for read in stream.reads]
    begin = starts.index(0, 1)
    assert all(start >= len(archive) - 2 * ONES_16 for start in starts[1:begin])
    assert starts[begin:] == sorted(starts[begin:])
    assert stream.bytes_read < len(archive) + 2 * (ONES_16 + 100) + len(directory)


def test_nothing_is_read_of_members_that_are_not_wanted(tree: Path) -> None:
    members = [Zipped(name=f"{n}", data=os.urandom(2 * MIB)) for n in range(5)]
    stream = SeekableStream(zip_of(*members), piece_bytes=MIB)
    found = unpack_into(tree, stream, wanted=lambda path: path == "3")
    assert found == [unpacked("3", members[3].data)]
    assert stream.bytes_read < 3 * MIB
    assert [path.name for path in tree.iterdir()] == ["3"]


def test_unwanted_members_may_be_hostile(tree: Path) -> None:
    archive = zip_of(
        Zipped(name="../evil"),
        Zipped(name="dup"),
        Zipped(name="dup"),
        Zipped(name="encrypted", flags=1),
        Zipped(name="strange", method=77),
        link("link", "/etc"),
        Zipped(name="device", mode=stat.S_IFCHR),
        Zipped(name="good", data=b"1"),
    )
    assert unzip_into(tree, archive, wanted=lambda p: p == "good") == [unpacked("good", b"1")]


def test_zeros_become_holes(tree: Path) -> None:
    data = bytes(8 * MIB) + b"end"
    archive = zip_of(
        Zipped(name="deflated", data=data, method=8),
        Zipped(name="stored", data=data),
    )
    for found in unzip_into(tree, archive):
        assert (tree / found.path).read_bytes() == data
        assert (tree / found.path).stat().st_blocks * 512 < MIB


# --- zip64


def test_numbers_that_are_large_stand_in_zip64_records(tree: Path) -> None:
    wide = {"size": ONES_32, "stored_bytes": ONES_32, "disk": ONES_16, "offset": ONES_32}
    numbers = struct.pack("<3QL", 3, 3, len(Zipped(name="first").local()), 0)
    extra = TIMESTAMP + extra_field(1, numbers)
    body, directory = zip_parts(
        Zipped(name="first"), Zipped(name="a", data=b"abc", extra=extra, **wide)
    )
    archive = body + directory + zip64_end(2, len(directory), len(body))
    assert unzip_into(tree, archive) == [unpacked("first", b""), unpacked("a", b"abc")]


def test_zip64_records_may_be_there_without_need(tree: Path) -> None:
    body, directory = zip_parts(Zipped(name="a", data=b"1", extra=extra_field(1, bytes(16))))
    numbers = (1, len(directory), len(body))
    records = zip64_end(*numbers)[:-22]
    archive = body + directory + records + end_record(*numbers, b"a comment")
    assert unzip_into(tree, archive) == [unpacked("a", b"1")]


def test_there_may_be_more_members_than_two_bytes_can_count(tree: Path) -> None:
    archive = written(*((f"d/{n}", b"") for n in range(66_000)))
    members = unzip_into(tree, archive, wanted=lambda path: path == "d/65999")
    assert members == [unpacked("d/65999", b"")]
    assert_refused(tree, archive, "over 65,999 members", max_members=65_999)


# --- hostile and broken archives

A, B = Zipped(name="a", data=b"a" * 100), Zipped(name="b", data=b"b" * 100)
ENTRIES_BYTES = 2 * 47
BODY, DIRECTORY = zip_parts(A, B)
END = end_record(2, len(DIRECTORY), len(BODY))


def inside(*members: Zipped) -> bytes:
    """A directory and its end record, to stand in a comment behind ``BODY + DIRECTORY + END``."""
    start = len(BODY + DIRECTORY + END)
    directory = b"".join(member.entry(0) for member in members)
    return directory + end_record(len(members), len(directory), start)


HIDDEN = inside(Zipped(name="evil", data=b"a" * 100))

DAMAGED = {
    "no directory": (BODY, "no directory at its end"),
    "no end record": (BODY + DIRECTORY, "no directory at its end"),
    "an end record cut off": (BODY + DIRECTORY + END[:-1], "no directory at its end"),
    "something behind the end": (zip_of(A, B) + b"\0", "no directory at its end"),
    "a comment cut off": (zip_of(A, comment=b"comment")[:-1], "no directory at its end"),
    "fewer entries than it says": (zip_of(A, B, entries=3), "fewer entries than it says"),
    "more entries than it says": (zip_of(A, B, entries=1), "more than the 1 entries"),
    "no entries, it says": (zip_of(A, B, entries=0), "more than the 0 entries"),
    "a directory too short": (zip_of(A, B, size=ENTRIES_BYTES - 1), "ends at byte"),
    "a directory too long": (zip_of(A, B, size=ENTRIES_BYTES + 1), "ends at byte"),
    "a directory elsewhere": (zip_of(A, B, start=0), "ends at byte"),
    "a directory behind the end": (zip_of(A, B, start=ONES_32, size=ONES_32), "ends at byte"),
    "a directory that begins before it does": (
        zip_of(A, B, start=len(BODY) - 1, size=ENTRIES_BYTES + 1),
        "there is no entry",
    ),
    "something before the archive": (A.local() + zip_of(A, B), "ends at byte"),
    "something between": (BODY + DIRECTORY + b"?" + END, "ends at byte"),
    "another signature": (zip_of(A, Zipped(name="b", signature=b"PK\1\3")), "there is no entry"),
    "two directories": (
        BODY + DIRECTORY + end_record(2, len(DIRECTORY), len(BODY), HIDDEN),
        "has two directories",
    ),
    "several parts": (zip_of(A, B, disk=1), "one part of several"),
    "entries in other parts": (zip_of(A, B, entries_here=1), "one part of several"),
    "a member in another part": (zip_of(A, Zipped(name="b", disk=1)), "one part of several"),
    "a name beyond the directory": (
        BODY + DIRECTORY[:-1] + end_record(2, len(DIRECTORY) - 1, len(BODY)),
        "there is no entry",
    ),
    "a masked directory": (zip_of(Zipped(name="1", flags=1 << 13)), "directory is encrypted"),
    "an extra field that is too long": (
        zip_of(Zipped(name="a", extra=extra_field(0x5455, b"12345")[:-1])),
        "bad extra field",
    ),
    "an extra field that comes twice": (
        zip_of(Zipped(name="a", extra=TIMESTAMP * 2)),
        "bad extra field",
    ),
    "no zip64 numbers": (zip_of(Zipped(name="a", size=ONES_32)), "lacks its zip64 numbers"),
    "too few zip64 numbers": (
        zip_of(Zipped(name="a", size=ONES_32, offset=ONES_32, extra=extra_field(1, bytes(15)))),
        "lacks its zip64 numbers",
    ),
    "a zip64 offset behind all": (
        zip_of(Zipped(name="a", offset=ONES_32, extra=extra_field(1, b"\xff" * 8))),
        "overlaps",
    ),
    "zip64 elsewhere": (
        BODY + DIRECTORY + zip64_end(2, len(DIRECTORY), len(BODY), at=0),
        "zip64 end record is not where",
    ),
    "zip64 of unknown length": (
        BODY + DIRECTORY + zip64_end(2, len(DIRECTORY), len(BODY), length=45),
        "zip64 end record is not where",
    ),
    "zip64 without its record": (
        BODY + DIRECTORY + zip64_end(2, len(DIRECTORY), len(BODY))[56:],
        "zip64 end record is not where",
    ),
    "zip64 in several parts": (
        BODY + DIRECTORY + zip64_end(2, len(DIRECTORY), len(BODY), disks=2),
        "one part of several",
    ),
    "zip64 that contradicts": (
        BODY + DIRECTORY + zip64_end(2, len(DIRECTORY), len(BODY))[:-22] + end_record(1, 1, 1),
        "contradict each other",
    ),
    "zip64 that says too much": (
        BODY + DIRECTORY + zip64_end(2**63, len(DIRECTORY), len(BODY)),
        "over 1,000,000 members",
    ),
    "a header behind the directory": (zip_of(A, Zipped(name="b", offset=10**6)), "overlaps"),
    "a header in the directory": (zip_of(A, Zipped(name="b", offset=len(BODY) - 29)), "overlaps"),
    "data that runs into the directory": (
        zip_of(Zipped(name="b", data=b"b" * 100, stored_bytes=102)),
        "overlaps",
    ),
    "data that runs into the directory by a byte": (
        zip_of(Zipped(name="b", data=b"b" * 100, stored_bytes=101)),
        "not where the directory says",
    ),
    "two members in one place": (
        zip_of(A, Zipped(name="b", data=b"a" * 100, offset=0)),
        "overlaps",
    ),
    "a member within another": (
        zip_of(Zipped(name="out", data=A.local()), Zipped(name="a", data=A.data, offset=33)),
        "overlaps",
    ),
    "data that overlaps by a long local name": (
        zip_of(Zipped(name="a", data=b"a", local_extra=b""), B).replace(
            b"\1\0\0\0a", b"\2\0\0\0a", 1
        ),
        "not where the directory says",
    ),
    "no local header": (zip_of(Zipped(name="b", local_signature=b"PK\3\5"), A), "neither a tar"),
    "no local header, later": (
        zip_of(A, Zipped(name="b", local_signature=b"PK\3\5")),
        "not where the directory says",
    ),
    "a member elsewhere": (
        zip_of(A, Zipped(name="b", gap=bytes(9), offset=len(A.local()) + 1)),
        "not where the directory says",
    ),
}


@pytest.mark.parametrize(("archive", "words"), DAMAGED.values(), ids=DAMAGED)
def test_an_archive_that_contradicts_itself_is_refused(
    tree: Path, archive: bytes, words: str
) -> None:
    assert_refused(tree, archive, words)


def test_an_end_record_in_a_comment_that_fits_nothing_is_a_comment(tree: Path) -> None:
    comment = end_record(1, 47, 0)
    archive = BODY + DIRECTORY + end_record(2, len(DIRECTORY), len(BODY), comment)
    assert len(unzip_into(tree, archive)) == 2


MEMBERS = {
    "encrypted": (Zipped(name="a", flags=1), "'a' is encrypted"),
    "strongly encrypted": (Zipped(name="a", flags=1 << 6), "'a' is encrypted"),
    "AES": (Zipped(name="a", method=99), r"method 99 \(AES\)"),
    "an old method": (Zipped(name="a", data=b"1", method=6), r"method 6 \(implode\)"),
    "an unknown method": (Zipped(name="a", data=b"1", method=77), r"method 77 \(unknown\)"),
    "a wrong CRC": (Zipped(name="a", data=b"1", crc32=0), "CRC-32 is 83dcefb7 instead of 00000000"),
    "stored, larger than it says": (Zipped(name="a", data=b"12", size=1), "more than the 1 bytes"),
    "stored, smaller than it says": (Zipped(name="a", data=b"12", size=3), "2 bytes instead of 3"),
    "deflated, larger than it says": (
        Zipped(name="a", data=DATA, method=8, size=MIB),
        "more than the 1,048,576 bytes",
    ),
    "deflated, smaller than it says": (
        Zipped(name="a", data=b"12", method=8, size=3),
        "2 bytes instead of 3",
    ),
    "deflate cut off": (
        Zipped(name="a", data=DATA, method=8, stored=deflate(DATA)[:-1]),
        "compressed data is cut off",
    ),
    "deflate of nothing at all": (Zipped(name="a", method=8, stored=b""), "is cut off"),
    "more behind deflate": (
        Zipped(name="a", data=b"1", method=8, stored=deflate(b"1") + b"2"),
        "more behind its compressed data",
    ),
    "much more behind deflate": (
        Zipped(name="a", data=b"1", method=8, stored=deflate(b"1") + DATA),
        "more behind its compressed data",
    ),
    "no deflate": (Zipped(name="a", data=b"1", method=8, stored=b"\xff" * 9), "'a' is damaged"),
    "no bzip2": (Zipped(name="a", data=b"1", method=12, stored=b"\xff" * 9), "'a' is damaged"),
    "no zstd": (Zipped(name="a", data=b"1", method=93, stored=b"\xff" * 9), "'a' is damaged"),
    "absolute": (Zipped(name="/etc/evil"), "absolute name"),
    "absolute directory": (Zipped(name="/"), "absolute name|has no name"),
    "dots": (Zipped(name="../evil"), r"'\.\.' in its name"),
    "dots within": (Zipped(name="a/../../evil"), r"'\.\.' in its name"),
    "nothing": (Zipped(name=""), "has no name"),
    "only a dot": (Zipped(name="."), "has no name"),
    "backslash": (Zipped(name="a\\b"), "backslash"),
    "backslash and dots": (Zipped(name="..\\evil"), "backslash"),
    "a zero byte": (Zipped(name="a\0b"), "control characters"),
    "a zero byte, not UTF-8": (Zipped(name=b"a\0\x8b"), "control characters"),
    "a new line": (Zipped(name="a\nb"), "control characters"),
    "not UTF-8": (Zipped(name=b"a\xff", flags=1 << 11), "not UTF-8"),
    "a Unicode path that leads out": (
        Zipped(name=b"a", extra=unicode_path(b"../evil", b"a")),
        r"'\.\.' in its name",
    ),
    "a Unicode path that is not UTF-8": (
        Zipped(name=b"a", extra=unicode_path(b"\xff", b"a")),
        "not UTF-8",
    ),
    "300 characters": (Zipped(name="n" * 300), "cannot be made"),
    "65,535 characters": (Zipped(name="n/" * 32_767 + "n"), "over 200 segments"),
    "a device": (Zipped(name="a", mode=stat.S_IFCHR | 0o644), "special file"),
    "a FIFO": (Zipped(name="a", mode=stat.S_IFIFO | 0o644), "special file"),
    "a socket": (Zipped(name="a", mode=stat.S_IFSOCK | 0o644), "special file"),
    "a directory with bytes": (Zipped(name="a/", data=b"1"), "a directory, but has bytes"),
    "a link with a slash": (link("a/", "b"), "a directory, but has bytes"),
    "a link out": (link("a", "../x"), "links out of the tree"),
    "a link to the root": (link("a", "/etc/passwd"), "links out of the tree"),
    "a deep link out": (link("d/a", "../../x"), "links out of the tree"),
    "a link to nothing": (link("a", ""), "malformed link"),
    "a link that is not UTF-8": (link("a", b"\xff"), "malformed link"),
    "a link with a zero byte": (link("a", b"a\0b"), "malformed link"),
    "a link too long": (link("a", "n" * 4097), "link of over 4,096 bytes"),
    "a link just too long": (link("a", "n" * 4096), "cannot be made"),
    "a link too large when deflated": (
        link("a", "n" * 10_000, method=8, size=4),
        "more than the 4 bytes",
    ),
}


@pytest.mark.parametrize(("zipped", "words"), MEMBERS.values(), ids=MEMBERS)
def test_a_member_that_is_damaged_or_not_safe_is_refused(
    tree: Path, zipped: Zipped, words: str
) -> None:
    assert_refused(tree, zip_of(Zipped(name="first"), zipped), words)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (A, A, "'a' is there twice"),
        (A, Zipped(name=".//a"), "'.//a' is there twice"),
        (Zipped(name="d/"), Zipped(name="d/"), "'d/' is there twice"),
        (A, Zipped(name="a/"), "'a/' is there twice"),
        (A, Zipped(name="a/b"), "needs a directory 'a'"),
        (Zipped(name="a/b"), A, "would replace a directory"),
        (Zipped(name="d/x/"), link("d", "a"), "would replace a directory"),
        (link("l", "."), Zipped(name="l/file"), "needs a directory 'l'"),
        (link("l", "d"), Zipped(name="l/d/"), "needs a directory 'l'"),
        (link("l", "a"), Zipped(name="l", data=b"1"), "'l' is there twice"),
    ],
)
def test_members_in_each_others_way_are_refused(
    tree: Path, first: Zipped, second: Zipped, words: str
) -> None:
    assert_refused(tree, zip_of(first, second), words)


@pytest.mark.parametrize("names", [("a", "A"), ("naïve", unicodedata.normalize("NFD", "naïve"))])
def test_names_that_differ_by_case_or_unicode_form_are_two_or_refused(
    tree: Path, names: tuple[str, str]
) -> None:
    archive = zip_of(*(Zipped(name=name, data=name.encode()) for name in names))
    try:
        members = unzip_into(tree, archive)
    except ArchiveError as error:
        assert "File exists" in str(error)  # where the filesystem takes them for one
    else:
        assert members == [unpacked(name, name.encode()) for name in names]


@pytest.mark.parametrize("wanted", [True, False])
def test_limits_count_what_the_archive_says_before_anything_is_written(
    tree: Path, wanted: bool
) -> None:
    archive = zip_of(A, Zipped(name="d/"), B)
    more: dict[str, Any] = {"wanted": lambda path: wanted}
    assert len(unzip_into(tree, archive, max_bytes=200, max_members=3, **more)) == 2 * wanted
    for path in tree.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    assert_refused(tree, archive, "over 199 bytes", max_bytes=199, **more)
    assert_refused(tree, archive, "over 2 members", max_members=2, **more)
    assert list(tree.iterdir()) == []


def test_more_members_than_allowed_are_refused_before_the_directory_is_read(tree: Path) -> None:
    members = [Zipped(name=f"{n}", comment=b"c" * ONES_16) for n in range(20)]
    stream = SeekableStream(zip_of(*members), piece_bytes=MIB)
    with pytest.raises(ArchiveError, match="over 19 members"):
        unpack_into(tree, stream, max_members=19)
    assert stream.bytes_read < 2 * ONES_16


def test_a_directory_of_comments_is_not_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifacts.zip_directory.MAX_DIRECTORY_BYTES", 10 * ONES_16)
    members = [Zipped(name=f"{n}", comment=b"c" * ONES_16) for n in range(10)]
    stream = SeekableStream(zip_of(*members), piece_bytes=MIB)
    with pytest.raises(ArchiveError, match="directory takes over 655,350 bytes"):
        unpack_into(tree, stream)
    assert stream.bytes_read < 2 * ONES_16
    assert len(unzip_into(tree, zip_of(*members[:9]))) == 9


def test_a_bomb_that_lies_stops_where_it_should_have_ended(tree: Path) -> None:
    compressor = zlib.compressobj(wbits=-15)
    blocks = [compressor.compress(bytes(MIB)) for _ in range(256)]
    bomb = b"".join(blocks) + compressor.flush()
    stream = SeekableStream(zip_of(Zipped(name="bomb", method=8, stored=bomb, size=3 * MIB)))
    with pytest.raises(ArchiveError, match="more than the 3,145,728 bytes"):
        unpack_into(tree, stream, max_bytes=3 * MIB)
    assert (tree / "bomb").stat().st_size <= 3 * MIB


def test_memory_does_not_grow_with_the_members(tree: Path) -> None:
    data = bytes(48 * MIB)
    archive = zip_of(Zipped(name="stored", data=data), Zipped(name="b", data=data, method=8))
    stream = SeekableStream(archive, piece_bytes=MIB)
    tracemalloc.start()
    try:
        unpack_into(tree, stream)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * MIB


def test_a_zip_that_cannot_be_read_anywhere_is_refused_in_words(tree: Path) -> None:
    stream = Stream(zip_of(A, B))
    with pytest.raises(ArchiveError, match="zip archive that is itself stored compressed"):
        unpack_into(tree, stream)


@pytest.mark.parametrize("failure", [OSError("cable cut"), DevserverError("stopped")])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_what_the_reader_raises_comes_through_unchanged(
    tree: Path, failure: Exception, kept: float
) -> None:
    class Broken(SeekableStream):
        def readinto(self, buffer: Any) -> int:
            if self.bytes_read > kept * len(archive):
                raise failure
            return super().readinto(buffer)

    archive = zip_of(*(Zipped(name=f"{n}", data=DATA, method=8) for n in range(3)))
    with pytest.raises(type(failure)) as raised:
        unpack_into(tree, Broken(archive))
    assert raised.value is failure


SAMPLE = zip_of(
    Zipped(name="d/"),
    Zipped(name="d/short", data=b"short", mode=0o755),
    Zipped(name="d/" + "long" * 50, data=bytes(range(256)) * 9, method=8),
    link("d/link", "short"),
    Zipped(name="naïve", data=b"n" * 9000, method=12, stored=bz2.compress(b"n" * 9000)),
    comment=b"a comment",
)


@settings(max_examples=300, deadline=None)
@given(edit=edits)
def test_a_zip_with_random_damage_never_leads_out(edit: Edit) -> None:
    # Names, modes and times are not covered by any checksum; contents are.
    members = unpack_or_refuse(edited(SAMPLE, edit), SeekableStream)
    contents = {(m.size, m.crc32c) for m in SAMPLE_MEMBERS}
    assert {(m.size, m.crc32c) for m in members or []} <= contents | {(0, 0)}


SAMPLE_MEMBERS = unpack_or_refuse(SAMPLE, SeekableStream) or []


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(SAMPLE) - 1), data=st.binary(max_size=60))
def test_a_zip_that_is_overwritten_anywhere_never_leads_out(position: int, data: bytes) -> None:
    unpack_or_refuse(SAMPLE[:position] + data + SAMPLE[position + len(data) :], SeekableStream)


def test_a_zip_cut_anywhere_is_refused(tree: Path) -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(ArchiveError):
            unzip_into(tree, SAMPLE[:length])
    assert list(tree.iterdir()) == []
