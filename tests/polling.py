"""Looking until something is so, in bounded time."""

from __future__ import annotations

import fcntl
import sys
import termios
import threading
from collections.abc import Callable

import psutil
from running_server import RunningServer

_POLLS = 1200


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return once something is so; fail after a minute."""
    looked = threading.Event()
    for _ in range(_POLLS):
        if is_so():
            return
        looked.wait(0.05)
    raise AssertionError("it did not come to be so")


def clients(server: RunningServer) -> int:
    """How many connections clients have open."""
    return int(server.get("/check_health").json()["apache_client_count"])


def unread_bytes(process: psutil.Process) -> int:
    """How much has been written to a process that it has not read."""
    with open(f"/proc/{process.pid}/fd/0", "rb", buffering=0) as pipe:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
