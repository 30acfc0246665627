"""Calls at a steady pace, each on its own connection, whether or not those before are answered.

``python -m bench.probes PORT PATH COUNT`` is the process that makes them, so that what else the
benchmark does does not delay them; ``probe`` runs it.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from bench.processes import CALL_SECONDS, REPOSITORY

PER_SECOND = 100
# Who has not been answered by then is not any more, and counts with this.
LIMIT_SECONDS = 2.0


def probe(port: int, path: str, count: int) -> list[float]:
    """Call ``path`` ``PER_SECOND`` times a second; return what each call took, in seconds.

    Raises:
        RuntimeError: one was answered otherwise than by 200.
    """
    command = [sys.executable, "-m", "bench.probes", str(port), path, str(count)]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=CALL_SECONDS, cwd=REPOSITORY
    )
    if result.returncode:
        raise RuntimeError(f"calls of {path} failed")
    seconds: list[float] = json.loads(result.stdout)
    return seconds


@dataclass
class _Call:
    socket: socket.socket
    due_at: float
    received: bytes = b""


def _probe(port: int, request: bytes, count: int) -> list[float]:
    selector = selectors.DefaultSelector()
    calls: dict[int, _Call] = {}
    seconds: list[float] = []
    begun_at = time.monotonic()
    begun = 0
    while len(seconds) < count:
        now = time.monotonic()
        while begun < count and begun_at + begun / PER_SECOND <= now:
            connection = socket.socket()
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect(("127.0.0.1", port))
            # A call that could not be made in time has been waiting since.
            calls[connection.fileno()] = _Call(connection, begun_at + begun / PER_SECOND)
            selector.register(connection, selectors.EVENT_WRITE)
            begun += 1
        next_at = begun_at + begun / PER_SECOND if begun < count else now + LIMIT_SECONDS
        if calls:
            oldest = next(iter(calls.values()))
            next_at = min(next_at, oldest.due_at + LIMIT_SECONDS)
        for key, events in selector.select(max(0.0, next_at - now)):
            call = calls[key.fd]
            if events & selectors.EVENT_WRITE:
                call.socket.send(request)
                selector.modify(call.socket, selectors.EVENT_READ)
            elif block := call.socket.recv(65536):
                call.received += block
            else:
                if not call.received.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"a call was answered {call.received[:200]!r}")
                seconds.append(time.monotonic() - call.due_at)
                _end(selector, calls, key.fd)
        now = time.monotonic()
        for descriptor, call in list(calls.items()):
            if now - call.due_at < LIMIT_SECONDS:
                break
            seconds.append(LIMIT_SECONDS)
            _end(selector, calls, descriptor)
    return seconds


def _end(selector: selectors.BaseSelector, calls: dict[int, _Call], descriptor: int) -> None:
    call = calls.pop(descriptor)
    selector.unregister(call.socket)
    call.socket.close()


def main() -> None:
    port, path, count = sys.argv[1:]
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    print(json.dumps(_probe(int(port), request.encode("ascii"), int(count))))


if __name__ == "__main__":
    main()
