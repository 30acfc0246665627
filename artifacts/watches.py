"""Who is to be told, once, when something has come to a position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Watch:
    """One who waits at ``position``; two of them are never equal."""

    position: int
    changed: Callable[[], None]


class Watches:
    """Watches by position. Guarded by the lock of what they wait for."""

    def __init__(self) -> None:
        # Most of those who wait do so at the same place: there are fewer places than watches.
        self._at: dict[int, dict[Watch, None]] = {}

    def add(self, position: int, changed: Callable[[], None]) -> Watch:
        watch = Watch(position, changed)
        self._at.setdefault(position, {})[watch] = None
        return watch

    def remove(self, watch: Watch) -> bool:
        """Remove a watch; return whether it was still there."""
        here = self._at.get(watch.position, {})
        if watch not in here:
            return False
        del here[watch]
        if not here:
            del self._at[watch.position]
        return True

    def take(self, start: int, stop: int) -> list[Watch]:
        """Remove the watches from ``start`` up to ``stop``, and return them in their order."""
        positions = [position for position in self._at if start <= position < stop]
        return [watch for position in positions for watch in self._at.pop(position)]

    def take_all(self) -> list[Watch]:
        everyone = [watch for here in self._at.values() for watch in here]
        self._at.clear()
        return everyone

    def __len__(self) -> int:
        return sum(map(len, self._at.values()))
