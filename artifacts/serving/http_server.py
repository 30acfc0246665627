"""The HTTP server: CherryPy's, with a front that needs no thread for a client that takes time.

All of it goes through what cheroot offers for extension: classes of gateway, connection, server.
"""

from __future__ import annotations

import logging
import resource
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server

from artifacts.config import ConfigError
from artifacts.errors import one_line
from artifacts.serving.connection import Connection, Gateway
from artifacts.serving.front import ClientLimits, Front
from artifacts.serving.hot_files import HotFiles
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1 << 20
# Of these paths and what is below them, which CherryPy does not read (`application.py`). Uploaders
# count 32 MiB of chunks, and not what is around them; a minidump may have 256 MiB.
_MAX_LARGE_BODY_BYTES = {"/api/0/": 40 << 20, "/symbolicate_dump/": 257 << 20}
# Connections that the system keeps until they are accepted.
_BACKLOG = 4096
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
# Open files that are not for clients: of archives, builds, logs and the like. A client may need
# two: its connection, and the file that it reads.
_OTHER_FILES = 512
_FILES_OF_A_CLIENT = 2
_CLIENTS_OF_A_LAB = 1500


class HttpServer(Server):
    """CherryPy's server, as far as requests go; its connections are a `Front`'s."""

    def __init__(
        self,
        bind_address: tuple[str, int],
        wsgi_app: Any,
        threads: int,
        limits: ClientLimits,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """Listen.

        Args:
            bind_address: host and port; of ``::``, IPv4 as well.
            wsgi_app: answers requests.
            threads: how many requests it answers at a time.
            limits: of clients; the system's limit of open files may lower how many there are.
            certificate: the files of the certificate's chain and of its key, to serve HTTPS.

        Raises:
            OSError: the address cannot be listened on.
            ConfigError: the certificate cannot be used.
        """
        super().__init__(bind_address, wsgi_app, server_name="devserver")
        self.gateway = Gateway
        # Each path has a limit of its own.
        self.max_request_body_size = 0
        self.max_request_header_size = limits.max_head_bytes
        self.connections_open: set[Connection] = set()
        self.ssl_adapter = _tls(*certificate) if certificate else None
        self.hot_files = HotFiles()
        self._listener = _listen(*bind_address)
        self.bind_addr = self._listener.getsockname()[:2]
        self._workers = Workers("worker", threads)
        max_connections = min(limits.max_connections, _max_clients())
        _check_limits(max_connections)
        limits = replace(limits, max_connections=max_connections)
        self._front = Front(self._listener, self._connect, self.hot_files, self._workers, limits)

    @property
    def can_add_keepalive_connection(self) -> bool:
        """Whether a client may send another request over its connection."""
        return self.ready

    @staticmethod
    def max_body_bytes(path: str) -> int:
        """Return how large the body of a request for ``path`` may be."""
        place = f"{path.rstrip('/')}/"
        limits = (limit for at, limit in _MAX_LARGE_BODY_BYTES.items() if place.startswith(at))
        return next(limits, _MAX_BODY_BYTES)

    def start(self) -> None:
        """Answer requests, on threads of its own."""
        self.ready = True
        self._front.start()

    def stop(self, timeout_seconds: float = 5) -> None:
        """Accept nothing more; give what is being answered its time, then cut it."""
        self.ready = False
        self._front.stop(timeout_seconds)
        self._listener.close()
        self._workers.close(timeout_seconds=5)
        for connection in list(self.connections_open):
            connection.close()

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        _log.log(level, "%s", one_line(msg), exc_info=traceback)

    def _connect(self, accepted: socket.socket) -> Connection:
        if self.ssl_adapter is not None:
            accepted = self.ssl_adapter.context.wrap_socket(
                accepted, server_side=True, do_handshake_on_connect=False
            )
        return Connection(self, accepted)


def _tls(certificate: Path, key: Path) -> BuiltinSSLAdapter:
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    try:
        return BuiltinSSLAdapter(str(certificate), str(key))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{certificate} with {key} is no certificate with its key") from error


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, and whose connections send at once and notice dead peers."""
    kind, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    is_dual = kind == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server(
        address[:2], family=kind, backlog=_BACKLOG, dualstack_ipv6=is_dual
    )
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setblocking(False)
    return listener


def _max_clients() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        allowed = 1 << 20
    return max(16, (allowed - _OTHER_FILES) // _FILES_OF_A_CLIENT)


def _check_limits(max_connections: int) -> None:
    """Tell the operator what would keep a whole lab from being served."""
    if max_connections < _CLIENTS_OF_A_LAB:
        _log.warning(
            "only %d clients are served at a time: the limit of open files is too low for more; "
            "raise it (ulimit -n, LimitNOFILE=) to 65536",
            max_connections,
        )
    try:
        backlog = int(_SOMAXCONN.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    if backlog < _CLIENTS_OF_A_LAB:
        _log.warning(
            "the system keeps only %d connections waiting: when a whole lab connects at once, some "
            "will have to try again; raise net.core.somaxconn to %d",
            backlog,
            _BACKLOG,
        )
