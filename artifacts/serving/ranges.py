"""Byte ranges and conditions of requests (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

# More than this in one request nobody needs; the whole file is the allowed answer then.
_MAX_RANGES = 32
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
_MAX_DIGITS = 20


def parse_ranges(header: str | None, size: int) -> list[tuple[int, int]] | None:
    """Return the (start, stop) pairs that a Range header asks for of a file of ``size`` bytes.

    None: the header is to be passed over (there is none, it is malformed or excessive). An empty
    list: none of it can be satisfied. Ranges that overlap or touch are joined.
    """
    unit, _, listed = (header or "").partition("=")
    parts = [part for element in listed.split(",") if (part := element.strip())]
    if unit.strip().lower() != "bytes" or not 0 < len(parts) <= _MAX_RANGES:
        return None
    ranges = []
    for part in parts:
        bounds = _RANGE.fullmatch(part)
        if not bounds or not (bounds[1] or bounds[2]):
            return None
        first, last = map(_number, bounds.groups())
        if first is None:
            start, stop = max(0, size - (last or 0)), size
        elif last is None:
            start, stop = first, size
        elif first <= last:
            start, stop = first, min(size, last + 1)
        else:
            return None
        if start < stop:
            ranges.append((start, stop))
    return _joined(ranges)


def _number(digits: str) -> int | None:
    # int() refuses thousands of digits, and this many are beyond the end of any file.
    return int(digits.lstrip("0")[:_MAX_DIGITS] or 0) if digits else None


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        overlapping = [r for r in joined if r[0] <= stop and start <= r[1]]
        for other in overlapping:
            joined.remove(other)
            start, stop = min(start, other[0]), max(stop, other[1])
        joined.append((start, stop))
    return joined


def is_unchanged(headers: Mapping[str, str], etag: str | None, modified_at: float | None) -> bool:
    """Whether the client has the file already (If-None-Match, else If-Modified-Since)."""
    if (if_none_match := headers.get("If-None-Match")) is not None:
        return if_none_match.strip() == "*" or (
            etag is not None and etag in _etags(if_none_match, weakly=True)
        )
    since = _date(headers.get("If-Modified-Since"))
    return since is not None and modified_at is not None and int(modified_at) <= since


def precondition_fails(
    headers: Mapping[str, str], etag: str | None, modified_at: float | None
) -> bool:
    """Whether the client wants the file only as it was (If-Match, else If-Unmodified-Since)."""
    if (if_match := headers.get("If-Match")) is not None:
        return if_match.strip() != "*" and etag not in _etags(if_match, weakly=False)
    since = _date(headers.get("If-Unmodified-Since"))
    return since is not None and (modified_at is None or int(modified_at) > since)


def may_answer_range(
    headers: Mapping[str, str], etag: str | None, modified_at: float | None
) -> bool:
    """Whether a range is of the file that the client has the rest of (If-Range)."""
    if_range = headers.get("If-Range")
    if if_range is None:
        return True
    if if_range.strip().startswith('"'):
        return etag is not None and if_range.strip() == etag
    return modified_at is not None and _date(if_range) == int(modified_at)


def _etags(header: str, *, weakly: bool) -> set[str]:
    tags = re.findall(r'(W/)?("[^"]*")', header)
    return {tag for weak, tag in tags if weakly or not weak}


def _date(header: str | None) -> int | None:
    if not header:
        return None
    try:
        date = parsedate_to_datetime(header)
        # One of the three forms of dates does not name the zone, which is GMT always.
        return int(date.replace(tzinfo=date.tzinfo or UTC).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None
