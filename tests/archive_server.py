"""A real HTTP archive for tests, which serves a directory like nginx, and misbehaves when told to.

    with ArchiveServer(root) as archive:
        archive.misbehave("/target/build/image.zip", Fault(cut_after=1000), times=2)
        ...
        assert archive.bytes_sent("/target/build/*") == size

Every connection has its thread. All of them, and all sockets, are gone when the block is left.
"""

from __future__ import annotations

import select
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal, NoReturn, Self
from urllib.parse import unquote

from archive_answers import Answer, Request, Site, whole
from archive_faults import Fault, FaultBook, path_matches

__all__ = ["ArchiveServer", "Fault", "Request"]

_PIECE_BYTES = 256 * 1024
_HOLD_SECONDS = 60
_STALL_SECONDS = 120
_WAKE_SECONDS = 0.05  # how often an answer that waits looks whether its client has gone


class ArchiveServer:
    """Serves the files below a directory on a free port of 127.0.0.1.

    Args:
        root: the directory.
        listing: what a directory answers: nginx's HTML or JSON index, or None for 403.
        ranges: whether ranges are served; else every answer is the whole file.
        validators: whether answers have ETag and Last-Modified.
        head: whether HEAD is allowed; else it is 405.
        latency_seconds: how long every answer takes to begin.
        bytes_per_second: the speed of each connection; None: as fast as can be.
        goog_hash: whether files come with the CRC32C in X-Goog-Hash, as from Google Cloud Storage.
    """

    def __init__(
        self,
        root: Path,
        *,
        listing: Literal["html", "json"] | None = "html",
        ranges: bool = True,
        validators: bool = True,
        head: bool = True,
        latency_seconds: float = 0,
        bytes_per_second: int | None = None,
        goog_hash: bool = False,
    ) -> None:
        self.latency_seconds = latency_seconds
        self.bytes_per_second = bytes_per_second
        self._site = Site(root, listing, ranges, validators, head, goog_hash)
        self._faults = FaultBook()
        self._lock = threading.Lock()  # guards the next four; nothing waits while holding it
        self._requests: list[Request] = []
        self._sent: Counter[str] = Counter()
        self._connection_count = 0
        self._overrides: dict[str, tuple[bytes, str]] = {}
        # Bound but never listening: nobody else gets the port while the archive is down.
        self._reservation: socket.socket | None = None
        self._listener: _Listener | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self._port = self._reservation.getsockname()[1]
        self.up()
        return self

    def __exit__(self, *error: object) -> None:
        self.down()
        assert self._reservation is not None
        self._reservation.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order of their coming."""
        with self._lock:
            return list(self._requests)

    @property
    def connection_count(self) -> int:
        """How many connections have been made so far."""
        with self._lock:
            return self._connection_count

    def bytes_sent(self, path: str = "*") -> int:
        """Body bytes of 200 and 206 answers to GETs that were handed to the network.

        Args:
            path: of a file, or a glob for the sum over several.
        """
        with self._lock:
            return sum(count for sent, count in self._sent.items() if path_matches(sent, path))

    def misbehave(self, path: str, fault: Fault, times: int | None = None) -> None:
        """Answer the next requests for a path wrongly.

        Several faults for one path come one after another; exact paths come before globs.

        Args:
            path: percent-decoded, with the slash of a directory; or a glob (``*`` matches ``/``).
            times: how many requests meet the fault; None: all, until ``behave()``.
        """
        self._faults.add(path, fault, times)

    def behave(self) -> None:
        """Forget all faults and listing overrides; answers that stall, hold or trickle go on."""
        with self._lock:
            self._overrides.clear()
        self._faults.forget()

    def listing_override(self, path: str, body: bytes, content_type: str = "text/html") -> None:
        """Answer a path, a directory's with its slash, by this instead of what is on disk."""
        with self._lock:
            self._overrides[path] = body, content_type

    def down(self) -> None:
        """Refuse connections and cut those there are, as when the archive is killed."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def up(self) -> None:
        """Listen (again), on the same port."""
        if self._listener is None:
            self._listener = _Listener(self, self._port)

    # What follows is for the handlers.

    def note_request(self, request: Request) -> tuple[Fault, threading.Event]:
        """Record a request; return its fault, and the event that ends the waits for that."""
        with self._lock:
            self._requests.append(request)
        return self._faults.take(request.method, request.path, self._site.wanted_bytes(request))

    def note_connection(self) -> None:
        with self._lock:
            self._connection_count += 1

    def answer(self, request: Request, fault: Fault) -> Answer:
        with self._lock:
            override = self._overrides.get(request.path)
        return self._site.answer(request, fault, override and whole(*override))

    def note_sent(self, path: str, count: int) -> None:
        with self._lock:
            self._sent[path] += count


class _Listener(socketserver.ThreadingTCPServer):
    """One period of listening: from coming up to going down."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, archive: ArchiveServer, port: int) -> None:
        self.archive = archive
        self.closing = threading.Event()
        self._lock = threading.Lock()  # guards the connections; nothing waits while holding it
        self._connections: dict[socket.socket, threading.Thread] = {}
        super().__init__(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="archive-listener", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.closing.set()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in (self._thread, *connections.values()):
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} does not end"

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="archive-connection",
            daemon=True,
        )
        self.archive.note_connection()
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        # Without the inherited shutdown(SHUT_WR), whose FIN would come before the RST of a reset.
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A connection that broke, by us or by the client, is no error here.
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "nginx/1.26.2"
    sys_version = ""
    timeout = 120
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        archive = self.server.archive
        path = unquote(self.path.partition("?")[0])
        self._request = Request(
            self.command, path, self.headers.get("Range"), self.headers, self.path
        )
        self._fault, self._amnesty = archive.note_request(self._request)
        self._pause(archive.latency_seconds)
        if self._fault.reset or self.command == "HEAD":
            self._hold()
        if self._fault.reset:
            self._reset()
        self._take_body()
        answer = archive.answer(self._request, self._fault)
        with answer.body:
            self._send_headers(answer)
            if self.command != "HEAD":
                self._send_body(answer)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _take_body(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self._fault.take_only is not None:
            self.rfile.read(min(length, self._fault.take_only))
            self._hold()
            self._reset()
        body = bytearray(self.rfile.read(length))
        if self._fault.flip_sent_at is not None:
            body[self._fault.flip_sent_at] ^= 0xFF
        self._request = replace(self._request, body=bytes(body))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send_headers(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self._fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif self._fault.no_length:
            self.send_header("Connection", "close")  # which also makes the base class close it
        else:
            self.send_header("Content-Length", str(answer.claimed_length))
        self.end_headers()

    def _send_body(self, answer: Answer) -> None:
        fault = self._fault
        self._hold()
        end = answer.length + fault.extra
        if fault.cut_after is not None:
            end = min(end, fault.cut_after)
        started = time.monotonic()
        sent = 0
        while True:
            if sent == fault.stall_after:
                self._wait(self._amnesty, _STALL_SECONDS)
            if sent >= end:
                break
            speed = self._bytes_per_second()
            size = max(1, min(_PIECE_BYTES, speed // 50)) if speed else _PIECE_BYTES
            upto = min(end, sent + size)
            if fault.stall_after is not None and sent < fault.stall_after:
                upto = min(upto, fault.stall_after)
            piece = self._read(answer, sent, upto)
            if speed:
                self._pause(started + upto / speed - time.monotonic())
            self._send_piece(piece, answer.status)
            sent = upto
        if fault.cut_after is not None:
            if fault.rst:
                self._reset()
            self.close_connection = True
        elif fault.chunked:
            self.wfile.write(b"0\r\n\r\n")
        elif sent != answer.claimed_length and not fault.extra:
            self.close_connection = True

    def _bytes_per_second(self) -> int:
        archive, fault = self.server.archive, self._fault
        trickle = None if self._amnesty.is_set() else fault.trickle
        return min(filter(None, (archive.bytes_per_second, trickle)), default=0)

    def _read(self, answer: Answer, start: int, stop: int) -> bytes:
        offset = answer.start + start
        length = max(0, min(stop, answer.length) - start)
        answer.body.seek(offset)
        piece = bytearray(answer.body.read(length))
        if len(piece) < length:
            raise ConnectionAbortedError("the file has shrunk on disk")
        piece += b"#" * (stop - start - length)
        if self._fault.flip_at is not None and self._fault.flip_at - offset in range(length):
            piece[self._fault.flip_at - offset] ^= 0xFF
        return bytes(piece)

    def _send_piece(self, piece: bytes, status: int) -> None:
        if self._fault.chunked:
            self.wfile.write(b"%x\r\n" % len(piece))
        unsent = memoryview(piece)
        while unsent:
            count = 0
            # Counted first and corrected after: whoever has received bytes finds them counted.
            self._note_sent(status, len(unsent))
            try:
                count = self.connection.send(unsent)
            finally:
                self._note_sent(status, count - len(unsent))
            unsent = unsent[count:]
        if self._fault.chunked:
            self.wfile.write(b"\r\n")

    def _note_sent(self, status: int, count: int) -> None:
        if status in {200, 206}:
            self.server.archive.note_sent(self._request.path, count)

    def _reset(self) -> NoReturn:
        linger = struct.pack("ii", 1, 0)  # for no time: closing drops what is unsent, and sends RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise ConnectionAbortedError("reset by a fault")

    def _hold(self) -> None:
        if self._fault.hold is not None:
            self._wait(self._fault.hold, _HOLD_SECONDS)

    def _wait(self, event: threading.Event, seconds: float) -> None:
        """Wait for the event or an amnesty, while the client does, and no longer than that."""
        deadline = time.monotonic() + seconds
        while not event.wait(_WAKE_SECONDS) and not self._amnesty.is_set():
            if time.monotonic() > deadline:
                return
            if self.server.closing.is_set() or self._client_is_gone():
                raise ConnectionAbortedError("nobody waits for the answer any more")

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and self.server.closing.wait(seconds):
            raise ConnectionAbortedError("the archive went down")

    def _client_is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)
