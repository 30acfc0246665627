"""How commands reach the server that owns their data directory, and how it knows them.

A running server says in ``DATA_DIR/server.json`` where it listens, with a secret that is good for
as long as it runs. Whoever may read that file is the server's own user, or may become it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts.disk import write_durably
from artifacts.errors import DevserverError

_FILE = "server.json"
_OWNER_ALONE = 0o600
_SECRET_BYTES = 32


@dataclass(frozen=True)
class LocalServer:
    """A server on this machine.

    Attributes:
        url: that reaches it from here; if it is an HTTPS one, its certificate has another name.
        secret: sent as a bearer token, it allows what the server's user may do.
        process: its id.
    """

    url: str
    secret: str
    process: int


def new_secret() -> str:
    return secrets.token_hex(_SECRET_BYTES)


def url_on_this_machine(host: str, port: int, *, is_https: bool) -> str:
    """Return the URL of what listens on ``host``, an address of this machine or all of them."""
    if host == "0.0.0.0" or (host == "::" and socket.has_dualstack_ipv6()):
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if is_https else 'http'}://{shown}:{port}"


@contextlib.contextmanager
def announced_to_commands(data_directory: Path, url: str, secret: str) -> Iterator[None]:
    """Tell commands how to reach this process, until the end of the block.

    Raises:
        DevserverError: the file cannot be written.
    """
    path = data_directory.absolute() / _FILE
    told = {"url": url, "secret": secret, "process": os.getpid()}
    try:
        write_durably(path, json.dumps(told).encode("ascii"), _OWNER_ALONE)
    except OSError as error:
        raise DevserverError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find_local_server(data_directory: Path, process: int | None) -> LocalServer:
    """Return the server that ``process`` is, which has the lock of the data directory.

    Raises:
        DevserverError: it does not say how to reach it, or it is not for this user to know.
    """
    path = data_directory / _FILE
    try:
        told = json.loads(path.read_bytes())
        server = LocalServer(str(told["url"]), str(told["secret"]), int(told["process"]))
    except PermissionError as error:
        raise DevserverError(
            f"cannot read {path}: {error.strerror}; run this as the user that the server runs as"
        ) from error
    except (OSError, ValueError, LookupError, TypeError):
        server = None
    # A server that was killed has left its file behind.
    if server is None or server.process != process:
        raise DevserverError(
            f"process {process or 'unknown'} works in {data_directory} and does not answer calls: "
            "it is starting, ending, or a command like this one; try again when it has ended"
        )
    return server
