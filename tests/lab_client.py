"""Lab clients as labs have them: queries put together by hand, over old and new connections."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from typing import Literal
from urllib.parse import urlsplit

from running_server import RunningServer

# Long enough for a busy machine, and shorter than what a test's archive holds an answer back.
TIMEOUT_SECONDS = 30

Way = Literal["urllib", "1.0", "1.0 kept", "1.1", "1.1 kept"]
WAYS: tuple[Way, ...] = ("urllib", "1.0", "1.0 kept", "1.1", "1.1 kept")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")


class LabClient:
    """Calls a server one way: with urllib, or with HTTP/1.0 or 1.1 over sockets.

    A way that is ``kept`` has one connection for everything; others make one for each request, and
    expect the server to close it.
    """

    def __init__(self, server: RunningServer, way: Way = "urllib") -> None:
        self._url = server.url
        self._way = way
        self._connection: socket.socket | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, method: str, **arguments: object) -> str:
        """Return the body of an answer that has to be 200."""
        reply = self.ask(query(method, **arguments))
        assert reply.status == 200, f"{reply.status}: {reply.text}"
        return reply.text

    def refusal(self, method: str, **arguments: object) -> tuple[int, str]:
        """Return status and body of an answer that must not be 200."""
        reply = self.ask(query(method, **arguments))
        assert reply.status != 200, reply.text
        return reply.status, reply.text

    def ask(self, target: str, method: str = "GET", **headers: str) -> Reply:
        """Send a request for a path and query, as they are."""
        if self._way == "urllib":
            return self._ask_urllib(target, method, headers)
        if self._way.endswith("kept"):
            if self._connection is None:
                self._connection = self.connect()
            return self._exchange(self._connection, target, method, headers)
        with self.connect() as connection:
            reply = self._exchange(connection, target, method, headers)
            assert connection.recv(1) == b"", "the server does not close the connection"
            return reply

    def connect(self) -> socket.socket:
        """Return a connection, for what no well-behaved client does."""
        url = urlsplit(self._url)
        assert url.hostname is not None
        return socket.create_connection((url.hostname, url.port or 80), TIMEOUT_SECONDS)

    def _ask_urllib(self, target: str, method: str, headers: dict[str, str]) -> Reply:
        request = urllib.request.Request(self._url + target, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return Reply(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.headers, error.read())

    def _exchange(
        self, connection: socket.socket, target: str, method: str, headers: dict[str, str]
    ) -> Reply:
        version, _, kept = self._way.partition(" ")
        lines = [f"{method} {target} HTTP/{version}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if version == "1.1":
            lines.append(f"Host: {urlsplit(self._url).netloc}")
            lines += [] if kept else ["Connection: close"]
        elif kept:
            lines.append("Connection: Keep-Alive")
        connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        with HTTPResponse(connection, method=method) as answer:
            answer.begin()
            return Reply(answer.status, answer.headers, answer.read())


def query(method: str, **arguments: object) -> str:
    """Put a call together as lab clients do: nothing is encoded, the order is any."""
    return f"/{method}?" + "&".join(f"{name}={value}" for name, value in arguments.items())
