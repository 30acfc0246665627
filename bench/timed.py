"""What took so long, beside a peer: a time, and how many times the peer's that is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from bench.measure import Goal, Row, number_text


def time_each(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return what each of the calls took, in seconds."""
    seconds = []
    for call in calls:
        begun_at = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun_at)
    return seconds


def timed_row(
    benchmark: str,
    what: str,
    against: str,
    unit: str,
    goal: Goal | None,
    ours: Sequence[float],
    theirs: Sequence[float],
) -> Row:
    """Return a row of our times; how they compare with the peer's, pair by pair, is beside it."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median
    return Row(
        benchmark,
        what,
        f"{against}: {number_text(median(theirs))} {unit} ({number_text(min(theirs))} to "
        f"{number_text(max(theirs))}), {median(ratios):.1f}x ({min(ratios):.1f} to "
        f"{max(ratios):.1f})",
        unit,
        goal,
        ours,
        (),
        {"ours": list(ours), "theirs": list(theirs), "ratios": ratios},
    )
