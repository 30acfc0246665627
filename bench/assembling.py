"""How fast files are assembled from chunks that are there: one of a build, and a debug file."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from artifacts.blobs.limits import CHUNK_BYTES
from bench.chunks import checksum_of, cut, make_chunks
from bench.debug_file import debug_file
from bench.measure import Goal, Row, interleave
from bench.moved import Moved, rate_row
from bench.place import MIB, Place, size_text
from bench.processes import CALL_SECONDS
from bench.upload_floor import Floor
from bench.upload_servers import ORGANIZATION, UploadServer

_NAME = "assembling"
_DEBUG_FILES = f"/api/0/projects/{ORGANIZATION}/devices/files/difs/assemble/"
_ASKING_SECONDS = 0.02
# What assembling writes need not be there after a crash: judged by the faster floor.
_JUDGED = Floor(syncs=False, one_file=True)


def assembling(place: Place) -> Iterator[Row]:
    """A build's file and a debug file of new chunks, beside hashing and writing one file."""
    chunks = 16 if place.quick else 64
    place.need_disk(8 * chunks * CHUNK_BYTES)
    size = chunks * CHUNK_BYTES
    debug_bytes = (64 if place.quick else 300) * MIB
    floors = (_JUDGED, Floor(one_file=True))
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        server = stack.enter_context(UploadServer(room / "devserver"))
        build, dif = "devserver, a build's file", "devserver, a debug file"
        subjects: dict[str, Callable[[], Moved]] = {
            floor.name: partial(floor.run, room / "floor", chunks) for floor in floors
        }
        subjects[build] = lambda: _assemble(server, _new_build(), make_chunks(chunks))
        subjects[dif] = lambda: _assemble(server, _DEBUG_FILES, cut(debug_file(debug_bytes)))
        warm_up_rounds = 0 if place.quick else 1
        runs = interleave(subjects, place.rounds, warm_up_rounds=warm_up_rounds)
    for ours, what in (
        (build, f"assemble {size_text(size)} of {chunks} chunks, a build's file"),
        (dif, f"assemble {size_text(debug_bytes)}, a debug file, looked into by symbolic"),
    ):
        for floor in floors:
            goal = Goal(">=", 0.8) if floor == _JUDGED else None
            yield rate_row(_NAME, what, floor.description, goal, ours, floor.name, runs)


def _new_build() -> str:
    build = f"bench/R1-{uuid.uuid4().hex}"
    return f"/api/0/projects/{ORGANIZATION}/builds/builds/{build}/assemble/"


def _assemble(server: UploadServer, path: str, chunks: list[bytes]) -> Moved:
    """Have chunks stored, and then assembled: what counts is from asking for that until it is."""
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
    server.remove_blobs()
    return Moved(size, seconds, cpu_seconds)


def _ask(server: UploadServer, path: str, body: bytes, checksum: str) -> Any:
    return json.loads(server.post(path, body))[checksum]
