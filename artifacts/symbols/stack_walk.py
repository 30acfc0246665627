"""A stack walk as data: what `minidump_stackwalk -m` prints, with what only its text says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts.symbols.minidump import ModuleNames

_FRAME_FIELDS, _MODULE_FIELDS = 7, 8
_FOUND_BY = re.compile(r"^    Found by: (.*)$", re.MULTILINE)
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
        lines = [line.split("|") for line in head.splitlines()]
        system, cpu, crash = (_first(lines, kind, count) for kind, count in _HEADS)
        modules = [
            self._module(line)
            for line in lines
            if line[0] == "Module" and len(line) == _MODULE_FIELDS
        ]
        crashed_thread = int(crash[2]) if crash[2].isdecimal() else None
        return {
            "crash_reason": None if crash[0] in {"", "No crash"} else crash[0],
            "crash_address": crash[1] or None,
            "crashed_thread": crashed_thread,
            "system": {
                "os": system[0],
                "os_version": system[1],
                "cpu": cpu[0],
                "cpu_info": cpu[1],
                "cpu_count": int(cpu[2]) if cpu[2].isdecimal() else None,
            },
            "threads": self._threads(stacks.splitlines(), crashed_thread),
            "modules": modules,
            "modules_without_symbols": [m["name"] for m in modules if not m["has_symbols"]],
        }

    def _module(self, line: Sequence[str]) -> dict[str, Any]:
        _, token, version, debug_token, identifier, base, end, is_main = line
        corrupt = {match[1] for match in _CORRUPT.finditer(self.text)}
        return {
            "name": self.names.name_of(token),
            "version": version or None,
            "debug_file": self.names.debug_name_of(debug_token) or None,
            "debug_id": identifier or None,
            "start": base,
            "end": end,
            "is_main": is_main == "1",
            "has_symbols": token in self.with_symbols and token not in corrupt,
        }

    def _threads(self, lines: Iterable[str], crashed: int | None) -> list[dict[str, Any]]:
        fields = [line.split("|") for line in lines]
        frames = [f for f in fields if len(f) == _FRAME_FIELDS and f[0].isdecimal()]
        # In the order of the frames. Names in the dump may hold lines of their own that look like
        # these: then it is not known which is whose.
        found_by: Sequence[str | None] = _FOUND_BY.findall(self.text)
        if len(found_by) != len(frames):
            found_by = [None] * len(frames)
        threads: dict[int, list[dict[str, Any]]] = {}
        for (thread, number, *described), trust in zip(frames, found_by, strict=True):
            frame = self._frame(int(number), described, trust)
            threads.setdefault(int(thread), []).append(frame)
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
            "line": int(line) if line.isdecimal() else None,
            "offset": offset,
            "trust": trust,
        }


# What stands at the beginning, and how many fields it has.
_HEADS = (("OS", 2), ("CPU", 3), ("Crash", 3))


def _first(lines: Iterable[Sequence[str]], kind: str, count: int) -> list[str]:
    found = next((list(line[1:]) for line in lines if line[0] == kind), [])
    return (found + [""] * count)[:count]
