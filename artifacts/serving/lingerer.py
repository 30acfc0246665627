"""Hanging up so that clients get to read their last answer, though they may be sending still."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass

# A client is listened to until it hangs up, too; at most for so long and so much, ...
_MAX_SECONDS = 30.0
_MAX_BYTES = 64 << 20
# ... and for so long if it sends nothing.
_MAX_SILENT_SECONDS = 5.0
_BLOCK_BYTES = 64 << 10
Ended = Callable[[], None]


@dataclass(eq=False)
class _Lingering:
    connection: socket.socket
    ended: Ended
    ends_at: float
    silent_until: float
    bytes_left: int = _MAX_BYTES


class Lingerer:
    """Connections that are at their end; for the loop's own thread."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._lingering: dict[socket.socket, _Lingering] = {}

    def begin(self, connection: socket.socket, ended: Ended) -> None:
        """Send no more, and drop what comes, until the client hangs up; then call ``ended``."""
        now = time.monotonic()
        lingering = _Lingering(connection, ended, now + _MAX_SECONDS, now + _MAX_SILENT_SECONDS)
        notify_of_end(connection)
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            ended()
            return
        self._lingering[connection] = lingering
        self._loop.add_reader(connection, self._drop, lingering)

    def end_late(self) -> None:
        """Hang up on those who do not."""
        now = time.monotonic()
        for lingering in list(self._lingering.values()):
            if min(lingering.silent_until, lingering.ends_at) < now:
                self._end(lingering)

    def _drop(self, lingering: _Lingering) -> None:
        try:
            received = len(lingering.connection.recv(_BLOCK_BYTES))
        except BlockingIOError:
            return
        except OSError:
            received = 0
        lingering.bytes_left -= received
        lingering.silent_until = time.monotonic() + _MAX_SILENT_SECONDS
        if not received or lingering.bytes_left < 0:
            self._end(lingering)

    def _end(self, lingering: _Lingering) -> None:
        del self._lingering[lingering.connection]
        self._loop.remove_reader(lingering.connection)
        lingering.ended()


def notify_of_end(connection: socket.socket) -> None:
    """Tell a client of TLS that no more comes (RFC 9112, section 9.8); never blocks."""
    if isinstance(connection, ssl.SSLSocket):
        connection.setblocking(False)
        # It does not matter whether the client still says the same.
        with contextlib.suppress(OSError, ValueError):
            connection.unwrap()
