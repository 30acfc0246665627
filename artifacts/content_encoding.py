"""Content-Encoding: files that an archive keeps compressed, and that are meant to be read plain.

Google Storage and S3 keep an encoding with an object, and leave it to readers to undo it. Such a
file is fetched and verified as it is stored, and published decompressed. Only gzip is known.
"""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from artifacts.decompress import BLOCK_BYTES, decompressed
from artifacts.errors import ArchiveError
from artifacts.unpack_limits import UnpackLimits

_GZIP = frozenset({"gzip", "x-gzip"})
_GZIP_MAGIC = b"\x1f\x8b\x08"
# Not of the object, but of how it was sent or uploaded; some stores keep it all the same.
_MEANINGLESS = frozenset({"", "identity", "aws-chunked"})


@dataclass(frozen=True)
class DecodedFile:
    """A durable temporary file; ``size`` in bytes."""

    path: Path
    size: int
    crc32c: int


def content_encoding(header: str | None) -> str | None:
    """Return what a Content-Encoding header says has to be undone; None where nothing has to."""
    codings = [coding.strip().lower() for coding in (header or "").split(",")]
    return ", ".join(coding for coding in codings if coding not in _MEANINGLESS) or None


def check_content_encoding(encoding: str | None, name: str) -> None:
    """Raise ArchiveError where ``encoding``, of the file ``name``, cannot be undone."""
    if encoding is not None and encoding not in _GZIP:
        raise ArchiveError(
            f"{name} is stored with the Content-Encoding {encoding!r:.100}: only gzip is known"
        )


@contextmanager
def decoded(path: Path, encoding: str, name: str, limits: UnpackLimits) -> Iterator[DecodedFile]:
    """Lend the plain form of the file at ``path``, which is beside it, and is removed at the end.

    Args:
        name: what messages call the file.
        limits: of how large the plain form may be.

    Raises:
        ArchiveError: the file is not encoded as it should be, is cut off, or is too large when
            decompressed; or the encoding is not known.
        OSError: the disk refuses.
    """
    check_content_encoding(encoding, name)
    aside = path.with_name(f"decoded-{uuid.uuid4().hex}")
    try:
        with path.open("rb") as packed, aside.open("xb") as plain:
            size, crc32c = _decompress(packed, plain, name, limits)
            plain.flush()
            os.fsync(plain.fileno())
        yield DecodedFile(aside, size, crc32c)
    finally:
        aside.unlink(missing_ok=True)


def decoded_bytes(data: bytes, encoding: str | None, name: str, max_bytes: int) -> bytes:
    """Return the plain form of ``data``, which may be that already; errors as of `decoded`."""
    if encoding is None:
        return data
    check_content_encoding(encoding, name)
    plain = io.BytesIO()
    _decompress(io.BytesIO(data), plain, name, UnpackLimits(max_bytes))
    return plain.getvalue()


def _decompress(
    packed: io.BufferedReader | io.BytesIO, plain: BinaryIO, name: str, limits: UnpackLimits
) -> tuple[int, int]:
    """Return the size and the CRC32C of what was written."""
    # Of an empty file, some archives are never asked for the encoding.
    if packed.read(len(_GZIP_MAGIC)) not in {_GZIP_MAGIC, b""}:
        raise ArchiveError(f"{name} is not gzip, though its Content-Encoding says so")
    packed.seek(0)
    size = crc32c = 0
    with decompressed(packed) as reader:
        while block := _read(reader, name):
            size += len(block)
            if size > limits.max_bytes:
                raise ArchiveError(f"{name} has over {limits.max_bytes:,} bytes when decompressed")
            limits.check_room()
            crc32c = google_crc32c.extend(crc32c, block)
            plain.write(block)
    return size, crc32c


def _read(reader: io.RawIOBase, name: str) -> bytes:
    try:
        return reader.read(BLOCK_BYTES) or b""
    except ArchiveError as error:
        raise ArchiveError(f"{name}: {error.message}") from error
