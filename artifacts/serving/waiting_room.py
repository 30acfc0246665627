"""The waiting room: connections whose answer is not there yet, and which need no thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from artifacts.errors import TimedOut
from artifacts.serving.connection import Connection
from artifacts.serving.loop_thread import LoopThread
from artifacts.serving.waiting import Wait

_log = logging.getLogger(__name__)

# Takes a connection, what it has waited for, and how that has ended.
Over = Callable[[Connection, Wait, "Future[Any]"], None]


@dataclass(frozen=True)
class _Guest:
    connection: Connection
    wait: Wait
    timer: asyncio.TimerHandle


class WaitingRoom:
    """Watches futures, the clock, and who hangs up; for the loop's own thread."""

    def __init__(
        self, thread: LoopThread, over: Over, has_gone: Callable[[Connection, Wait], None]
    ) -> None:
        """``over`` takes those whose wait has ended, ``has_gone`` those who have hung up."""
        self._thread = thread
        self._loop = thread.loop
        self._over = over
        self._has_gone = has_gone
        self._guests: dict[int, _Guest] = {}
        self._admitted = 0

    def admit(self, connection: Connection, wait: Wait) -> None:
        """Keep a connection until its wait is over."""
        self._admitted += 1
        number = self._admitted
        late = TimedOut("still under way after the time given for it; ask again")
        timer = self._loop.call_later(wait.timeout_seconds, self._dismiss, number, failed(late))
        self._guests[number] = _Guest(connection, wait, timer)
        self._loop.add_reader(connection.socket, self._look_at, number)
        # By its number: who hangs up is not to be kept in memory until the future ends.
        call = self._thread.call
        wait.future.add_done_callback(lambda future: call(self._dismiss, number, future))

    def dismiss_all(self, error: Exception) -> None:
        """End all waits with an error."""
        for number in list(self._guests):
            self._dismiss(number, failed(error))

    def _dismiss(self, number: int, outcome: Future[Any]) -> None:
        guest = self._let_go(number)
        if guest is not None:
            self._over(guest.connection, guest.wait, outcome)

    def _let_go(self, number: int) -> _Guest | None:
        guest = self._guests.pop(number, None)
        if guest is not None:
            guest.timer.cancel()
            self._loop.remove_reader(guest.connection.socket)
        return guest

    def _look_at(self, number: int) -> None:
        """A waiting client sent something, or hung up."""
        guest = self._guests[number]
        connection = guest.connection
        # Without reading on, it could not be seen to hang up; so much ahead nobody has to send.
        if not connection.inbox.take_in() or connection.inbox.is_full:
            _log.debug("a waiting client has hung up, or sent too much ahead")
            self._let_go(number)
            self._has_gone(connection, guest.wait)


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
