"""A set of byte ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Intervals:
    """Half-open ranges of offsets, merged where they touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0

    def add(self, start: int, stop: int) -> None:
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
            self.total -= sum(self._stops[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        self.total += stop - start

    def end_from(self, offset: int) -> int:
        """Return the offset up to which everything from ``offset`` on is in the set."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._stops[index]) if index >= 0 else offset

    def gap_from(self, offset: int, stop: int) -> tuple[int, int]:
        """Return the first range that is not in the set, between ``offset`` and ``stop``.

        Where there is none, it is the empty one at ``stop``.
        """
        start = min(self.end_from(offset), stop)
        index = bisect_left(self._starts, start)
        return start, min(stop, self._starts[index]) if index < len(self._starts) else stop
