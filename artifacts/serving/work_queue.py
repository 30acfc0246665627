"""The work queue: connections whose requests wait for a worker, though not for long."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from artifacts.errors import Busy, DevserverError
from artifacts.serving.connection import Connection
from artifacts.serving.loop_thread import LoopThread
from artifacts.workers import Workers

# So many requests may wait; those beyond are turned away at once.
_MAX_QUEUED = 2000
Refuse = Callable[[Connection, DevserverError], None]


@dataclass(eq=False)
class _Turn:
    """A connection's turn with a worker."""

    connection: Connection
    work: Callable[[], object]
    is_new: bool
    queued_at: float = field(default_factory=time.monotonic)


class WorkQueue:
    """Hands connections to workers, and back; for the loop's own thread."""

    def __init__(
        self,
        thread: LoopThread,
        workers: Workers,
        queue_seconds: float,
        socket_seconds: float,
        take_back: Callable[[Connection, bool], None],
        refuse: Refuse,
    ) -> None:
        """Make an empty queue.

        Args:
            thread: the loop's.
            workers: what does the work.
            queue_seconds: for which a request may wait for a worker.
            socket_seconds: for which a worker waits for a client's next bytes.
            take_back: takes a connection after work, on the loop's thread, with whether it is
                still good.
            refuse: answers one for which there is no worker.
        """
        self._thread = thread
        self._workers = workers
        self._queue_seconds = queue_seconds
        self._socket_seconds = socket_seconds
        self._take_back = take_back
        self._refuse = refuse
        # Guards the two below. Whoever takes a turn off the queue is the one who sees to it.
        self._lock = threading.Lock()
        self._queue: deque[_Turn] = deque()
        self._calls = 0  # of workers that are to come for a turn; no fewer than there are turns

    def add(self, connection: Connection, work: Callable[[], object], *, is_new: bool) -> None:
        """Have a worker work on a connection; one that is not new is never turned away."""
        turn = _Turn(connection, work, is_new)
        with self._lock:
            is_full = is_new and len(self._queue) >= _MAX_QUEUED
            if not is_full:
                self._queue.append(turn)
            must_call = self._calls < len(self._queue)
            self._calls += must_call
        if is_full:
            self._turn_away(turn)
        elif must_call:
            self._call_worker(turn)

    def turn_away_late(self) -> None:
        """Refuse those who have waited for too long."""
        late = time.monotonic() - self._queue_seconds
        with self._lock:
            if not self._queue or self._queue[0].queued_at >= late:
                return
            turned_away = [turn for turn in self._queue if turn.is_new and turn.queued_at < late]
            kept = [turn for turn in self._queue if not turn.is_new or turn.queued_at >= late]
            self._queue = deque(kept)
        for turn in turned_away:
            self._turn_away(turn)

    def _turn_away(self, turn: _Turn, error: DevserverError | None = None) -> None:
        self._refuse(turn.connection, error or Busy("all workers are busy; ask again"))

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
            connection.socket.settimeout(self._socket_seconds)
            turn.work()
            connection.socket.setblocking(False)
            is_good = True
        finally:
            self._thread.call(self._take_back, connection, is_good)
