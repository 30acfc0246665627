"""Modules of a dump get names that are safe; what is no dump, or a hostile one, does no harm."""

from __future__ import annotations

import re
import struct
import unicodedata
from pathlib import Path

import pytest
from assemble_client import CRASH_LAB, crash_lab
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dumps import (
    HEADER_BYTES,
    IDENTIFIER,
    MODULE_BYTES,
    MODULE_LIST_STREAM,
    DumpOnDisk,
    MadeModule,
    build_id,
    codeview,
    made_dump,
    module_list,
    patched,
    pdb70,
    stream_entry,
)

from artifacts.errors import BadRequest
from artifacts.symbols.minidump import ModuleNames, rename_modules

REAL = crash_lab("crash_lab.dmp")
REAL_MODULES = 8
LIST = module_list(REAL)
FIRST = LIST + 4
# Within a module.
NAME, CODEVIEW = 20, 76
BEYOND = 0xFFFFFFF0
TOKEN = re.compile("[A-Za-z0-9-]+")
GUID = bytes.fromhex("32ddd78f1173f8a6bad50bd4bd2d4843")
# What the renaming may change of each module: three places in the dump, and what is appended.
CHANGED_BYTES, APPENDED_BYTES = 20, 300


def renamed(directory: Path, content: bytes) -> ModuleNames:
    path = directory / "minidump"
    path.write_bytes(content)
    return rename_modules(path)


def check_rename(directory: Path, content: bytes) -> ModuleNames | None:
    """Rename the modules of what may be anything; check that this does no harm."""
    try:
        names = renamed(directory, content)
    except BadRequest:
        assert (directory / "minidump").read_bytes() == content
        return None
    after = (directory / "minidump").read_bytes()
    changed = sum(old != new for old, new in zip(content, after, strict=False))
    assert changed <= CHANGED_BYTES * len(names.modules)
    assert len(content) <= len(after) <= len(content) + APPENDED_BYTES * len(names.modules)
    for module in names.modules:
        assert TOKEN.fullmatch(module.token)
        for name in (module.name, module.debug_name):
            assert not any(unicodedata.category(c)[0] == "C" or c in "/\\" for c in name)
    return names


# --- the real one


def test_the_modules_of_a_dump_are_known(tmp_path: Path) -> None:
    expected = [
        line.split("|")
        for line in (CRASH_LAB / "expected-symbols.m.txt").read_text("utf-8").splitlines()
        if line.startswith("Module|")
    ]
    modules = renamed(tmp_path, REAL).modules
    assert [["Module", m.name, "", m.debug_name, m.identifier] for m in modules] == [
        line[:5] for line in expected
    ]
    assert modules[0].debug_id == "8fd7dd32-7311-a6f8-bad5-0bd4bd2d4843"
    assert modules[0].token == f"module-{IDENTIFIER}"


def test_what_the_walker_prints_is_turned_back_into_the_names_of_the_dump(tmp_path: Path) -> None:
    dump = DumpOnDisk(tmp_path / "dump")
    dump.add_symbols(crash_lab("crash_lab.sym"))
    walk = dump.walked()
    assert "crash_lab!" not in walk.text
    for printed, expected in (
        (walk.text, "expected-symbols.txt"),
        (walk.printed, "expected-symbols.m.txt"),
    ):
        assert dump.names.restored(printed).encode() == crash_lab(expected)


def test_without_symbols_it_is_as_without_new_names(tmp_path: Path) -> None:
    dump = DumpOnDisk(tmp_path / "dump")
    expected = (CRASH_LAB / "expected-nosymbols.m.txt").read_text("utf-8")
    assert dump.names.restored(dump.walked().printed) == expected


def test_the_walker_sees_no_name_of_the_dump(tmp_path: Path) -> None:
    hostile = "../../../etc/x|\n0|0|x|y|z|1|0x0\x1b[2J".encode("utf-16-le")
    name = struct.pack("<I", len(hostile)) + hostile + b"\0\0"
    dump = DumpOnDisk(tmp_path / "dump", patched(REAL, FIRST + NAME, len(REAL)) + name)
    dump.add_symbols(crash_lab("crash_lab.sym"))
    walk = dump.walked()
    seen = [line.split("|") for line in walk.printed.splitlines() if line.startswith("Module|")]
    assert [line[1] for line in seen] == [module.token for module in dump.names.modules]
    assert " 0  x| 0|0|x|y|z|1|0x0 [2J!lab::poke" in dump.names.restored(walk.text)


# --- what is no dump, or a part of one


@pytest.mark.parametrize(
    "content",
    [b"", b"M", b"MDMP", b"hello, world\n" * 100, b"\0" * 4096, b"MDMP" + bytes(27), b"MDPM" * 9],
    ids=["empty", "one byte", "signature", "text", "zeros", "short header", "other signature"],
)
def test_what_is_no_dump_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "minidump"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match="not a minidump"):
        rename_modules(path)
    assert path.read_bytes() == content


