"""The waiting room: requests whose answer is not there yet, and which hold no thread meanwhile.

A handler that would have to wait leaves a `Wait` on the request's `Exchange` and returns. The
gateway then answers nothing, and the connection is handed over to the room instead of back to the
server. When the awaited future ends, or the time is over, the connection goes through a worker once
more, just long enough to write the answer. A client that hangs up meanwhile is noticed and let go.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from artifacts.errors import TimedOut, shutting_down
from artifacts.serving.answer import Answer, text_error
from artifacts.serving.file_answer import FileAnswer

_log = logging.getLogger(__name__)

Reply = Answer | FileAnswer


@dataclass(frozen=True)
class Wait:
    """What a request waits for: ``answer`` shapes the outcome, which is a result or an error.

    It may also answer with another wait.
    """

    future: Future[Any]
    timeout_seconds: float
    answer: Callable[[Future[Any]], Reply | Wait]


class Exchange:
    """One request's way from the handler back to the gateway; the WSGI environ carries it."""

    KEY = "devserver.exchange"

    def __init__(self) -> None:
        # What the handler leaves where the answer is not in memory.
        self.outcome: Wait | FileAnswer | None = None


class WaitingConnection(Protocol):
    """A connection that can be set aside."""

    socket: socket.socket

    def close(self) -> None: ...

    def prepare_answer(self, answer: Reply | Wait) -> None:
        """Take the answer, to be written when a worker gets the connection."""


@dataclass
class _Guest:
    connection: WaitingConnection
    wait: Wait


class WaitingRoom:
    """Connections that wait; one thread watches the clock and who hangs up."""

    def __init__(self, release: Callable[[Any], None]) -> None:
        """``release`` hands a connection, its answer prepared, to a worker."""
        self._release = release
        # Guards all below and changes of the selector, which is waited on without it.
        self._lock = threading.Lock()
        self._guests: dict[int, _Guest] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._numbers = itertools.count()
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._is_closed = False
        self._thread = threading.Thread(target=self._watch, name="waiting-room", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __len__(self) -> int:
        with self._lock:
            return len(self._guests)

    def admit(self, connection: WaitingConnection, wait: Wait) -> None:
        """Keep a connection until its wait is over."""
        number = next(self._numbers)
        deadline = time.monotonic() + wait.timeout_seconds
        with self._lock:
            is_closed = self._is_closed
            self._guests[number] = _Guest(connection, wait)
            if not is_closed:
                is_next = not self._deadlines or deadline < self._deadlines[0][0]
                heapq.heappush(self._deadlines, (deadline, number))
                with contextlib.suppress(ValueError, OSError, KeyError):
                    self._selector.register(connection.socket, selectors.EVENT_READ, number)
        if is_closed:
            self._dismiss(number, _failed(shutting_down()))
            return
        if is_next:
            self._wake()
        wait.future.add_done_callback(lambda future: self._dismiss(number, future))

    def close(self) -> None:
        """Tell everyone that the server is busy shutting down, and end."""
        with self._lock:
            self._is_closed = True
            numbers = list(self._guests)
        for number in numbers:
            self._dismiss(number, _failed(shutting_down()))
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def _take(self, number: int) -> _Guest | None:
        with self._lock:
            guest = self._guests.pop(number, None)
            if guest is not None:
                with contextlib.suppress(ValueError, OSError, KeyError):
                    self._selector.unregister(guest.connection.socket)
            return guest

    def _dismiss(self, number: int, outcome: Future[Any]) -> None:
        guest = self._take(number)
        if guest is not None:
            try:
                answer = guest.wait.answer(outcome)
            except Exception as error:
                # The edge of a request: it has to be answered, whatever went wrong.
                answer = text_error(error)
            guest.connection.prepare_answer(answer)
            self._release(guest.connection)

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._is_closed:
                    return
                next_deadline = self._deadlines[0][0] if self._deadlines else None
            timeout = None if next_deadline is None else max(0, next_deadline - time.monotonic())
            for key, _ in self._selector.select(timeout):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                else:
                    self._look_at(key.data)
            self._dismiss_late()

    def _look_at(self, number: int) -> None:
        """A waiting client sent something or hung up; which of the two?"""
        with self._lock:
            guest = self._guests.get(number)
            if guest is None:
                return
            try:
                # On an SSL socket, too: what counts is whether the connection is at its end.
                is_gone = not socket.socket.recv(
                    guest.connection.socket, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            except OSError:
                is_gone = True
            if not is_gone:
                # The next request, ahead of time: it has to wait, and so this stops looking.
                with contextlib.suppress(ValueError, OSError, KeyError):
                    self._selector.unregister(guest.connection.socket)
                return
        guest = self._take(number)
        if guest is not None:
            _log.debug("a waiting client has hung up")
            guest.connection.close()

    def _dismiss_late(self) -> None:
        now = time.monotonic()
        while True:
            with self._lock:
                if not self._deadlines or self._deadlines[0][0] > now:
                    return
                _, number = heapq.heappop(self._deadlines)
            self._dismiss(
                number, _failed(TimedOut("still under way after the time given for it; ask again"))
            )

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"!")


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
