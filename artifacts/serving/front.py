"""The front: every connection while no worker needs it.

One event loop accepts connections, reads the heads of requests, and keeps those whose answers have
to wait. A connection goes to a worker only when its request is there, and comes back with the
answer. What clients take time for is sent by loops of their own, the senders: a disk that is slow
to read from must not hold up the front.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from artifacts.errors import Busy, DevserverError, TimedOut, shutting_down
from artifacts.serving.answer import json_error, text_answer, text_error
from artifacts.serving.connection import Connection
from artifacts.serving.deliverer import Deliverer, has_hung_up
from artifacts.serving.delivery import CutShort, Delivery, Standing
from artifacts.serving.hot_files import HotFiles, parse_simple
from artifacts.serving.inbox import receive
from artifacts.serving.loop_thread import LoopThread
from artifacts.serving.waiting import Wait
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

_SENDERS = 4
_LOOK_SECONDS = 0.5
# Connections accepted in one go, before others have their turn.
_ACCEPTED_AT_ONCE = 64
_PAUSE_SECONDS = 0.5
# So many requests may wait for a worker.
_MAX_QUEUED = 2000
# An answer from a file is sent by the front itself if it is this small and in the page cache.
_SMALL_BYTES = 256 << 10
_TRY_BYTES = 1 << 20
# A client that is told to stop sending is listened to for so long and so much, to have it read why.
_LINGER_SECONDS = 5.0
_MAX_LINGER_SECONDS = 30.0
_MAX_LINGER_BYTES = 64 << 20


@dataclass(frozen=True)
class ClientLimits:
    """How long things may take, in seconds, and how much there may be of them.

    Attributes:
        request_seconds: for a request's head to come, and between the requests of a connection.
        taking_seconds: for which a client may take nothing of its answer.
        growth_seconds: for which an answer may wait for its file to grow.
        queue_seconds: for which a request may wait for a worker.
        max_head_bytes: of a request's head.
        max_connections: that are open at a time.
    """

    request_seconds: float = 30
    taking_seconds: float = 300
    growth_seconds: float = 3600
    queue_seconds: float = 10
    max_head_bytes: int = 64 << 10
    max_connections: int = 10_000


@dataclass(eq=False)
class _Turn:
    """A connection's turn with a worker: taken by one, or given up when none is free for long."""

    connection: Connection
    queued_at: float
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_taken: bool = False

    def take(self) -> bool:
        """Whether the caller is the first."""
        with self._lock:
            was_taken, self._is_taken = self._is_taken, True
            return not was_taken

    @property
    def is_taken(self) -> bool:
        return self._is_taken


@dataclass(frozen=True)
class _Waiting:
    connection: Connection
    wait: Wait
    timer: asyncio.TimerHandle


