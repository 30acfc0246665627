"""Tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 200


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of one cell a column; as wide as a terminal is, or wide, where it is piped."""
    table = Table(*columns, box=None)
    for row in rows:
        # What is in brackets is text, and not a style.
        table.add_row(*map(Text, row))
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(file=sys.stdout, width=width).print(table)
