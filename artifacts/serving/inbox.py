"""What a client has sent, until somebody reads it."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import time
from collections.abc import Callable

# An empty line, which ends a head; with bare line feeds, too, as a worker is to refuse these.
_HEAD_END = re.compile(rb"\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r?\n", re.IGNORECASE)
_BODY_LATER = re.compile(rb"\n(?:expect|transfer-encoding):", re.IGNORECASE)
# No less than a record of TLS: what is left of one, decrypted, would not make the socket readable.
_RECEIVED_BYTES = 16 << 10
# What is received at once of a body that is to be read in large blocks.
_LARGE_BLOCK_BYTES = 256 << 10
# As much of a body is awaited by the loop, together with the head.
_MAX_AWAITED_BODY_BYTES = 64 << 10
# What comes more slowly than this keeps a worker for no longer than what does not come at all.
_SLOWEST_BYTES_PER_SECOND = 4096
# What a client may send ahead while an answer to it waits.
_MAX_AHEAD_BYTES = 64 << 10
# What of a request's line is of interest before there is a request.
_LINE_BYTES = 4096
# The longest line within a body, such as the size of a chunk.
_MAX_LINE_BYTES = 64 << 10


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
        self._request_bytes = 0
        # Whether there is a body that is to be waited for by whoever reads it.
        self.has_body_to_come = False
        self._seconds_waited = 0.0
        self._bytes_waited_for = 0
        self.closed = False
        self.bytes_read = 0

    def __len__(self) -> int:
        return len(self._buffer)

    def take_in(self) -> bool:
        """Add what has come by now, without blocking; return whether the client is still there."""
        try:
            received = self._connection.recv(_RECEIVED_BYTES)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False
        self._buffer += received
        return bool(received)

    @property
    def is_full(self) -> bool:
        """Whether no more is to be taken in before what there is has been answered."""
        return len(self._buffer) >= _MAX_AHEAD_BYTES

    def has_request(self, max_head_bytes: int) -> bool:
        """Whether there is something for a worker: a head, or what will never be one.

        A small body has to be there with its head.
        """
        if not self._buffer:
            return False
        if not self._head_bytes and not self._find_head():
            return len(self._buffer) > max_head_bytes or self._is_malformed()
        return len(self._buffer) >= self._request_bytes

    @property
    def _line_start(self) -> int:
        # A blank line in front of a request is passed over by those who parse it.
        return 2 if self._buffer.startswith(b"\r\n") else 0

    def _find_head(self) -> bool:
        start = max(self._looked_bytes - 3, self._line_start)
        self._looked_bytes = len(self._buffer)
        end = _HEAD_END.search(self._buffer, start)
        if end is None:
            return False
        self._head_bytes = self._request_bytes = end.end()
        self._look_for_body()
        return True

    def _look_for_body(self) -> None:
        head = self.head
        length = _CONTENT_LENGTH.search(head)
        count = int(length[1]) if length else 0
        if _BODY_LATER.search(head) or count > _MAX_AWAITED_BODY_BYTES:
            self.has_body_to_come = True
        else:
            self._request_bytes += count

    def _is_malformed(self) -> bool:
        """Whether the first line can be refused already."""
        start = self._line_start
        end = self._buffer.find(b"\n", start)
        if end < 0:
            begun = bytes(self._buffer[start : start + 2])
            return not (begun[:1].isalpha() or begun in {b"", b"\r"})
        line = self._buffer[start : end + 1]
        return b" HTTP/" not in line or not line.endswith(b"\r\n")

    @property
    def request_line(self) -> bytes:
        """The first line of the request that there is, or that has begun to come."""
        start = self._line_start
        return bytes(self._buffer[start : start + _LINE_BYTES]).partition(b"\r\n")[0]

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
        self._head_bytes = self._request_bytes = self._looked_bytes = 0
        self.has_body_to_come = False
        self._seconds_waited, self._bytes_waited_for = 0.0, 0

    # --- as a file, for a worker

    def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes; without a size, all up to the end.

        Raises:
            TimeoutError: they do not come in time.
            OSError: the client has hung up before.
        """
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
        """Return a line with its end, or ``size`` bytes of it; fails as ``read`` does."""
        limit = size if size is not None and size >= 0 else _MAX_LINE_BYTES
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                return self._take(min(end + 1, limit))
            if len(self._buffer) >= limit:
                return self._take(limit)
            searched = len(self._buffer)
            if not self._receive():
                return self._take(len(self._buffer))

    def read_some(self, max_bytes: int) -> bytes:
        """Return 1 to ``max_bytes`` bytes as they come; fails as ``read`` does.

        b"" if there are none, and none are to be waited for.
        """
        if self._buffer:
            return self._take(max_bytes)
        received = self._received(min(max_bytes, _LARGE_BLOCK_BYTES))
        self.bytes_read += len(received)
        return received

    def drop(self, max_bytes: int) -> int:
        """Drop what is here of the next ``max_bytes`` bytes; return how many that are."""
        return len(self._take(max_bytes))

    def close(self) -> None:
        self.closed = True
        self._buffer.clear()

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        self.bytes_read += len(taken)
        return taken

    def _receive(self) -> bool:
        """Wait for more; return whether there is more."""
        received = self._received(_RECEIVED_BYTES)
        self._buffer += received
        return bool(received)

    def _received(self, max_bytes: int) -> bytes:
        """Wait for bytes; b"" if none are to be waited for."""
        if not self.has_body_to_come:
            return b""
        self._before_waiting()
        patience = (self._connection.gettimeout() or 0) + (
            self._bytes_waited_for / _SLOWEST_BYTES_PER_SECOND
        )
        if self._seconds_waited > patience:
            raise TimeoutError("timed out")
        begun_at = time.monotonic()
        received = self._connection.recv(max_bytes)
        self._seconds_waited += time.monotonic() - begun_at
        self._bytes_waited_for += len(received)
        if not received:
            # Only bodies are waited for here, and half a body must not be taken for a whole one.
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return received
