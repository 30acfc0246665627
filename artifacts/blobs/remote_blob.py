"""Reading a blob that comes over the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from artifacts.closing import Closing
from artifacts.errors import ArchiveError, ArchiveRangeMissing
from artifacts.sources.http_range import HttpRange

# However far each try gets: a blob is no more than a few seconds' reading.
_MAX_CUTS = 5
_Result = TypeVar("_Result")


class Trying(Protocol):
    """Returns what ``call`` returns, after some tries; raises the errors of storages."""

    def __call__(self, call: Callable[[], _Result]) -> _Result: ...


class RemoteBlob(Closing):
    """Part of an object; see `OpenedBlob`. What is cut is taken up where it was: blobs stay."""

    def __init__(
        self,
        open_range: Callable[[int, int | None], HttpRange],
        trying: Trying,
        start: int,
        stop: int | None,
    ) -> None:
        """Open it. ``open_range`` opens from its first argument up to the second."""
        self._open_range = open_range
        self._trying = trying
        self._position = start
        self._stop = stop
        self._opened: HttpRange | None = None
        self._cuts = 0
        self._trying(self._open_first)

    def _open_first(self) -> None:
        try:
            self._open()
        except ArchiveRangeMissing:
            self._stop = self._position  # it ends before that

    def _open(self) -> None:
        # HTTP has no ranges of no bytes; and whether the blob is there is to be found out.
        stop = None if self._stop is None else max(self._stop, self._position + 1)
        opened = self._open_range(self._position, stop)
        try:
            if opened.stop is None and not opened.end_is_told:
                raise ArchiveError(f"{opened.file.name} comes without its length")
            self._pass_over(opened, self._position - opened.start)
        except BaseException:
            opened.close()
            raise
        self._opened = opened

    def _pass_over(self, opened: HttpRange, count: int) -> None:
        """Read what a store sends that does not know ranges."""
        while count > 0 and (block := opened.read(min(count, 1 << 20))):
            count -= len(block)

    def read(self, max_bytes: int) -> bytes:
        if self._stop is not None:
            max_bytes = min(max_bytes, self._stop - self._position)
            if max_bytes <= 0:
                return b""
        block = self._trying(lambda: self._read(max_bytes))
        self._position += len(block)
        return block

    def _read(self, max_bytes: int) -> bytes:
        if self._opened is None:
            self._open()
        assert self._opened is not None
        try:
            return self._opened.read(max_bytes)
        except ArchiveError as error:
            self.close()
            self._cuts += 1
            if self._cuts > _MAX_CUTS:
                raise ArchiveError(f"{error.message} (after {_MAX_CUTS} cuts)") from error
            raise

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
