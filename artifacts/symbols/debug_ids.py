"""Debug ids: what a linker names each build of a program or library by, in their two spellings."""

from __future__ import annotations

import re

from artifacts.errors import BadRequest

_DEBUG_ID = re.compile(
    r"([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})"
    r"(?:-?([0-9a-f]{1,8}))?"
)


def parse_debug_id(text: str) -> str:
    """Return a debug id as it is recorded, of one in that form, or in Breakpad's.

    That is 8fd7dd32-7311-a6f8-bad5-0bd4bd2d4843, in lower case, with -AGE at its end where it has
    an age. Breakpad's is 8FD7DD327311A6F8BAD50BD4BD2D48430, always with an age.

    Raises:
        BadRequest: it is none.
    """
    match = _DEBUG_ID.fullmatch(text.strip().lower())
    if match is None:
        raise BadRequest(f"not a debug id: {text!r:.100}")
    age = (match[6] or "").lstrip("0")
    return "-".join([*match.group(1, 2, 3, 4, 5), *([age] if age else [])])
