"""Many clients that read slowly, each at a pace of its own: a process that reads for all of them.

``python -m bench.slow_clients PORT PATH COUNT RATE`` is that process; ``SlowClients`` runs it. Ten
times a second each client takes what its pace allows, and has the kernel throw it away. Its receive
buffer is small, so that it is the server who has to wait.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass

from bench.processes import END_SECONDS, REPOSITORY

_DISCARD = socket.MSG_TRUNC
_RECEIVE_BUFFER_BYTES = 64 << 10
_MAX_HEAD_BYTES = 2048
_TURNS_PER_SECOND = 10
_GROUPS = 10  # that take their turns one after another
_CONNECT_SECONDS = 30
# Those that have not got anything by then are not served.
_SERVED_SECONDS = 1.5


@dataclass(frozen=True)
class Pace:
    """How clients were served: so many of them at all, and at which rate in bytes a second."""

    clients: int
    served: int
    least_rate: float
    mean_rate: float


class SlowClients:
    """Clients that read one file slowly, until the block is left."""

    def __init__(self, port: int, path: str, count: int, bytes_per_second: float) -> None:
        self._command = [
            *(sys.executable, "-m", "bench.slow_clients"),
            *(str(port), path, str(count), str(bytes_per_second)),
        ]

    def __enter__(self) -> SlowClients:
        """Return when all of them read, or when those that do not have waited long enough."""
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "reading\n":
            self._process.kill()
            self._process.wait()
            raise RuntimeError("the slow clients could not connect")
        return self

    def stop(self) -> Pace:
        """Have all of them hang up; return how they were served."""
        report, _ = self._process.communicate(timeout=END_SECONDS)
        if self._process.returncode:
            raise RuntimeError("the slow clients were cut, or refused")
        return Pace(**json.loads(report))

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def half_sent_heads(port: int, count: int) -> Iterator[None]:
    """Clients that send a half of their request's head, and no more."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), _CONNECT_SECONDS)
            stack.enter_context(connection)
            connection.sendall(b"GET /check_health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
        yield


class _Client:
    """One client; what it may have taken counts from its first byte on."""

    def __init__(self, port: int, request: bytes) -> None:
        self._socket = socket.socket()
        # Before connecting: it bounds the window that the server is told.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._socket.settimeout(_CONNECT_SECONDS)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)
        self._socket.sendall(request)
        self.taken = 0
        self.begun_at = 0.0

    def take(self, buffer: bytearray, bytes_per_second: float) -> None:
        now = time.monotonic()
        with suppress(BlockingIOError):
            if not self.begun_at:
                head = self._socket.recv(_MAX_HEAD_BYTES)
                if not head.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"a slow client got {head[:100]!r}")
                self.begun_at, self.taken = now, len(head)
            allowed = bytes_per_second * (now - self.begun_at + 1 / _TURNS_PER_SECOND)
            count = min(int(allowed) - self.taken, len(buffer))
            if count > 0:
                taken = self._socket.recv_into(buffer, count, _DISCARD)
                if not taken:
                    raise RuntimeError(f"a slow client was cut after {self.taken} bytes")
                self.taken += taken

    def rate(self, now: float) -> float:
        return self.taken / (now - self.begun_at) if self.begun_at else 0.0


def _read(clients: list[_Client], bytes_per_second: float, ended: threading.Event) -> Pace:
    buffer = bytearray(1 << 20)
    begun_at = next_at = time.monotonic()
    is_told = False
    turn = 0
    while not ended.wait(max(0.0, next_at - time.monotonic())):
        for client in clients[turn % _GROUPS :: _GROUPS]:
            client.take(buffer, bytes_per_second)
        turn += 1
        next_at += 1 / (_TURNS_PER_SECOND * _GROUPS)
        if not is_told and (
            all(client.begun_at for client in clients)
            or time.monotonic() - begun_at > _SERVED_SECONDS
        ):
            print("reading", flush=True)
            is_told = True
    now = time.monotonic()
    rates = [client.rate(now) for client in clients if client.begun_at]
    return Pace(len(clients), len(rates), min(rates, default=0), sum(rates) / max(1, len(rates)))


def main() -> None:
    port, path, count, bytes_per_second = sys.argv[1:]
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode("ascii")
    clients = [_Client(int(port), request) for _ in range(int(count))]
    ended = threading.Event()

    def watch_input() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=watch_input, name="input", daemon=True).start()
    print(json.dumps(asdict(_read(clients, float(bytes_per_second), ended))))


if __name__ == "__main__":
    main()
