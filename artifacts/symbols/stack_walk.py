"""A stack walk as data: what `minidump_stackwalk -m` prints, with what only its text says."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts.symbols.minidump import ModuleNames

_FRAME_FIELDS, _MODULE_FIELDS = 7, 8
_FOUND_BY = re.compile(r"^    Found by: (.*)$", re.MULTILINE)
# As many digits as the walker prints of any number.
_NUMBER = re.compile(r"[0-9]{1,20}")
_CORRUPT = re.compile(r"\(WARNING: Corrupt symbols, (\S+), ")


@dataclass(frozen=True)
class StackWalk:
    """What became of a minidump.

    Attributes:
        printed: what the walker printed for machines, `-m`.
        text: what it printed for people.
        names: the modules, as they are called in the dump.
        with_symbols: the tokens of the modules that it was given symbols for.
    """

    printed: str
    text: str
    names: ModuleNames
    with_symbols: frozenset[str]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it; docs/symbols.md explains the fields."""
        head, _, stacks = self.printed.partition("\n\n")
        lines = _fields(head)
        system, cpu, crash = (_first(lines, kind, count) for kind, count in _HEADS)
        frames = _fields(stacks)
        # Of corrupt symbols, the walker uses what it could read.
        useless = set(_CORRUPT.findall(self.text)) - _with_functions(frames)
        modules = [
            self._module(line, useless)
            for line in lines
            if line[0] == "Module" and len(line) == _MODULE_FIELDS
        ]
        crashed_thread = _number(crash[2])
        return {
            "crash_reason": None if crash[0] in {"", "No crash"} else crash[0],
            "crash_address": crash[1] or None,
            "crashed_thread": crashed_thread,
            "system": {
                "os": system[0],
                "os_version": system[1],
                "cpu": cpu[0],
                "cpu_info": cpu[1],
                "cpu_count": _number(cpu[2]),
            },
            "threads": self._threads(frames, crashed_thread),
            "modules": modules,
            "modules_without_symbols": [m["name"] for m in modules if not m["has_symbols"]],
        }

    def _module(self, line: Sequence[str], useless: Collection[str]) -> dict[str, Any]:
        _, token, version, debug_token, identifier, base, end, is_main = line
        return {
            "name": self.names.name_of(token),
            "version": version or None,
            "debug_file": self.names.debug_name_of(debug_token) or None,
            "debug_id": identifier or None,
            "start": base,
            "end": end,
            "is_main": is_main == "1",
            "has_symbols": token in self.with_symbols and token not in useless,
        }

    def _threads(self, lines: Iterable[Sequence[str]], crashed: int | None) -> list[dict[str, Any]]:
        frames = []
        for line in lines:
            if len(line) == _FRAME_FIELDS:
                thread, number = _number(line[0]), _number(line[1])
                if thread is not None and number is not None:
                    frames.append((thread, number, line[2:]))
        # In the order of the frames. Names in the dump may hold lines of their own that look like
        # these: then it is not known which is whose.
        found_by: Sequence[str | None] = _FOUND_BY.findall(self.text)
        if len(found_by) != len(frames):
            found_by = [None] * len(frames)
        threads: dict[int, list[dict[str, Any]]] = {}
        for (thread, number, described), trust in zip(frames, found_by, strict=True):
            threads.setdefault(thread, []).append(self._frame(number, described, trust))
        return [
            {"thread": thread, "crashed": thread == crashed, "frames": found}
            for thread, found in threads.items()
        ]

    def _frame(self, number: int, described: Sequence[str], trust: str | None) -> dict[str, Any]:
        token, function, source, line, offset = described
        return {
            "frame": number,
            "module": self.names.name_of(token) or None,
            "function": function or None,
            "source": source or None,
            "line": _number(line),
            "offset": offset,
            "trust": trust,
        }


# What stands at the beginning, and how many fields it has.
_HEADS = (("OS", 2), ("CPU", 3), ("Crash", 3))


def _fields(lines: str) -> list[list[str]]:
    """Return the fields of each line; in a name, there may be what other systems end lines with."""
    return [line.split("|") for line in lines.split("\n")]


def _with_functions(frames: Iterable[Sequence[str]]) -> set[str]:
    """Return the tokens of the modules of which any frame has a function."""
    return {frame[2] for frame in frames if len(frame) == _FRAME_FIELDS and frame[3]}


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _first(lines: Iterable[Sequence[str]], kind: str, count: int) -> list[str]:
    found = next((list(line[1:]) for line in lines if line[0] == kind), [])
    return (found + [""] * count)[:count]
