"""Clients that fetch as fast as they can: processes of their own, which throw away what they get.

They ask over kept connections, each one request after another, and have the kernel discard the
bodies (``MSG_TRUNC``, which Linux's TCP knows): copying them would take longer than sending them.
``python -m bench.fast_clients`` is one such process; ``fetch`` runs them.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

from bench.processes import CALL_SECONDS, REPOSITORY

_DISCARD = socket.MSG_TRUNC
_MAX_DISCARDED_BYTES = 1 << 20
_MAX_HEAD_BYTES = 4096
_CONNECT_SECONDS = 30


@dataclass(frozen=True)
class Fetched:
    """What clients got.

    Attributes:
        seconds: from the first request until they ended.
        bytes_of_each: of bodies, for each client.
        answers: that came whole.
        refusals: answers with another status than 200, whose bodies do not count.
        reconnects: how often a server closed a connection between two answers.
        cuts: how often one did within an answer.
        first_byte_seconds: until the first byte of the first body, for each client that got one.
        end_seconds: until the last answer, for each client that got one.
    """

    seconds: float
    bytes_of_each: list[int]
    answers: int
    refusals: int
    reconnects: int
    cuts: int
    first_byte_seconds: list[float]
    end_seconds: list[float]

    @property
    def bytes(self) -> int:
        return sum(self.bytes_of_each)

    @property
    def least_share(self) -> float:
        """What the client that got least got, of what it would have got by equal shares."""
        mean = statistics.fmean(self.bytes_of_each)
        return min(self.bytes_of_each) / mean if mean else 0.0


def fetch(
    port: int,
    paths: Sequence[str],
    clients: int,
    *,
    seconds: float = CALL_SECONDS,
    times: int = 0,
) -> Fetched:
    """Have ``clients`` fetch ``paths`` by turns, for so many seconds, or each so many times.

    Raises:
        RuntimeError: one of the processes failed, or nothing was answered.
    """
    # They share the processors with the server; one process can discard what two processors send.
    processes = min(clients, max(1, (os.cpu_count() or 1) // 2))
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "bench.fast_clients", str(port)),
                        str(clients // processes + (number < clients % processes)),
                        *("--seconds", str(seconds), "--times", str(times), *paths),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=REPOSITORY,
                )
            )
            for number in range(processes)
        ]
        for child in children:
            stack.callback(child.kill)
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "connected\n":
                raise RuntimeError(f"clients could not connect to port {port}")
        # Those that begin first do not get far ahead: only now does anybody ask.
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        reports = [child.communicate(timeout=2 * CALL_SECONDS)[0] for child in children]
        if any(child.returncode for child in children):
            raise RuntimeError(f"clients of port {port} failed")
    fetched = _joined([Fetched(**json.loads(report)) for report in reports])
    if not fetched.bytes:
        raise RuntimeError(f"clients of port {port} got nothing")
    return fetched


def _joined(parts: Sequence[Fetched]) -> Fetched:
    return Fetched(
        seconds=max(part.seconds for part in parts),
        bytes_of_each=[count for part in parts for count in part.bytes_of_each],
        answers=sum(part.answers for part in parts),
        refusals=sum(part.refusals for part in parts),
        reconnects=sum(part.reconnects for part in parts),
        cuts=sum(part.cuts for part in parts),
        first_byte_seconds=[each for part in parts for each in part.first_byte_seconds],
        end_seconds=[each for part in parts for each in part.end_seconds],
    )


@dataclass
class _Client:
    """One client: its connection, and where it is in its answer."""

    socket: socket.socket
    turn: int
    head: bytes = b""
    left: int | None = None  # of the body; None while the head is read
    counts: bool = True
    bytes: int = 0
    answers: int = 0
    ended: int = 0  # answers, refusals and cuts
    first_byte_at: float = 0.0
    ended_at: float = 0.0


@dataclass
class _Clients:
    """All clients of this process."""

    port: int
    requests: Sequence[bytes]
    count: int
    clients: dict[int, _Client] = field(default_factory=dict)
    refusals: int = 0
    reconnects: int = 0
    cuts: int = 0

    def __post_init__(self) -> None:
        self._epoll = select.epoll()
        self._buffer = bytearray(_MAX_DISCARDED_BYTES)
        for number in range(self.count):
            client = _Client(self._connected(), turn=number)
            self._register(client)

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), _CONNECT_SECONDS)
        connection.setblocking(False)
        return connection

    def _register(self, client: _Client) -> None:
        self.clients[client.socket.fileno()] = client
        self._epoll.register(client.socket.fileno(), select.EPOLLIN)

    def fetch(self, seconds: float, times: int) -> Fetched:
        begun_at = time.monotonic()
        end_at = begun_at + seconds
        fetching = self.count
        for client in self.clients.values():
            self._ask(client)
        while fetching and (left := end_at - time.monotonic()) > 0:
            for descriptor, _ in self._epoll.poll(left):
                client = self.clients[descriptor]
                if not self._take(client):
                    continue
                if client.ended == times > 0:
                    self._epoll.unregister(client.socket.fileno())
                    fetching -= 1
                else:
                    self._ask(client)
        clients = list(self.clients.values())
        return Fetched(
            seconds=time.monotonic() - begun_at,
            bytes_of_each=[client.bytes for client in clients],
            answers=sum(client.answers for client in clients),
            refusals=self.refusals,
            reconnects=self.reconnects,
            cuts=self.cuts,
            first_byte_seconds=[
                client.first_byte_at - begun_at for client in clients if client.first_byte_at
            ],
            end_seconds=[client.ended_at - begun_at for client in clients if client.ended_at],
        )

    def _ask(self, client: _Client) -> None:
        client.head, client.left = b"", None
        try:
            client.socket.send(self.requests[client.turn % len(self.requests)])
        except OSError:
            self._connect_again(client)
            client.socket.send(self.requests[client.turn % len(self.requests)])
        client.turn += 1

    def _take(self, client: _Client) -> bool:
        """Take what has come; return whether the client is to ask now."""
        try:
            if client.left is not None:
                count = client.socket.recv_into(
                    self._buffer, min(client.left, _MAX_DISCARDED_BYTES), _DISCARD
                )
                if count:
                    return self._count(client, count)
            elif block := client.socket.recv(_MAX_HEAD_BYTES):
                return self._read_head(client, block)
        except BlockingIOError:
            return False
        except OSError:
            pass
        self._connect_again(client)
        return True

    def _connect_again(self, client: _Client) -> None:
        if client.left is None and not client.head:
            self.reconnects += 1
        else:
            self.cuts += 1
            client.ended += 1
        del self.clients[client.socket.fileno()]
        client.socket.close()
        client.socket = self._connected()
        self._register(client)

    def _read_head(self, client: _Client, block: bytes) -> bool:
        client.head += block
        head, end, body = client.head.partition(b"\r\n\r\n")
        if not end:
            return False
        client.counts = head.split(b" ", 2)[1] == b"200"
        self.refusals += not client.counts
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        client.left = int(length)
        return self._count(client, len(body)) if body or not client.left else False

    def _count(self, client: _Client, count: int) -> bool:
        assert client.left is not None
        client.left -= count
        client.ended += client.left == 0
        if not client.counts:
            return client.left == 0
        client.bytes += count
        if not client.first_byte_at:
            client.first_byte_at = time.monotonic()
        if client.left:
            return False
        client.answers += 1
        client.ended_at = time.monotonic()
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("clients", type=int)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--times", type=int, required=True)
    options = parser.parse_args()
    requests = [
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode("ascii") for path in options.paths
    ]
    clients = _Clients(options.port, requests, options.clients)
    print("connected", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(clients.fetch(options.seconds, options.times))))


if __name__ == "__main__":
    main()