@dataclass(eq=False)
class _Lingering:
    ends_at: float
    bytes_left: int = _MAX_LINGER_BYTES


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
        self._listener = listener
        self._make_connection = make_connection
        self._hot_files = hot_files
        self._workers = workers
        self._limits = limits
        self._thread = LoopThread("http")
        self._loop = self._thread.loop
        self._sender_threads = [LoopThread(f"sender-{n + 1}") for n in range(_SENDERS)]
        self._senders = [self._make_deliverer(thread) for thread in self._sender_threads]
        self._own_sender = self._make_deliverer(self._thread)
        # Connections that a request, or the rest of it, may come from, and until when it has to.
        self._reading: dict[Connection, float] = {}
        self._lingering: dict[Connection, _Lingering] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._waits = 0
        self._queue: deque[_Turn] = deque()
        self._open = 0
        self._is_accepting = False
        self._is_ending = False
        self._has_ended = threading.Event()

    def _make_deliverer(self, thread: LoopThread) -> Deliverer:
        return Deliverer(thread, self._limits.taking_seconds, self._limits.growth_seconds)

    # --- for other threads

    def start(self) -> None:
        self._listener.setblocking(False)
        for thread in (*self._sender_threads, self._thread):
            thread.start()
        self._thread.call(self._begin)

    def stop(self, timeout_seconds: float) -> None:
        """Answer nothing new; give what is being answered its time, then cut it."""
        self._thread.call(self._begin_end)
        self._has_ended.wait(timeout_seconds)
        for thread, sender in zip(self._sender_threads, self._senders, strict=True):
            thread.call(sender.cut_all)
        self._thread.call(self._own_sender.cut_all)
        for thread in (*self._sender_threads, self._thread):
            thread.close()

    # --- accepting

    def _begin(self) -> None:
        self._accept_again()
        self._loop.call_later(_LOOK_SECONDS, self._look)

    def _accept_again(self) -> None:
        if not self._is_accepting and not self._is_ending:
            self._is_accepting = True
            self._loop.add_reader(self._listener, self._accept)

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._listener)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if self._open >= self._limits.max_connections:
                # Taken up again as soon as one of them ends; until then the system keeps them.
                self._stop_accepting()
                return
            try:
                accepted, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                _log.warning("no more connections can be accepted for now: %s", error.strerror)
                self._stop_accepting()
                self._loop.call_later(_PAUSE_SECONDS, self._accept_again)
                return
            self._welcome(accepted, address)

    def _welcome(self, accepted: socket.socket, address: Any) -> None:
        accepted.setblocking(False)
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
            self._shake_hands(connection)
        else:
            self._loop.add_reader(connection.socket, self._read, connection)

    def _shake_hands(self, connection: Connection) -> None:
        self._loop.remove_writer(connection.socket)
        self._loop.remove_reader(connection.socket)
        try:
            connection.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.add_reader(connection.socket, self._shake_hands, connection)
        except ssl.SSLWantWriteError:
            self._loop.add_writer(connection.socket, self._shake_hands, connection)
        except OSError as error:
            _log.debug("no TLS with %s: %s", connection.remote_addr, error)
            self._close(connection)
        else:
            connection.note_encryption()
            self._loop.add_reader(connection.socket, self._read, connection)
            self._read(connection)

    # --- reading requests

    def _read(self, connection: Connection) -> None:
        was_empty = not connection.inbox
        while True:
            try:
                received = receive(connection.socket)
            except OSError:
                received = b""
            if received is None:
                break
            if not received:
                self._close(connection)
                return
            connection.inbox.feed(received)
            if not isinstance(connection.socket, ssl.SSLSocket):
                break
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
        elif isinstance(connection.socket, ssl.SSLSocket):
            # What is decrypted already does not make the socket readable.
            self._loop.call_soon(self._read_if_reading, connection)

    def _serve_if_reading(self, connection: Connection) -> None:
        if connection in self._reading:
            self._serve(connection)

    def _read_if_reading(self, connection: Connection) -> None:
        if connection in self._reading:
            self._read(connection)

    def _serve(self, connection: Connection) -> None:
        while connection.inbox.has_request(self._limits.max_head_bytes):
            connection.begin()
            delivery = self._answer_hot(connection)
            if delivery is None:
                self._stop_reading(connection)
                self._queue_up(connection)
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

    def _stop_reading(self, connection: Connection) -> None:
        if self._reading.pop(connection, None) is not None:
            self._loop.remove_reader(connection.socket)
            self._loop.remove_writer(connection.socket)

    # --- workers

    def _queue_up(self, connection: Connection) -> None:
        turn = _Turn(connection, time.monotonic())
        self._queue.append(turn)
        while self._queue and self._queue[0].is_taken:
            self._queue.popleft()
        if len(self._queue) > _MAX_QUEUED:
            self._turn_away(turn)
            return
        self._submit(turn, connection.communicate)

    def _submit(self, turn: _Turn, work: Callable[[], object]) -> None:
        try:
            self._workers.submit(lambda: self._work(turn, work))
        except Busy:
            self._turn_away(turn)

    def _work(self, turn: _Turn, work: Callable[[], object]) -> None:
        """Do something with a connection on a worker's thread, and give it back."""
        if not turn.take():
            return
        connection = turn.connection
        try:
            connection.socket.settimeout(self._limits.request_seconds)
            work()
            connection.socket.setblocking(False)
        except BaseException:
            self._thread.call(self._close, connection)
            raise
        self._thread.call(self._take_back, connection)

    def _turn_away(self, turn: _Turn) -> None:
        if turn.take():
            busy = Busy("all workers are busy; ask again")
            self._refuse(turn.connection, shutting_down() if self._is_ending else busy)

    def _refuse(self, connection: Connection, error: DevserverError) -> None:
        """Answer without a worker, and hang up."""
        is_api = b" /api/" in connection.request_line
        delivery = connection.answer_at_once((json_error if is_api else text_error)(error))
        self._deliver(connection, delivery)

    def _take_back(self, connection: Connection) -> None:
        """Take a connection from a worker, with an answer or something to wait for."""
        if connection.wait is not None:
            self._keep_waiting(connection, connection.wait)
        else:
            self._deliver(connection, connection.take_delivery())

    # --- waiting

    def _keep_waiting(self, connection: Connection, wait: Wait) -> None:
        self._waits += 1
        number = self._waits
        late = TimedOut("still under way after the time given for it; ask again")
        timer = self._loop.call_later(wait.timeout_seconds, self._end_wait, number, _failed(late))
        self._waiting[number] = _Waiting(connection, wait, timer)
        self._loop.add_reader(connection.socket, self._look_at_waiting, number)
        if self._is_ending:
            self._end_wait(number, _failed(shutting_down()))
            return
        # By its number: whoever hangs up is not to be kept in memory until the future ends.
        call = self._thread.call
        wait.future.add_done_callback(lambda future: call(self._end_wait, number, future))

    def _end_wait(self, number: int, outcome: Future[Any]) -> None:
        waiting = self._let_go(number)
        if waiting is not None:
            turn = _Turn(waiting.connection, time.monotonic())
            self._submit(turn, partial(waiting.connection.resume, waiting.wait, outcome))

    def _let_go(self, number: int) -> _Waiting | None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.timer.cancel()
            self._loop.remove_reader(waiting.connection.socket)
        return waiting

    def _look_at_waiting(self, number: int) -> None:
        """A waiting client sent something or hung up; which of the two?"""
        connection = self._waiting[number].connection
        if has_hung_up(connection.socket):
            _log.debug("a waiting client has hung up")
            self._let_go(number)
            self._close(connection)
        else:
            # The next request, ahead of time: it has to wait, and so this stops looking.
            self._loop.remove_reader(connection.socket)

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
            delivery.close()
            self._ended(connection, delivery, is_whole=False)
            return False
        if is_sent:
            delivery.close()
            self._ended(connection, delivery, is_whole=True)
            return True
        self._stop_reading(connection)
        if is_at_hand:
            ended = partial(self._delivered, connection, delivery)
            self._own_sender.begin(connection.socket, delivery, ended)
        else:
            self._have_sent(connection, delivery)
        return False

    def _have_sent(self, connection: Connection, delivery: Delivery) -> None:
        number = min(range(_SENDERS), key=lambda number: self._senders[number].load)
        ended = partial(self._thread.call, self._delivered, connection, delivery)
        self._sender_threads[number].call(
            self._senders[number].begin, connection.socket, delivery, ended
        )

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
            self._linger(connection)

    # --- hanging up

    def _linger(self, connection: Connection) -> None:
        """Hang up so that the client gets to read its answer, though it may be sending still."""
        self._stop_reading(connection)
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        connection.inbox.close()
        self._lingering[connection] = _Lingering(time.monotonic() + _MAX_LINGER_SECONDS)
        self._reading[connection] = time.monotonic() + _LINGER_SECONDS
        self._loop.add_reader(connection.socket, self._drop, connection)

    def _drop(self, connection: Connection) -> None:
        """Drop what a client sends still; end when it has noticed."""
        lingering = self._lingering[connection]
        try:
            received = connection.socket.recv(64 << 10)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        lingering.bytes_left -= len(received)
        now = time.monotonic()
        if not received or lingering.bytes_left < 0 or now > lingering.ends_at:
            self._close(connection)
        else:
            self._reading[connection] = now + _LINGER_SECONDS

    def _close(self, connection: Connection) -> None:
        self._stop_reading(connection)
        self._lingering.pop(connection, None)
        connection.close()
        self._open -= 1
        if self._open < self._limits.max_connections:
            self._accept_again()
        if self._is_ending and self._open == 0:
            self._has_ended.set()

    # --- the clock

    def _look(self) -> None:
        """Hang up on those who take too long, and turn away those for whom no worker is free."""
        now = time.monotonic()
        for connection, deadline in list(self._reading.items()):
            if deadline < now:
                self._give_up_on(connection)
        while self._queue and (
            self._queue[0].is_taken or self._queue[0].queued_at + self._limits.queue_seconds < now
        ):
            self._turn_away(self._queue.popleft())
        self._loop.call_later(_LOOK_SECONDS, self._look)

    def _give_up_on(self, connection: Connection) -> None:
        if not connection.inbox or connection in self._lingering:
            self._close(connection)
            return
        self._stop_reading(connection)
        connection.begin()
        late = text_answer("the request did not come in time", 408)
        self._deliver(connection, connection.answer_at_once(late))

    # --- the end

    def _begin_end(self) -> None:
        self._is_ending = True
        self._stop_accepting()
        for connection in list(self._reading):
            if connection not in self._lingering:
                self._close(connection)
        for number in list(self._waiting):
            self._end_wait(number, _failed(shutting_down()))
        if self._open == 0:
            self._has_ended.set()


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
