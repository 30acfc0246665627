"""Deliverers: each sends many answers at once, as fast as each client takes them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from artifacts.errors import Busy, DevserverError
from artifacts.serving.connection import Connection
from artifacts.serving.delivery import CutShort, Delivery, Standing
from artifacts.serving.loop_thread import LoopThread
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

# So much goes to one client before the others have their turn.
_TURN_BYTES = 1 << 20
_LOOK_SECONDS = 1.0
# Called when a delivery has ended: with whether the client got all of it.
Ended = Callable[[bool], None]


@dataclass(eq=False)
class _UnderWay:
    connection: Connection
    delivery: Delivery
    ended: Ended
    deadline: float
    is_writing: bool = False
    end_watch: Callable[[], None] | None = None


class Deliverer:
    """Sends on one loop: no client, no growing file and no disk holds up another client.

    A client that takes nothing for ``client_timeout`` seconds is cut, and so is one whose file has
    not grown for ``growth_timeout`` seconds. For the loop's own thread.
    """

    def __init__(
        self,
        thread: LoopThread,
        disk_readers: Workers,
        client_timeout: float,
        growth_timeout: float,
    ) -> None:
        """``disk_readers`` wait for the disk where a file is not in the page cache."""
        self._thread = thread
        self._loop = thread.loop
        self._disk_readers = disk_readers
        self._client_timeout = client_timeout
        self._growth_timeout = growth_timeout
        self._under_way: set[_UnderWay] = set()
        self._is_looking = False

    def begin(self, connection: Connection, delivery: Delivery, ended: Ended) -> None:
        """Send until all is sent or the client is cut; then call ``ended``, the file closed."""
        deadline = time.monotonic() + self._client_timeout
        under_way = _UnderWay(connection, delivery, ended, deadline)
        self._under_way.add(under_way)
        if not self._is_looking:
            self._is_looking = True
            self._loop.call_later(_LOOK_SECONDS, self._cut_late)
        self._send(under_way)

    def cut_all(self) -> None:
        for under_way in list(self._under_way):
            self._end(under_way, is_whole=False)

    def _send(self, under_way: _UnderWay) -> None:
        delivery = under_way.delivery
        sent_before = delivery.bytes_sent
        try:
            standing = delivery.send(under_way.connection.socket, _TURN_BYTES)
        except OSError as error:
            _log.debug("a client has hung up: %s", error)
            self._end(under_way, is_whole=False)
            return
        except (CutShort, DevserverError) as error:
            _log.warning("a client is cut: %s", str(error) or "the file has become shorter")
            self._end(under_way, is_whole=False)
            return
        if standing is Standing.DONE:
            self._end(under_way, is_whole=True)
        elif standing is Standing.BYTES_ARE_MISSING:
            self._watch(under_way)
        elif standing is Standing.BYTES_ARE_ON_DISK:
            self._have_read(under_way)
        else:
            if delivery.bytes_sent > sent_before:
                under_way.deadline = time.monotonic() + self._client_timeout
            if not under_way.is_writing:
                under_way.is_writing = True
                self._loop.add_writer(under_way.connection.socket, self._send, under_way)

    # --- waiting for the disk

    def _have_read(self, under_way: _UnderWay) -> None:
        self._stop_writing(under_way)
        try:
            self._disk_readers.submit(partial(self._read_ahead, under_way))
        except Busy:
            self._end(under_way, is_whole=False)

    def _read_ahead(self, under_way: _UnderWay) -> None:
        """On a disk reader's thread."""
        try:
            under_way.delivery.read_ahead()
        except OSError as error:
            _log.warning("a client is cut: reading its file failed: %s", error.strerror)
            self._thread.call(self._end_if_under_way, under_way)
        else:
            self._thread.call(self._go_on, under_way)

    def _go_on(self, under_way: _UnderWay) -> None:
        if under_way in self._under_way:
            under_way.deadline = time.monotonic() + self._client_timeout
            self._send(under_way)

    def _end_if_under_way(self, under_way: _UnderWay) -> None:
        if under_way in self._under_way:
            self._end(under_way, is_whole=False)

    # --- waiting for a file to grow

    def _watch(self, under_way: _UnderWay) -> None:
        self._stop_writing(under_way)
        under_way.deadline = time.monotonic() + self._growth_timeout
        self._loop.add_reader(under_way.connection.socket, self._look_at, under_way)
        file = under_way.delivery.file
        assert file is not None
        changed = partial(self._thread.call, self._resume, under_way)
        under_way.end_watch = file.watch(under_way.delivery.position, changed)

    def _resume(self, under_way: _UnderWay) -> None:
        if under_way in self._under_way and under_way.end_watch is not None:
            self._stop_watching(under_way)
            under_way.deadline = time.monotonic() + self._client_timeout
            self._send(under_way)

    def _look_at(self, under_way: _UnderWay) -> None:
        """A client that waits sent something, or hung up; too much ahead is as good as that."""
        if not under_way.connection.inbox.take_in() or under_way.connection.inbox.is_full:
            self._end(under_way, is_whole=False)

    # --- ending

    def _cut_late(self) -> None:
        now = time.monotonic()
        for under_way in list(self._under_way):
            if under_way.deadline < now:
                _log.info("a client is cut: nothing could be sent to it for too long")
                self._end(under_way, is_whole=False)
        self._is_looking = bool(self._under_way)
        if self._is_looking:
            self._loop.call_later(_LOOK_SECONDS, self._cut_late)

    def _end(self, under_way: _UnderWay, *, is_whole: bool) -> None:
        self._under_way.discard(under_way)
        self._stop_watching(under_way)
        self._stop_writing(under_way)
        close_apart(under_way.delivery, self._disk_readers)
        under_way.ended(is_whole)

    def _stop_watching(self, under_way: _UnderWay) -> None:
        if under_way.end_watch is not None:
            under_way.end_watch()
            under_way.end_watch = None
            self._loop.remove_reader(under_way.connection.socket)

    def _stop_writing(self, under_way: _UnderWay) -> None:
        if under_way.is_writing:
            under_way.is_writing = False
            self._loop.remove_writer(under_way.connection.socket)


def close_apart(delivery: Delivery, disk_workers: Workers) -> None:
    """Close a delivery's file on another thread, if that may take time: the last to close a file
    that is not published any more frees what it takes on the disk.
    """
    if delivery.closes_at_once:
        delivery.close()
        return
    try:
        disk_workers.submit(delivery.close)
    except Busy:
        delivery.close()  # the server ends
