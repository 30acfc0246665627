"""Checksums of archive files: what an archive says of a file, and checking bytes as they flow."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

import google_crc32c

from artifacts.errors import ArchiveError

_SHA256_LINE = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")


@dataclass(frozen=True)
class Checksums:
    """What the archive says a file's bytes amount to; None where it does not say."""

    crc32c: int | None = None
    md5: bytes | None = None
    sha256: bytes | None = None

    def __bool__(self) -> bool:
        return (self.crc32c, self.md5, self.sha256) != (None, None, None)

    def joined(self, other: Checksums) -> Checksums:
        """These, and where these do not say, those of ``other``."""
        return Checksums(
            self.crc32c if self.crc32c is not None else other.crc32c,
            self.md5 or other.md5,
            self.sha256 or other.sha256,
        )

    @classmethod
    def from_base64(cls, *, crc32c: str | None = None, md5: str | None = None) -> Checksums:
        """Parse the form that Google Storage uses: big-endian bytes in base64."""
        crc32c_bytes = _decoded(crc32c, 4)
        return cls(int.from_bytes(crc32c_bytes, "big") if crc32c_bytes else None, _decoded(md5, 16))

    @classmethod
    def from_goog_hash(cls, header: str) -> Checksums:
        """Parse an ``X-Goog-Hash`` header: ``crc32c=…,md5=…``, in any order."""
        values = dict(part.strip().partition("=")[::2] for part in header.split(","))
        return cls.from_base64(crc32c=values.get("crc32c"), md5=values.get("md5"))


def _decoded(text: str | None, length: int) -> bytes | None:
    if not text:
        return None
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:
        decoded = b""
    if len(decoded) != length:
        raise ArchiveError(f"the archive sent a malformed checksum: {text!r:.100}")
    return decoded


class Verifier:
    """Computes the checksums of bytes that come in order, and compares them in the end.

    CRC32C is always computed. MD5, the slowest, only where there is nothing else to check.
    """

    def __init__(self) -> None:
        self.position = 0
        self._crc32c = 0
        self._hashes: dict[str, hashlib._Hash] = {}

    def expect(self, expected: Checksums) -> None:
        """Say, before the first byte, which checksums will be compared."""
        if expected.sha256:
            self._hashes["sha256"] = hashlib.sha256()
        elif expected.md5 and expected.crc32c is None:
            self._hashes["md5"] = hashlib.md5(usedforsecurity=False)

    def update(self, block: bytes) -> None:
        self._crc32c = google_crc32c.extend(self._crc32c, block)
        for digest in self._hashes.values():
            digest.update(block)
        self.position += len(block)

    @property
    def crc32c(self) -> int:
        return self._crc32c

    @property
    def sha256(self) -> bytes | None:
        digest = self._hashes.get("sha256")
        return digest.digest() if digest else None

    def mismatch(self, expected: Checksums) -> str | None:
        """Return what differs, in words, or None when all that can be compared agrees."""
        if expected.crc32c is not None and expected.crc32c != self._crc32c:
            return f"CRC32C is {self._crc32c:08x} instead of {expected.crc32c:08x}"
        for name, digest in self._hashes.items():
            wanted: bytes | None = getattr(expected, name)
            if wanted is not None and digest.digest() != wanted:
                return f"{name.upper()} is {digest.hexdigest()} instead of {wanted.hex()}"
        return None


def parse_sha256_lines(text: str) -> dict[str, bytes]:
    """Parse the lines that ``sha256sum`` writes into names and digests; a bare digest has name "".

    Lines that are none are passed over: a checksum that cannot be read is a checksum not given.
    """
    digests = {}
    for line in text.splitlines():
        if match := _SHA256_LINE.fullmatch(line.strip()):
            digests[match[2].removeprefix("./")] = bytes.fromhex(match[1])
        elif re.fullmatch(r"[0-9a-fA-F]{64}", line.strip()):
            digests[""] = bytes.fromhex(line.strip())
    return digests
