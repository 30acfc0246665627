"""Accepting connections, TLS included."""

from __future__ import annotations

import logging
import socket
import ssl
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)

# Connections accepted in one go, before others have their turn.
_ACCEPTED_AT_ONCE = 64
_PAUSE_SECONDS = 0.5
# Takes a connection and its other end's address.
Take = Callable[[socket.socket, Any], None]


class Acceptor:
    """Accepts while there is room; what there is no room for waits in the system's backlog.

    For the loop's own thread.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        listener: socket.socket,
        has_room: Callable[[], bool],
        take: Take,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._has_room = has_room
        self._take = take
        self._is_accepting = False
        self._has_ended = False

    def resume(self) -> None:
        """Accept again, if that was paused for want of room."""
        if not self._is_accepting and not self._has_ended:
            self._is_accepting = True
            self._loop.add_reader(self._listener, self._accept)

    def end(self) -> None:
        self._pause()
        self._has_ended = True

    def _pause(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._listener)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if not self._has_room():
                self._pause()
                return
            try:
                accepted, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                _log.warning("no more connections can be accepted for now: %s", error.strerror)
                self._pause()
                self._loop.call_later(_PAUSE_SECONDS, self.resume)
                return
            accepted.setblocking(False)
            self._take(accepted, address)


class Handshakes:
    """Connections that are becoming TLS connections; for the loop's own thread."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop

    def begin(self, connection: ssl.SSLSocket, ended: Callable[[OSError | None], None]) -> None:
        """Shake hands; then call ``ended``, with an error if that went wrong.

        It ends in the middle when ``connection`` is taken off the loop.
        """
        self._loop.remove_reader(connection)
        self._loop.remove_writer(connection)
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.add_reader(connection, self.begin, connection, ended)
        except ssl.SSLWantWriteError:
            self._loop.add_writer(connection, self.begin, connection, ended)
        except OSError as error:
            _log.debug("no TLS: %s", error)
            ended(error)
        else:
            ended(None)
