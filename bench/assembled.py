"""Having files assembled of chunks, as clients do: by asking until it is done."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from bench.chunks import checksum_of
from bench.moved import Moved
from bench.processes import CALL_SECONDS
from bench.upload_servers import UploadServer

_ASKING_SECONDS = 0.02


def assemble(server: UploadServer, path: str, chunks: list[bytes]) -> Moved:
    """Have chunks stored, and then assembled: what counts is from asking for that until it is.

    Args:
        path: the call for that kind of files.
        chunks: taken out of memory before it counts.
    """
    server.upload(chunks)
    checksum = checksum_of(chunks)
    offer = {"name": "program", "chunks": [checksum_of([chunk]) for chunk in chunks]}
    body = json.dumps({checksum: offer}).encode("ascii")
    size = sum(map(len, chunks))
    chunks.clear()
    os.sync()
    cpu_before, begun_at = server.cpu_seconds(), time.monotonic()
    pause = threading.Event()
    while (answer := _ask(server, path, body, checksum))["state"] == "assembling":
        if time.monotonic() - begun_at > CALL_SECONDS:
            raise TimeoutError(f"not assembled after {CALL_SECONDS} s")
        pause.wait(_ASKING_SECONDS)
    seconds, cpu_seconds = time.monotonic() - begun_at, server.cpu_seconds() - cpu_before
    if answer["state"] != "ok":
        raise RuntimeError(f"assembling was answered {answer}")
    return Moved(size, seconds, cpu_seconds)


def _ask(server: UploadServer, path: str, body: bytes, checksum: str) -> Any:
    return json.loads(server.post(path, body))[checksum]
