"""A minidump made readable, with large symbols: for the first time, and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil

from bench.large_debug_files import (
    CRASH_LAB,
    CRASH_LAB_FUNCTION,
    CRASH_LAB_IDENTIFIER,
    CRASH_LAB_NAME,
    breakpad_file,
)
from bench.measure import Gap, Row, interleave
from bench.place import MIB, Place
from bench.processes import CALL_SECONDS, bytes_written_by_tree, run_for_output
from bench.programs import need, program_path, versioned
from bench.symbol_server import SymbolServer

_NAME = "walks"
_WALKER = "minidump_stackwalk"
_DUMP = CRASH_LAB / f"{CRASH_LAB_NAME}.dmp"
# What the walker is told to print, for each format of ours.
_OPTIONS = {"text": (), "json": ("-m",)}
_COUNTS_BYTES = hasattr(psutil.Process, "io_counters")


@dataclass(frozen=True)
class _Walk:
    """One walk.

    Attributes:
        cpu_seconds: of the process tree, clients not included.
        written_bytes: by the process tree, to files and pipes; 0 where nobody counts them.
    """

    seconds: float
    cpu_seconds: float
    written_bytes: int = 0


def walks(place: Place) -> Iterator[Row | Gap]:
    """A minidump walked with large symbols, at first and again, beside the walker alone."""
    need(_WALKER)
    place.need_disk(500 * MIB)
    walker = str(program_path(_WALKER))
    symbols = breakpad_file(place)
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        directory = room / "symbols"
        _lay_out(directory, symbols.content)
        server = stack.enter_context(
            SymbolServer(room / "devserver", "--minidump-stackwalk", walker)
        )
        server.take_in(symbols.content)
        subjects: dict[str, Callable[[], _Walk]] = {}
        for kind, options in _OPTIONS.items():
            command = [walker, *options, str(_DUMP), str(directory)]
            subjects[f"{kind}, the first time"] = partial(_walk_first, server, kind)
            subjects[f"{kind}, again"] = partial(_walk, server, kind)
            subjects[f"{kind}, bare"] = partial(_walk_bare, command)
        runs = interleave(subjects, place.rounds, warm_up_rounds=0 if place.quick else 1)
    what = f"walk a minidump of {_DUMP.stat().st_size / 1000:.0f} kB with {symbols.what}"
    for kind, options in _OPTIONS.items():
        bare = runs[f"{kind}, bare"]
        against = " ".join([versioned(_WALKER), *options]) + " of the same, once"
        raw = {"runs": {name: [asdict(one) for one in of] for name, of in runs.items()}}
        for when in ("the first time", "again"):
            ours = runs[f"{kind}, {when}"]
            yield Row(
                _NAME,
                f"{what}, {kind}, {when}: time",
                against,
                "x",
                None,
                [a.seconds / b.seconds for a, b in zip(ours, bare, strict=True)],
                [_describe("devserver", ours), _describe("the bare walker", bare)],
                raw,
            )
        yield _row_of_bytes(what, kind, runs)


def _row_of_bytes(what: str, kind: str, runs: dict[str, list[_Walk]]) -> Row | Gap:
    described = f"{what}, {kind}, again: bytes that the server and its programs write"
    if not _COUNTS_BYTES:
        return Gap(_NAME, described, "needs Linux, which counts them")
    first, again = (
        [one.written_bytes for one in runs[f"{kind}, {when}"]]
        for when in ("the first time", "again")
    )
    return Row(
        _NAME,
        described,
        f"the first time: {statistics.median(first) / 1e6:.1f} MB",
        "MB",
        None,
        [count / 1e6 for count in again],
        ["of the second: the minidump, what is printed of it, and the log"],
        {"first": first, "again": again},
    )


def _lay_out(directory: Path, symbols: bytes) -> None:
    """Put symbols where the walker looks for them."""
    place = directory / CRASH_LAB_NAME / CRASH_LAB_IDENTIFIER
    place.mkdir(parents=True)
    (place / f"{CRASH_LAB_NAME}.sym").write_bytes(symbols)


def _walk_first(server: SymbolServer, kind: str) -> _Walk:
    """Walk as if it had not been done before: what was kept of that is removed."""
    for path in (server.data_directory / "breakpad").glob("*.sym"):
        path.unlink()
    return _walk(server, kind)


def _walk(server: SymbolServer, kind: str) -> _Walk:
    written_before = bytes_written_by_tree(server.process) if _COUNTS_BYTES else 0
    cpu_before, begun_at = server.cpu_seconds(), time.monotonic()
    answer = server.session.post(
        f"{server.url}/symbolicate_dump",
        {"format": kind},
        files={"minidump": _DUMP.read_bytes()},
        timeout=CALL_SECONDS,
    )
    seconds, cpu_seconds = time.monotonic() - begun_at, server.cpu_seconds() - cpu_before
    written = bytes_written_by_tree(server.process) if _COUNTS_BYTES else 0
    if answer.status_code != 200 or CRASH_LAB_FUNCTION not in answer.text:
        raise RuntimeError(f"the walk was answered {answer.status_code}: {answer.text[-500:]}")
    return _Walk(seconds, cpu_seconds, written - written_before)


def _walk_bare(command: Sequence[str]) -> _Walk:
    seconds, cpu_seconds, printed = run_for_output(command)
    if CRASH_LAB_FUNCTION.encode("ascii") not in printed:
        raise RuntimeError(f"{command[0]} printed {printed[-500:]!r}")
    return _Walk(seconds, cpu_seconds)


def _describe(name: str, runs: Sequence[_Walk]) -> str:
    seconds = [run.seconds for run in runs]
    cpu = statistics.median(run.cpu_seconds for run in runs)
    return (
        f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"CPU {cpu:.2f} s"
    )
