"""Chunks to be uploaded: 8 MiB each, made in memory, and none like another."""

from __future__ import annotations

import os

from artifacts.blobs.limits import CHUNK_BYTES

# As many as a request may have bytes of.
CHUNKS_OF_A_REQUEST = 4
_OWN_BYTES = 16


def make_chunks(count: int) -> list[bytes]:
    """Return new chunks; they differ in their first bytes, and are not the same memory."""
    rest = os.urandom(CHUNK_BYTES - _OWN_BYTES)
    return [os.urandom(_OWN_BYTES) + rest for _ in range(count)]
