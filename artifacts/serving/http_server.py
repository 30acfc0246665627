"""The HTTP server: CherryPy's, with connections that can wait without a worker.

All of it goes through what cheroot offers for extension: classes of gateway, connection, server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Any

import cherrypy
from cheroot.server import HTTPConnection, HTTPRequest
from cheroot.wsgi import Gateway_10, Server

from artifacts.errors import one_line
from artifacts.serving.file_answer import FileAnswer
from artifacts.serving.waiting import Exchange, Reply, Wait, WaitingRoom

_access_log = logging.getLogger("devserver.access")
_log = logging.getLogger(__name__)

# An idle connection is kept this long, and a client that takes no byte for as long is cut.
_IDLE_SECONDS = 30
_MAX_REQUEST_BODY_BYTES = 1 << 20
# So much of a refused body is read all the same, so that the client gets to read the refusal.
_MAX_DRAINED_BYTES = 64 << 20
_BLOCK_BYTES = 64 << 10
_MAX_HEADER_BYTES = 64 << 10
_BACKLOG = 1024


class _Gateway(Gateway_10):
    """Answers a request through the application, now or when its wait is over."""

    def __init__(self, req: Any) -> None:
        super().__init__(req)
        self.exchange = Exchange()
        self.env[Exchange.KEY] = self.exchange
        self._begun_at = time.monotonic()
        self._body_bytes = 0
        self._bytes_before = req.conn.wfile.bytes_written

    def respond(self) -> None:
        response = self.req.server.wsgi_app(self.env, self.start_response)
        try:
            outcome = self.exchange.outcome
            if isinstance(outcome, Wait):
                # Not ready: cheroot must not send the headers that the handler left.
                self.req.ready = False
                self.req.conn.set_aside(self)
                return
            if outcome is not None:
                self.answer(outcome)
                return
            for chunk in filter(None, response):
                self.write(chunk)
            self.req.ensure_headers_sent()
            self._check_length()
        except BaseException:
            # The answer is not whole, and only a cut can say so.
            self.req.close_connection = True
            raise
        finally:
            if hasattr(response, "close"):
                response.close()
            if self.exchange.outcome is None:
                self.log()

    def _check_length(self) -> None:
        """Cut the connection of a body that ended before its Content-Length."""
        promised = self.remaining_bytes_out
        if promised and self._body_bytes < promised and self.req.method != b"HEAD":
            self.req.close_connection = True

    def write(self, chunk: bytes) -> None:
        super().write(chunk)
        self._body_bytes += len(chunk)

    def answer(self, answer: Reply) -> None:
        """Write the answer of a request that has waited, or whose body is a file."""
        self.req.ready = True
        self.req.outheaders = []
        self.started_response = False
        self.remaining_bytes_out = None
        self.start_response(answer.status_line, answer.all_headers())
        if self.req.method == b"HEAD":
            self.req.ensure_headers_sent()
        elif isinstance(answer, FileAnswer):
            self._write_file(answer)
        elif answer.body:
            self.write(answer.body)
        else:
            self.req.ensure_headers_sent()
        if isinstance(answer, FileAnswer):
            answer.close()
        self.log()

    def _write_file(self, answer: FileAnswer) -> None:
        file = answer.file
        if file is None:
            self.req.ensure_headers_sent()
            return
        for part in answer.parts:
            if part.before:
                self.write(part.before)
            position = part.start
            while position < part.stop:
                changed = threading.Event()
                while (readable_to := file.readable_to(position)) is None:
                    changed.clear()
                    file.watch(position, changed.set)
                    changed.wait()
                stop = min(part.stop, readable_to, position + _BLOCK_BYTES)
                block = os.pread(file.fileno(), max(0, stop - position), position)
                if not block:
                    self.req.close_connection = True
                    return
                self.write(block)
                position += len(block)
        if answer.tail:
            self.write(answer.tail)

    def log(self) -> None:
        if _access_log.isEnabledFor(logging.INFO):
            sent = self.req.conn.wfile.bytes_written - self._bytes_before
            status = (self.req.status or b"-").split(b" ")[0].decode("latin-1")
            request = b" ".join((self.req.method, self.req.uri, self.req.request_protocol))
            _access_log.info(
                '%s "%s" %s %d %.3f',
                (self.req.conn.remote_addr or "-").removeprefix("::ffff:"),
                one_line(request.decode("latin-1")),
                status,
                sent,
                time.monotonic() - self._begun_at,
            )


class _Request(HTTPRequest):
    """A request whose body is read, up to a bound, although it is refused for its size."""

    def simple_response(self, status: str, msg: str = "") -> None:
        super().simple_response(status, msg)
        if str(status).startswith("413"):
            left = min(int(self.inheaders.get(b"Content-Length", 0)), _MAX_DRAINED_BYTES)
            while left > 0 and (block := self.conn.rfile.read(min(left, _BLOCK_BYTES))):
                left -= len(block)


class _Connection(HTTPConnection):
    """A connection that can be set aside while its request waits."""

    RequestHandlerClass = _Request

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._waiting: _Gateway | None = None
        self._answer: Reply | Wait | None = None
        self.server.connections_open.add(self)

    def set_aside(self, gateway: _Gateway) -> None:
        self._waiting = gateway

    @property
    def waiting(self) -> _Gateway | None:
        return self._waiting

    def prepare_answer(self, answer: Reply | Wait) -> None:
        self._answer = answer

    def communicate(self) -> bool:
        """Read and answer a request, or write the answer of one that has waited.

        Returns whether the connection is to be kept.
        """
        if self._answer is not None:
            return self._give_answer()
        is_kept: bool = super().communicate()  # type: ignore[no-untyped-call]
        return is_kept or self._waiting is not None

    def _give_answer(self) -> bool:
        gateway, answer = self._waiting, self._answer
        assert gateway is not None and answer is not None
        self._waiting = self._answer = None
        if isinstance(answer, Wait):
            gateway.exchange.outcome = answer
            self._waiting = gateway
            return True
        try:
            gateway.answer(answer)
        except OSError:
            return False
        return not gateway.req.close_connection

    def close(self) -> None:
        self.server.connections_open.discard(self)
        super().close()


class HttpServer(Server):
    """CherryPy's server, with a waiting room."""

    ConnectionClass = _Connection

    def __init__(self, bind_address: tuple[str, int], wsgi_app: Any, threads: int) -> None:
        super().__init__(
            bind_address,
            wsgi_app,
            numthreads=threads,
            max=threads,
            server_name="devserver",
            request_queue_size=_BACKLOG,
            timeout=_IDLE_SECONDS,
            shutdown_timeout=5,
        )
        self.gateway = _Gateway
        self.keep_alive_conn_limit = None  # type: ignore[assignment]  # no limit
        self.max_request_body_size = _MAX_REQUEST_BODY_BYTES
        self.max_request_header_size = _MAX_HEADER_BYTES
        self.connections_open: set[_Connection] = set()
        self.waiting_room = WaitingRoom(self._resume)

    def prepare(self) -> None:
        super().prepare()
        self.waiting_room.start()

    def process_conn(self, conn: _Connection) -> None:
        """Give a connection to a worker; a new one only when its first bytes have come."""
        if conn.last_used is None and self.ready:
            super().put_conn(conn)
        else:
            super().process_conn(conn)

    def put_conn(self, conn: _Connection) -> None:
        """Take a connection back from a worker."""
        if conn.waiting is not None and isinstance(conn.waiting.exchange.outcome, Wait):
            self.waiting_room.admit(conn, conn.waiting.exchange.outcome)
        else:
            super().put_conn(conn)

    def _resume(self, conn: _Connection) -> None:
        self.requests.put(conn)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.waiting_room.close()
        super().stop()

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        _log.log(level, "%s", one_line(msg), exc_info=traceback)


def current_exchange() -> Exchange:
    """Return the exchange of the request that CherryPy is handling on this thread."""
    exchange = cherrypy.request.wsgi_environ[Exchange.KEY]
    assert isinstance(exchange, Exchange)
    return exchange
