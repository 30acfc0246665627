"""Running programs that look at hostile files, within limits."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from artifacts.errors import DevserverError, TimedOut, busy_if_out_of_files, shutting_down
from artifacts.symbols.worker_process import plain_environment

_LAUNCHER = Path(__file__).with_name("limit_and_run.py")
_BLOCK_BYTES = 1 << 16
# Of what it says of its work, the last is kept, for the log.
_KEPT_CHATTER_BYTES = 4096
_CANNOT_RUN = 127


@dataclass(frozen=True)
class ProgramLimits:
    """What a program may use.

    Attributes:
        seconds: for all of its run; also those of processor time.
        address_space_bytes: of memory.
        output_bytes: that it may print.
    """

    seconds: float
    address_space_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Ended:
    """How a program has ended.

    Attributes:
        status: its exit status; negative for the number of the signal that ended it.
        output: what it has printed; empty if that went to a file.
        chatter: the last of what it has written to its standard error.
    """

    status: int
    output: bytes
    chatter: str


class TooMuchOutput(DevserverError):
    """A program printed more than it may, and was ended."""

    status, code = 502, "too_much_output"


class CannotRun(DevserverError):
    """A program is there, and the system does not run it, or lacks what it needs."""

    status, code = 502, "cannot_run"


class LimitedPrograms:
    """Runs programs; closing it ends those that are running."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both below
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False

    def run(
        self, command: Sequence[str], limits: ProgramLimits, output: IO[bytes] | None = None
    ) -> Ended:
        """Run a program to its end, in a session of its own, with next to no environment.

        Args:
            command: the program's path, and its arguments.
            output: a file for what it prints; without, that is returned. It is written here, not by
                the program: one that does not look whether the disk was full seems to succeed.

        Raises:
            TimedOut: it took too long, and was ended.
            TooMuchOutput: it printed too much, and was ended.
            CannotRun: it cannot be started.
            OSError: what it prints cannot be written to ``output``.
            Busy: the server is shutting down.
        """
        bounds = (limits.seconds + 1, limits.address_space_bytes)
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), *(str(int(b)) for b in bounds)]
        try:
            with self._started([*launcher, *command]) as process:
                ended = _follow(process, command[0], limits, output)
        finally:
            if self._is_closed:
                raise shutting_down()
        if ended.status == _CANNOT_RUN:
            raise CannotRun(f"cannot run {command[0]}: {ended.chatter.strip()}")
        return ended

    def close(self) -> None:
        """End what is running, and run nothing more."""
        with self._lock:
            self._is_closed = True
            running = list(self._running)
        for process in running:
            _kill(process)

    @contextlib.contextmanager
    def _started(self, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._is_closed:
                raise shutting_down()
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env=plain_environment(),
                    start_new_session=True,
                )
            except OSError as error:
                reason = error.strerror or str(error)
                raise busy_if_out_of_files(error) or CannotRun(
                    f"cannot run a program: {reason}"
                ) from error
            self._running.add(process)
        try:
            with process:
                try:
                    yield process
                finally:
                    # What it may have started itself ends with it.
                    _kill(process)
        finally:
            with self._lock:
                self._running.discard(process)


def _follow(
    process: subprocess.Popen[bytes],
    program: str,
    limits: ProgramLimits,
    output: IO[bytes] | None,
) -> Ended:
    """Read what a program prints, until it has ended."""
    printed, chatter = bytearray(), bytearray()
    printed_bytes = 0
    deadline = time.monotonic() + limits.seconds
    name = Path(program).name
    too_late = TimedOut(f"{name} took over {limits.seconds:g} s, and was ended")
    with selectors.DefaultSelector() as selector:
        for pipe in filter(None, (process.stdout, process.stderr)):
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0 or not (ready := selector.select(left)):
                raise too_late
            for key, _ in ready:
                block = os.read(key.fd, _BLOCK_BYTES)
                if not block:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    printed_bytes += len(block)
                    if output is None:
                        printed += block
                    else:
                        output.write(block)
                else:
                    chatter = (chatter + block)[-_KEPT_CHATTER_BYTES:]
            if printed_bytes > limits.output_bytes:
                raise TooMuchOutput(
                    f"{name} printed over {limits.output_bytes:,} bytes, and was ended"
                )
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise too_late from None
    return Ended(status, bytes(printed), chatter.decode("utf-8", "replace"))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all of its session; it is the first of its group."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
