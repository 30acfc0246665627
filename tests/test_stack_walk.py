"""A stack walk as data: what the walker prints for machines, and what only its text says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from assemble_client import crash_lab
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dumps import (
    EXCEPTION_STREAM,
    IDENTIFIER,
    DumpOnDisk,
    patched,
    stream_entry,
)

from artifacts.symbols.minidump import DumpModule, ModuleNames
from artifacts.symbols.stack_walk import StackWalk

SOURCE = "/build/crash_lab/crash_lab.cpp"
GIVEN, FOUND = "given as instruction pointer in context", "call frame info"
DESCEND = "lab::descend(lab::Widget*, int)"
# Number, function, line, offset and trust; what is below frame 6 is noise.
FRAMES = [
    (0, "lab::poke(lab::Widget*, int)", 16, "0x0", GIVEN),
    (1, DESCEND, 23, "0x5", FOUND),
    (2, DESCEND, 25, "0x8", FOUND),
    (3, DESCEND, 25, "0x8", FOUND),
    (4, DESCEND, 25, "0x8", FOUND),
    (5, "lab::run_job(char const*)", 31, "0xa", FOUND),
    (6, "main", 39, "0x5", FOUND),
]
TOKEN = f"module-{IDENTIFIER}"
NAMES = ModuleNames([DumpModule("lab", "lab.debug", IDENTIFIER, TOKEN)])
FRAME = f"0|0|{TOKEN}|main|a.cc|3|0x1\n"
HEAD = "OS|Linux|6.1\nCPU|amd64|family 6|4\nGPU|||\nCrash|SIGSEGV|0x0|0\n"
MODULE = f"Module|{TOKEN}||{TOKEN}|{IDENTIFIER}|0x1000|0x1fff|1\n"


@pytest.fixture
def dump(tmp_path: Path) -> DumpOnDisk:
    return DumpOnDisk(tmp_path / "dump")


def crashed_frames(walk: dict[str, Any]) -> list[dict[str, Any]]:
    (thread,) = walk["threads"]
    assert (thread["thread"], thread["crashed"]) == (0, True)
    frames: list[dict[str, Any]] = thread["frames"]
    return frames


def made_walk(printed: str, text: str = "", with_symbols: frozenset[str] = frozenset()) -> Any:
    return StackWalk(printed, text, NAMES, with_symbols).as_json()


# --- what the real walker prints


def test_frames_have_functions_and_lines_and_how_they_were_found(dump: DumpOnDisk) -> None:
    dump.add_symbols(crash_lab("crash_lab.sym"))
    walk = dump.walked().as_json()
    frames = crashed_frames(walk)
    assert [
        (f["frame"], f["function"], f["line"], f["offset"], f["trust"]) for f in frames[:7]
    ] == FRAMES
    assert {(f["module"], f["source"]) for f in frames[:7]} == {("crash_lab", SOURCE)}
    assert all(f["trust"] for f in frames)
    assert json.loads(json.dumps(walk)) == walk


def test_the_crash_the_system_and_the_modules_are_told(dump: DumpOnDisk) -> None:
    dump.add_symbols(crash_lab("crash_lab.sym"))
    walk = dump.walked().as_json()
    assert walk["crash_reason"] == "SIGSEGV /SEGV_MAPERR"
    assert (walk["crash_address"], walk["crashed_thread"]) == ("0x0", 0)
    assert (walk["system"]["os"], walk["system"]["cpu"]) == ("Linux", "amd64")
    assert (walk["system"]["cpu_info"], walk["system"]["cpu_count"]) == (
        "family 26 model 2 stepping 1",
        1,
    )
    assert walk["modules"][0] == {
        "name": "crash_lab",
        "version": None,
        "debug_file": "crash_lab",
        "debug_id": IDENTIFIER,
        "start": "0x56379b58b000",
        "end": "0x56379b58cfff",
        "is_main": True,
        "has_symbols": True,
    }
    assert [m["is_main"] for m in walk["modules"][1:]] == [False] * 7
    assert walk["modules_without_symbols"] == [m["name"] for m in walk["modules"][1:]]


def test_without_symbols_frames_have_modules_and_offsets(dump: DumpOnDisk) -> None:
    walk = dump.walked().as_json()
    first, second = crashed_frames(walk)[:2]
    assert first == {
        "frame": 0,
        "module": "crash_lab",
        "function": None,
        "source": None,
        "line": None,
        "offset": "0x113f",
        "trust": GIVEN,
    }
    assert (second["offset"], second["trust"]) == ("0x116b", "previous frame's frame pointer")
    assert len(walk["modules_without_symbols"]) == len(walk["modules"]) == 8


@pytest.mark.parametrize("rubbish", ["rubbish\n", "FUNC x\n", "STACK CFI\nFILE\n"])
def test_corrupt_symbols_are_none(rubbish: str, dump: DumpOnDisk) -> None:
    head = crash_lab("crash_lab.sym").partition(b"\n")[0] + b"\n"
    dump.add_symbols(head + rubbish.encode())
    walk = dump.walked()
    assert "WARNING: Corrupt symbols" in walk.text
    told = walk.as_json()
    assert [module["has_symbols"] for module in told["modules"]] == [False] * 8
    assert told["modules_without_symbols"][0] == "crash_lab"
    assert "(WARNING: Corrupt symbols, crash_lab, " in walk.names.restored(walk.text)


def test_a_process_that_did_not_crash_has_no_reason(tmp_path: Path) -> None:
    real = crash_lab("crash_lab.dmp")
    # The exception is not one of the streams any more.
    content = patched(real, stream_entry(real, EXCEPTION_STREAM), 0)
    walk = DumpOnDisk(tmp_path / "dump", content).walked()
    assert "No crash" in walk.text
    told = walk.as_json()
    assert (told["crash_reason"], told["crash_address"]) == (None, None)
    assert told["threads"]
    assert told["crashed_thread"] is None
    assert [thread["crashed"] for thread in told["threads"]] == [False]


def test_text_that_does_not_fit_tells_no_trust(dump: DumpOnDisk) -> None:
    dump.add_symbols(crash_lab("crash_lab.sym"))
    walk = dump.walked()
    for text in ("", walk.text + "    Found by: a name of two lines\n"):
        frames = crashed_frames(replace(walk, text=text).as_json())
        assert [frame["function"] for frame in frames[:7]] == [frame[1] for frame in FRAMES]
        assert {frame["trust"] for frame in frames} == {None}


# --- what it might print


def test_several_threads_are_told_in_their_order() -> None:
    head = HEAD.replace("0x0|0", "0x0|1") + MODULE
    printed = f"{head}\n1|0|{TOKEN}|f|||0x1\n1|1|||||0x2\n0|0|other|g|a.cc|7|0x3\n"
    text = "".join(f"    Found by: {how}\n" for how in ("a", "b", "c"))
    walk = made_walk(printed, text, frozenset({TOKEN}))
    assert [(t["thread"], t["crashed"], len(t["frames"])) for t in walk["threads"]] == [
        (1, True, 2),
        (0, False, 1),
    ]
    described = [
        (f["module"], f["function"], f["trust"]) for t in walk["threads"] for f in t["frames"]
    ]
    assert described == [("lab", "f", "a"), (None, None, "b"), ("other", "g", "c")]
    assert (walk["modules"][0]["name"], walk["modules"][0]["debug_file"]) == ("lab", "lab.debug")
    assert walk["modules_without_symbols"] == []


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_name_with_what_others_end_lines_with_is_a_name(separator: str) -> None:
    name = f"a{separator}b"
    printed = f"{HEAD}\n{FRAME.replace('main', name)}{FRAME}"
    walk = made_walk(printed, "    Found by: x\n    Found by: y\n")
    assert [(f["function"], f["trust"]) for f in crashed_frames(walk)] == [
        (name, "x"),
        ("main", "y"),
    ]


@pytest.mark.parametrize("printed", ["", "\n", "\n\n", "|", "Crash", "Module|", "OS|", "0|0", HEAD])
def test_what_is_missing_is_not_known(printed: str) -> None:
    walk = made_walk(printed)
    assert (walk["threads"], walk["modules"]) == ([], [])


@pytest.mark.parametrize("number", ["x", "", "-1", "1.5", "9" * 5000, "²", "٣"])
def test_what_is_no_number_is_passed_over(number: str) -> None:
    head = HEAD.replace("family 6|4", f"family 6|{number}").replace("0x0|0", f"0x0|{number}")
    frames = f"{number}|0|m|f|s|1|0x1\n0|{number}|m|f|s|1|0x1\n0|0|m|f|s|{number}|0x1\n"
    walk = made_walk(f"{head}\n{frames}")
    assert (walk["system"]["cpu_count"], walk["crashed_thread"]) == (None, None)
    ((frame,),) = [thread["frames"] for thread in walk["threads"]]
    assert (frame["line"], frame["function"]) == (None, "f")


FIELDS = st.one_of(
    st.sampled_from(["OS", "CPU", "Crash", "Module", "No crash", TOKEN, "0", "1", "0x1", ""]),
    st.text(max_size=5),
)
LINES = st.lists(st.lists(FIELDS, max_size=9).map("|".join), max_size=12).map("\n".join)


@settings(deadline=None)
@given(printed=st.one_of(LINES, st.text()), text=st.one_of(LINES, st.text()))
def test_whatever_was_printed_becomes_json(printed: str, text: str) -> None:
    walk = made_walk(printed, text, frozenset({TOKEN}))
    assert json.loads(json.dumps(walk)) == walk
    assert NAMES.restored(printed).count(TOKEN) == 0
