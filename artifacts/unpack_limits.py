"""What one archive file may come to when it is unpacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from artifacts.errors import ArchiveError


@dataclass(frozen=True)
class UnpackLimits:
    """Limits of one archive file.

    Attributes:
        max_bytes: of all members together, unpacked.
        max_members: how many there may be.
        check_room: called while something is written; raises where the disk gets full.
    """

    max_bytes: int = 100 * 2**30
    max_members: int = 1_000_000
    check_room: Callable[[], None] = lambda: None


class UnpackUsage:
    """Counts what an archive comes to; raises ArchiveError when that is over a limit."""

    def __init__(self, limits: UnpackLimits) -> None:
        self._limits = limits
        self._members = 0
        self._bytes = 0

    def add_members(self, count: int) -> None:
        self._members += count
        if self._members > self._limits.max_members:
            raise ArchiveError(f"the archive has over {self._limits.max_members:,} members")

    def add_bytes(self, count: int) -> None:
        self._bytes += max(count, 0)
        if self._bytes > self._limits.max_bytes:
            raise ArchiveError(f"the archive unpacks to over {self._limits.max_bytes:,} bytes")
