"""Progress bars on standard error."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn


def progress_bars() -> Progress:
    """Return bars for what is counted in bytes; their tasks have the fields rate and state."""
    return Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[rate]:>12}"),
        TextColumn("{task.fields[state]}"),
        console=Console(file=sys.stderr),
    )


def rate(bytes_per_second: float) -> str:
    """Say how fast something is; nothing where it does not move."""
    return f"{bytes_per_second / 1e6:,.1f} MB/s" if bytes_per_second else ""
