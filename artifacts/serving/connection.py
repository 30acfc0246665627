"""Connections, requests and the gateway: what cheroot's classes become in this server.

A worker never writes to a client: what cheroot writes is collected, and the event loop sends it.
"""

from __future__ import annotations

import logging
import socket
import time
from concurrent.futures import Future
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import cherrypy
from cheroot.server import HTTPConnection, HTTPRequest
from cheroot.wsgi import Gateway_10

from artifacts.errors import DevserverError, one_line
from artifacts.serving.answer import Answer, error_at
from artifacts.serving.delivery import Delivery
from artifacts.serving.file_answer import FileAnswer
from artifacts.serving.hot_files import SimpleRequest
from artifacts.serving.inbox import Inbox
from artifacts.serving.lingerer import notify_of_end
from artifacts.serving.request_body import RequestBody
from artifacts.serving.waiting import Exchange, Reply, Wait

_access_log = logging.getLogger("devserver.access")


class _Outbox:
    """What cheroot takes for a file to write to: keeps it all, for the event loop to send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._written: list[bytes] = []
        self.bytes_written = 0

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        self.bytes_written += len(data)
        return len(data)

    def send_now(self) -> None:
        """Send what there is while the rest of a request is waited for: `100 Continue`."""
        if self._written:
            self._connection.sendall(self.take())

    def take(self) -> bytes:
        taken, self._written = b"".join(self._written), []
        return taken


class LoggedRequest:
    """What the log tells of a request once its answer is sent, or cut."""

    def __init__(self, client: str | None, request: bytes, status: str, begun_at: float) -> None:
        """``begun_at``, of ``time.monotonic()``: when the request was there."""
        self._client = (client or "-").removeprefix("::ffff:")
        self._request = request
        self._status = status
        self._begun_at = begun_at

    def log(self, bytes_sent: int) -> None:
        if _access_log.isEnabledFor(logging.INFO):
            _access_log.info(
                '%s "%s" %s %d %.3f',
                self._client,
                one_line(self._request.decode("latin-1")),
                self._status,
                bytes_sent,
                time.monotonic() - self._begun_at,
            )


class Gateway(Gateway_10):
    """Answers a request through the application, now or when its wait is over."""

    def __init__(self, req: Any) -> None:
        super().__init__(req)
        self.exchange = Exchange()
        self.env[Exchange.KEY] = self.exchange
        self.env["wsgi.input"] = req.rfile
        self._body_bytes = 0

    def respond(self) -> None:
        response = self.req.server.wsgi_app(self.env, self.start_response)
        try:
            if self.exchange.outcome is not None:
                self._take(self.exchange.outcome)
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

    def resume(self, wait: Wait, outcome: Future[Any]) -> None:
        """Answer what has waited; or wait for something else."""
        try:
            given = wait.answer(outcome)
            while isinstance(given, Wait) and given.future.done():
                given = given.answer(given.future)
        except Exception as error:
            # The edge of a request: it has to be answered, whatever went wrong.
            given = error_at(self.req.called_path, error)
        self._take(given)

    def _take(self, given: Reply | Wait) -> None:
        """Keep a wait, or write an answer instead of the headers that the handler left."""
        if isinstance(given, Wait):
            # Not ready: cheroot must not send anything.
            self.req.ready = False
            self.req.conn.wait_for(given, self)
            return
        self.req.ready = True
        self.req.outheaders = []
        self.started_response = False
        self.remaining_bytes_out = None
        if isinstance(given, FileAnswer):
            self._take_file(given)
            return
        self.start_response(given.status_line, given.all_headers())
        self.req.ensure_headers_sent()
        if given.body and self.req.method != b"HEAD":
            self.write(given.body)

    def _take_file(self, given: FileAnswer) -> None:
        """Write the head of an answer, and leave the file to the connection once that is there."""
        try:
            if self.req.method in {b"GET", b"HEAD"}:
                host = self.req.inheaders.get(b"Host", b"")
                self.req.server.hot_files.remember(self.req.uri, host, given)
            self.start_response(given.status_line, given.all_headers())
            self.req.ensure_headers_sent()
        except BaseException:
            given.close()
            raise
        if self.req.method == b"HEAD":
            given.close()
        else:
            self.req.conn.file_answer = given

    def _check_length(self) -> None:
        """Cut the connection of a body that ended before its Content-Length."""
        promised = self.remaining_bytes_out
        if promised and self._body_bytes < promised and self.req.method != b"HEAD":
            self.req.close_connection = True

    def write(self, chunk: bytes) -> None:
        super().write(chunk)
        self._body_bytes += len(chunk)


class _Request(HTTPRequest):
    """A request that tells its connection when it is parsed, and what became of it."""

    def read_request_headers(self) -> bool:
        if not super().read_request_headers():  # type: ignore[no-untyped-call]
            return False
        # Its options are a list, and in any case (RFC 9110, section 7.6.1).
        listed = self.inheaders.get(b"Connection", b"").lower().split(b",")
        options = {option.strip() for option in listed}
        is_old = self.response_protocol != "HTTP/1.1"
        self.close_connection = b"close" in options or (is_old and b"keep-alive" not in options)
        # Python takes more for a number than RFC 9110, section 8.6, does.
        if self.inheaders.get(b"Content-Length", b"0").isdigit():
            return True
        self.simple_response("400 Bad Request", "Malformed Content-Length Header.")
        return False

    @property
    def called_path(self) -> str:
        uri: bytes = getattr(self, "uri", b"")
        return uri.partition(b"?")[0].decode("latin-1")

    def respond(self) -> None:
        self.conn.request = self
        if self.chunked_read:
            self.close_connection = True
        length = None if self.chunked_read else int(self.inheaders.get(b"Content-Length", b"0"))
        max_bytes = self.server.max_body_bytes(self.called_path)
        if length is not None and length > max_bytes:
            self.simple_response("413", f"the request's body is larger than {max_bytes:,} bytes")
            return
        self.rfile = RequestBody(self.conn.inbox, length, max_bytes, self._end_with_answer)
        Gateway(self).respond()
        if self.ready:
            self.ensure_headers_sent()
        if self.chunked_write:
            self.conn.wfile.write(b"0\r\n\r\n")

    def _end_with_answer(self) -> None:
        self.close_connection = True

    def send_headers(self) -> None:
        # An invitation to send the body, if nobody has waited for it.
        self.conn.wfile.take()
        if not self.close_connection and not self.rfile.finish():
            # The rest is on its way, and dropped as it comes: see `Lingerer`.
            self.close_connection = True
        super().send_headers()

    def simple_response(self, status: str, msg: str = "") -> None:
        """Refuse what never gets to the application, and hang up."""
        self.conn.request = self
        self.close_connection = True
        number = int(status[:3])
        self.status = str(number)
        # Not even "100 Continue" is to be sent.
        self.conn.wfile.take()
        reason = msg or HTTPStatus(number).phrase
        error = DevserverError(reason, status=number, code=f"http_{number}")
        self.conn.wfile.write(self.conn.refusal(error_at(self.called_path, error)))


class Connection(HTTPConnection):
    """A connection; used by the event loop or by one worker, and never by both at once.

    After ``communicate`` or ``resume``, ``wait`` is what the request waits for, or else
    ``take_delivery`` is the answer.
    """

    RequestHandlerClass = _Request

    def __init__(self, server: Any, connection: socket.socket) -> None:
        super().__init__(server, connection, makefile=self._make_file)
        self.inbox: Inbox = self.rfile
        self._gateway: Gateway | None = None
        self.request: _Request | None = None
        self.wait: Wait | None = None
        self.file_answer: FileAnswer | None = None
        self.is_kept = False
        self.begun_at = 0.0
        self.request_line = b""
        self.logged: LoggedRequest | None = None
        self.server.connections_open.add(self)

    def _make_file(self, connection: socket.socket, mode: str, _: int) -> Any:
        if "w" in mode:
            return _Outbox(connection)
        return Inbox(connection, lambda: self.wfile.send_now())

    def begin(self) -> None:
        """Note that there is a request."""
        self.begun_at = time.monotonic()
        self.request_line = self.inbox.request_line
        self.is_kept = False
        self.request = self.wait = self.logged = None

    def communicate(self) -> bool:
        """Read a request and answer it, on a worker's thread.

        Returns whether the connection is to be kept.
        """
        self.is_kept = super().communicate()  # type: ignore[no-untyped-call]
        self._note_request()
        return self.is_kept

    def resume(self, wait: Wait, outcome: Future[Any]) -> None:
        """Answer a request that has waited, on a worker's thread."""
        gateway, self.wait, self._gateway = self._gateway, None, None
        assert gateway is not None
        gateway.resume(wait, outcome)
        self.is_kept = not gateway.req.close_connection
        self._note_request()

    def wait_for(self, wait: Wait, gateway: Gateway) -> None:
        """Have the answer wait; ``gateway`` will give it."""
        self.wait, self._gateway = wait, gateway

    def _note_request(self) -> None:
        request = self.request
        if request is None or self.wait is not None:
            return
        status: str | bytes = request.status
        if isinstance(status, bytes):
            status = status.decode("latin-1")
        self._log_later(status.partition(" ")[0])

    def _log_later(self, status: str) -> None:
        self.logged = LoggedRequest(self.remote_addr, self.request_line, status, self.begun_at)

    def take_delivery(self) -> Delivery:
        delivery = Delivery(self.wfile.take(), self.file_answer)
        self.file_answer = None
        return delivery

    def close(self) -> None:
        if self.file_answer is not None:
            self.file_answer.close()
            self.file_answer = None
        self.server.connections_open.discard(self)
        notify_of_end(self.socket)
        super().close()

    def answer_at_once(self, answer: Answer) -> Delivery:
        """Answer without a worker, and for the last time."""
        return Delivery(self.refusal(answer))

    def refusal(self, answer: Answer) -> bytes:
        """Return the bytes of an answer that CherryPy has no part in, and no other follows."""
        self.is_kept = False
        head = self._head_of(answer)
        return head if self.request_line.startswith(b"HEAD ") else head + answer.body

    def answer_file(self, answer: FileAnswer, request: SimpleRequest) -> Delivery:
        """Answer a request without a worker from a file."""
        self.is_kept = request.is_kept
        if request.is_head:
            answer.close()
            return Delivery(self._head_of(answer))
        return Delivery(self._head_of(answer), answer)

    def _head_of(self, answer: Reply) -> bytes:
        self._log_later(str(answer.status))
        lines = [f"HTTP/1.1 {answer.status_line}"]
        lines += [f"{name}: {value}" for name, value in answer.all_headers()]
        lines += [f"Date: {formatdate(usegmt=True)}", "Server: devserver"]
        if not self.is_kept:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def drop_encryption(self) -> None:
        """Go on in plain text, as no TLS has come about."""
        self.socket = socket.socket(fileno=self.socket.detach())
        self.inbox = self.rfile = self._make_file(self.socket, "rb", 0)

    def note_encryption(self) -> None:
        """Take over what the application is to know of the TLS connection, now that it is one."""
        self.ssl_env = self.server.ssl_adapter.get_environ(self.socket)


def current_exchange() -> Exchange:
    """Return the exchange of the request that CherryPy is handling on this thread."""
    exchange = cherrypy.request.wsgi_environ[Exchange.KEY]
    assert isinstance(exchange, Exchange)
    return exchange


def current_body() -> RequestBody:
    """Return the body of the request that CherryPy is handling on this thread."""
    body = cherrypy.request.wsgi_environ["wsgi.input"]
    assert isinstance(body, RequestBody)
    return body
