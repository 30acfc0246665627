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
    """A connection's turn with a worker: taken by one, or given up when none is free for long."""

    connection: Connection
    work: Callable[[], object]
    queued_at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    is_taken: bool = False

    def take(self) -> bool:
        """Whether the caller is the first."""
        with self._lock:
            was_taken, self.is_taken = self.is_taken, True
            return not was_taken


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
        self._queue: deque[_Turn] = deque()

    def add(self, connection: Connection, work: Callable[[], object], *, is_new: bool) -> None:
        """Have a worker work on a connection; one that is not new is never turned away."""
        turn = _Turn(connection, work)
        if is_new:
            self._forget_taken()
            if len(self._queue) >= _MAX_QUEUED:
                self._turn_away(turn)
                return
            self._queue.append(turn)
        try:
            self._workers.submit(lambda: self._work(turn))
        except Busy as error:
            self._turn_away(turn, error)

    def turn_away_late(self) -> None:
        """Refuse those who have waited for too long."""
        late = time.monotonic() - self._queue_seconds
        self._forget_taken()
        while self._queue and self._queue[0].queued_at < late:
            self._turn_away(self._queue.popleft())
            self._forget_taken()

    def _forget_taken(self) -> None:
        while self._queue and self._queue[0].is_taken:
            self._queue.popleft()

    def _turn_away(self, turn: _Turn, error: DevserverError | None = None) -> None:
        if turn.take():
            self._refuse(turn.connection, error or Busy("all workers are busy; ask again"))

    def _work(self, turn: _Turn) -> None:
        """On a worker's thread."""
        if not turn.take():
            return
        connection = turn.connection
        is_good = False
        try:
            connection.socket.settimeout(self._socket_seconds)
            turn.work()
            connection.socket.setblocking(False)
            is_good = True
        finally:
            self._thread.call(self._take_back, connection, is_good)
