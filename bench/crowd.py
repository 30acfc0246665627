"""Many machines that ask at once: one thread, a socket for each of them."""

from __future__ import annotations

import http.client
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

from bench.processes import CALL_SECONDS


class Crowd:
    """Machines that have sent one request each and wait for the answer.

    Each has a connection of its own, opened when it asks.
    """

    def __init__(self, port: int, path: str, machines: int) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        self._request = request.encode("ascii")
        self._selector = selectors.DefaultSelector()
        self._received: dict[socket.socket, bytes] = {}
        self._asked_at: dict[socket.socket, float] = {}
        for _ in range(machines):
            connection = socket.socket()
            connection.setblocking(False)
            self._asked_at[connection] = time.monotonic()
            with suppress(BlockingIOError):
                connection.connect(("127.0.0.1", port))
            self._received[connection] = b""
            self._selector.register(connection, selectors.EVENT_WRITE)

    def send(self) -> None:
        """Return when all requests are on their way."""
        unsent = len(self._received)
        while unsent:
            for key, events in self._select():
                if events & selectors.EVENT_WRITE:
                    assert isinstance(key.fileobj, socket.socket)
                    self._ask(key.fileobj)
                    unsent -= 1

    def answers(self) -> list[float]:
        """Return the seconds that each machine waited, connecting included.

        Raises:
            RuntimeError: one was not answered ``Success``.
        """
        seconds: list[float] = []
        while len(seconds) < len(self._received):
            for key, events in self._select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if events & selectors.EVENT_WRITE:
                    self._ask(connection)
                elif block := connection.recv(65536):
                    self._received[connection] += block
                else:
                    seconds.append(time.monotonic() - self._asked_at[connection])
                    self._check(self._received[connection])
                    self._selector.unregister(connection)
        return seconds

    def _select(self) -> Sequence[tuple[selectors.SelectorKey, int]]:
        ready = self._selector.select(CALL_SECONDS)
        if not ready:
            raise TimeoutError(f"nothing came for {CALL_SECONDS} s")
        return ready

    def _ask(self, connection: socket.socket) -> None:
        connection.send(self._request)
        self._selector.modify(connection, selectors.EVENT_READ)

    @staticmethod
    def _check(answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200") or body != b"Success":
            raise RuntimeError(f"a machine got {answer[-200:]!r}")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for connection in self._received:
            connection.close()


def time_calls(port: int, path: str, count: int, pause_seconds: float) -> list[float]:
    """Call ``path``, each time on a connection of its own; return what each call took."""
    seconds = []
    next_at = time.monotonic()
    for _ in range(count):
        # At a steady pace, as those who watch a server ask; what is measured is not the waiting.
        time.sleep(max(0.0, next_at - time.monotonic()))
        begun_at = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_SECONDS)
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        connection.close()
        seconds.append(time.monotonic() - begun_at)
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}")
        next_at = max(next_at + pause_seconds, begun_at)
    return seconds
