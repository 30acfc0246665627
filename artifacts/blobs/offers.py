"""Offers: what a client asks to have assembled, read from a request that may hold anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from artifacts.archive_url import check_relative_path
from artifacts.blobs.sha1 import check_checksum, is_checksum
from artifacts.errors import BadRequest

# Half a TiB, in chunks of the usual size.
_MAX_CHUNKS = 65_536


@dataclass(frozen=True)
class Offer:
    """A file that a client has: ``chunks``, in order, are said to make ``checksum``.

    ``name`` is a path below some directory.
    """

    checksum: str
    name: str
    chunks: tuple[str, ...]


@dataclass(frozen=True)
class Offers:
    """What one request offers.

    Attributes:
        keys: all that was asked about, in order, whether it is a checksum or not.
        possible: what can be assembled, for all that the request says, by checksum.
        impossible: why the others cannot be, by key.
    """

    keys: tuple[str, ...]
    possible: Mapping[str, Offer] = field(default_factory=dict)
    impossible: Mapping[str, str] = field(default_factory=dict)


def read_offers(body: bytes) -> Offers:
    """Read ``{"<sha1 of the file>": {"name": "…", "chunks": ["<sha1>", …]}, …}``.

    Raises:
        BadRequest: it is no JSON object.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body must be JSON: {error}") from error
    if not isinstance(asked, dict):
        raise BadRequest("the body must be a JSON object, with a file's SHA-1 for a key")
    possible, impossible = {}, {}
    for key, entry in asked.items():
        try:
            possible[key] = _read_offer(key, entry)
        except BadRequest as error:
            impossible[key] = error.message
    return Offers(tuple(asked), possible, impossible)


def _read_offer(key: str, entry: object) -> Offer:
    checksum = check_checksum(key, "a file's checksum")
    if not isinstance(entry, dict):
        raise BadRequest('what is said of a file must be an object, with "name" and "chunks"')
    name, chunks = entry.get("name"), entry.get("chunks")
    if not isinstance(name, str):
        raise BadRequest('"name" must be the name of the file')
    check_relative_path(name, '"name"')
    if not isinstance(chunks, list):
        raise BadRequest('"chunks" must be a list of checksums')
    if not chunks:
        raise BadRequest("the file has no chunks")
    if len(chunks) > _MAX_CHUNKS:
        raise BadRequest(f"the file has over {_MAX_CHUNKS:,} chunks")
    for chunk in chunks:
        if not is_checksum(chunk):
            check_checksum(chunk, "a chunk's checksum")
    if len(chunks) == 1 and chunks[0] != checksum:
        raise BadRequest(f"checksum mismatch: the only chunk is {chunks[0]}")
    return Offer(checksum, name, tuple(chunks))
