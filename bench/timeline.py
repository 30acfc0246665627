"""When which bytes of a file were where: at the archive, on the disk, with a client."""

from __future__ import annotations

import bisect
import mmap
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from artifacts.intervals import Intervals
from bench.processes import START_SECONDS

_LOOKING_SECONDS = 0.002


class Timeline:
    """When how many bytes, from the first on, were there; times are of ``time.monotonic``."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._positions: list[int] = []

    def note(self, position: int, at: float | None = None) -> None:
        """Note that there are so many bytes now, or were at a time after those noted before."""
        if position > self.position:
            self._times.append(time.monotonic() if at is None else at)
            self._positions.append(position)

    @property
    def position(self) -> int:
        return self._positions[-1] if self._positions else 0

    @property
    def steps(self) -> Sequence[tuple[float, int]]:
        """The times, and how many bytes there were before."""
        return list(zip(self._times, [0, *self._positions], strict=False))

    def time_of(self, position: int) -> float | None:
        """Return when the byte at ``position`` was first seen to be there."""
        index = bisect.bisect_right(self._positions, position)
        return self._times[index] if index < len(self._times) else None


def timeline_of_ranges(ranges: Iterable[tuple[float, int, int]]) -> Timeline:
    """Return when the bytes from the first on were there, of ranges that came in any order.

    ``ranges``: when each came, its start and its stop; in the order of their times.
    """
    timeline, there = Timeline(), Intervals()
    for at, start, stop in ranges:
        there.add(start, stop)
        timeline.note(there.end_from(0), at)
    return timeline


def lags(timeline: Timeline, behind: Timeline, stop: int) -> list[float]:
    """Return by how much ``timeline`` was behind another, at each of its steps up to ``stop``.

    A step counts from when the first of its bytes was there.
    """
    seconds = []
    for at, before in timeline.steps:
        there_at = behind.time_of(before)
        if there_at is not None and before < stop:
            # Who looks every few milliseconds may see a byte later than who waits for it.
            seconds.append(max(0.0, at - there_at))
    return seconds


class DiskWatch:
    """Looks at a file that is being fetched, every 2 ms: how many bytes from the first on it has.

    A thread of its own, from before there is such a file until the block is left. It asks the file
    system where the first hole is, as bytes may be written in any order.
    """

    def __init__(self, directory: Path) -> None:
        """``directory``: where temporary files are; the first that comes is watched."""
        self.timeline = Timeline()
        self._directory = directory
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk-watch")

    def _watch(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (found := list(self._directory.glob("fetch-*"))):
            if self._stopped.wait(_LOOKING_SECONDS) or time.monotonic() > deadline:
                return
        descriptor = os.open(found[0], os.O_RDONLY)
        try:
            while not self._stopped.wait(_LOOKING_SECONDS):
                position, size = self.timeline.position, os.fstat(descriptor).st_size
                if size <= position:
                    continue
                hole = os.lseek(descriptor, position, os.SEEK_HOLE)
                # Before a hole, the last page may be there in part only, and counts as a whole.
                self.timeline.note(hole if hole == size else hole - mmap.PAGESIZE + 1)
        finally:
            os.close(descriptor)

    def __enter__(self) -> DiskWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
