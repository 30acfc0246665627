"""The far archive: a Google Storage with a round trip and a speed, in a process of its own.

Each answer begins one round trip after its request, the first of a connection two (one is the
connection's own), and each connection gets so many bytes a second; all of them together, where the
link is slow, so many as the link takes, by turns. A connection that idles for three seconds is
closed, so that no run profits from the one before.

One thread serves all connections by turns, from the page cache (sendfile): at 1,280 MB/s, more than
anything here asks for, it takes about half a core.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import math
import os
import re
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import requests

from bench.objects import BUCKET, Object, listing_of
from bench.processes import started, wait_for_text

_IDLE_SECONDS = 3.0
# A connection's turn comes when it may send this much of a second's bytes ...
_TURN_SECONDS = 0.004
# ... and what it could not take in time it may catch up by as much, as a window would let it.
_WINDOW_SECONDS = 0.05
_RANGE = re.compile(rb"^range: *bytes=(\d+)-(\d*)\r?$", re.IGNORECASE | re.MULTILINE)


class ShapedArchive:
    """A running shaped archive; ``url`` is its endpoint."""

    def __init__(self, url: str) -> None:
        self.url = url

    def bytes_sent(self) -> int:
        """Return the bytes of objects sent so far."""
        answer = requests.get(f"{self.url}/bytes-sent", timeout=10)
        answer.raise_for_status()
        return int(answer.text)

    def sent(self, each: Object) -> list[tuple[float, int, int]]:
        """Return which bytes of an object were sent when: times as ``time.monotonic`` has them."""
        answer = requests.get(f"{self.url}/sent{each.media_path}", timeout=10)
        answer.raise_for_status()
        return [(at, start, stop) for at, start, stop in answer.json()]


@contextmanager
def shaped_archive(
    directory: Path,
    objects: Sequence[Object],
    *,
    bytes_per_second: float,
    link_bytes_per_second: float = math.inf,
    round_trip_seconds: float = 0.05,
) -> Iterator[ShapedArchive]:
    """Run one; ``bytes_per_second`` are a connection's, those of the link all connections'."""
    directory.mkdir(parents=True, exist_ok=True)
    description, portfile = directory / "objects.json", directory / "port"
    portfile.unlink(missing_ok=True)
    description.write_text(
        json.dumps([asdict(each) | {"path": str(each.path)} for each in objects]), encoding="utf-8"
    )
    command = [
        *(sys.executable, "-m", "bench.shaped_archive", str(description), str(portfile)),
        *("--round-trip", str(round_trip_seconds), "--rate", str(bytes_per_second)),
        *("--link-rate", str(link_bytes_per_second)),
    ]
    with started(command, directory / "log") as process:
        yield ShapedArchive(f"http://127.0.0.1:{wait_for_text(portfile, process)}")


class _Connection:
    """One client: the request being read, or the answer being sent."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.socket = sock
        self.number = number
        self.received = b""
        self.accepted_at: float | None = time.monotonic()
        self.used_at = time.monotonic()
        self.head = b""
        self.path = ""
        self.descriptor = -1
        self.position = 0
        self.stop = 0
        self.begun_at = 0.0
        self.begun_position = 0
        self.is_answering = False


