"""A blob storage that wraps a real one, and misbehaves when told to.

    storage = FailingStorage(DirectoryStorage(tmp_path))
    storage.misbehave("put", Trouble(error=StorageError("the storage is on fire")), times=1)
    storage.misbehave("open", Trouble(flip_at=10), checksum=checksum)
    storage.misbehave("put", Trouble(hold=event))
    ...
    assert storage.calls.count(("put", checksum)) == 1

The errors of trouble are raised as they are: one instance for all calls that meet it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from artifacts.blobs.storage import BlobStorage, OpenedBlob, StorageError, StoredBlob
from artifacts.closing import Closing

_HOLD_SECONDS = 60

Method = Literal["put", "open", "delete", "list"]


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What goes wrong with one call; fields combine. Offsets are bytes of the blob."""

    hold: threading.Event | None = None  # do nothing before this; 60 s at most
    error: Exception | None = None  # raise this instead of doing anything
    error_after: Exception | None = None  # do it, and then raise this
    flip_at: int | None = None  # open: this byte comes inverted
    end_at: int | None = None  # open: the blob ends here, as if that were all
    cut_at: int | None = None  # open: reading on from here is a StorageError


@dataclass
class _Entry:
    method: Method
    checksum: str | None
    trouble: Trouble
    times: float


class FailingStorage:
    """Does what ``storage`` does, but for the trouble that it is told to make.

    Args:
        seconds_per_call: how long every call of ``put``, ``open`` and ``delete`` takes at least,
            before anything is done: the latency of a storage that is far away.
    """

    def __init__(self, storage: BlobStorage, *, seconds_per_call: float = 0) -> None:
        self.spool_directory = storage.spool_directory
        self.seconds_per_call = seconds_per_call
        self._storage = storage
        self._latency = threading.Event()  # never set: a wait with a bound, and no sleep
        self._lock = threading.Lock()  # guards the next four; nothing waits while holding it
        self._entries: list[_Entry] = []
        self._amnesty = threading.Event()
        self._calls: list[tuple[str, str]] = []
        self._under_way = 0
        self._most_at_once = 0

    def misbehave(
        self,
        method: Method,
        trouble: Trouble,
        *,
        checksum: str | None = None,
        times: int | None = None,
    ) -> None:
        """Make trouble at the next calls of a method; of several, one call meets the first.

        Args:
            checksum: only for this blob; None: for any.
            times: how many calls meet it; None: all, until ``behave()``.
        """
        with self._lock:
            entry = _Entry(method, checksum, trouble, math.inf if times is None else times)
            self._entries.append(entry)

    def behave(self) -> None:
        """Forget all trouble, and let those calls go on that are held."""
        with self._lock:
            self._entries.clear()
            self._amnesty.set()
            self._amnesty = threading.Event()

    @property
    def calls(self) -> list[tuple[str, str]]:
        """All calls so far, method and checksum ("" for ``list``), in the order of their coming."""
        with self._lock:
            return list(self._calls)

    @property
    def most_at_once(self) -> int:
        """How many calls there have been at one time, at most."""
        with self._lock:
            return self._most_at_once

    def put(self, checksum: str, spooled: Path) -> None:
        with self._call("put", checksum):
            self._storage.put(checksum, spooled)

    def open(self, checksum: str, start: int = 0, stop: int | None = None) -> OpenedBlob:
        with self._call("open", checksum) as trouble:
            return _TroubledBlob(self._storage.open(checksum, start, stop), start, trouble)

    def delete(self, checksum: str) -> None:
        with self._call("delete", checksum):
            self._storage.delete(checksum)

    def list(self) -> Iterator[StoredBlob]:
        with self._call("list", "", has_latency=False):
            yield from self._storage.list()

    def close(self) -> None:
        self._storage.close()

    @contextmanager
    def _call(self, method: Method, checksum: str, has_latency: bool = True) -> Iterator[Trouble]:
        trouble, amnesty = self._begin(method, checksum)
        try:
            if has_latency and self.seconds_per_call:
                self._latency.wait(self.seconds_per_call)
            if trouble.hold is not None:
                _wait_for_either(trouble.hold, amnesty)
            if trouble.error is not None:
                raise trouble.error
            yield trouble
            if trouble.error_after is not None:
                raise trouble.error_after
        finally:
            with self._lock:
                self._under_way -= 1

    def _begin(self, method: Method, checksum: str) -> tuple[Trouble, threading.Event]:
        with self._lock:
            self._calls.append((method, checksum))
            self._under_way += 1
            self._most_at_once = max(self._most_at_once, self._under_way)
            for entry in self._entries:
                is_meant = entry.method == method and entry.checksum in {None, checksum}
                if is_meant and entry.times > 0:
                    entry.times -= 1
                    return entry.trouble, self._amnesty
            return Trouble(), self._amnesty


def _wait_for_either(event: threading.Event, amnesty: threading.Event) -> None:
    for _ in range(_HOLD_SECONDS * 20):
        if event.wait(0.05) or amnesty.is_set():
            return


class _TroubledBlob(Closing):
    """An opened blob, whose bytes are damaged or end where they should not."""

    def __init__(self, opened: OpenedBlob, start: int, trouble: Trouble) -> None:
        self._opened = opened
        self._position = start
        self._trouble = trouble

    def read(self, max_bytes: int) -> bytes:
        for end in (self._trouble.end_at, self._trouble.cut_at):
            if end is not None:
                max_bytes = min(max_bytes, max(0, end - self._position))
        if max_bytes == 0:
            if self._position == self._trouble.cut_at:
                raise StorageError("the storage cut the connection")
            return b""
        block = bytearray(self._opened.read(max_bytes))
        if self._trouble.flip_at is not None:
            offset = self._trouble.flip_at - self._position
            if offset in range(len(block)):
                block[offset] ^= 0xFF
        self._position += len(block)
        return bytes(block)

    def close(self) -> None:
        self._opened.close()
