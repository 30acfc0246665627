"""What tests ask sources for, and what they demand of the failures that come back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from artifacts.archive_url import ArchiveUrl
from artifacts.errors import DevserverError
from artifacts.sources.source import ArchiveFile, Source

Ask = Callable[[Source, ArchiveUrl], object]

ASKING: dict[str, Ask] = {
    "list": lambda source, url: source.list(url),
    "stat": lambda source, url: source.stat(url, "file"),
    "open": lambda source, url: source.open(url, ArchiveFile("file")),
    "open a range": lambda source, url: source.open(url, ArchiveFile("file"), 10, 20),
}
every_call = pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)

_FOR_PROGRAMMERS = (
    *("<", "object at", "Pool", "HTTPConnection", "Errno", "Error(", "('"),
    *("Caused", "An error occurred"),
)


def read(
    source: Source, url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
) -> bytes:
    with source.open(url, file, start, stop) as opened:
        assert opened.start == start
        return b"".join(iter(lambda: opened.read(100_000), b""))


def assert_is_for_people(
    error: DevserverError, *words: str, also_strange: tuple[str, ...] = ()
) -> None:
    """Demand that an error has these words, and none that only programmers understand."""
    for word in words:
        assert word in error.message
    for strange in (*_FOR_PROGRAMMERS, *also_strange):
        assert strange not in error.message
