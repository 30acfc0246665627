"""How fast files are assembled from chunks that are there: one of a build, and a debug file."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from artifacts.blobs.limits import CHUNK_BYTES
from bench.assembled import assemble
from bench.chunks import cut, make_chunks
from bench.debug_file import debug_file
from bench.measure import Goal, Row, interleave
from bench.moved import Moved, rate_row
from bench.place import MIB, Place, size_text
from bench.symbol_server import DEBUG_FILES_PATH
from bench.upload_floor import Floor
from bench.upload_servers import ORGANIZATION, UploadServer

_NAME = "assembling"
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
        subjects[dif] = lambda: _assemble(server, DEBUG_FILES_PATH, cut(debug_file(debug_bytes)))
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
    try:
        return assemble(server, path, chunks)
    finally:
        server.remove_blobs()
