"""Reading a file while it is fetched."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from artifacts.attempt import Attempt


class FetchRestarted(Exception):
    """The bytes read so far are void; a new reader gets the right ones."""


class GrowingFile(io.RawIOBase):
    """Reads an attempt from its start while it grows; blocks until bytes have come."""

    def __init__(self, attempt: Attempt, wait_for_bytes: Callable[[Attempt, int], int]) -> None:
        """``wait_for_bytes`` blocks until bytes at an offset may be read; see Fetch."""
        super().__init__()
        self._attempt = attempt
        self._wait_for_bytes = wait_for_bytes
        try:
            self._descriptor = os.open(attempt.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FetchRestarted from None
        self._position = 0

    @property
    def is_cut(self) -> bool:
        """Whether what was read is void, because the fetch started over."""
        return self._attempt.abandoned and not self._attempt.verified

    @property
    def content_encoding(self) -> str | None:
        """As in `ArchiveFile`; blocks, and fails, as reading the first byte does."""
        self._wait_for_bytes(self._attempt, self._position)
        return self._attempt.file.content_encoding

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        stop = self._wait_for_bytes(self._attempt, self._position)
        count = min(len(view), stop - self._position)
        if count <= 0:
            return 0
        count = os.preadv(self._descriptor, [view[:count]], self._position)
        self._position += count
        return count

    def __enter__(self) -> GrowingFile:
        return self

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
