"""How fast bytes were taken in, or read: what is compared by rates."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.measure import Goal, Row
from bench.place import GIB


@dataclass(frozen=True)
class Moved:
    """One measured run.

    Attributes:
        seconds: wall time.
        cpu_seconds: of the subject's process tree, clients not included.
    """

    bytes: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds


def rate_row(
    benchmark: str,
    what: str,
    against: str,
    goal: Goal | None,
    ours: str,
    theirs: str,
    runs: Mapping[str, Sequence[Moved]],
    notes: Sequence[str] = (),
) -> Row:
    """Compare two of the subjects of ``runs``: the ratio of their rates, pair by pair."""
    pair = {name: runs[name] for name in (ours, theirs)}
    return Row(
        benchmark,
        what,
        against,
        "x",
        goal,
        [a.rate / b.rate for a, b in zip(runs[ours], runs[theirs], strict=True)],
        [*(describe_moved(name, of_name) for name, of_name in pair.items()), *notes],
        {"runs": {name: [asdict(run) for run in of_name] for name, of_name in pair.items()}},
    )


def describe_moved(name: str, runs: Sequence[Moved]) -> str:
    """Say in one line how fast runs were: medians, and the spread of the rate."""
    rates = [run.rate / 1e6 for run in runs]
    cost = statistics.median(run.cpu_seconds / run.bytes for run in runs) * GIB
    return (
        f"{name}: {statistics.median(rates):,.0f} MB/s ({min(rates):,.0f} to {max(rates):,.0f}), "
        f"CPU {cost:.2f} s/GiB"
    )
