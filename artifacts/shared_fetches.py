"""The fetches of one build, each shared by all who need that file."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from artifacts.fetch import Fetch
from artifacts.sources.source import ArchiveFile


class SharedFetches:
    """One Fetch a file name, as long as anybody needs it who is going to publish the file.

    Those who only read it join it, and may stay for longer: a fetch is discarded when its last user
    of either kind has let it go. One that has failed, or that nobody publishes from any more, is
    not given to anybody who comes later, as the file may be another one by then.
    """

    def __init__(self, make_fetch: Callable[[ArchiveFile], Fetch]) -> None:
        self._make_fetch = make_fetch
        self._lock = threading.Lock()  # guards all below; not held while a fetch is discarded
        self._current: dict[str, Fetch] = {}
        self._publishers: Counter[Fetch] = Counter()
        self._users: Counter[Fetch] = Counter()  # all of them
        self._is_cancelled = False

    def acquire(self, file: ArchiveFile, *, urgent: bool) -> Fetch:
        """Return the fetch of ``file``, started; to be released by the caller."""
        with self._lock:
            fetch = self._current.get(file.name)
            if fetch is None or fetch.has_failed:
                fetch = self._current[file.name] = self._make_fetch(file)
            self._publishers[fetch] += 1
            self._users[fetch] += 1
            is_cancelled = self._is_cancelled
        fetch.start(urgent=urgent)
        if is_cancelled:
            fetch.cancel()
        return fetch

    def release(self, fetch: Fetch) -> None:
        with self._lock:
            self._publishers[fetch] -= 1
            if not self._publishers[fetch]:
                del self._publishers[fetch]
                if self._current.get(fetch.name) is fetch:
                    del self._current[fetch.name]
        self.leave(fetch)

    def join(self, name: str) -> Fetch | None:
        """Return the fetch of a file that others have acquired, to be left; None: nobody has."""
        with self._lock:
            fetch = self._current.get(name)
            if fetch is None or fetch.has_failed:
                return None
            self._users[fetch] += 1
            return fetch

    def leave(self, fetch: Fetch) -> None:
        with self._lock:
            self._users[fetch] -= 1
            if self._users[fetch]:
                return
            del self._users[fetch]
        fetch.discard()

    def cancel_all(self) -> None:
        """Cancel all fetches: those there are, and those that are yet to come."""
        with self._lock:
            self._is_cancelled = True
            fetches = list(self._users)
        for fetch in fetches:
            fetch.cancel()
