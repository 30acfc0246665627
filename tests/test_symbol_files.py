"""Symbol files are made of uploaded debug files, once for all who ask, and kept for a while."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from assemble_client import crash_lab
from breakpad_programs import dump_syms
from faulty_storage import Trouble
from made_dumps import DEBUG_ID, IDENTIFIER, DumpOnDisk
from polling import wait_until
from stored_files import ORGANIZATION, sha1_of
from symbol_lab import SECONDS, SymbolLab

from artifacts.blobs.storage import StorageError
from artifacts.errors import Busy, DevserverError, InsufficientStorage, NotFound
from artifacts.symbols.copies import NOT_THERE
from artifacts.symbols.debug_files import StoredObject
from artifacts.symbols.limited_programs import CannotRun
from artifacts.symbols.symbol_files import SymbolFileFailed


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[[int], SymbolLab]]:
    made: list[SymbolLab] = []

    def make(max_kept_bytes: int) -> SymbolLab:
        made.append(SymbolLab(tmp_path / "lab", max_kept_bytes))
        return made[-1]

    (tmp_path / "lab").mkdir()
    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(make_lab: Callable[[int], SymbolLab]) -> SymbolLab:
    return make_lab(1 << 30)


def frames_with(symbols: bytes, directory: Path) -> list[tuple[str | None, int | None, str | None]]:
    """Return function, line and trust of the first frames of the real dump."""
    dump = DumpOnDisk(directory)
    dump.add_symbols(symbols)
    (thread,) = dump.walked().as_json()["threads"]
    return [(f["function"], f["line"], f["trust"]) for f in thread["frames"][:7]]


def lines_of(symbols: bytes, kind: bytes) -> list[bytes]:
    return [line for line in symbols.splitlines() if line.startswith(kind)]


# --- what is made of what


def test_symbols_of_breakpad_are_taken_as_they_are(lab: SymbolLab) -> None:
    content = crash_lab("crash_lab.sym")
    made = lab.made(lab.add(content, "breakpad"))
    assert made.read_bytes() == content
    assert lab.names() == {f"{sha1_of(content)}.sym"} == {made.name}


def test_a_program_is_converted(lab: SymbolLab) -> None:
    lab.dump_syms = dump_syms()
    made = lab.made(lab.add(crash_lab("crash_lab"))).read_bytes()
    expected = crash_lab("crash_lab.sym")
    # The first line has the name of the file, which is not known here.
    assert made.splitlines()[1:] == expected.splitlines()[1:]
    assert made.startswith(f"MODULE Linux x86_64 {IDENTIFIER} ".encode())


def test_what_a_stripped_program_and_its_debug_file_have_is_put_together(
    lab: SymbolLab, tmp_path: Path
) -> None:
    lab.dump_syms = dump_syms()
    debug, stripped = (
        lab.add(crash_lab("crash_lab.debug")),
        lab.add(crash_lab("crash_lab.stripped")),
    )
    path = lab.made(debug, stripped)
    assert lab.names() == {f"{debug.checksum}+{stripped.checksum}.sym"} == {path.name}
    made, expected = path.read_bytes(), crash_lab("crash_lab.sym")
    for kind in (b"FUNC ", b"STACK CFI ", b"INFO ", b"FILE "):
        assert lines_of(made, kind) == lines_of(expected, kind)
    assert len(lines_of(made, b"MODULE ")) == 1
    assert frames_with(made, tmp_path / "made") == frames_with(expected, tmp_path / "expected")
    # Neither is enough by itself.
    for alone in (debug, stripped):
        content = lab.made(alone).read_bytes()
        assert not (lines_of(content, b"FUNC ") and lines_of(content, b"STACK CFI "))


def test_symbols_of_breakpad_get_the_frames_of_a_program(lab: SymbolLab) -> None:
    lab.dump_syms = dump_syms()
    lines = crash_lab("crash_lab.sym").splitlines(keepends=True)
    bare = b"".join(line for line in lines if not line.startswith(b"STACK "))
    made = lab.made(lab.add(bare, "breakpad"), lab.add(crash_lab("crash_lab.stripped")))
    assert made.read_bytes() == crash_lab("crash_lab.sym")


def test_symbols_without_a_last_line_end_are_put_together(lab: SymbolLab) -> None:
    named = lab.add(b"FUNC 1000 10 0 f\nPUBLIC 2000 0 last", "breakpad")
    unwound = lab.add(b"STACK CFI INIT 1000 10 .cfa", "breakpad")
    assert lab.made(named, unwound).read_bytes() == (
        b"FUNC 1000 10 0 f\nPUBLIC 2000 0 last\nSTACK CFI INIT 1000 10 .cfa\n"
    )


def test_what_is_kept_goes_where_there_is_no_room(lab: SymbolLab) -> None:
    old = lab.made(lab.add(b"MODULE of the old", "breakpad"))
    lab.full_while_there = old
    new = lab.made(lab.add(b"MODULE of the new", "breakpad"))
    assert new.read_bytes() == b"MODULE of the new"
    assert lab.names() == {new.name}
    lab.is_full = True
    with pytest.raises(InsufficientStorage):
        lab.made(lab.add(b"MODULE of another", "breakpad"))
    assert lab.names() == set()


def test_without_the_program_only_symbols_of_breakpad_are_of_use(lab: SymbolLab) -> None:
    assert lab.files.formats == {"breakpad"}
    lab.fake("exit 0")
    assert lab.files.formats == {"breakpad", "elf"}
    lab.dump_syms = None
    with pytest.raises(SymbolFileFailed, match="is not installed any more") as raised:
        lab.made(lab.add(b"program"))
    assert raised.value.status == 422
    assert lab.names() == set()


# --- once


def test_what_many_ask_for_is_made_once(lab: SymbolLab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    lab.fake(f'read line < "{gate}"; echo made')
    stored = lab.add(b"program")
    with gate.open("r+b", buffering=0) as opened, ThreadPoolExecutor(16) as pool:
        futures = list(pool.map(lambda _: lab.ask(stored), range(16)))
        # All have asked: now it may be made.
        opened.write(b"go\n")
        paths = {future.result(SECONDS) for future in futures}
    (path,) = paths
    assert path.read_bytes() == b"made\n"
    assert lab.made(stored) == path
    assert lab.count_runs() == 1
    assert lab.names() == {path.name}


def test_what_was_made_is_there_for_the_next_server(make_lab: Callable[[int], SymbolLab]) -> None:
    lab = make_lab(1 << 30)
    lab.fake("echo made")
    stored = lab.add(b"program")
    path = lab.made(stored)
    (lab.kept / ".aside-left-by-a-crash").touch()
    lab.open_again()
    lab.dump_syms = None
    assert lab.ask(stored).result(0) == path
    assert lab.names() == {path.name}


# --- failures


@pytest.mark.parametrize(
    ("lines", "kind", "message"),
    [
        ("echo some; echo one >&2; echo no ELF >&2; exit 1", SymbolFileFailed, "status 1: no ELF"),
        ("echo some; kill -SEGV $$", SymbolFileFailed, "status -11"),
        ("exit 127", CannotRun, "cannot run"),
    ],
)
def test_what_cannot_be_converted_is_not_tried_again_at_once(
    lines: str, kind: type[DevserverError], message: str, lab: SymbolLab
) -> None:
    lab.fake(lines)
    stored = lab.add(b"program")
    for _ in range(3):
        with pytest.raises(kind, match=message):
            lab.made(stored)
    assert lab.count_runs() == 1
    assert lab.names() == set()


def test_a_failure_is_forgotten(lab: SymbolLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.fake("exit 1")
    stored = lab.add(b"program")
    with pytest.raises(SymbolFileFailed):
        lab.made(stored)
    lab.fake("echo made")
    with pytest.raises(SymbolFileFailed):
        lab.made(stored)
    later = type("Later", (), {"monotonic": staticmethod(lambda: float("inf"))})
    monkeypatch.setattr("artifacts.recent_outcomes.time", later)
    assert lab.made(stored).read_bytes() == b"made\n"


def test_the_second_of_two_that_cannot_be_converted_leaves_nothing(lab: SymbolLab) -> None:
    lab.fake('grep -q good "$2" && echo FUNC')
    with pytest.raises(SymbolFileFailed):
        lab.made(lab.add(b"good"), lab.add(b"bad"))
    assert lab.count_runs() == 2
    assert lab.names() == set()


def test_what_is_not_there_any_more_is_an_error(lab: SymbolLab) -> None:
    lab.fake("echo made")
    for kind, content in (("breakpad", b"MODULE of some kind"), ("elf", b"program")):
        stored = lab.add(content, kind)
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            lab.stored.storage.delete(sha1_of(half))
        with pytest.raises(NOT_THERE):
            lab.made(stored)
    unknown = StoredObject(9, 0, ORGANIZATION, "0" * 40, 1, DEBUG_ID, "elf", "x86_64", frozenset())
    with pytest.raises(NotFound, match="is not there any more"):
        lab.made(unknown)
    assert lab.count_runs() == 0
    assert lab.names() == set()


def test_a_damaged_blob_is_an_error(lab: SymbolLab) -> None:
    stored = lab.add(b"MODULE, or so", "breakpad")
    path = lab.stored.path_of(sha1_of(b"MODULE"))
    path.write_bytes(b"MODULA")
    with pytest.raises(NOT_THERE):
        lab.made(stored)
    assert lab.names() == set()


def test_a_storage_that_fails_is_an_error(lab: SymbolLab) -> None:
    stored = lab.add(b"MODULE, or so", "breakpad")
    lab.stored.storage.misbehave("open", Trouble(error=StorageError("the storage is away")))
    with pytest.raises(DevserverError, match="the storage is away"):
        lab.made(stored)
    assert lab.names() == set()


def test_nothing_is_made_on_a_full_disk(lab: SymbolLab) -> None:
    lab.fake("echo made")
    lab.is_full = True
    with pytest.raises(InsufficientStorage):
        lab.made(lab.add(b"program"))
    assert lab.names() == set()


def test_the_end_of_the_server_ends_what_is_made(lab: SymbolLab) -> None:
    lab.fake("exec sleep 600")
    asked = lab.ask(lab.add(b"program"))
    wait_until(lambda: lab.count_runs() == 1)
    lab.programs.close()
    with pytest.raises(Busy, match="shutting down"):
        asked.result(SECONDS)
    lab.files.close(10)
    with pytest.raises(Busy, match="shutting down"):
        lab.ask(lab.add(b"another"))
    assert lab.names() == set()


# --- room


def test_what_was_used_longest_ago_makes_room(make_lab: Callable[[int], SymbolLab]) -> None:
    lab = make_lab(3000)
    first, second, third, fourth = (lab.add(bytes([n]) * 1000, "breakpad") for n in range(4))
    for used_at, stored in enumerate((first, second, third)):
        os.utime(lab.made(stored), (used_at, used_at))
    # The first is used once more, and so the second was used longest ago.
    lab.made(first)
    lab.made(fourth)
    assert lab.names() == {f"{one.checksum}.sym" for one in (first, third, fourth)}
    assert lab.made(second).read_bytes() == b"\1" * 1000
    assert lab.names() == {f"{one.checksum}.sym" for one in (first, second, fourth)}


def test_the_newest_stays_however_large_it_is(make_lab: Callable[[int], SymbolLab]) -> None:
    lab = make_lab(100)
    for content in (b"a" * 50, b"b" * 1000, b"c" * 2000):
        stored = lab.add(content, "breakpad")
        assert lab.made(stored).read_bytes() == content
        assert lab.names() == {f"{stored.checksum}.sym"}


def test_what_is_made_at_once_keeps_within_bounds(make_lab: Callable[[int], SymbolLab]) -> None:
    lab = make_lab(2500)
    stored = [lab.add(bytes([n]) * 1000, "breakpad") for n in range(12)]
    start = threading.Barrier(4, timeout=SECONDS)

    def ask(some: list[StoredObject]) -> None:
        start.wait()
        for one in some:
            lab.made(one)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, (stored[n::4] for n in range(4))))
    lab.made(lab.add(b"last" * 250, "breakpad"))
    assert len(lab.names()) <= 2
