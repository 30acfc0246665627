"""The file ``UPLOADED``: the names of a build's files that are complete, one a line."""

from __future__ import annotations

from artifacts.errors import ArchiveError

UPLOADED = "UPLOADED"
_MAX_NAMES = 1_000_000


def parse_uploaded(data: bytes, what: str) -> list[str]:
    """Return the names, each once; ``what`` is the file's own, for messages.

    Raises:
        ArchiveError: there are over a million.
    """
    if data.count(b"\n") > _MAX_NAMES:
        raise ArchiveError(f"{what} lists over {_MAX_NAMES} files")
    lines = data.decode("utf-8-sig", "replace").split("\n")
    return [name for name in dict.fromkeys(map(str.strip, lines)) if name]
