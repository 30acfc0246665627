"""A client that sends bytes as they are, and reads as slowly as a test wants."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass

# Long enough for a busy machine.
TIMEOUT_SECONDS = 60
_SMALL_BUFFER_BYTES = 4096
_LARGE_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True)
class Reply:
    """An answer; ``headers`` by their lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")


class RawClient:
    """A connection to a server on 127.0.0.1."""

    def __init__(self, port: int, *, is_slow: bool = False, tls: ssl.SSLContext | None = None):
        """Connect; one that ``is_slow`` has room for some kilobytes that it has not read."""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if is_slow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        self.socket.settimeout(TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(("127.0.0.1", port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self._received = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def hurry(self) -> RawClient:
        """Be slow no more."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LARGE_BUFFER_BYTES)
        return self

    def reset(self) -> None:
        """Hang up as one does whose machine goes down."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> RawClient:
        self.socket.sendall(data)
        return self

    def get(self, target: str, method: str = "GET", **headers: str) -> RawClient:
        """Send a request; ``headers`` are spelled with underscores for dashes."""
        lines = [f"{method} {target} HTTP/1.1", "Host: lab"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def wait_for_answer(self) -> RawClient:
        """Return once an answer has begun to come, and read no more of it than that."""
        while not self._received:
            self._receive(1)
        return self

    def reply(self, method: str = "GET") -> Reply:
        """Read the next answer, which is that to ``method``."""
        head = self._read_to(b"\r\n\r\n").decode("latin-1")
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        pairs = [line.partition(": ") for line in lines]
        headers = {name.lower(): value for name, _, value in pairs}
        assert len(headers) == len(pairs), f"a header is there twice: {head}"
        status = int(first.split(" ")[1])
        if method == "HEAD" or status == 304:
            return Reply(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Reply(status, headers, self._read_chunks())
        return Reply(status, headers, self.read(int(headers["content-length"])))

    def read(self, count: int) -> bytes:
        while len(self._received) < count:
            self._receive()
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def rest(self) -> bytes:
        """Read what comes until the server hangs up, in whichever way."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while block := self.socket.recv(1 << 20):
                self._received += block
        return self._received

    @property
    def is_hung_up_on(self) -> bool:
        """Whether the server hangs up, and sends nothing before."""
        return self.rest() == b""

    def _read_to(self, end: bytes) -> bytes:
        while end not in self._received:
            self._receive()
        return self.read(self._received.index(end) + len(end))

    def _read_chunks(self) -> bytes:
        body = b""
        while count := int(self._read_to(b"\r\n"), 16):
            body += self.read(count + 2)[:-2]
        assert self._read_to(b"\r\n") == b"\r\n"
        return body

    def _receive(self, max_bytes: int = 1 << 20) -> None:
        block = self.socket.recv(max_bytes)
        if not block:
            raise ConnectionResetError(f"hung up on, after {self._received[-1000:]!r}")
        self._received += block
