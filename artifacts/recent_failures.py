"""Failures of builds that have no manifest to keep them in."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from artifacts.archive_url import ArchiveUrl
from artifacts.manifest import Failure, Item


class RecentFailures:
    """Why things could not even be planned, by archive URL.

    The last ``limit`` URLs, and of each the last ``items_limit`` items.
    """

    def __init__(self, limit: int = 1000, items_limit: int = 100) -> None:
        self._limit = limit
        self._items_limit = items_limit
        self._lock = threading.Lock()  # guards the dictionary
        self._failures: OrderedDict[ArchiveUrl, dict[Item, Failure]] = OrderedDict()

    def remember(self, archive_url: ArchiveUrl, items: Iterable[Item], failure: Failure) -> None:
        with self._lock:
            failures = self._failures.setdefault(archive_url, {})
            failures.update(dict.fromkeys(items, failure))
            for item in list(failures)[: -self._items_limit]:
                del failures[item]
            self._failures.move_to_end(archive_url)
            if len(self._failures) > self._limit:
                self._failures.popitem(last=False)

    def forget(self, archive_url: ArchiveUrl, items: Iterable[Item]) -> None:
        """Forget what is tried again."""
        with self._lock:
            failures = self._failures.get(archive_url, {})
            for item in items:
                failures.pop(item, None)
            if not failures:
                self._failures.pop(archive_url, None)

    def of(self, archive_url: ArchiveUrl) -> dict[Item, Failure]:
        with self._lock:
            return dict(self._failures.get(archive_url, {}))
