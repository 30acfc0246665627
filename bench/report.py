"""The table of a run, and the same with all raw figures as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.measure import Gap, Row
from bench.programs import describe_programs

_PACKAGES = (
    *("CherryPy", "cheroot", "requests", "urllib3", "google-cloud-storage", "google-crc32c"),
    *("symbolic", "multi-demangle"),
)


def print_row(row: Row) -> None:
    print(f"\n{row.what}")
    print(f"    against {row.against}")
    judged = f"; goal {row.goal_text}: {row.verdict}" if row.goal else ""
    print(f"    {row.figure_text}{judged}")
    for note in row.notes:
        print(f"    {note}")


def print_table(rows: Sequence[Row]) -> None:
    """Print what was measured as a table in Markdown."""
    cells: list[tuple[str, ...]] = [("what", "against", "median (spread)", "goal", "")]
    cells += [
        (
            row.what,
            row.against,
            row.figure_text,
            row.goal_text,
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    cells.insert(1, tuple("-" * width for width in widths))
    print()
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(f"| {' | '.join(padded)} |")


def describe_machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "programs": describe_programs(),
    }


def write_json(
    path: Path,
    rows: Sequence[Row],
    gaps: Sequence[Gap],
    unmeasured: dict[str, str],
    *,
    quick: bool,
) -> None:
    report = {
        "machine": describe_machine(),
        "quick": quick,
        "rows": [row.to_json() for row in rows],
        "gaps": [asdict(gap) for gap in gaps],
        "unmeasured": unmeasured,
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
