"""Crash reports: a stack walk as the server tells it, and printing it for people.

All that is in it comes from a crashed device, or from whoever calls itself one. Its texts are made
printable as they are read: nothing in them is obeyed by a terminal, or taken for a style.
"""

from __future__ import annotations

import io
import operator
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ValidationError
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from artifacts.errors import DevserverError

# Functions of templates have names of any length: those in the way of all others stick out.
_MAX_COLUMN_CELLS = 60
_SCANNING = "scanning"
_DOUBTFUL = "?"
# By their categories: control and format characters (which turn the direction of what follows,
# too), surrogates, what is not assigned, separators of lines.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Return ``text`` with blanks for what a terminal obeys, or breaks lines at."""
    return "".join(" " if unicodedata.category(c) in _UNPRINTABLE else c for c in text)


_Printable = Annotated[str, AfterValidator(printable)]


class ReportedFrame(BaseModel):
    """A frame; ``offset`` is in its line, function or module: the smallest of them that it has."""

    frame: int
    module: _Printable | None
    function: _Printable | None
    source: _Printable | None
    line: int | None
    offset: _Printable
    trust: _Printable | None

    @property
    def is_scanned(self) -> bool:
        """Whether it was found by scanning the stack, or nobody knows how."""
        if self.trust is None:
            return self.frame > 0
        return _SCANNING in self.trust


class ReportedThread(BaseModel):
    thread: int
    crashed: bool
    frames: list[ReportedFrame]


class ReportedModule(BaseModel):
    name: _Printable
    debug_id: _Printable | None
    has_symbols: bool


class ReportedSystem(BaseModel):
    os: _Printable
    os_version: _Printable
    cpu: _Printable
    cpu_info: _Printable
    cpu_count: int | None


class CrashReport(BaseModel):
    """What /symbolicate_dump?format=json answers."""

    crash_reason: _Printable | None
    crash_address: _Printable | None
    crashed_thread: int | None
    system: ReportedSystem
    threads: list[ReportedThread]
    modules: list[ReportedModule]


def parse_report(answer: Any, server: str) -> CrashReport:
    """Return a report that ``server`` has answered; raise DevserverError if it is none."""
    try:
        return CrashReport.model_validate(answer)
    except ValidationError as error:
        raise DevserverError(
            f"what answers at {server} does not read crashes as a devserver does"
        ) from error


def print_report(report: CrashReport, *, all_threads: bool, archive_url: str | None) -> None:
    """Print a report on standard output, each frame on a line of its own, however long.

    ``archive_url``: the build whose symbols were asked for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may have what this terminal has no letters for.
        sys.stdout.reconfigure(errors="replace")
    console = Console(file=sys.stdout)
    for line in _lines(report, all_threads, archive_url):
        console.print(line, soft_wrap=True)


def _lines(report: CrashReport, all_threads: bool, archive_url: str | None) -> Iterator[Text]:
    crash = report.crash_reason or "No crash"
    yield Text(f"{crash} at {report.crash_address}" if report.crash_address else crash, "bold red")
    yield Text(_system(report.system))
    threads = _in_order(report)
    shown = threads if all_threads else threads[:1]
    for thread in shown:
        yield Text()
        yield Text(_heading(thread, report), "bold")
        yield from _frame_lines(thread.frames)
    frames = [frame for thread in shown for frame in thread.frames]
    if any(frame.is_scanned for frame in frames):
        yield Text()
        yield Text(
            f"{_DOUBTFUL}: found by scanning the stack, or after a frame that was; may be noise",
            "dim",
        )
    if not threads:
        yield Text()
        yield Text("The dump has no stack that can be read.")
    if others := len(threads) - len(shown):
        yield Text()
        yield Text(f"--all-threads shows {_counted(others, 'other thread')}, too.")
    names = {frame.module for frame in frames}
    lacking = [m for m in report.modules if m.name in names and not m.has_symbols]
    yield from _lacking_lines(lacking, archive_url)


def _system(system: ReportedSystem) -> str:
    info = f"({system.cpu_info})" if system.cpu_info else ""
    parts = (
        " ".join(filter(None, (system.os, system.os_version))),
        " ".join(filter(None, (system.cpu, info))),
        "" if system.cpu_count is None else _counted(system.cpu_count, "processor"),
    )
    return ", ".join(filter(None, parts)) or "of an unknown system"


def _in_order(report: CrashReport) -> list[ReportedThread]:
    """Return the threads, the crashed one first, even if nothing could be read of its stack."""
    threads = sorted(report.threads, key=lambda thread: not thread.crashed)
    number = report.crashed_thread
    if number is not None and number not in {thread.thread for thread in threads}:
        threads.insert(0, ReportedThread(thread=number, crashed=True, frames=[]))
    return threads


def _heading(thread: ReportedThread, report: CrashReport) -> str:
    heading = f"Thread {thread.thread}"
    if thread.crashed:
        # Without a crash, it is the thread that had the dump written.
        heading += ", crashed" if report.crash_reason else ", which asked for the dump"
    return heading if thread.frames else f"{heading}: its stack cannot be read"


def _frame_lines(frames: Sequence[ReportedFrame]) -> Iterator[Text]:
    """Yield a line for each frame, in columns; what cannot be relied on is marked, and dim."""
    doubtful = accumulate((frame.is_scanned for frame in frames), operator.or_)
    places = [_place(frame) for frame in frames]
    sources = [_source(frame) for frame in frames]
    number_cells = max((len(str(frame.frame)) for frame in frames), default=0)
    place_cells, source_cells = _column_cells(places), _column_cells(sources)
    for frame, is_doubtful, place, source in zip(frames, doubtful, places, sources, strict=True):
        mark = _DOUBTFUL if is_doubtful else " "
        line = Text.assemble(
            f"{frame.frame:>{number_cells}} {mark} ",
            (_padded(place, place_cells), "cyan"),
            "  ",
            (_padded(source, source_cells), "green"),
            "  ",
            # Else it is what the place begins with.
            ((frame.module or "") if frame.function else "", "magenta"),
        )
        if is_doubtful:
            line = Text(line.plain, "dim")
        line.rstrip()
        yield line


def _place(frame: ReportedFrame) -> str:
    if frame.function:
        return frame.function
    return f"{frame.module} + {frame.offset}" if frame.module else frame.offset


def _source(frame: ReportedFrame) -> str:
    if frame.source is None:
        return ""
    return frame.source if frame.line is None else f"{frame.source}:{frame.line}"


def _column_cells(texts: Sequence[str]) -> int:
    return max(
        (cells for text in texts if (cells := cell_len(text)) <= _MAX_COLUMN_CELLS), default=0
    )


def _padded(text: str, cells: int) -> str:
    return text + " " * (cells - cell_len(text))


def _lacking_lines(modules: Sequence[ReportedModule], archive_url: str | None) -> Iterator[Text]:
    if not modules:
        return
    yield Text()
    yield Text("There are no symbols for", "yellow")
    # A library may be loaded more than once.
    lacking = dict.fromkeys((module.name, module.debug_id) for module in modules)
    name_cells = _column_cells([name for name, _ in lacking])
    for name, debug_id in lacking:
        yield Text(f"  {_padded(name, name_cells)}  {debug_id or 'which has no debug id'}")
    what = "Upload debug files that have these ids"
    if archive_url is None:
        yield Text(f"{what}, or name the build that they are in with --archive-url.", "yellow")
    else:
        yield Text(f"{what}: the build has none of them, nor has the server.", "yellow")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
