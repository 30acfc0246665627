"""What a client has sent, until somebody reads it."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable

# An empty line, which ends a head; with bare line feeds, too, as a worker is to refuse these.
_HEAD_END = re.compile(rb"\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r?\n", re.IGNORECASE)
_EXPECT = re.compile(rb"\nexpect:", re.IGNORECASE)
_RECEIVED_BYTES = 16 << 10
# As much of a body is awaited by the loop, together with the head.
_MAX_AWAITED_BODY_BYTES = 64 << 10


def receive(connection: socket.socket) -> bytes | None:
    """Return what has come by now, b"" at the end; None: nothing has. Never blocks.

    Raises:
        OSError: the connection is broken.
    """
    try:
        return connection.recv(_RECEIVED_BYTES)
    except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None


class Inbox:
    """The bytes that have come over a connection and are not read yet.

    The event loop feeds it until there is a request. Then a worker reads from it as from a file, as
    cheroot expects of a connection's ``rfile``; it waits for the rest of a large body, no more.
    """

    def __init__(self, connection: socket.socket, before_waiting: Callable[[], None]) -> None:
        """``before_waiting`` is called each time before more bytes are waited for."""
        self._connection = connection
        self._before_waiting = before_waiting
        self._buffer = bytearray()
        self._looked_bytes = 0
        self._head_bytes = 0
        # Whether more may come: not to a head that is refused as it is.
        self._may_wait = True
        self.closed = False
        self.bytes_read = 0

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, received: bytes) -> None:
        self._buffer += received

    def has_request(self, max_head_bytes: int) -> bool:
        """Whether there is something for a worker: a head, or what will never be one.

        A small body has to be there with its head.
        """
        if not self._buffer:
            return False
        if not self._head_bytes and not self._find_head():
            is_hopeless = len(self._buffer) > max_head_bytes or self._is_malformed()
            self._may_wait = not is_hopeless
            return is_hopeless
        return len(self._buffer) >= self._head_bytes + self._awaited_body_bytes()

    def _find_head(self) -> bool:
        # A blank line or two in front of a request is passed over by those who parse it.
        start = max(self._looked_bytes - 3, 2 if self._buffer.startswith(b"\r\n") else 0)
        self._looked_bytes = len(self._buffer)
        end = _HEAD_END.search(self._buffer, start)
        if end is not None:
            self._head_bytes = end.end()
        return end is not None

    def _is_malformed(self) -> bool:
        """Whether the first line can be refused already."""
        end = self._buffer.find(b"\n", 0, 64 << 10)
        is_bare = end >= 0 and not self._buffer.startswith(b"\r", max(0, end - 1))
        return is_bare or not (self._buffer[:1].isalpha() or self._buffer[:1] == b"\r")

    def _awaited_body_bytes(self) -> int:
        if self._buffer.startswith((b"GET ", b"HEAD ")):
            return 0
        head = bytes(self._buffer[: self._head_bytes])
        length = _CONTENT_LENGTH.search(head)
        if length is None or _EXPECT.search(head):
            return 0
        count = int(length[1])
        return count if count <= _MAX_AWAITED_BODY_BYTES else 0

    @property
    def head(self) -> bytes:
        """The head of the request that there is, with its last line's end."""
        return bytes(self._buffer[: self._head_bytes])

    def drop_head(self) -> None:
        """Take a request without a body as answered."""
        del self._buffer[: self._head_bytes]
        self.begin_next()

    def begin_next(self) -> None:
        """Look for the next request in what is left."""
        self._head_bytes = self._looked_bytes = 0

    # --- as a file, for a worker

    def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes, fewer at the end; without a size, all up to the end."""
        parts = []
        left = size if size is not None and size >= 0 else None
        while left is None or left > 0:
            if not self._buffer and not self._receive():
                break
            part = self._take(len(self._buffer) if left is None else left)
            parts.append(part)
            left = None if left is None else left - len(part)
        return b"".join(parts)

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line with its end, or ``size`` bytes of it."""
        limit = size if size is not None and size >= 0 else None
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                return self._take(end + 1 if limit is None else min(end + 1, limit))
            if limit is not None and len(self._buffer) >= limit:
                return self._take(limit)
            searched = len(self._buffer)
            if not self._receive():
                return self._take(len(self._buffer))

    def has_data(self) -> bool:
        return bool(self._buffer)

    def close(self) -> None:
        self.closed = True
        self._buffer.clear()

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        self.bytes_read += len(taken)
        return taken

    def _receive(self) -> bool:
        """Wait for more; return whether something has come."""
        if not self._may_wait:
            return False
        self._before_waiting()
        received = self._connection.recv(_RECEIVED_BYTES)
        self._buffer += received
        return bool(received)
