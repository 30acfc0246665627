"""The indexes of archive files that were asked for lately; each is read once for all who ask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from artifacts.member_index import MemberIndex
from artifacts.shared_calls import SharedCalls
from artifacts.workers import Workers

MAX_KEPT_BYTES = 2**26


class MemberIndexes:
    """Keeps indexes in memory, those used last, as many as come to MAX_KEPT_BYTES."""

    def __init__(self) -> None:
        self._reading: SharedCalls[Hashable, MemberIndex] = SharedCalls()
        self._lock = threading.Lock()  # guards what is kept
        self._kept: OrderedDict[Hashable, MemberIndex] = OrderedDict()
        self._kept_bytes = 0

    def get(
        self, key: Hashable, read: Callable[[], MemberIndex], workers: Workers
    ) -> Future[MemberIndex]:
        """Return the index of ``key``, which ``read`` reads on one of ``workers`` if it has to."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        if kept is None:
            return self._reading.join(key, lambda: self._keep(key, read()), workers)
        future: Future[MemberIndex] = Future()
        future.set_result(kept)
        return future

    def _keep(self, key: Hashable, index: MemberIndex) -> MemberIndex:
        if index.memory_bytes <= MAX_KEPT_BYTES:
            with self._lock:
                # Somebody may have looked just before another one had read it.
                if (other := self._kept.pop(key, None)) is not None:
                    self._kept_bytes -= other.memory_bytes
                self._kept[key] = index
                self._kept_bytes += index.memory_bytes
                while self._kept_bytes > MAX_KEPT_BYTES:
                    self._kept_bytes -= self._kept.popitem(last=False)[1].memory_bytes
        return index
