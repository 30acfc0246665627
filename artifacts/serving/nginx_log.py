"""What nginx says of the reads that it answers by itself: they are uses of a build, too.

nginx sends each line of an access log as a datagram to a Unix socket (``syslog:server=unix:…``). It
drops those that find no socket, or a full one, and holds up nobody for it.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from artifacts.archive_url import BuildName
from artifacts.errors import BadRequest, DevserverError

_log = logging.getLogger(__name__)

# What comes before the build's name: nginx's tag, after priority, time and maybe host.
_TAG = b" devserver_reads: "
# Names of a target and a build have up to 255 bytes each; what is cut off makes no name.
_MAX_DATAGRAM_BYTES = 1024
# nginx is another user. All that can be done through the socket is to keep known builds in use.
_MODE = 0o666


class NginxLog:
    """A socket, and the thread that reads it, from construction to ``close``."""

    def __init__(self, path: Path, used: Callable[[BuildName], None]) -> None:
        """Make the socket; what is left of an earlier one is replaced.

        Args:
            used: is told the build of each read, on this thread; whether there is such a build is
                not looked at.

        Raises:
            DevserverError: there is something else, or somebody who reads, or no place for it.
        """
        self._path = path
        self._used = used
        self._socket = _bound(path)
        self._waker, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._read, name="nginx-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._waker.close()
        self._thread.join(timeout=5)
        for each in (self._woken, self._socket):
            each.close()
        self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in (self._socket, self._woken):
                selector.register(each, selectors.EVENT_READ)
            while all(key.fileobj is not self._woken for key, _ in selector.select()):
                with contextlib.suppress(BlockingIOError):
                    self._note(self._socket.recv(_MAX_DATAGRAM_BYTES))

    def _note(self, line: bytes) -> None:
        try:
            name = BuildName.parse(line.partition(_TAG)[2].decode("utf-8"))
        except (BadRequest, UnicodeDecodeError):
            _log.debug("a line of nginx's log names no build: %.200r", line)
            return
        try:
            self._used(name)
        except Exception:
            # The edge of a thread: the next line is not this one's fault.
            _log.exception("noting that %s is in use", name)


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        listener.setblocking(False)
        path.chmod(_MODE)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise DevserverError(f"cannot make the socket {path} (--nginx-log): {reason}") from error
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody reads; what else is there makes ``bind`` fail."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
