"""Running programs that look at hostile files, within limits."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from artifacts.errors import DevserverError, TimedOut, busy_if_out_of_files, shutting_down
from artifacts.symbols.sessions import close_and_wait, end_session, has_ended, plain_environment

_LAUNCHER = Path(__file__).with_name("limit_and_run.py")
_BLOCK_BYTES = 1 << 16
# Of what it says of its work, the last is kept, for the log.
_KEPT_CHATTER_BYTES = 4096
_CANNOT_RUN = 127
_END_SECONDS = 5


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


class Output(Protocol):
    """What takes what a program prints."""

    def write(self, data: bytes, /) -> object: ...


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
        # Each with whose it is.
        self._running: dict[subprocess.Popen[bytes], object] = {}
        self._is_closed = False

    def run(
        self,
        command: Sequence[str],
        limits: ProgramLimits,
        output: Output | None = None,
        owner: object = None,
    ) -> Ended:
        """Run a program to its end, in a session of its own, with next to no environment.

        Args:
            command: the program's path, and its arguments.
            output: a file for what it prints; without, that is returned. It is written here, not by
                the program: one that does not look whether the disk was full seems to succeed.
            owner: whose it is, for ``end``.

        Raises:
            TimedOut: it took too long, and was ended.
            TooMuchOutput: it printed too much, and was ended.
            CannotRun: it cannot be started.
            OSError: what it prints cannot be written to ``output``.
            Busy: the server is shutting down.
        """
        bounds = (limits.seconds + 1, limits.address_space_bytes, os.getpid())
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), *(str(int(b)) for b in bounds)]
        try:
            with self._started([*launcher, *command], owner) as process:
                ended = _follow(process, command[0], limits, output)
        finally:
            if self._is_closed:
                raise shutting_down()
        if ended.status == _CANNOT_RUN:
            raise CannotRun(f"cannot run {command[0]}: {ended.chatter.strip()}")
        return ended

    def end(self, owner: object) -> None:
        """End what is running for an owner."""
        with self._lock:
            for process, whose in self._running.items():
                if whose == owner:
                    end_session(process)

    def close(self) -> None:
        """End what is running, and run nothing more."""
        with self._lock:
            self._is_closed = True
            for process in self._running:
                end_session(process)

    @contextlib.contextmanager
    def _started(self, command: Sequence[str], owner: object) -> Iterator[subprocess.Popen[bytes]]:
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
            self._running[process] = owner
        try:
            yield process
        finally:
            with self._lock:
                del self._running[process]
                # Under the lock: once it is waited for, its number may be another process's.
                end_session(process)
            close_and_wait(process)


def _follow(
    process: subprocess.Popen[bytes],
    program: str,
    limits: ProgramLimits,
    output: Output | None,
) -> Ended:
    """Read what a program prints, until it has ended; what it has started ends then, too."""
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
    if not has_ended(process, max(0.0, deadline - time.monotonic())):
        raise too_late
    end_session(process)
    status = process.wait(_END_SECONDS)
    return Ended(status, bytes(printed), chatter.decode("utf-8", "replace"))
