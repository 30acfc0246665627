"""A client that reads a file while it grows, and notes when which byte came."""

from __future__ import annotations

import socket
import threading
import time

from bench.processes import CALL_SECONDS
from bench.timeline import Timeline

_DISCARD = socket.MSG_TRUNC
_MAX_TAKEN_BYTES = 1 << 20
_MAX_HEAD_BYTES = 4096


def time_to_first_byte(port: int, path: str) -> float:
    """Ask for a file on a new connection, and hang up at the first byte; return the seconds."""
    begun_at = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), CALL_SECONDS) as connection:
        connection.sendall(_request(path))
        head, _ = _read_head(connection, body_too=True)
        seconds = time.monotonic() - begun_at
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"a client was answered {head[:200]!r}")
    return seconds


class Follower:
    """A client on a thread of its own, from asking for a file until it has all, or hangs up.

    Attributes:
        asked_at: when it did.
        timeline: of the body's bytes.
    """

    def __init__(self, port: int, path: str) -> None:
        self.timeline = Timeline()
        self._changed = threading.Condition()
        self._ended: str | None = None
        self._socket = socket.create_connection(("127.0.0.1", port), CALL_SECONDS)
        self._thread = threading.Thread(target=self._follow, name="follower")
        self.asked_at = time.monotonic()
        self._socket.sendall(_request(path))

    def wait_for(self, position: int) -> float:
        """Return when so many bytes were there.

        Raises:
            RuntimeError: it was refused or cut before.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self.timeline.position >= position or self._ended, CALL_SECONDS
            )
        at = self.timeline.time_of(position - 1)
        if at is None:
            raise RuntimeError(f"a client got {self.timeline.position} bytes: {self._ended}")
        return at

    def _follow(self) -> None:
        try:
            ended = self._read()
        except (OSError, RuntimeError) as error:
            ended = str(error)
        with self._changed:
            self._ended = ended
            self._changed.notify_all()

    def _read(self) -> str:
        head, body = _read_head(self._socket)
        if not head.startswith(b"HTTP/1.1 200"):
            return f"answered {(head + body)[:200]!r}"
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        buffer = bytearray(_MAX_TAKEN_BYTES)
        position = len(body)
        self._note(position)
        while position < length:
            wanted = min(length - position, _MAX_TAKEN_BYTES)
            taken = self._socket.recv_into(buffer, wanted, _DISCARD)
            if not taken:
                return "cut"
            position += taken
            self._note(position)
        return "whole"

    def _note(self, position: int) -> None:
        with self._changed:
            self.timeline.note(position)
            self._changed.notify_all()

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode("ascii")


def _read_head(connection: socket.socket, *, body_too: bool = False) -> tuple[bytes, bytes]:
    """Return an answer's head, and what of its body came along: at least a byte, if asked for."""
    received = b""
    while True:
        head, end, body = received.partition(b"\r\n\r\n")
        if end and (body or not body_too):
            return head, body
        block = connection.recv(_MAX_HEAD_BYTES)
        if not block:
            raise RuntimeError(f"a client was cut after {received[:200]!r}")
        received += block
