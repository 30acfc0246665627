"""SHA-1 checksums, by which chunks, blobs and uploaded files are named."""

from __future__ import annotations

import hashlib
import re

from artifacts.errors import BadRequest

_CHECKSUM = re.compile(r"[0-9a-f]{40}")


def new_sha1(data: bytes | bytearray = b"") -> hashlib._Hash:
    return hashlib.sha1(data, usedforsecurity=False)


def is_checksum(text: object) -> bool:
    return isinstance(text, str) and _CHECKSUM.fullmatch(text) is not None


def check_checksum(text: object, what: str) -> str:
    """Return ``text`` if it is a checksum.

    Raises:
        BadRequest: it is not 40 hex digits in lower case.
    """
    if isinstance(text, str) and _CHECKSUM.fullmatch(text):
        return text
    raise BadRequest(f"{what} must be a SHA-1 in 40 lower-case hex digits, not {text!r:.100}")