class _Site:
    def __init__(
        self, objects: Sequence[Object], round_trip: float, rate: float, link_rate: float
    ) -> None:
        self._objects = {each.media_path: each for each in objects}
        self._resources = {each.resource_path: each.resource for each in objects}
        self._descriptors = {
            path: os.open(each.path, os.O_RDONLY) for path, each in self._objects.items()
        }
        self._round_trip = round_trip
        self._rate = rate
        self._link_rate = link_rate
        self._link_free_at = 0.0
        self._bytes_sent = 0
        self._sent: dict[str, list[tuple[float, int, int]]] = {path: [] for path in self._objects}
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}
        self._turns: list[tuple[float, int]] = []
        self._numbers = itertools.count()

    def serve(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        while True:
            now = time.monotonic()
            timeout = max(0.0, self._next_turn_at() - now)
            for key, _ in self._selector.select(min(timeout, _IDLE_SECONDS / 4)):
                if key.data is None:
                    self._accept(listener)
                else:
                    self._look_at(key.data)
            now = time.monotonic()
            while self._next_turn_at() <= now:
                _, number = heapq.heappop(self._turns)
                if connection := self._connections.get(number):
                    self._send(connection, now)
            self._close_idle(now)

    def _next_turn_at(self) -> float:
        # While the link is busy, nobody is passed over: who is due first is first when it is free.
        return max(self._turns[0][0], self._link_free_at) if self._turns else math.inf

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = _Connection(sock, next(self._numbers))
                self._connections[connection.number] = connection
                self._selector.register(sock, selectors.EVENT_READ, connection)

    def _look_at(self, connection: _Connection) -> None:
        if connection.is_answering:
            # It can take more again.
            self._selector.unregister(connection.socket)
            heapq.heappush(self._turns, (time.monotonic(), connection.number))
            return
        try:
            received = connection.socket.recv(65536)
        except OSError:
            received = b""
        if not received:
            self._close(connection)
            return
        connection.received += received
        if b"\r\n\r\n" in connection.received:
            head, _, connection.received = connection.received.partition(b"\r\n\r\n")
            self._prepare(connection, head)

    def _prepare(self, connection: _Connection, head: bytes) -> None:
        """Decide the answer, and when it begins."""
        # Until it is answered nothing more is read: nobody here sends requests ahead.
        self._selector.unregister(connection.socket)
        target = urlsplit(head.split(b" ", 2)[1].decode("ascii"))
        path = unquote(target.path)
        connection.is_answering = True
        connection.descriptor, connection.position, connection.stop = -1, 0, 0
        due = time.monotonic() + self._round_trip
        if connection.accepted_at is not None:
            due = max(due, connection.accepted_at + 2 * self._round_trip)
            connection.accepted_at = None
        if path == "/bytes-sent":
            connection.head = _whole(200, str(self._bytes_sent).encode("ascii"))
            due = time.monotonic()
        elif path.startswith("/sent/"):
            sent = self._sent.get(path.removeprefix("/sent"), [])
            connection.head = _whole(200, json.dumps(sent).encode("ascii"), "application/json")
            due = time.monotonic()
        elif path == f"/storage/v1/b/{BUCKET}/o":
            prefix = parse_qs(target.query).get("prefix", [""])[0]
            listing = listing_of(list(self._objects.values()), prefix)
            connection.head = _whole(200, listing, "application/json")
        elif (resource := self._resources.get(path)) is not None:
            body = json.dumps(resource).encode("ascii")
            connection.head = _whole(200, body, "application/json")
        elif (found := self._objects.get(path)) is not None:
            connection.path, connection.descriptor = path, self._descriptors[path]
            connection.position, connection.stop = 0, found.size
            status, more = "200 OK", ""
            if match := _RANGE.search(head):
                connection.position = int(match[1])
                connection.stop = min(int(match[2] or found.size) + bool(match[2]), found.size)
                status = "206 Partial Content"
                part = f"{connection.position}-{connection.stop - 1}/{found.size}"
                more = f"Content-Range: bytes {part}\r\n"
            more += "".join(f"{name}: {value}\r\n" for name, value in found.headers.items())
            length = connection.stop - connection.position
            more += f"Accept-Ranges: bytes\r\nContent-Length: {length}\r\n"
            connection.head = f"HTTP/1.1 {status}\r\n{more}\r\n".encode("ascii")
        else:
            connection.head = _whole(404, b"no such object\n")
        connection.begun_at, connection.begun_position = due, connection.position
        heapq.heappush(self._turns, (due, connection.number))

    def _send(self, connection: _Connection, now: float) -> None:
        """Send what may be sent by now, and say when the next turn is."""
        try:
            if connection.head:
                sent = connection.socket.send(connection.head)
                connection.head = connection.head[sent:]
            if not connection.head and connection.position < connection.stop:
                self._send_bytes(connection, now)
        except BlockingIOError:
            self._selector.register(connection.socket, selectors.EVENT_WRITE, connection)
            return
        except OSError:
            self._close(connection)
            return
        if connection.head or connection.position < connection.stop:
            turn = (connection.position - connection.begun_position) / self._rate + _TURN_SECONDS
            heapq.heappush(self._turns, (connection.begun_at + turn, connection.number))
            return
        connection.is_answering = False
        connection.used_at = now
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _send_bytes(self, connection: _Connection, now: float) -> None:
        sent_before = connection.position - connection.begun_position
        behind = now - (connection.begun_at + sent_before / self._rate)
        if behind > _WINDOW_SECONDS:
            connection.begun_at += behind - _WINDOW_SECONDS
        allowed = int((now - connection.begun_at + _TURN_SECONDS) * self._rate) - sent_before
        count = min(allowed, connection.stop - connection.position)
        if self._link_rate < math.inf:
            count = min(count, int(_TURN_SECONDS * self._link_rate))
        if count > 0:
            descriptor = connection.socket.fileno()
            sent = os.sendfile(descriptor, connection.descriptor, connection.position, count)
            self._sent[connection.path].append(
                (now, connection.position, connection.position + sent)
            )
            connection.position += sent
            self._bytes_sent += sent
            link_free_at = max(self._link_free_at, now - _WINDOW_SECONDS)
            self._link_free_at = link_free_at + sent / self._link_rate

    def _close_idle(self, now: float) -> None:
        idle = [
            connection
            for connection in self._connections.values()
            if not connection.is_answering and now - connection.used_at > _IDLE_SECONDS
        ]
        for connection in idle:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.number]
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()


def _whole(status: int, body: bytes, content_type: str = "text/plain") -> bytes:
    fields = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status} -\r\n{fields}\r\n".encode("ascii") + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("objects", type=Path)
    parser.add_argument("portfile", type=Path)
    parser.add_argument("--round-trip", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--link-rate", type=float, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    described = json.loads(options.objects.read_text(encoding="utf-8"))
    objects = [Object(**(each | {"path": Path(each["path"])})) for each in described]
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        site = _Site(objects, options.round_trip, options.rate, options.link_rate)
        aside = options.portfile.with_suffix(".new")
        aside.write_text(str(listener.getsockname()[1]), encoding="ascii")
        aside.replace(options.portfile)
        site.serve(listener)


if __name__ == "__main__":
    main()
