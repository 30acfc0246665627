"""Inspecting debug files, in a process of their own that may crash, or be ended when it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.blobs.assembly import Refused
from artifacts.errors import Busy, DevserverError, shutting_down
from artifacts.timers import Timers

_PROGRAM = Path(__file__).with_name("inspect_file.py")
_SECONDS_A_FILE = 60
# After which the process is ended if it has not ended itself.
_GRACE_SECONDS = 5
# Files are mapped, and may have two GiB.
_ADDRESS_SPACE_BYTES = 4 << 30
_IDLE_SECONDS = 60.0
_MAX_ANSWER_BYTES = 1 << 20
_END_SECONDS = 5
_MAX_CODE_ID_CHARACTERS = 255
# What Python needs to find its libraries. The rest of the server's environment, such as the keys of
# its storage, is nothing for a process that hostile files may take over.
_ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "PYTHONHOME", "PYTHONPATH"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
)
_NO_DEBUG_ID = "00000000-0000-0000-0000-000000000000"


class InspectionFailed(DevserverError):
    """The process that looked at a file ended, or was ended; the next file gets another one."""

    code = "inspection_failed"


@dataclass(frozen=True)
class DebugObject:
    """What a debug file has for one architecture.

    Attributes:
        debug_id: in lower case, as in 8fd7dd32-7311-a6f8-bad5-0bd4bd2d4843, with -AGE at its end
            where it has one.
        code_id: in lower case; None where there is none.
        format: elf, macho, pe, pdb, breakpad, sourcebundle, …
        kind: exe, lib, dump, dbg, src, rel, other or none.
        features: out of symtab, debug, unwind and sources.
    """

    debug_id: str
    code_id: str | None
    format: str
    kind: str
    architecture: str
    features: tuple[str, ...]


class Inspector:
    """Tells what is in debug files, one at a time.

    Its process is started when it is needed, and ended when it has not been for a minute.
    """

    def __init__(
        self,
        timers: Timers,
        *,
        seconds_a_file: int = _SECONDS_A_FILE,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._timers = timers
        self._seconds_a_file = seconds_a_file
        self._idle_seconds = idle_seconds
        # Guards all below but `_is_closed`; held while a file is looked at.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._used_at = 0.0
        self._is_closed = False

    def inspect(self, path: Path) -> tuple[DebugObject, ...]:
        """Return what is in a file, at least one object.

        Raises:
            Refused: it is no debug file.
            InspectionFailed: it could not be looked at; another try may be of use.
            Busy: the server is shutting down.
        """
        with self._lock:
            if self._is_closed:
                raise shutting_down()
            process = self._running()
            try:
                answer = self._ask(process, path)
            except (OSError, ValueError) as error:
                raise self._failed(process) from error
            self._used_at = time.monotonic()
        return _objects_of(answer)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            program = [sys.executable, "-P", str(_PROGRAM)]
            limits = [str(self._seconds_a_file), str(_ADDRESS_SPACE_BYTES)]
            self._process = subprocess.Popen(
                [*program, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                # What a terminal tells the server is not for it: it ends with the server.
                start_new_session=True,
            )
            self._look_at(time.monotonic() + self._idle_seconds)
        if self._is_closed:
            # `close` has looked for a process before there was this one.
            self._end()
            raise shutting_down()
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], path: Path) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(str(path)).encode("ascii") + b"\n")
        deadline = time.monotonic() + self._seconds_a_file + _GRACE_SECONDS
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
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
            reason = f"the process that opened it ended with status {status}"
        except subprocess.TimeoutExpired:
            status, reason = None, "the process that opened it does not answer"
        self._end()
        if self._is_closed:
            return shutting_down()
        if status == -signal.SIGALRM:
            reason = f"opening it took over {self._seconds_a_file} s"
        return InspectionFailed(f"the file could not be inspected: {reason}")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            # Closes its pipes, too.
            process.communicate()

    def _look_at(self, due: float) -> None:
        """Have the process ended at ``due``, of ``time.monotonic()``, if it is idle then."""
        with contextlib.suppress(Busy):
            self._timers.at(due, "inspection", self._end_if_idle)

    def _end_if_idle(self) -> None:
        with self._lock:
            if self._process is None:
                return
            due = self._used_at + self._idle_seconds
            if due <= time.monotonic():
                self._end()
            else:
                self._look_at(due)


def _objects_of(answer: dict[str, Any]) -> tuple[DebugObject, ...]:
    if "refusal" in answer:
        raise Refused(f"not a debug file: {answer['refusal']}")
    found = []
    for entry in answer["objects"]:
        code_id = entry["code_id"]
        # It is the file's own text, of any length; one that is cut would be another one.
        is_usable = code_id is not None and len(code_id) <= _MAX_CODE_ID_CHARACTERS
        if entry["debug_id"] != _NO_DEBUG_ID:
            found.append(
                DebugObject(
                    entry["debug_id"],
                    code_id if is_usable else None,
                    entry["format"],
                    entry["kind"],
                    entry["architecture"],
                    tuple(entry["features"]),
                )
            )
    if not found:
        raise Refused("not a debug file: nothing in it has a debug id")
    return tuple(found)
