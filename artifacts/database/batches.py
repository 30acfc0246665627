"""Values for statements: databases limit how many of them one may have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

_VALUES_AT_ONCE = 500
_Value = TypeVar("_Value")


def batches(values: Iterable[_Value]) -> Iterator[list[_Value]]:
    """Yield the values in lists that are short enough for one statement."""
    left = iter(values)
    while some := list(islice(left, _VALUES_AT_ONCE)):
        yield some
