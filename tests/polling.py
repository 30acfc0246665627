"""Looking until something is so, in bounded time."""

from __future__ import annotations

import threading
from collections.abc import Callable

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
