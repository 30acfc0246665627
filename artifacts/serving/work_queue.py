"""The work queue: connections whose requests wait for a worker, though not for long."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from artifacts.errors import Busy, DevserverError
from artifacts.serving.connection import Connection
from artifacts.serving.loop_thread import LoopThread
from artifacts.workers import Workers

# So many requests may wait; those beyond are turned away at once.
_MAX_QUEUED = 2000
Refuse = Callable[[Connection, DevserverError], None]


@dataclass(frozen=True)
class QueueLimits:
    """How long things may take, in seconds, and how much there may be of them.

    Attributes:
        queue_seconds: for which a request may wait for a worker.
        body_queue_seconds: for which one with a large body may wait for its turn.
        socket_seconds: for which a worker waits for a client's next bytes.
        max_bodies: how many such bodies are read at a time.
    """

    queue_seconds: float
    body_queue_seconds: float
    socket_seconds: float
    max_bodies: int


@dataclass(eq=False)
class _Turn:
    """A connection's turn with a worker.

    Attributes:
        has_body: whether the rest of a body is to be waited for, by a receiver.
    """

    connection: Connection
    work: Callable[[], object]
    is_new: bool
    has_body: bool = False
    queued_at: float = field(default_factory=time.monotonic)


class WorkQueue:
    """Hands connections to workers, and back; for the loop's own thread."""

    def __init__(
        self,
        thread: LoopThread,
        workers: Workers,
        receivers: Workers,
        limits: QueueLimits,
        take_back: Callable[[Connection, bool], None],
        refuse: Refuse,
    ) -> None:
        """Make an empty queue.

        Args:
            thread: the loop's.
            workers: what does the work.
            receivers: what does it where a client takes its time to send a body; as many as bodies
                may be read at a time.
            limits: of waiting.
            take_back: takes a connection after work, on the loop's thread, with whether it is
                still good.
            refuse: answers one for which there is no worker.
        """
        self._thread = thread
        self._workers = workers
        self._receivers = receivers
        self._limits = limits
        self._take_back = take_back
        self._refuse = refuse
        # Guards the two below. Whoever takes a turn off the queue is the one who sees to it.
        self._lock = threading.Lock()
        self._queue: deque[_Turn] = deque()
        self._calls = 0  # of workers that are to come for a turn; no fewer than there are turns
        # Those with large bodies do not come to the queue: these are the ones that no receiver is
        # free for.
        self._bodies = 0
        self._waiting_bodies: deque[_Turn] = deque()

    def add_new(self, connection: Connection) -> None:
        """Have a worker answer the request that a connection has."""
        has_body = connection.inbox.has_body_to_come
        turn = _Turn(connection, connection.communicate, is_new=True, has_body=has_body)
        if not has_body:
            self._add(turn)
        elif len(self._waiting_bodies) >= _MAX_QUEUED:
            self._refuse(connection, _too_busy())
        else:
            self._waiting_bodies.append(turn)
            self._admit_bodies()

    def add_resumed(self, connection: Connection, work: Callable[[], object]) -> None:
        """Have a worker go on with a connection, which is never turned away."""
        self._add(_Turn(connection, work, is_new=False))

    def turn_away_late(self) -> None:
        """Refuse those who have waited for too long."""
        now = time.monotonic()
        late = now - self._limits.queue_seconds
        with self._lock:
            turned_away = [turn for turn in self._queue if turn.is_new and turn.queued_at < late]
            for turn in turned_away:
                self._queue.remove(turn)
        for turn in turned_away:
            self._turn_away(turn, _too_busy())
        self._turn_away_bodies(now - self._limits.body_queue_seconds, _too_busy())

    def end(self, error: DevserverError) -> None:
        """Refuse those whose bodies have not been begun with."""
        self._turn_away_bodies(time.monotonic(), error)

    def _turn_away_bodies(self, late: float, error: DevserverError) -> None:
        while self._waiting_bodies and self._waiting_bodies[0].queued_at <= late:
            self._refuse(self._waiting_bodies.popleft().connection, error)

    def _admit_bodies(self) -> None:
        while self._waiting_bodies and self._bodies < self._limits.max_bodies:
            turn = self._waiting_bodies.popleft()
            self._bodies += 1
            try:
                self._receivers.submit(partial(self._work, turn))
            except Busy as error:
                self._turn_away(turn, error)

    def _add(self, turn: _Turn) -> None:
        with self._lock:
            is_full = turn.is_new and len(self._queue) >= _MAX_QUEUED
            if not is_full:
                self._queue.append(turn)
            must_call = self._calls < len(self._queue)
            self._calls += must_call
        if is_full:
            self._turn_away(turn, _too_busy())
        elif must_call:
            self._call_worker(turn)

    def _turn_away(self, turn: _Turn, error: DevserverError) -> None:
        self._end_turn(turn)
        self._refuse(turn.connection, error)

    def _end_turn(self, turn: _Turn) -> None:
        if turn.has_body:
            self._bodies -= 1
            self._thread.loop.call_soon(self._admit_bodies)

    def _call_worker(self, turn: _Turn) -> None:
        try:
            self._workers.submit(self._take_turn)
        except Busy as error:
            with self._lock:
                self._calls -= 1
                is_ours = turn in self._queue
                if is_ours:
                    self._queue.remove(turn)
            if is_ours:
                self._turn_away(turn, error)

    def _take_turn(self) -> None:
        """On a worker's thread."""
        with self._lock:
            self._calls -= 1
            turn = self._queue.popleft() if self._queue else None
        if turn is not None:
            self._work(turn)

    def _work(self, turn: _Turn) -> None:
        connection = turn.connection
        is_good = False
        try:
            connection.socket.settimeout(self._limits.socket_seconds)
            turn.work()
            connection.socket.setblocking(False)
            is_good = True
        finally:
            self._thread.call(self._end_work, turn, is_good)

    def _end_work(self, turn: _Turn, is_good: bool) -> None:
        self._end_turn(turn)
        self._take_back(turn.connection, is_good)


def _too_busy() -> Busy:
    return Busy("all workers are busy; ask again")
