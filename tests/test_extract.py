"""Unpacking: what an honest archive comes to, and what a hostile or broken one does not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tracemalloc
import unicodedata
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unpacking import (
    COMPRESSIONS,
    MIB,
    Compress,
    Edit,
    Member,
    Stream,
    assert_nothing_was_written_outside,
    assert_refused,
    directory,
    edited,
    edits,
    hard_link,
    member,
    mode_of,
    symbolic_link,
    tar_of,
    unpack_into,
    unpack_or_refuse,
    unpacked,
)

from artifacts.decompress import zstd
from artifacts.errors import ArchiveError, DevserverError, TransientArchiveError
from artifacts.tree_writer import UnpackedMember


def raw_header(
    name: bytes = b"name",
    *,
    size: bytes = b"00000000000\0",
    kind: bytes = b"0",
    link: bytes = b"",
) -> bytes:
    """A header that no honest program would write, with a right checksum."""
    header = bytearray(512)
    header[0 : len(name)] = name
    header[100:108] = b"0000644\0"
    header[124:136] = size
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[157 : 157 + len(link)] = link
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax_header(records: bytes, kind: bytes = b"x") -> bytes:
    return raw_header(b"pax", size=octal(len(records)), kind=kind) + padded(records)


END = bytes(1024)


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_an_archive_is_unpacked_whatever_its_compression(tree: Path, compress: Compress) -> None:
    data = os.urandom(3 * MIB + 17)
    archive = tar_of(member("build/image.bin", data), member("build/empty"))
    assert unpack_into(tree, compress(archive)) == [
        unpacked("build/image.bin", data),
        unpacked("build/empty", b""),
    ]
    assert (tree / "build/image.bin").read_bytes() == data
    assert (tree / "build/empty").read_bytes() == b""


@pytest.mark.parametrize(
    ("compress", "padding"),
    [
        *((compress, b"") for compress in COMPRESSIONS.values() if compress is not bytes),
        *((compress, bytes(8)) for compress in (gzip.compress, lzma.compress, zstd.compress)),
    ],
)
def test_compressed_members_that_follow_one_another_are_one_archive(
    tree: Path, compress: Compress, padding: bytes
) -> None:
    archive = tar_of(member("a", b"a" * 700), member("b", b"b" * 700))
    parts = [archive[:300], b"", archive[300:1500], archive[1500:]]
    unpack_into(tree, b"".join(compress(part) + padding for part in parts))
    assert (tree / "b").read_bytes() == b"b" * 700


def test_an_archive_comes_through_a_pipe(tree: Path) -> None:
    archive = gzip.compress(tar_of(member("file", b"x" * MIB)))
    read_end, write_end = os.pipe()

    def write() -> None:
        with open(write_end, "wb") as pipe:
            pipe.write(archive)

    writer = threading.Thread(target=write, name="pipe writer")
    writer.start()
    with open(read_end, "rb") as pipe:
        members = unpack_into(tree, pipe)
    writer.join(timeout=10)
    assert members == [unpacked("file", b"x" * MIB)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_beyond_ascii_are_kept(tree: Path, format: int) -> None:
    path = "/".join(["séance", "d" * 90, "f" * 90])
    unpack_into(tree, tar_of(member(path, b"found"), format=format))
    assert (tree / path).read_bytes() == b"found"


def test_directories_are_made_also_where_the_archive_does_not_name_them(tree: Path) -> None:
    members = unpack_into(tree, tar_of(directory("empty/"), member("deep/down/file", b"1")))
    assert [m.path for m in members] == ["deep/down/file"]
    assert (tree / "empty").is_dir()


def test_a_name_may_begin_with_a_dot_segment_and_the_root_itself_is_passed_over(tree: Path) -> None:
    asked = []

    def wanted(path: str) -> bool:
        asked.append(path)
        return True

    archive = tar_of(directory("./"), directory("./d"), member("./d//./file", b"1"))
    members = unpack_into(tree, archive, wanted=wanted)
    assert members == [unpacked("d/file", b"1")]
    assert asked == ["d", "d/file"]


def test_modes_keep_only_who_may_execute(tree: Path) -> None:
    old_umask = os.umask(0o077)
    try:
        unpack_into(
            tree,
            tar_of(
                directory("dir", mode=0o7777),
                member("dir/setuid", mode=0o7777),
                member("dir/secret", mode=0o600),
            ),
        )
    finally:
        os.umask(old_umask)
    assert mode_of(tree / "dir") == 0o755
    assert mode_of(tree / "dir/setuid") == 0o755
    assert mode_of(tree / "dir/secret") == 0o644


def test_files_and_links_keep_their_times(tree: Path) -> None:
    unpack_into(tree, tar_of(member("file", mtime=1.5), symbolic_link("link", "file", mtime=7)))
    assert (tree / "file").stat().st_mtime == 1.5
    assert (tree / "link").lstat().st_mtime == 7


@pytest.mark.parametrize("mtime", [1e18, -1e18, math.inf, math.nan, -1])
def test_times_that_no_file_may_have_are_brought_within_bounds(tree: Path, mtime: float) -> None:
    unpack_into(tree, tar_of(member("file", pax_headers={"mtime": str(mtime)})))
    assert 0 <= (tree / "file").stat().st_mtime <= time.time()


def test_only_wanted_members_are_written(tree: Path) -> None:
    archive = tar_of(directory("docs"), member("docs/a", b"a"), member("bin/tool", b"tool"))
    members = unpack_into(tree, archive, wanted=lambda path: path.startswith("bin"))
    assert members == [unpacked("bin/tool", b"tool")]
    assert [path.name for path in tree.iterdir()] == ["bin"]


def test_unwanted_members_may_be_hostile(tree: Path) -> None:
    archive = tar_of(
        member("../evil"),
        member("/etc/evil"),
        symbolic_link("link", "/etc"),
        member("device", type=tarfile.CHRTYPE),
        member("good", b"1"),
    )
    assert unpack_into(tree, archive, wanted=lambda p: p == "good") == [unpacked("good", b"1")]


def test_a_later_member_replaces_an_earlier_one_of_the_same_path(tree: Path) -> None:
    archive = tar_of(
        member("a", b"first, and longer"),
        symbolic_link("b", "a"),
        directory("d"),
        directory("d"),
        member("a", b"last"),
        member("b", b"a file now"),
    )
    assert unpack_into(tree, archive) == [unpacked("a", b"last"), unpacked("b", b"a file now")]
    assert (tree / "a").read_bytes() == b"last"
    assert not (tree / "b").is_symlink()


def test_contiguous_files_are_files(tree: Path) -> None:
    members = unpack_into(tree, tar_of(member("file", b"data", type=tarfile.CONTTYPE)))
    assert members == [unpacked("file", b"data")]


@pytest.mark.skipif(sys.platform == "darwin", reason="the system's tar writes no sparse files")
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
    ids=lambda options: " ".join(options),
)
def test_sparse_files_have_their_holes_back(tree: Path, tmp_path: Path, options: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "sparse", "wb") as file:
        for i in range(40):
            file.seek(i * 100_000)
            file.write(os.urandom(5000))
        file.truncate(5_000_000)
    command = ["tar", "-c", "-S", *options, "-C", str(source), "sparse"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    content = (source / "sparse").read_bytes()
    assert len(archive) < len(content)
    assert unpack_into(tree, archive) == [unpacked("sparse", content)]
    assert (tree / "sparse").read_bytes() == content
    with pytest.raises(ArchiveError, match="4,999,999 bytes"):
        unpack_into(tree, archive, max_bytes=4_999_999)


@pytest.mark.parametrize(
    "name",
    [
        b"/etc/passwd",
        b"//x",
        b"../evil",
        b"a/../../evil",
        b"a/..",
        b"..",
        b"a\nb",
        b"a\x7f",
        b"a\xff",
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"5", b"2"], ids=["file", "directory", "link"])
def test_a_name_that_leads_out_or_cannot_be_shown_is_refused(
    tree: Path, name: bytes, kind: bytes
) -> None:
    archive = raw_header(name, kind=kind, link=b"target") + END
    error = assert_refused(tree, archive, "member '")
    assert repr(os.fsdecode(name)) in str(error)


@pytest.mark.parametrize("name", [b"", b".", b"./"])
def test_a_file_without_a_name_is_refused(tree: Path, name: bytes) -> None:
    assert_refused(tree, raw_header(name) + END, "has no name")


def test_a_pax_name_with_a_zero_byte_is_refused(tree: Path) -> None:
    assert_refused(tree, pax_header(b"12 path=a\0b\n") + raw_header() + END, "control characters")


@pytest.mark.parametrize(
    "name", ["n" * 300, ("d" * 200 + "/") * 20 + "file", "d/" * 100_000 + "file"]
)
def test_a_name_too_long_for_the_disk_is_the_archives_fault(tree: Path, name: str) -> None:
    assert_refused(
        tree, tar_of(member(name)), "cannot be made|over 4,096 characters|over 200 segments"
    )


def test_a_member_below_a_symbolic_link_is_refused(tree: Path) -> None:
    archive = tar_of(directory("d"), symbolic_link("link", "d"), member("link/file", b"1"))
    assert_refused(tree, archive, "needs a directory 'link'")
    assert not (tree / "d/file").exists()


def test_a_member_below_a_file_is_refused(tree: Path) -> None:
    assert_refused(tree, tar_of(member("a"), directory("a/b/c")), "needs a directory 'a'")


@pytest.mark.parametrize(
    "replacement", [member("d"), symbolic_link("d", "x"), hard_link("d", "file")]
)
def test_a_directory_is_replaced_by_nothing_else(tree: Path, replacement: Member) -> None:
    archive = tar_of(member("file"), member("d/x"), replacement)
    assert_refused(tree, archive, "would replace a directory")


@pytest.mark.parametrize("first", [member("a"), symbolic_link("a", "b")])
def test_a_directory_replaces_nothing_else(tree: Path, first: Member) -> None:
    assert_refused(tree, tar_of(first, directory("a")), "needs a directory 'a'")


@pytest.mark.parametrize("second", [member("a"), directory("a"), symbolic_link("a", "b")])
def test_where_the_filesystem_takes_two_names_for_one_nothing_is_followed_or_overwritten(
    tree: Path, tmp_path: Path, second: Member
) -> None:
    # Given a link under this very name that the archive did not make by it (on macOS: "A").
    (tmp_path / "victim").write_bytes(b"untouched")
    (tree / "a").symlink_to(tmp_path / "victim")
    with pytest.raises(ArchiveError, match="'a' cannot be made: File exists"):
        unpack_into(tree, tar_of(second))
    assert (tmp_path / "victim").read_bytes() == b"untouched"


def test_symbolic_links_within_the_tree_are_kept(tree: Path) -> None:
    archive = tar_of(
        member("lib/real", b"1"),
        symbolic_link("lib/sibling", "real"),
        symbolic_link("bin/deep/up", "../../lib/real"),
        symbolic_link("bin/root", ".."),
        symbolic_link("dangling", "./nowhere"),
    )
    members = unpack_into(tree, archive)
    assert members[2] == UnpackedMember("bin/deep/up", 0, 0, "../../lib/real")
    assert (tree / "bin/deep/up").read_bytes() == b"1"
    assert os.readlink(tree / "dangling") == "./nowhere"
    assert_nothing_was_written_outside(tree)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("link", "/etc/passwd"),
        ("link", ".."),
        ("link", "../tree/x"),
        ("link", "./../x"),
        ("link", "a/../../x"),
        ("link", "a/.."),
        ("d/link", "../.."),
        ("d/link", "../../x"),
        ("d/link", "..//./../x"),
        ("./d/./link", "../../x"),
        ("d/link", "../a/../x"),
    ],
)
def test_a_symbolic_link_out_of_the_tree_is_refused(tree: Path, name: str, target: str) -> None:
    assert_refused(tree, tar_of(symbolic_link(name, target)), "links out of the tree")


@pytest.mark.parametrize("target", [b"", b"a\nb", b"a\xff"])
def test_a_symbolic_link_to_a_malformed_name_is_refused(tree: Path, target: bytes) -> None:
    assert_refused(tree, raw_header(kind=b"2", link=target) + END, "malformed link")


def test_a_hard_link_is_the_file_it_links_to(tree: Path) -> None:
    archive = tar_of(
        member("a/file", b"data"), hard_link("./b/same", "./a/file"), hard_link("third", "b/same")
    )
    assert unpack_into(tree, archive) == [
        unpacked("a/file", b"data"),
        unpacked("b/same", b"data"),
        unpacked("third", b"data"),
    ]
    assert (tree / "b/same").samefile(tree / "a/file")


def test_replacing_a_hard_linked_file_leaves_the_other_name_as_it_was(tree: Path) -> None:
    archive = tar_of(member("a", b"old"), hard_link("b", "a"), member("a", b"new"))
    assert unpack_into(tree, archive) == [unpacked("b", b"old"), unpacked("a", b"new")]
    assert (tree / "b").read_bytes() == b"old"


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "later", "d", "symbolic", "link", ""])
def test_a_hard_link_to_anything_but_an_earlier_file_is_refused(tree: Path, target: str) -> None:
    archive = tar_of(
        directory("d"),
        member("file"),
        symbolic_link("symbolic", "file"),
        hard_link("link", target),
        member("later"),
    )
    assert_refused(tree, archive, "which is not another file unpacked before it")


@pytest.mark.parametrize("target", ["link/file", "d/../d/file", "other/file"])
def test_a_hard_link_through_links_is_refused(tree: Path, target: str) -> None:
    archive = tar_of(
        member("d/file", b"1"),
        symbolic_link("link", "d"),
        symbolic_link("other", "link"),
        hard_link("hard", target),
    )
    assert_refused(tree, archive, "which is not another file unpacked before it")


@pytest.mark.parametrize("names", [("a", "A"), ("naïve", unicodedata.normalize("NFD", "naïve"))])
def test_names_that_differ_by_case_or_unicode_form_are_two_or_refused(
    tree: Path, names: tuple[str, str]
) -> None:
    archive = tar_of(*(member(name, name.encode()) for name in names))
    try:
        members = unpack_into(tree, archive)
    except ArchiveError as error:
        assert "File exists" in str(error)  # where the filesystem takes them for one
    else:
        assert members == [unpacked(name, name.encode()) for name in names]


def test_a_hard_link_to_an_unwanted_file_is_refused(tree: Path) -> None:
    archive = tar_of(member("a"), hard_link("b", "a"))
    assert_refused(tree, archive, "hard link to 'a'", wanted=lambda path: path == "b")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V", b"Z"])
def test_special_files_are_refused(tree: Path, kind: bytes) -> None:
    assert_refused(tree, raw_header(kind=kind) + END, "'name' is a device, a FIFO or another")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x1f",
        b"short",
        b"<!DOCTYPE html><title>Sign in</title>" * 100,
        bytes(range(1, 256)) * 10,
    ],
    ids=["nothing", "one byte", "short", "html", "noise"],
)
@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_what_is_no_archive_is_called_so(tree: Path, data: bytes, compress: Compress) -> None:
    assert_refused(tree, compress(data), "^neither a tar archive, .* nor a zip archive$")
    assert list(tree.iterdir()) == []


def test_an_archive_of_nothing_is_an_archive(tree: Path) -> None:
    assert unpack_into(tree, tar_of()) == []


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_an_archive_that_is_cut_off_ends_early(tree: Path, compress: Compress) -> None:
    archive = compress(tar_of(member("a", os.urandom(5000)), member("b", os.urandom(5000))))
    assert_refused(tree, archive[: len(archive) // 2], "ends early")


@pytest.mark.parametrize(
    "length",
    [600, 512 + 512, 512 + 512 + 200, 512 + 512 + 512, 512 + 512 + 512 + 10, 4 * 512],
    ids=[
        "in a",
        "before b",
        "in b's header",
        "before b's data",
        "in b's data",
        "without end marker",
    ],
)
def test_a_tar_that_ends_at_any_place_but_its_end_marker_ends_early(
    tree: Path, length: int
) -> None:
    archive = tar_of(member("a", b"a" * 300), member("b", b"b" * 300))
    assert_refused(tree, archive[:length], "ends early")


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_unwanted_members_are_no_excuse_for_ending_early(tree: Path, compress: Compress) -> None:
    archive = compress(tar_of(member("a", b"a" * 3000))[:2000])
    assert_refused(tree, archive, "ends early", wanted=lambda path: False)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_the_compressed_streams_own_trailer_has_to_be_there(tree: Path, compress: Compress) -> None:
    archive = compress(tar_of(member("a", b"a" * 300)))
    assert_refused(tree, archive[:-1], "ends early")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_the_compressed_streams_own_trailer_has_to_be_right(tree: Path, compress: Compress) -> None:
    archive = compress(tar_of(member("a", b"a" * MIB)))
    assert_refused(tree, archive[:-6] + bytes(b ^ 0x55 for b in archive[-6:]), "damaged")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_damage_in_compressed_data_is_called_so(tree: Path, compress: Compress) -> None:
    archive = bytearray(compress(tar_of(member("a", os.urandom(5000)))))
    archive[len(archive) // 2] ^= 0xFF
    assert_refused(tree, bytes(archive), "damaged")


def test_a_damaged_header_is_not_taken_for_the_end(tree: Path) -> None:
    archive = bytearray(tar_of(member("a", b"a" * 300), member("b", b"b" * 300)))
    archive[1024] ^= 1
    assert_refused(tree, bytes(archive), "damaged at byte 1,024")


def test_a_header_overwritten_with_zeros_is_not_taken_for_the_end(tree: Path) -> None:
    archive = bytearray(tar_of(member("a", b"a" * 300), member("b", b"b" * 300)))
    archive[1024:1536] = bytes(512)
    assert_refused(tree, bytes(archive), "only one block of zeros")


def test_one_block_of_zeros_is_an_end_marker_when_nothing_follows(tree: Path) -> None:
    assert unpack_into(tree, raw_header(b"a") + bytes(512)) == [unpacked("a", b"")]


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_what_follows_the_end_marker_is_ignored(tree: Path, compress: Compress) -> None:
    archive = raw_header(b"a") + END
    assert unpack_into(tree, compress(archive + b"signature" * 1000)) == [unpacked("a", b"")]


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_what_follows_the_compressed_data_is_ignored(tree: Path, compress: Compress) -> None:
    assert unpack_into(tree, compress(raw_header(b"a") + END) + b"garbage" * 1000)


HUGE = b"\x80" + b"\0" * 5 + b"\xff" * 6


@pytest.mark.parametrize("size", [b"\xff" * 10 + b"\xfe\x00", b"\xff" * 11 + b"\x00", b"-1"])
@pytest.mark.parametrize("kind", [b"0", b"1", b"5", b"7", b"L", b"K", b"x", b"g", b"S", b"Z"])
def test_a_negative_size_is_damage(tree: Path, kind: bytes, size: bytes) -> None:
    assert_refused(tree, raw_header(kind=kind, size=size) + END * 10, "damaged")


@pytest.mark.parametrize("size", [HUGE, octal(MIB + 1)], ids=["huge", "over a MiB"])
@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_long_name_or_pax_header_of_over_a_mebibyte_is_not_read(
    tree: Path, kind: bytes, size: bytes
) -> None:
    stream = Stream(raw_header(kind=kind, size=size) + b"1" * 4 * MIB)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack_into(tree, stream)
    assert stream.bytes_read < MIB


@pytest.mark.parametrize(
    "records",
    [
        b"0 path=a\n",
        b"9999 path=a\n",
        b"11 path=abcdefg\n",
        b"6 path\n",
        b"path=a\n",
        b"2 " * 100_000 + b"x=\n",  # quadratic memory in tarfile before 3.11.10
        b"300009 a=" + b"1" * 299_999 + b"\n",  # quadratic time in tarfile before 3.11.10
        b"18 hdrcharset=\xff\xff\n",
        b"22 GNU.sparse.map=a,b\n",
        b"13 size=-512\n",
    ],
)
def test_malformed_pax_records_are_damage(tree: Path, records: bytes) -> None:
    assert_refused(tree, pax_header(records) + raw_header() + END, "damaged")


def test_headers_of_headers_without_end_are_damage(tree: Path) -> None:
    assert_refused(tree, raw_header(kind=b"L") * 5000 + END, "damaged")


def test_global_headers_do_not_pile_up(tree: Path) -> None:
    one = pax_header(b"1009 comment=" + b"x" * 995 + b"\n", kind=b"g") + raw_header()
    assert_refused(tree, one * 17 + END, "global headers")


def test_a_global_header_as_git_writes_it_is_no_member(tree: Path) -> None:
    one = pax_header(b"19 comment=0123456\n", kind=b"g") + raw_header()
    assert unpack_into(tree, one + END, max_members=1) == [unpacked("name", b"")]


def test_a_global_header_cannot_make_a_member_larger_than_it_is_stored(tree: Path) -> None:
    hostile = pax_header(b"12 size=900\n", kind=b"g") + raw_header(b"a", size=octal(100))
    assert_refused(tree, hostile + bytes(512) + raw_header(b"b") + END, "sizes contradict")


@pytest.mark.parametrize(
    "sparse_map",
    ["0,512,0,512", "512,512,0,512", "0,9999", "1000,1", "-512,512", "0,-512", "0,1024"],
)
def test_sparse_maps_that_contradict_themselves_are_damage(tree: Path, sparse_map: str) -> None:
    fields = {"GNU.sparse.map": sparse_map, "GNU.sparse.size": "1000"}
    info, data = member("sparse", b"x" * 512)
    info.pax_headers = fields
    assert_refused(tree, tar_of((info, data)), "damaged")


def test_an_endless_sparse_map_is_not_collected(tree: Path) -> None:
    block = bytes(504) + b"\x01" + bytes(7)
    header = bytearray(raw_header(kind=b"S"))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert_refused(tree, bytes(header) + block * 10_000, "headers take over")


def test_the_limits_may_be_met(tree: Path) -> None:
    archive = tar_of(directory("d"), member("d/a", b"a" * 600), member("d/b", b"b" * 400))
    assert len(unpack_into(tree, archive, max_bytes=1000, max_members=3)) == 2


@pytest.mark.parametrize("wanted", [True, False])
def test_more_bytes_than_the_limit_are_refused(tree: Path, wanted: bool) -> None:
    archive = tar_of(member("a", b"a" * 600), member("b", b"b" * 401))
    more = {"wanted": lambda path: wanted, "max_bytes": 1000}
    assert_refused(tree, archive, "over 1,000 bytes", **more)
    assert not (tree / "b").exists()


@pytest.mark.parametrize("wanted", [True, False])
def test_more_members_than_the_limit_are_refused(tree: Path, wanted: bool) -> None:
    archive = tar_of(directory("d"), member("d/a"), member("d/b"))
    more = {"wanted": lambda path: wanted, "max_members": 2}
    assert_refused(tree, archive, "over 2 members", **more)


def zeros_compressed(prefix: bytes, count: int) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    blocks = [compressor.compress(prefix)]
    blocks += [compressor.compress(bytes(MIB)) for _ in range(count // MIB)]
    return b"".join(blocks) + compressor.flush()


def test_a_bomb_is_not_set_off(tree: Path) -> None:
    header = raw_header(b"bomb", size=octal(256 * MIB))
    stream = Stream(zeros_compressed(header, 256 * MIB), piece_bytes=1000)
    with pytest.raises(ArchiveError, match="over 1,048,576 bytes"):
        unpack_into(tree, stream, max_bytes=MIB)
    assert stream.bytes_read < 10_000
    assert list(tree.iterdir()) == []


def test_a_bomb_behind_the_end_marker_stops_at_the_limit(tree: Path) -> None:
    stream = Stream(zeros_compressed(raw_header(b"a") + END, 256 * MIB), piece_bytes=1000)
    with pytest.raises(ArchiveError, match="over 1,048,576 bytes"):
        unpack_into(tree, stream, max_bytes=MIB)
    assert stream.bytes_read < 10_000


def test_an_xz_that_asks_for_gigabytes_of_memory_is_refused(tree: Path) -> None:
    archive = bytearray(lzma.compress(tar_of(member("a", b"1"))))
    block_header = slice(12, 12 + (archive[12] + 1) * 4)  # .xz file format, section 3.1
    header = archive[block_header][:-4]
    header[4] = 40  # a dictionary of 4 GiB
    archive[block_header] = header + zlib.crc32(header).to_bytes(4, "little")
    assert_refused(tree, bytes(archive), "Memory usage limit")


def test_a_bomb_of_long_headers_stops_at_the_limit(tree: Path) -> None:
    name = raw_header(kind=b"L", size=octal(MIB // 2)) + padded(b"n" + bytes(MIB // 2 - 1))
    archive = gzip.compress((name + raw_header()) * 64 + END)
    assert_refused(tree, archive, "over 4,194,304 bytes", max_bytes=4 * MIB)


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_memory_does_not_grow_with_the_archive(
    tree: Path, tmp_path: Path, compress: Compress
) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(compress(tar_of(member("large", bytes(48 * MIB)))))
    with open(packed, "rb", buffering=0) as reader:
        tracemalloc.start()
        try:
            unpack_into(tree, reader)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (tree / "large").stat().st_size == 48 * MIB
    assert peak_bytes < 16 * MIB


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9])
@pytest.mark.parametrize(
    "failure",
    [
        OSError("cable cut"),
        DevserverError("stopped"),
        TransientArchiveError("reset"),
        ValueError("closed"),
    ],
)
def test_what_the_reader_raises_comes_through_unchanged(
    tree: Path, compress: Compress, kept: float, failure: Exception
) -> None:
    archive = compress(tar_of(member("a", os.urandom(30_000)), member("b", os.urandom(30_000))))
    stream = Stream(archive[: int(len(archive) * kept)], failure=failure)
    with pytest.raises(type(failure)) as raised:
        unpack_into(tree, stream)
    assert raised.value is failure


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_what_the_disk_says_comes_through_unchanged(tmp_path: Path, compress: Compress) -> None:
    with pytest.raises(FileNotFoundError):
        unpack_into(tmp_path / "missing", compress(tar_of(member("a", b"1"))))


SAMPLE = tar_of(
    directory("d"),
    member("d/short", b"short"),
    member("d/" + "long" * 50, bytes(range(256)) * 9),
    symbolic_link("d/link", "short"),
    hard_link("hard", "d/short"),
)
with tempfile.TemporaryDirectory() as sample_tree:
    SAMPLE_MEMBERS = unpack_into(Path(sample_tree), SAMPLE)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
@settings(max_examples=300, deadline=None)
@given(edit=edits)
def test_a_compressed_archive_with_random_damage_unpacks_exactly_or_not_at_all(
    compress: Compress, edit: Edit
) -> None:
    assert unpack_or_refuse(edited(compress(SAMPLE), edit)) in (SAMPLE_MEMBERS, None)


@settings(max_examples=300, deadline=None)
@given(length=st.integers(0, len(SAMPLE)))
def test_a_tar_cut_anywhere_unpacks_exactly_or_not_at_all(length: int) -> None:
    assert unpack_or_refuse(SAMPLE[:length]) in (SAMPLE_MEMBERS, None)


@settings(max_examples=300, deadline=None)
@given(edit=edits)
def test_a_plain_tar_with_random_damage_never_leads_out(edit: Edit) -> None:
    # Nothing in a plain tar tells damage to the contents from the contents.
    unpack_or_refuse(edited(SAMPLE, edit))


def test_names_of_very_many_segments_are_refused(tree: Path) -> None:
    assert_refused(tree, tar_of(member("d/" * 200 + "f", b"1")), "over 200 segments")
    unpack_into(tree, tar_of(member("d/" * 199 + "f", b"1")))