def test_a_dump_that_is_cut_anywhere_does_no_harm(tmp_path: Path) -> None:
    list_ends = LIST + 4 + REAL_MODULES * MODULE_BYTES
    for size in [HEADER_BYTES, *range(200, len(REAL), 300)]:
        names = check_rename(tmp_path, REAL[:size])
        assert names is not None
        assert len(names.modules) == (0 if size < list_ends else REAL_MODULES)


@pytest.mark.parametrize(
    "content",
    [
        made_dump([]),
        patched(REAL, 8, 1, BEYOND),
        patched(REAL, 8, 0xFFFFFFFF, BEYOND),
        patched(REAL, 8, 0, 32),
        patched(REAL, stream_entry(REAL, 4) + 8, BEYOND),
        patched(REAL, stream_entry(REAL, 4) + 8, len(REAL) - 3),
        patched(REAL, stream_entry(REAL, 4) + 4, 3),
        patched(REAL, LIST, 0xFFFFFFFF),
        patched(REAL, LIST, 2049),
    ],
    ids=[
        *("no modules", "directory beyond", "directory beyond, without end", "no streams"),
        *("list beyond", "list across the end", "short list", "modules without end", "too many"),
    ],
)
def test_where_modules_cannot_be_read_there_are_none(content: bytes, tmp_path: Path) -> None:
    assert not renamed(tmp_path, content).modules
    assert (tmp_path / "minidump").read_bytes() == content


def test_as_many_streams_as_a_number_can_tell_are_not_looked_for(tmp_path: Path) -> None:
    assert len(renamed(tmp_path, patched(REAL, 8, 0xFFFFFFFF)).modules) == REAL_MODULES


def test_a_name_that_is_beyond_the_end_is_empty(tmp_path: Path) -> None:
    for at in (BEYOND, len(REAL) - 2):
        module = renamed(tmp_path, patched(REAL, FIRST + NAME, at)).modules[0]
        assert (module.name, module.identifier) == ("", IDENTIFIER)


def test_a_name_without_end_is_cut(tmp_path: Path) -> None:
    at = struct.unpack_from("<I", REAL, FIRST + NAME)[0]
    module = renamed(tmp_path, patched(REAL, at, 0xFFFFFFFF)).modules[0]
    assert len(module.name) <= 1024


@pytest.mark.parametrize("record", [(24, BEYOND), (0xFFFFFFFF, 0), (32769, 10800), (0, 10800)])
def test_a_record_that_cannot_be_read_is_taken_away(
    record: tuple[int, int], tmp_path: Path
) -> None:
    module = renamed(tmp_path, patched(REAL, FIRST + CODEVIEW, *record)).modules[0]
    assert (module.name, module.debug_name, module.identifier) == ("crash_lab", "crash_lab", None)
    assert (module.token, module.debug_id) == ("module-without-id-0", None)
    after = (tmp_path / "minidump").read_bytes()
    assert struct.unpack_from("<4I", after, FIRST + CODEVIEW) == (0, 0, 0, 0)


# --- names and identifiers


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc", "etc"),
        ("..", ".."),
        ("", ""),
        ("/", ""),
        ("/system/lib/liba.so", "liba.so"),
        ("c:\\windows\\a.dll", "a.dll"),
        ("a\nb\x1b[2J\0c\x7f", "a b [2J c "),
        ("a|b", "a|b"),
        ("\ud800", "\ufffd"),
        ("Lämpchen\u202e\u00ad", "Lämpchen  "),
    ],
)
def test_names_are_shown_without_directories_and_control_characters(
    name: str, shown: str, tmp_path: Path
) -> None:
    (module,) = renamed(tmp_path, made_dump([MadeModule(name, build_id(GUID))])).modules
    assert (module.name, module.debug_name) == (shown, shown)
    assert module.token == f"module-{IDENTIFIER}"


def test_modules_of_one_id_keep_their_names(tmp_path: Path) -> None:
    called = ["first", "second", "first"]
    modules = [MadeModule(name, build_id(GUID)) for name in called]
    names = renamed(tmp_path, made_dump(modules))
    # What is there twice is one module to the walker.
    assert [module.token for module in names.modules] == [
        f"module-{IDENTIFIER}",
        f"module-{IDENTIFIER}-1",
        f"module-{IDENTIFIER}",
    ]
    text = "".join(f"{module.token} + 0x1\n" for module in names.modules)
    assert names.restored(text) == "first + 0x1\nsecond + 0x1\nfirst + 0x1\n"


def test_what_terminals_obey_is_left_out_of_the_text(tmp_path: Path) -> None:
    names = renamed(tmp_path, made_dump([MadeModule("a")]))
    text = "\x1b[31mred\x1b]0;title\x07\r\n\ttab\x7f\x9b \N{LATIN SMALL LETTER U WITH DIAERESIS}\n"
    assert names.restored(text) == (
        " [31mred ]0;title  \n\ttab   \N{LATIN SMALL LETTER U WITH DIAERESIS}\n"
    )


def test_a_module_that_lies_over_the_directory_is_refused(tmp_path: Path) -> None:
    # To rename it would be to change the directory, so that the walker finds other modules.
    dump = made_dump([MadeModule("a")])
    directory = module_list(dump) + 4 + CODEVIEW
    dump = patched(dump, directory, MODULE_LIST_STREAM, 4 + MODULE_BYTES, module_list(dump))
    path = tmp_path / "minidump"
    path.write_bytes(patched(dump, 12, directory))
    with pytest.raises(BadRequest, match="lie over each other"):
        rename_modules(path)


