"""Reading ahead: a stream read on a thread of its own, while what has come is used."""

from __future__ import annotations

import io
import threading
from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK_BYTES = 2**18
_MAX_BLOCKS = 8


class ReadAhead(io.RawIOBase):
    """The bytes of a stream, read up to two MiB ahead of who reads this.

    What the stream raises is raised here, where its bytes would have been. Closing waits for the
    read that is under way.
    """

    def __init__(self, stream: io.RawIOBase) -> None:
        """``stream`` is blocking, and not closed."""
        self._stream = stream
        # Guards everything below; not held while reading.
        self._changed = threading.Condition()
        self._blocks: deque[bytes] = deque()
        self._failure: BaseException | None = None
        self._has_ended = False
        self._is_closing = False
        self._block = memoryview(b"")  # what is being given out; the reader's alone
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        if not self._block:
            self._block = memoryview(self._next_block())
        count = min(len(target), len(self._block))
        target[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        super().close()

    def __enter__(self) -> Self:
        return self

    def _next_block(self) -> bytes:
        with self._changed:
            while not self._blocks:
                if self._failure is not None:
                    raise self._failure
                if self._has_ended:
                    return b""
                self._changed.wait()
            self._changed.notify_all()
            return self._blocks.popleft()

    def _run(self) -> None:
        try:
            while self._has_room() and (block := self._stream.read(_BLOCK_BYTES)):
                with self._changed:
                    self._blocks.append(block)
                    self._changed.notify_all()
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        with self._changed:
            while len(self._blocks) >= _MAX_BLOCKS and not self._is_closing:
                self._changed.wait()
            return not self._is_closing
