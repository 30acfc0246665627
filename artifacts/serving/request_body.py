"""A request's body, as it is read by whoever answers the request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cherrypy

from artifacts.errors import TooLarge
from artifacts.serving.inbox import Inbox

# RFC 9112, section 7.1; what follows a semicolon is of no interest.
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_MAX_CHUNK_LINE_BYTES = 4096
_MAX_TRAILER_LINES = 100
_BLOCK_BYTES = 64 << 10
# Of sizes and line ends between chunks, besides a sixteenth of what is in them: each chunk costs
# the same, however small it is.
_MAX_FRAMING_BYTES = 64 << 10


class RequestBody:
    """The bytes of one request behind its head; never more of them in memory than are asked for.

    What is wrong with a body is raised as CherryPy's HTTPError, and the connection ends with the
    answer: where the next request begins is not known.
    """

    def __init__(
        self, inbox: Inbox, length: int | None, max_bytes: int, is_spoilt: Callable[[], None]
    ) -> None:
        """Begin it.

        Args:
            inbox: what it comes from.
            length: as its head says; None for one that comes in chunks (of HTTP).
            max_bytes: the most that it may have.
            is_spoilt: called when no other request can follow on the connection.
        """
        self._inbox = inbox
        self._is_chunked = length is None
        # Of the present chunk, or of all.
        self._left = length or 0
        self._has_ended = length == 0
        self._allowed_bytes = max_bytes
        self._framing_bytes_left = _MAX_FRAMING_BYTES
        self._is_spoilt = is_spoilt

    def read_some(self, max_bytes: int) -> bytes:
        """Return what has come, 1 to ``max_bytes`` bytes; b"" at the end.

        Of small chunks, those that are here come together.
        """
        with self._in_words():
            block = self._read_block(max_bytes)
            if not self._is_chunked:
                return block
            gathered = bytearray(block)
            wanted = min(max_bytes, _BLOCK_BYTES)
            while len(gathered) < wanted and self._inbox and not self._has_ended:
                gathered += self._read_block(wanted - len(gathered))
            return bytes(gathered)

    def read(self, size: int | None = None) -> bytes:
        """Return ``size`` bytes, less only at the end; all of them without a size."""
        blocks = []
        left = size
        while left is None or left > 0:
            block = self.read_some(_BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES))
            if not block:
                break
            blocks.append(block)
            left = None if left is None else left - len(block)
        return b"".join(blocks)

    def read_all(self, max_bytes: int) -> bytes:
        """Return all of it.

        Raises:
            TooLarge: it has more than ``max_bytes``.
        """
        body = self.read(max_bytes + 1)
        if len(body) > max_bytes:
            raise TooLarge(f"the request's body is larger than {max_bytes:,} bytes")
        return body

    def finish(self) -> bool:
        """Pass over what nobody has read and what is here; return whether that is all of it."""
        if not self._is_chunked and self._left:
            self._left -= self._inbox.drop(self._left)
            self._has_ended = not self._left
        return self._has_ended

    def _read_block(self, max_bytes: int) -> bytes:
        if not self._left and not self._has_ended:
            self._begin_chunk()
        if self._has_ended:
            return b""
        block = self._inbox.read_some(min(max_bytes, self._left))
        if not block:
            raise ConnectionError("no more comes")
        self._left -= len(block)
        if not self._left:
            self._end_part()
        return block

    def _begin_chunk(self) -> None:
        line = self._inbox.readline(_MAX_CHUNK_LINE_BYTES)
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise ValueError(f"no size of a chunk: {line!r:.100}")
        self._left = int(size[1], 16)
        if self._left > self._allowed_bytes:
            raise OverflowError("over the limit")
        self._allowed_bytes -= self._left
        self._framing_bytes_left += self._left // 16 - len(line) - len(b"\r\n")
        if self._framing_bytes_left < 0:
            raise ValueError("its chunks are too small")
        if not self._left:
            self._pass_over_trailers()
            self._has_ended = True

    def _pass_over_trailers(self) -> None:
        for _ in range(_MAX_TRAILER_LINES):
            if self._inbox.readline(_MAX_CHUNK_LINE_BYTES) == b"\r\n":
                return
        raise ValueError("too many trailers")

    def _end_part(self) -> None:
        if not self._is_chunked:
            self._has_ended = True
        elif self._inbox.read(2) != b"\r\n":
            raise ValueError("a chunk is longer than it says")

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
            return
        except OverflowError:
            status, reason = 413, "the request's body is too large"
        except ValueError:
            status, reason = 400, "the request's body is malformed"
        except TimeoutError:
            status, reason = 408, "the request's body did not come in time"
        except OSError:
            status, reason = 400, "the request's body is cut short"
        self._is_spoilt()
        raise cherrypy.HTTPError(status, reason)
