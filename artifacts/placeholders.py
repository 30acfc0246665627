"""Placeholders: what in a catalog stands for the build's own names."""

from __future__ import annotations

import glob
import re

from artifacts.archive_url import BuildName
from artifacts.patterns import REGEX_PREFIX

# What says of a target how it was built, behind the board. What ends in another comes before it.
_KINDS = (
    *("release", "firmware", "factory", "canary", "snapshot", "postsubmit", "public"),
    *("paladin", "pre-cq", "cq", "full", "incremental", "tryjob", "asan", "ubsan"),
    *("userdebug", "user", "eng"),
)
# Braces around digits and commas are a regular expression's; an escaped brace is itself.
_IN_BRACES = re.compile(r"\{([^{}\\]*[^{}\\0-9,][^{}\\]*)\}")
_NAMES = ("target", "build", "board")


def board_of(target: str) -> str:
    """Return a target without its kind: x86-generic of x86-generic-release."""
    for kind in _KINDS:
        if target.endswith(f"-{kind}") and len(target) > len(kind) + 1:
            return target.removesuffix(f"-{kind}")
    return target


def unknown_placeholder(text: str) -> str | None:
    """Return the first placeholder of ``text`` that stands for nothing, braces included."""
    for match in _IN_BRACES.finditer(text):
        if match[1] not in _NAMES:
            return match[0]
    return None


def expand(text: str, build: BuildName) -> str:
    """Put a build's names where ``{target}``, ``{build}`` and ``{board}`` stand."""
    return _replaced(text, _values(build))


def expand_pattern(pattern: str, build: BuildName) -> str:
    """As ``expand``, for a pattern: the names stand for just the characters that they have."""
    escape = re.escape if pattern.startswith(REGEX_PREFIX) else glob.escape
    return _replaced(pattern, {name: escape(value) for name, value in _values(build).items()})


def _values(build: BuildName) -> dict[str, str]:
    return {"target": build.target, "build": build.build, "board": board_of(build.target)}


def _replaced(text: str, values: dict[str, str]) -> str:
    return _IN_BRACES.sub(lambda match: values.get(match[1], match[0]), text)
