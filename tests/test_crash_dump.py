"""A dump that was sent is in a directory of its own, with links to the symbols for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from assemble_client import crash_lab
from made_dumps import DEBUG_ID, IDENTIFIER, MadeModule, build_id, made_dump

from artifacts.errors import BadRequest, DevserverError, InsufficientStorage, TooLarge
from artifacts.serving.multipart import PartHead
from artifacts.symbols.crash_dump import CrashDump

GUID = bytes.fromhex("32ddd78f1173f8a6bad50bd4bd2d4843")
TOKEN = f"module-{IDENTIFIER}"


class Directory:
    """A directory for dumps, and how many were removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.removed = 0

    def receive(self) -> CrashDump:
        return CrashDump(self.path, lambda: None, self._count)

    def _count(self) -> None:
        self.removed += 1


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "dumps")


@pytest.fixture
def dump(directory: Directory) -> Iterator[CrashDump]:
    dump = directory.receive()
    yield dump
    dump.remove()
    assert list(directory.path.iterdir()) == []
    assert directory.removed == 1


def send(dump: CrashDump, name: str, *blocks: bytes) -> None:
    dump.begin_part(PartHead(name, None))
    for block in blocks:
        dump.take(memoryview(block))
    dump.end_part()


def test_a_disk_that_fills_while_a_dump_comes_is_noticed(tmp_path: Path) -> None:
    looks: list[int] = []

    def check_room() -> None:
        looks.append(len(looks))
        if len(looks) > 3:
            raise InsufficientStorage("the disk is nearly full")

    dump = CrashDump(tmp_path / "dumps", check_room, lambda: None)
    dump.begin_part(PartHead("minidump", None))
    with pytest.raises(InsufficientStorage):
        for _ in range(64):
            dump.take(memoryview(bytes(1 << 20)))
    dump.remove()
    assert list((tmp_path / "dumps").iterdir()) == []


def test_symbols_do_not_bring_back_a_dump_that_was_removed(
    directory: Directory, tmp_path: Path
) -> None:
    dump = directory.receive()
    send(dump, "minidump", made_dump([MadeModule("lab", build_id(GUID))]))
    dump.end()
    modules = dump.modules()
    dump.remove()
    symbols = tmp_path / "lab.sym"
    symbols.touch()
    with contextlib.suppress(DevserverError):
        assert dump.add_symbols(modules, {DEBUG_ID: symbols}) == frozenset()
    assert list(directory.path.iterdir()) == []


def test_a_form_has_a_dump_and_fields(dump: CrashDump) -> None:
    send(dump, "archive_url", b"https://arch", b"ive/a/1")
    send(dump, "minidump", b"MD", b"MP")
    send(dump, "of_others", b"x" * 100_000)
    dump.end()
    assert dump.path.read_bytes() == b"MDMP"
    assert dump.fields == {"archive_url": "https://archive/a/1"}


def test_a_form_without_a_dump_or_with_two_is_refused(dump: CrashDump) -> None:
    with pytest.raises(BadRequest, match="missing argument: minidump"):
        dump.end()
    send(dump, "minidump", b"MDMP")
    with pytest.raises(BadRequest, match="several fields minidump"):
        send(dump, "minidump", b"MDMP")
    send(dump, "wait", b"1")
    with pytest.raises(BadRequest, match="several fields wait"):
        send(dump, "wait", b"1")


def test_a_field_that_does_not_end_is_refused(dump: CrashDump) -> None:
    with pytest.raises(TooLarge, match="field format"):
        send(dump, "format", b"x" * 8000, b"x" * 193)


def test_nothing_is_left_of_a_dump_that_there_is_no_room_for(tmp_path: Path) -> None:
    def check_room() -> None:
        raise InsufficientStorage("the disk is full")

    with pytest.raises(InsufficientStorage):
        CrashDump(tmp_path / "dumps", check_room, lambda: None)
    assert not (tmp_path / "dumps").exists()


def test_what_is_no_dump_has_no_modules(dump: CrashDump) -> None:
    send(dump, "minidump", b"hello, world" * 10)
    dump.end()
    with pytest.raises(BadRequest, match="not a minidump"):
        dump.modules()


def test_symbols_are_put_where_the_walker_looks(dump: CrashDump, tmp_path: Path) -> None:
    symbols = tmp_path / "kept.sym"
    symbols.write_bytes(crash_lab("crash_lab.sym"))
    twice = [MadeModule("../../lab", build_id(GUID)), MadeModule("lab", build_id(GUID))]
    send(dump, "minidump", made_dump([*twice, MadeModule("without-id")]))
    dump.end()
    assert dump.add_symbols(dump.modules(), {DEBUG_ID: symbols}) == {TOKEN}
    (found,) = (path for path in dump.symbols.rglob("*") if path.is_file())
    assert found == dump.symbols / TOKEN / IDENTIFIER / f"{TOKEN}.sym"
    # Whoever removes the symbols now takes nothing away from the dump.
    symbols.unlink()
    assert found.read_bytes() == crash_lab("crash_lab.sym")


def test_symbols_that_were_removed_meanwhile_are_left_out(dump: CrashDump, tmp_path: Path) -> None:
    send(dump, "minidump", made_dump([MadeModule("lab", build_id(GUID))]))
    dump.end()
    assert dump.add_symbols(dump.modules(), {DEBUG_ID: tmp_path / "gone.sym"}) == frozenset()
    assert not [path for path in dump.symbols.rglob("*") if path.is_symlink()]
