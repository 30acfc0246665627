"""Reading a file while it is fetched: blocking, or being called back."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from artifacts.attempt import Attempt
from artifacts.errors import ArchiveFileChanged


class FetchRestarted(Exception):
    """The bytes read so far are void; a new reader gets the right ones."""


class GrowingFile(io.RawIOBase):
    """Reads an attempt while it grows, from anywhere; blocks until bytes have come."""

    def __init__(
        self,
        attempt: Attempt,
        wait_for_bytes: Callable[[int], int],
        wait_for_size: Callable[[], int],
    ) -> None:
        """Open the file of ``attempt``.

        Args:
            wait_for_bytes: blocks until bytes at an offset may be read, and returns up to where;
                0 at the end.
            wait_for_size: blocks until the size of the whole is known, and returns it.
        """
        super().__init__()
        self._attempt = attempt
        self._wait_for_bytes = wait_for_bytes
        self._wait_for_size = wait_for_size
        self._descriptor = _open(attempt)
        self._position = 0

    @property
    def is_cut(self) -> bool:
        """Whether what was read is void, because the fetch started over."""
        return self._attempt.abandoned and not self._attempt.verified

    @property
    def content_encoding(self) -> str | None:
        """As in `ArchiveFile`; blocks, and fails, as reading the first byte does."""
        self._wait_for_bytes(self._position)
        return self._attempt.file.content_encoding

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        stop = self._wait_for_bytes(self._position)
        count = min(len(view), stop - self._position)
        if count <= 0:
            return 0
        count = os.preadv(self._descriptor, [view[:count]], self._position)
        self._position += count
        return count

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As io.RawIOBase; from the end, it blocks until the size is known."""
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._wait_for_size()
        if offset < 0:
            raise ValueError(f"there is no position {offset} in a file")
        self._position = offset
        return offset

    def __enter__(self) -> GrowingFile:
        return self

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class FollowedFile:
    """An attempt that is sent while it grows: says what is there, and calls back; never blocks.

    ``size`` is that of the whole, in bytes. What was read of it stays right: it is all of one
    attempt, whatever becomes of the fetch.
    """

    def __init__(
        self,
        attempt: Attempt,
        size: int,
        readable_to: Callable[[int], int | None],
        watch: Callable[[int, Callable[[], None]], Callable[[], None]],
        on_close: Callable[[], None],
    ) -> None:
        """Open the file of ``attempt``; ``readable_to`` and ``watch`` are the fetch's, of it."""
        self.size = size
        self._attempt = attempt
        self._readable_to = readable_to
        self._watch = watch
        self._on_close = on_close
        self._descriptor = _open(attempt)

    def fileno(self) -> int:
        return self._descriptor

    def readable_to(self, position: int) -> int | None:
        """Return up to where bytes from ``position`` on may be read by now; None: wait for more.

        Raises:
            DevserverError: what the fetch failed with, or that it has started over.
        """
        if self._attempt.verified:
            return self.size
        try:
            return self._readable_to(position)
        except FetchRestarted:
            name = self._attempt.file.name
            raise ArchiveFileChanged(f"{name} is fetched anew; ask for it again") from None

    def watch(self, position: int, changed: Callable[[], None]) -> Callable[[], None]:
        """Have ``changed`` called, once, when ``readable_to(position)`` may have another answer.

        On any thread; at once if there is no need to wait. Meanwhile, what is at ``position`` is
        fetched next. Returned is what ends the watch; it may be called more than once.
        """
        return self._watch(position, changed)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._on_close()


def _open(attempt: Attempt) -> int:
    try:
        return os.open(attempt.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FetchRestarted from None
