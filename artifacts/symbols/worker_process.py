"""A process that answers questions about hostile files: it may crash, or be ended when it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from artifacts.errors import Busy, DevserverError, busy_if_out_of_files, shutting_down
from artifacts.symbols.sessions import close_and_wait, end_session, plain_environment
from artifacts.timers import Timers

_PROGRAM = Path(__file__).with_name("debug_file_program.py")
# After which the process is ended if it has not ended itself.
_GRACE_SECONDS = 5
_MAX_ANSWER_BYTES = 64 << 20
_END_SECONDS = 5


class ProcessFailed(DevserverError):
    """The process ended, or was ended, instead of answering; the next question gets another one."""

    code = "process_failed"


class WorkerProcess:
    """Answers questions, one at a time, by ``debug_file_program.py``.

    The process is started when it is needed, and ended when it has not been for a while.
    """

    def __init__(
        self,
        work: str,
        timers: Timers,
        *,
        seconds_a_question: int,
        address_space_bytes: int,
        idle_seconds: float,
    ) -> None:
        """``work``: which of the program's."""
        self._work = work
        self._timers = timers
        self._seconds = seconds_a_question
        self._address_space_bytes = address_space_bytes
        self._idle_seconds = idle_seconds
        # Guards all below but `_is_closed`; held while a question is answered.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._used_at = 0.0
        self._is_closed = False

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a question, as soon as those asked before are answered.

        Raises:
            ProcessFailed: there is none; another try may be of use.
            Busy: the server is shutting down.
        """
        with self._lock:
            if self._is_closed:
                raise shutting_down()
            try:
                process = self._running()
            except OSError as error:
                raise busy_if_out_of_files(error) or Busy(
                    f"no process can be started: {error.strerror}; ask again"
                ) from error
            try:
                answer = self._ask(process, question)
            except (OSError, ValueError) as error:
                raise self._failed(process) from error
            self._used_at = time.monotonic()
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._is_closed = True
        process = self._process
        if process is not None:
            end_session(process)
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            program = [sys.executable, "-P", str(_PROGRAM), self._work]
            limits = [str(self._seconds), str(self._address_space_bytes)]
            self._process = subprocess.Popen(
                [*program, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=plain_environment(),
                # What a terminal tells the server is not for it: it ends with the server.
                start_new_session=True,
            )
            self._look_at(time.monotonic() + self._idle_seconds)
        if self._is_closed:
            # `close` has looked for a process before there was this one.
            self._end()
            raise shutting_down()
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], question: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(question).encode("ascii") + b"\n")
        deadline = time.monotonic() + self._seconds + _GRACE_SECONDS
        line = bytearray()
        # A fifth of what a selector costs, which is made for more than one wait.
        answers = select.poll()
        answers.register(process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not answers.poll(left * 1000):
                raise TimeoutError("no answer comes")
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:
                raise ConnectionError("it has ended")
            line += block
            if len(line) > _MAX_ANSWER_BYTES:
                raise ValueError("the answer does not end")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self, process: subprocess.Popen[bytes]) -> DevserverError:
        """End the process, if it has not ended; return what to tell of it."""
        try:
            status = process.wait(_END_SECONDS)
            reason = f"the process for it ended with status {status}"
        except subprocess.TimeoutExpired:
            status, reason = None, "the process for it does not answer"
        self._end()
        if self._is_closed:
            return shutting_down()
        if status == -signal.SIGALRM:
            reason = f"it took over {self._seconds} s"
        return ProcessFailed(reason)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_session(process)
            close_and_wait(process)

    def _look_at(self, due: float) -> None:
        """Have the process ended at ``due``, of ``time.monotonic()``, if it is idle then."""
        with contextlib.suppress(Busy):
            self._timers.at(due, f"{self._work}-process", self._end_if_idle)

    def _end_if_idle(self) -> None:
        # Who asks just now may take long, and looks after the process in the end.
        if not self._lock.acquire(blocking=False):
            self._look_at(time.monotonic() + self._idle_seconds)
            return
        try:
            if self._process is None:
                return
            due = self._used_at + self._idle_seconds
            if due <= time.monotonic():
                self._end()
            else:
                self._look_at(due)
        finally:
            self._lock.release()