def test_modules_without_an_id_are_told_apart(tmp_path: Path) -> None:
    names = renamed(tmp_path, made_dump([MadeModule("a"), MadeModule("b")]))
    assert [module.token for module in names.modules] == [
        "module-without-id-0",
        "module-without-id-1",
    ]
    assert names.restored("module-without-id-1!f") == "b!f"


@pytest.mark.parametrize(
    ("identity", "identifier"),
    [
        (GUID + b"\x5d\x5c\x7d\x7f", IDENTIFIER),
        (GUID[:3], "00D7DD32" + "0" * 25),
        (b"", None),
    ],
    ids=["sha-1", "short", "empty"],
)
def test_build_ids_may_have_any_length(
    identity: bytes, identifier: str | None, tmp_path: Path
) -> None:
    (module,) = renamed(tmp_path, made_dump([MadeModule("a", build_id(identity))])).modules
    assert module.identifier == identifier


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_the_debug_file_of_a_pdb_gets_the_same_name(order: str, tmp_path: Path) -> None:
    guid = struct.pack(f"{order}IHH", 0x8FD7DD32, 0x7311, 0xA6F8) + GUID[8:]
    record = pdb70(guid, 0x2A, b"c:\\build\\..\\lab.pdb\0", order)
    dump = made_dump([MadeModule("c:\\lab.exe", record)], order=order)
    names = renamed(tmp_path, dump)
    (module,) = names.modules
    assert (module.name, module.debug_name) == ("lab.exe", "lab.pdb")
    assert module.identifier == IDENTIFIER[:-1] + "2a"
    assert module.debug_id == "8fd7dd32-7311-a6f8-bad5-0bd4bd2d4843-2a"
    after = (tmp_path / "minidump").read_bytes()
    at = HEADER_BYTES + 12 + 4
    name_at = struct.unpack_from(f"{order}I", after, at + NAME)[0]
    (size,) = struct.unpack_from(f"{order}I", after, name_at)
    encoding = "utf-16-le" if order == "<" else "utf-16-be"
    assert after[name_at + 4 : name_at + 4 + size].decode(encoding) == module.token
    size, place = struct.unpack_from(f"{order}II", after, at + CODEVIEW)
    assert after[place : place + size] == record[:24] + module.token.encode() + b"\0"
    text = f"{module.token}!f  (WARNING: No symbols, {module.token}, {module.identifier})"
    assert names.restored(text) == f"lab.exe!f  (WARNING: No symbols, lab.pdb, {module.identifier})"


def test_a_build_id_of_a_big_endian_dump_is_read_as_it_stands(tmp_path: Path) -> None:
    dump = made_dump([MadeModule("/bin/lab", build_id(GUID, ">"))], order=">")
    (module,) = renamed(tmp_path, dump).modules
    assert (module.name, module.identifier) == ("lab", IDENTIFIER)


def test_a_record_of_an_unknown_kind_is_taken_away(tmp_path: Path) -> None:
    pdb20 = codeview(0x3031424E, struct.pack("<III", 0, 0x11223344, 1) + b"..\\lab.pdb\0")
    (module,) = renamed(tmp_path, made_dump([MadeModule("lab.exe", pdb20)])).modules
    assert (module.debug_name, module.identifier) == ("lab.exe", None)
    after = (tmp_path / "minidump").read_bytes()
    assert struct.unpack_from("<II", after, HEADER_BYTES + 12 + 4 + CODEVIEW) == (0, 0)


def test_a_module_list_may_be_aligned(tmp_path: Path) -> None:
    modules = [MadeModule("a", build_id(GUID)), MadeModule("b")]
    names = renamed(tmp_path, made_dump(modules, padding=4))
    assert [module.name for module in names.modules] == ["a", "b"]


# --- whatever it may be


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


PLACES = st.one_of(
    st.integers(0, HEADER_BYTES + 13 * 12),
    st.integers(LIST, 11576),
    st.integers(0, len(REAL) - 1),
)


@settings(max_examples=200, deadline=None)
@given(flips=st.dictionaries(PLACES, st.integers(1, 255), min_size=1, max_size=30))
def test_a_damaged_dump_does_no_harm(flips: dict[int, int], directory: Path) -> None:
    content = bytearray(REAL)
    for at, bits in flips.items():
        content[at] ^= bits
    check_rename(directory, bytes(content))


@settings(max_examples=200, deadline=None)
@given(
    signature=st.sampled_from([b"MDMP", b"PMDM"]),
    numbers=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)), max_size=100),
    rest=st.binary(max_size=300),
)
def test_anything_that_calls_itself_a_dump_does_no_harm(
    signature: bytes, numbers: list[int], rest: bytes, directory: Path
) -> None:
    order = "<" if signature == b"MDMP" else ">"
    check_rename(directory, signature + struct.pack(f"{order}{len(numbers)}I", *numbers) + rest)
