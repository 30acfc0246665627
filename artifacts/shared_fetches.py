"""The fetches of one build, each shared by all who need that file."""

from __future__ import annotations

import threading
from collections.abc import Callable

from artifacts.fetch import Fetch
from artifacts.sources.source import ArchiveFile


class SharedFetches:
    """One Fetch a file name; it is discarded when its last user releases it."""

    def __init__(self, make_fetch: Callable[[ArchiveFile], Fetch]) -> None:
        self._make_fetch = make_fetch
        self._lock = threading.Lock()  # guards the two below
        self._users: dict[str, tuple[Fetch, int]] = {}
        self._is_cancelled = False

    def acquire(self, file: ArchiveFile, *, urgent: bool) -> Fetch:
        """Return the fetch of ``file``, started; to be released by the caller."""
        with self._lock:
            fetch, users = self._users.get(file.name) or (self._make_fetch(file), 0)
            self._users[file.name] = (fetch, users + 1)
            is_cancelled = self._is_cancelled
        fetch.start(urgent=urgent)
        if is_cancelled:
            fetch.cancel()
        return fetch

    def join(self, name: str) -> Fetch | None:
        """Return the fetch of a file, to be released, if somebody has acquired it already."""
        with self._lock:
            fetch, users = self._users.get(name, (None, 0))
            if fetch is not None:
                self._users[name] = (fetch, users + 1)
            return fetch

    def release(self, fetch: Fetch) -> None:
        with self._lock:
            current, users = self._users[fetch.name]
            if users > 1:
                self._users[fetch.name] = (current, users - 1)
                return
            del self._users[fetch.name]
        fetch.discard()

    def cancel_all(self) -> None:
        """Cancel all fetches: those there are, and those that are yet to come."""
        with self._lock:
            self._is_cancelled = True
            fetches = [fetch for fetch, _ in self._users.values()]
        for fetch in fetches:
            fetch.cancel()
