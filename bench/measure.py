"""Measuring in turn: A B A B, ratios pair by pair, medians and the spread."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

_Measured = TypeVar("_Measured")


@dataclass(frozen=True)
class Run:
    """One measured run of one subject.

    Attributes:
        seconds: wall time.
        cpu_seconds: of the subject's process tree.
        archive_bytes: body bytes that the archive sent for it.
    """

    seconds: float
    cpu_seconds: float
    archive_bytes: int


@dataclass(frozen=True)
class Goal:
    """What a figure should be: at least, or at most, ``value``, in the row's unit."""

    relation: str
    value: float

    def is_reached(self, value: float) -> bool:
        # What is printed is what is judged: a figure counts as it is rounded.
        value = float(number_text(value))
        return value >= self.value if self.relation == ">=" else value <= self.value


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what devserver did, with sizes and numbers of clients.
        against: the peer, or the state, that it was measured against in the same run.
        unit: of the values: "x" for a ratio.
        goal: None where there is none: the figure is of interest all the same.
        values: one for each pair; their median is the figure.
        notes: what else belongs beside the figure: CPU seconds, bytes, absolute times.
        raw: everything measured, for the JSON.
    """

    benchmark: str
    what: str
    against: str
    unit: str
    goal: Goal | None
    values: Sequence[float]
    notes: Sequence[str] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "reached" if self.goal.is_reached(self.figure) else "not reached"

    @property
    def figure_text(self) -> str:
        digits = _digits(self.figure)
        text = f"{self.figure:.{digits}f} {self.unit}"
        if len(self.values) > 1:
            text += f" ({min(self.values):.{digits}f} to {max(self.values):.{digits}f})"
        return text

    @property
    def goal_text(self) -> str:
        return f"{self.goal.relation} {self.goal.value:g} {self.unit}" if self.goal else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "what": self.what,
            "against": self.against,
            "unit": self.unit,
            "goal": asdict(self.goal) if self.goal else None,
            "figure": self.figure,
            "verdict": self.verdict,
            "values": list(self.values),
            "notes": list(self.notes),
            "raw": dict(self.raw),
        }


@dataclass(frozen=True)
class Gap:
    """A line of the table that is missing, and why: by failure, or for want of a program."""

    benchmark: str
    what: str
    reason: str
    is_failure: bool = False


def interleave(
    subjects: Mapping[str, Callable[[], _Measured]],
    rounds: int,
    *,
    warm_up_rounds: int = 0,
    on_disk: bool = True,
) -> dict[str, list[_Measured]]:
    """Run each subject ``rounds`` times, in turn; before each run, let the disk it is on settle.

    Rounds to warm up come before, and do not count. A virtual machine that has not used its memory
    yet, or gave it back, takes seconds to get a GiB of it: whoever comes first would pay for all.
    """
    runs: dict[str, list[_Measured]] = {name: [] for name in subjects}
    for _ in range(warm_up_rounds + rounds):
        for name, run in subjects.items():
            if on_disk:
                os.sync()
            runs[name].append(run())
    return {name: of_name[warm_up_rounds:] for name, of_name in runs.items()}


def times_as_fast(subject: Sequence[Run], peer: Sequence[Run]) -> list[float]:
    """Return, pair by pair, how many times as fast the subject was as the peer."""
    return [theirs.seconds / ours.seconds for ours, theirs in zip(subject, peer, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of ``values`` that ``percent`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def describe_runs(name: str, runs: Sequence[Run]) -> str:
    """Say in one line what runs took: medians, and the spread of the time."""
    seconds = [run.seconds for run in runs]
    cpu = statistics.median(run.cpu_seconds for run in runs)
    sent = statistics.median(run.archive_bytes for run in runs)
    return (
        f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"CPU {cpu:.2f} s, archive sent {sent / 1e6:,.1f} MB"
    )


def runs_to_json(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    return {name: [asdict(run) for run in of_name] for name, of_name in runs.items()}


def number_text(value: float) -> str:
    """Return a figure as tables have it."""
    return f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 2 if abs(value) < 100 else 0
