"""The index of an archive: it tells what unpacking would come to, and is made of headers alone."""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unpacking import (
    MIB,
    Compress,
    Edit,
    SeekableStream,
    directory,
    edited,
    edits,
    hard_link,
    member,
    symbolic_link,
    tar_of,
    unpack_into,
)
from zip_files import Zipped, link, zip_of

from artifacts.errors import ArchiveError, NotFound
from artifacts.extract import unpack
from artifacts.member_bytes import blocks_of, read_link
from artifacts.member_index import Form, Kind, Member, MemberIndex, form_of, read_index
from artifacts.tree_writer import UnpackedMember
from artifacts.unpack_limits import UnpackLimits

LIMITS = UnpackLimits(max_bytes=MIB)
TAR = tar_of(
    directory("./"),
    directory("d"),
    member("d/short", b"replaced"),
    member("./d//short", b"short"),
    member("d/" + "long" * 50, bytes(range(256)) * 9),
    symbolic_link("d/link", "short"),
    hard_link("hard", "d/short"),
    member("d/short", b"later"),
)
ZIP = zip_of(
    Zipped(name="d/"),
    Zipped(name="./d/short", data=b"short"),
    Zipped(name="d/" + "long" * 50, data=bytes(range(256)) * 9, method=8),
    link("d/link", "short"),
    comment=b"a comment",
)


def indexed(archive: bytes, limits: UnpackLimits = LIMITS) -> MemberIndex:
    reader = SeekableStream(archive)
    return read_index(reader, form_of(reader), limits)


def content(archive: bytes, index: MemberIndex, found: Member) -> bytes:
    data = bytearray(found.size)
    position = 0
    for offset, block in blocks_of(SeekableStream(archive), index.form, found):
        assert offset >= position
        position = offset + len(block)
        data[offset:position] = block
    assert len(data) == found.size
    return bytes(data)


def as_unpacked(archive: bytes) -> set[UnpackedMember] | None:
    """Return what the index says that unpacking comes to; None where it is refused."""
    try:
        index = indexed(archive)
        members = set()
        for path in index.paths():
            found = index.members[path]
            if found.kind is Kind.LINK:
                target = found.link or read_link(SeekableStream(archive), found)
                members.add(UnpackedMember(path, 0, 0, target))
            else:
                crc32c = google_crc32c.value(content(archive, index, found))
                members.add(UnpackedMember(path, found.size, crc32c, None))
        return members
    except ArchiveError:
        return None


def unpacked_or_refused(archive: bytes) -> set[UnpackedMember] | None:
    with tempfile.TemporaryDirectory() as tree:
        try:
            reader = SeekableStream(archive)
            return set(unpack(reader, Path(tree), wanted=lambda _: True, limits=LIMITS))
        except ArchiveError:
            return None


@pytest.mark.parametrize("archive", [TAR, gzip.compress(TAR), ZIP], ids=["tar", "gz", "zip"])
@settings(max_examples=300, deadline=None)
@given(edit=edits)
def test_what_can_be_unpacked_is_told_as_unpacking_has_it(archive: bytes, edit: Edit) -> None:
    damaged = edited(archive, edit)
    told, unpacked = as_unpacked(damaged), unpacked_or_refused(damaged)
    assert told is not None or unpacked is None
    if unpacked is not None:
        assert told == unpacked


@settings(max_examples=200, deadline=None)
@given(path=st.text("dshortlinkx/.", min_size=1), edit=edits)
def test_a_path_leads_to_a_file_or_to_a_refusal(path: str, edit: Edit) -> None:
    for archive in (TAR, ZIP):
        try:
            index = indexed(edited(archive, edit))
            assert index.find(path).kind in {Kind.FILE, Kind.SPARSE_FILE, Kind.LINK}
        except (ArchiveError, NotFound) as error:
            assert "\n" not in error.message


def test_undamaged_archives_are_told_at_all() -> None:
    for archive in (TAR, gzip.compress(TAR), ZIP):
        told = as_unpacked(archive)
        assert told and told == unpacked_or_refused(archive)


def test_only_headers_are_read_of_a_plain_tar() -> None:
    archive = tar_of(*(member(f"{n}", bytes(2 * MIB)) for n in range(20)))
    reader = SeekableStream(archive, piece_bytes=MIB)
    index = read_index(reader, form_of(reader), UnpackLimits())
    assert len(index.members) == 20
    assert sum(len(read) for read in reader.reads) < MIB


def test_only_its_end_is_read_of_a_zip() -> None:
    archive = zip_of(*(Zipped(name=f"{n}", data=bytes(2 * MIB)) for n in range(20)))
    reader = SeekableStream(archive, piece_bytes=MIB)
    index = read_index(reader, form_of(reader), UnpackLimits())
    assert len(index.members) == 20
    assert sum(len(read) for read in reader.reads) < MIB


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_as_unpacking_has_them(format: int) -> None:
    path = "/".join(["séance", "d" * 90, "f" * 90])
    archive = tar_of(member("before", b"1"), member(path, b"found"), format=format)
    index = indexed(archive)
    assert content(archive, index, index.find(path)) == b"found"


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("length", [MIB * 10 + 100, 10**9, 2**60])
def test_a_member_that_goes_beyond_the_end_is_damage(compress: Compress, length: int) -> None:
    info, data = member("a", bytes(MIB * 10))
    archive = bytearray(tar_of((info, data), member("b", b"b"), format=tarfile.GNU_FORMAT))
    info.size = length
    archive[:512] = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ArchiveError, match=r"damaged|ends early|unpacks to over"):
        indexed(compress(bytes(archive)), UnpackLimits(max_bytes=2**61))


def test_names_may_not_take_all_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifacts.member_index.MAX_NAME_CHARACTERS", 1000)
    names = [f"{n:0100}" for n in range(10)]
    assert len(indexed(tar_of(*map(member, names))).members) == 10
    for archive in (
        tar_of(*map(member, [*names, "more"])),
        zip_of(*(Zipped(name=name) for name in [*names, "more"])),
    ):
        with pytest.raises(ArchiveError, match="names of the archive's members"):
            indexed(archive)


def test_a_hard_link_stands_for_what_was_there_before_it(tree: Path) -> None:
    archive = tar_of(
        member("a", b"first"), hard_link("b", "./a"), member("a", b"second"), hard_link("c", "b")
    )
    index = indexed(archive)
    told = {path: content(archive, index, index.find(path)) for path in index.paths()}
    assert told == {"a": b"second", "b": b"first", "c": b"first"}
    unpack_into(tree, archive)
    assert told == {path: (tree / path).read_bytes() for path in os.listdir(tree)}


def test_the_form_is_told_by_the_first_bytes() -> None:
    packed = gzip.compress(TAR)
    for archive, form in ((TAR, Form.TAR), (packed, Form.COMPRESSED_TAR), (ZIP, Form.ZIP)):
        assert form_of(SeekableStream(archive)) is form
    with pytest.raises(ArchiveError, match="neither a tar archive"):
        indexed(b"")
