"""What the archives of the benchmark hold, and how Google Storage describes it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import google_crc32c

BUCKET = "bench"
_GENERATION = 1_700_000_000_000_000
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Object:
    """One object of the bucket: ``name`` in full, its bytes at ``path``."""

    name: str
    path: Path
    size: int
    crc32c: str
    generation: int = _GENERATION

    @property
    def target(self) -> str:
        return self.name.partition("/")[0]

    @property
    def headers(self) -> dict[str, str]:
        return {
            "X-Goog-Hash": f"crc32c={self.crc32c}",
            "X-Goog-Generation": str(self.generation),
        }

    @property
    def resource(self) -> dict[str, str]:
        """What the JSON API says of it."""
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": self.name,
            "size": str(self.size),
            "generation": str(self.generation),
            "crc32c": self.crc32c,
        }

    @property
    def media_path(self) -> str:
        """Where a URL's path, decoded, finds its bytes."""
        return f"/download{self.resource_path}"

    @property
    def resource_path(self) -> str:
        """Where a URL's path, decoded, finds what is said of it."""
        return f"/storage/v1/b/{BUCKET}/o/{self.name}"

    def media_url(self, endpoint: str) -> str:
        name = quote(self.name, safe="")
        return f"{endpoint}/download/storage/v1/b/{BUCKET}/o/{name}"


def listing_of(objects: Sequence[Object], prefix: str) -> bytes:
    items = [each.resource for each in objects if each.name.startswith(prefix)]
    return json.dumps({"kind": "storage#objects", "items": items}).encode("utf-8")


def object_of_file(path: Path, name: str) -> Object:
    """Describe a file that is there, as the object ``name``."""
    crc32c = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc32c = google_crc32c.extend(crc32c, block)
    path.chmod(0o644)
    return Object(name, path, path.stat().st_size, _encoded(crc32c))


def make_object(directory: Path, name: str, size: int, *, sparse: bool = False) -> Object:
    """Write an object of ``size`` bytes: random ones, or zeros that take no room on the disk."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    crc32c = 0
    with path.open("wb") as file:
        for block in _blocks(size, sparse):
            crc32c = google_crc32c.extend(crc32c, block)
            if not sparse:
                file.write(block)
        file.truncate(size)
    path.chmod(0o644)
    return Object(name, path, size, _encoded(crc32c))


def _encoded(crc32c: int) -> str:
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode("ascii")


def _blocks(size: int, sparse: bool) -> Iterator[bytes]:
    block = bytes(_BLOCK_BYTES) if sparse else os.urandom(_BLOCK_BYTES)
    for offset in range(0, size, _BLOCK_BYTES):
        count = min(_BLOCK_BYTES, size - offset)
        # No two blocks are the same, so that bytes in the wrong place are noticed.
        yield block[:count] if sparse else (offset.to_bytes(8, "big") + block[8:])[:count]
