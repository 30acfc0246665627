"""Patterns for the names of files in an archive."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache

from artifacts.errors import BadRequest

REGEX_PREFIX = "regex:"


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` (segments joined by slashes) fits a pattern.

    ``*``, ``?`` and ``[…]`` stand for characters of one segment, the segment ``**`` for any number
    of segments. What follows ``regex:`` is a regular expression for the whole name instead.
    """
    if pattern.startswith(REGEX_PREFIX):
        return _compiled(pattern.removeprefix(REGEX_PREFIX)).fullmatch(name) is not None
    return _segments_match(tuple(pattern.split("/")), tuple(name.split("/")))


def is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


@lru_cache(maxsize=256)
def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadRequest(f"not a regular expression: {expression!r}: {error}") from error


def _segments_match(pattern: tuple[str, ...], name: tuple[str, ...]) -> bool:
    if "**" not in pattern:
        return len(pattern) == len(name) and all(map(fnmatchcase, name, pattern))
    # reached[i]: the pattern up to here fits the first i segments; one row a pattern segment.
    reached = [True] + [False] * len(name)
    for part in pattern:
        if part == "**":
            first = reached.index(True) if True in reached else len(reached)
            reached = [index >= first for index in range(len(reached))]
        else:
            reached = [False] + [
                reached[index] and fnmatchcase(segment, part) for index, segment in enumerate(name)
            ]
    return reached[-1]
