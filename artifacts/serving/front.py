"""The front: every connection while no worker needs it.

One event loop accepts connections, reads the heads of requests, and keeps those whose answers have
to wait. A connection goes to a worker only when its request is there, and comes back with the
answer. Files are sent by loops of their own, the senders, unless they are small and at hand. None
of them ever waits for a disk: what is not in the page cache is read ahead by threads for that.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from artifacts.errors import BadRequest, Busy, DevserverError, TimedOut, shutting_down
from artifacts.serving.acceptor import Acceptor, Handshakes
from artifacts.serving.answer import error_at
from artifacts.serving.connection import Connection
from artifacts.serving.deliverer import Deliverer, close_apart
from artifacts.serving.delivery import CutShort, Delivery, Standing
from artifacts.serving.hot_files import HotFiles, parse_simple
from artifacts.serving.lingerer import Lingerer
from artifacts.serving.loop_thread import LoopThread
from artifacts.serving.waiting import Wait
from artifacts.serving.waiting_room import WaitingRoom
from artifacts.serving.work_queue import QueueLimits, WorkQueue
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

# As many as there is work for: they never wait for a disk, nor for a client.
_SENDERS = 2
_DISK_READERS = 16
_LOOK_SECONDS = 0.5
_CUT_SECONDS = 5.0
# An answer from a file is sent by the front itself if it is this small and in the page cache.
_SMALL_BYTES = 256 << 10
# What a client takes of an answer at once may be as much as this.
_TRY_BYTES = 1 << 20


@dataclass(frozen=True)
class ClientLimits:
    """How long things may take, in seconds, and how much there may be of them.

    Attributes:
        request_seconds: for a request's head to come, and between the requests of a connection.
        taking_seconds: for which a client may take nothing of its answer.
        growth_seconds: for which an answer may wait for its file to grow.
        queue_seconds: for which a request may wait for a worker.
        body_queue_seconds: for which one with a large body may wait until others have been read.
        max_head_bytes: of a request's head.
        max_connections: that are open at a time.
        max_bodies: that are too large to be awaited, and read at a time.
    """

    request_seconds: float = 30
    taking_seconds: float = 300
    growth_seconds: float = 3600
    queue_seconds: float = 10
    body_queue_seconds: float = 60
    max_head_bytes: int = 64 << 10
    max_connections: int = 10_000
    max_bodies: int = 128


class Front:
    """Accepts, reads, waits, and hands out work; see the module's text."""

    def __init__(
        self,
        listener: socket.socket,
        make_connection: Callable[[socket.socket], Connection],
        hot_files: HotFiles,
        workers: Workers,
        limits: ClientLimits,
    ) -> None:
        """``make_connection`` takes what was accepted; its TLS handshake may be still to come."""
        self._make_connection = make_connection
        self._hot_files = hot_files
        self._limits = limits
        self._thread = LoopThread("http")
        self._loop = self._thread.loop
        self._disk_readers = Workers("disk-reader", _DISK_READERS)
        self._sender_threads = [LoopThread(f"sender-{n + 1}") for n in range(_SENDERS)]
        self._senders = [self._make_deliverer(thread) for thread in self._sender_threads]
        # How many answers each of them has to send.
        self._loads = [0] * _SENDERS
        self._own_sender = self._make_deliverer(self._thread)
        self._acceptor = Acceptor(self._loop, listener, self._has_room, self._welcome)
        self._handshakes = Handshakes(self._loop)
        self._waiting_room = WaitingRoom(self._thread, self._resume, self._give_up)
        self._lingerer = Lingerer(self._loop)
        self._receivers = Workers("receiver", limits.max_bodies)
        self._work_queue = WorkQueue(
            self._thread,
            workers,
            self._receivers,
            QueueLimits(
                limits.queue_seconds,
                limits.body_queue_seconds,
                limits.request_seconds,
                limits.max_bodies,
            ),
            self._take_back,
            self._refuse,
        )
        # Connections that a request, or the rest of it, may come from, and until when it has to.
        self._reading: dict[Connection, float] = {}
        self._open = 0
        self._is_ending = False
        self._is_cut = False
        self._has_ended = threading.Event()
        self._has_cut = threading.Event()

    def _make_deliverer(self, thread: LoopThread) -> Deliverer:
        return Deliverer(
            thread, self._disk_readers, self._limits.taking_seconds, self._limits.growth_seconds
        )

    # --- for other threads

    def start(self) -> None:
        for thread in (*self._sender_threads, self._thread):
            thread.start()
        self._thread.call(self._acceptor.resume)
        self._thread.call(self._look)

    def stop(self, timeout_seconds: float) -> None:
        """Answer nothing new; give what is being answered its time, then cut it."""
        self._thread.call(self._begin_end)
        self._has_ended.wait(timeout_seconds)
        self._thread.call(self._cut)
        self._has_cut.wait(_CUT_SECONDS)
        for thread, sender in zip(self._sender_threads, self._senders, strict=True):
            thread.call(sender.cut_all)
        for thread in (*self._sender_threads, self._thread):
            thread.close()
        self._disk_readers.close(timeout_seconds=1)
        self._receivers.close(timeout_seconds=5)

    # --- opening and closing

    def _has_room(self) -> bool:
        return self._open < self._limits.max_connections

    def _welcome(self, accepted: socket.socket, address: Any) -> None:
        try:
            connection = self._make_connection(accepted)
        except OSError as error:
            _log.debug("a connection is no good: %s", error)
            accepted.close()
            return
        connection.remote_addr, connection.remote_port = address[:2]
        self._open += 1
        self._reading[connection] = time.monotonic() + self._limits.request_seconds
        if isinstance(connection.socket, ssl.SSLSocket):
            self._handshakes.begin(connection.socket, partial(self._shook_hands, connection))
        else:
            self._loop.add_reader(connection.socket, self._read, connection)

    def _shook_hands(self, connection: Connection, error: OSError | None) -> None:
        if error is None:
            connection.note_encryption()
            self._await_request(connection)
        elif getattr(error, "reason", None) == "HTTP_REQUEST":
            self._stop_reading(connection)
            connection.drop_encryption()
            connection.begin()
            self._refuse(connection, BadRequest("this server speaks HTTPS alone: ask https://"))
        else:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._stop_reading(connection)
        connection.close()
        self._open -= 1
        self._acceptor.resume()
        if self._is_ending and self._open == 0:
            self._has_ended.set()

    # --- reading requests

    def _read(self, connection: Connection) -> None:
        was_empty = not connection.inbox
        if not connection.inbox.take_in():
            self._close(connection)
            return
        if was_empty:
            self._reading[connection] = time.monotonic() + self._limits.request_seconds
        self._serve(connection)

    def _await_request(self, connection: Connection) -> None:
        """Look for the next request; some of it may have come with the one before."""
        connection.inbox.begin_next()
        if self._is_ending:
            self._close(connection)
            return
        self._reading[connection] = time.monotonic() + self._limits.request_seconds
        self._loop.add_reader(connection.socket, self._read, connection)
        if connection.inbox:
            self._loop.call_soon(self._serve_if_reading, connection)

    def _serve_if_reading(self, connection: Connection) -> None:
        if connection in self._reading:
            self._serve(connection)

    def _stop_reading(self, connection: Connection) -> None:
        if self._reading.pop(connection, None) is not None:
            self._loop.remove_reader(connection.socket)
            self._loop.remove_writer(connection.socket)

    def _serve(self, connection: Connection) -> None:
        while connection.inbox.has_request(self._limits.max_head_bytes):
            connection.begin()
            delivery = self._answer_hot(connection)
            if delivery is None:
                self._stop_reading(connection)
                self._work_queue.add_new(connection)
                return
            connection.inbox.drop_head()
            if not (self._send_at_once(connection, delivery) and connection.is_kept):
                return
            self._reading[connection] = time.monotonic() + self._limits.request_seconds

    def _answer_hot(self, connection: Connection) -> Delivery | None:
        """Return the answer to a request for a file that was answered a moment ago."""
        request = parse_simple(connection.inbox.head)
        if request is None:
            return None
        answer = self._hot_files.answer(request)
        return None if answer is None else connection.answer_file(answer, request)

    # --- what workers make of it

    def _take_back(self, connection: Connection, is_good: bool) -> None:
        """Take a connection from a worker, with an answer or something to wait for."""
        if not is_good or self._is_cut:
            self._close(connection)
        elif connection.wait is None:
            self._deliver(connection, connection.take_delivery())
        else:
            self._waiting_room.admit(connection, connection.wait)
            if self._is_ending:
                self._waiting_room.dismiss_all(shutting_down())

    def _resume(self, connection: Connection, wait: Wait, outcome: Future[Any]) -> None:
        self._work_queue.add_resumed(connection, partial(connection.resume, wait, outcome))

    def _give_up(self, connection: Connection, wait: Wait) -> None:
        """Hang up on a client that has done so, and have what it waited for told."""
        self._close(connection)
        if wait.given_up is not None:
            with contextlib.suppress(Busy):
                self._disk_readers.submit(wait.given_up)

    def _refuse(self, connection: Connection, error: DevserverError) -> None:
        """Answer without a worker, and hang up."""
        path = connection.request_line.partition(b" ")[2].decode("latin-1")
        self._deliver(connection, connection.answer_at_once(error_at(path, error)))

    # --- answering

    def _deliver(self, connection: Connection, delivery: Delivery) -> None:
        """Send an answer; one that is small and at hand at once."""
        if self._send_at_once(connection, delivery) and connection.is_kept:
            self._await_request(connection)

    def _send_at_once(self, connection: Connection, delivery: Delivery) -> bool:
        """Whether the whole answer is sent; if not, that is seen to, or the client is cut."""
        is_at_hand = delivery.file is None or (
            delivery.file_bytes_left <= _SMALL_BYTES and delivery.is_cached()
        )
        try:
            is_sent = is_at_hand and delivery.send(connection.socket, _TRY_BYTES) is Standing.DONE
        except (OSError, CutShort, DevserverError) as error:
            _log.debug("a client is cut: %s", error)
            close_apart(delivery, self._disk_readers)
            self._ended(connection, delivery, is_whole=False)
            return False
        if is_sent:
            close_apart(delivery, self._disk_readers)
            self._ended(connection, delivery, is_whole=True)
            return True
        self._stop_reading(connection)
        if is_at_hand:
            ended = partial(self._delivered, connection, delivery)
            self._own_sender.begin(connection, delivery, ended)
        else:
            self._have_sent(connection, delivery)
        return False

    def _have_sent(self, connection: Connection, delivery: Delivery) -> None:
        """Have the sender that has the least to do send an answer."""
        number = min(range(_SENDERS), key=self._loads.__getitem__)
        self._loads[number] += 1
        ended = partial(self._thread.call, self._sent, number, connection, delivery)
        self._sender_threads[number].call(self._senders[number].begin, connection, delivery, ended)

    def _sent(
        self, number: int, connection: Connection, delivery: Delivery, is_whole: bool
    ) -> None:
        self._loads[number] -= 1
        self._delivered(connection, delivery, is_whole)

    def _delivered(self, connection: Connection, delivery: Delivery, is_whole: bool) -> None:
        self._ended(connection, delivery, is_whole=is_whole)
        if is_whole and connection.is_kept:
            self._await_request(connection)

    def _ended(self, connection: Connection, delivery: Delivery, *, is_whole: bool) -> None:
        """Log an answer, and hang up unless there may be another request."""
        if connection.logged is not None:
            connection.logged.log(delivery.bytes_sent)
        if not is_whole:
            self._close(connection)
        elif not connection.is_kept:
            self._stop_reading(connection)
            self._lingerer.begin(connection.socket, partial(self._close, connection))

    # --- the clock, and the end

    def _look(self) -> None:
        """Hang up on those who take too long, and turn away those for whom no worker is free."""
        self._loop.call_later(_LOOK_SECONDS, self._look)
        now = time.monotonic()
        for connection, deadline in list(self._reading.items()):
            if deadline < now:
                self._give_up_on(connection)
        self._lingerer.end_late()
        self._work_queue.turn_away_late()

    def _give_up_on(self, connection: Connection) -> None:
        if not connection.inbox.request_line:
            self._close(connection)
            return
        self._stop_reading(connection)
        connection.begin()
        self._refuse(connection, TimedOut("the request did not come in time", status=408))

    def _begin_end(self) -> None:
        self._is_ending = True
        self._acceptor.end()
        for connection in list(self._reading):
            self._close(connection)
        self._waiting_room.dismiss_all(shutting_down())
        self._work_queue.end(shutting_down())
        if self._open == 0:
            self._has_ended.set()

    def _cut(self) -> None:
        """Begin to send nothing more; the other senders are cut after this."""
        self._is_cut = True
        self._own_sender.cut_all()
        self._has_cut.set()
