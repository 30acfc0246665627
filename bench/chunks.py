"""Chunks to be uploaded: 8 MiB each, made in memory, none like another; and how they travel."""

from __future__ import annotations

import os
from collections.abc import Sequence

import google_crc32c

from artifacts.blobs.limits import CHUNK_BYTES, REQUEST_BYTES
from artifacts.blobs.sha1 import new_sha1

# As many as a request may have bytes of.
CHUNKS_OF_A_REQUEST = REQUEST_BYTES // CHUNK_BYTES
_OWN_BYTES = 16
_BOUNDARY = "bench-3f1d0f6a5ac94ee1"
CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


def make_chunks(count: int) -> list[bytes]:
    """Return new chunks; they differ in their first bytes, and are not the same memory."""
    rest = os.urandom(CHUNK_BYTES - _OWN_BYTES)
    return [os.urandom(_OWN_BYTES) + rest for _ in range(count)]


def cut(content: bytes) -> list[bytes]:
    """Return the chunks of a file."""
    starts = range(0, len(content), CHUNK_BYTES)
    return [content[start : start + CHUNK_BYTES] for start in starts]


def checksum_of(chunks: Sequence[bytes]) -> str:
    """Return the SHA-1 of a file that consists of ``chunks``."""
    sha1 = new_sha1()
    for chunk in chunks:
        sha1.update(chunk)
    return sha1.hexdigest()


def crc32c_of(chunks: Sequence[bytes]) -> int:
    """Return the CRC32C of a file that consists of ``chunks``."""
    crc32c = 0
    for chunk in chunks:
        crc32c = google_crc32c.extend(crc32c, chunk)
    return crc32c


def multipart(chunks: Sequence[bytes]) -> list[bytes]:
    """Return a request's body, in pieces one behind the other; it is of the ``CONTENT_TYPE``."""
    pieces = []
    for chunk in chunks:
        named = f'Content-Disposition: form-data; name="file"; filename="{checksum_of([chunk])}"'
        pieces += [f"\r\n--{_BOUNDARY}\r\n{named}\r\n\r\n".encode("ascii"), chunk]
    return [*pieces, f"\r\n--{_BOUNDARY}--\r\n".encode("ascii")]
