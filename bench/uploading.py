"""How fast new chunks are taken in, and what is there already; what a server takes for that."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.chunks import CHUNKS_OF_A_REQUEST
from bench.measure import Goal, Row, interleave
from bench.moved import Moved, describe_moved, rate_row
from bench.place import GIB, Place, size_text
from bench.processes import PeakMemory
from bench.upload_clients import Uploaded
from bench.upload_floor import Floor
from bench.upload_servers import ChunkServer, UploadServer, cherrypy_uploads, chunk_server_of

_NAME = "uploads"
_REQUEST_BYTES = CHUNKS_OF_A_REQUEST << 23
_GOALS = {1: 0.65, 4: 0.75}
_MEMORY_CLIENTS = 8
_SENT_AGAIN = "devserver, sent again"


def uploads(place: Place) -> Iterator[Row]:
    """New chunks from one client and from four, sent again, beside hashing and writing them."""
    requests = 4 if place.quick else 16
    place.need_disk(8 * requests * _REQUEST_BYTES)
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        server = stack.enter_context(UploadServer(room / "devserver"))
        servers = [
            chunk_server_of(server),
            *stack.enter_context(cherrypy_uploads(room / "cherrypy")),
        ]
        for clients, goal in _GOALS.items():
            yield from _new_chunks(place, room, servers, clients, requests // clients, goal)


def upload_memory(place: Place) -> Iterator[Row]:
    """The server's memory while eight clients upload, and idle."""
    requests = 2 if place.quick else 4
    size = _MEMORY_CLIENTS * requests * _REQUEST_BYTES
    place.need_disk(2 * size)
    idle_bytes: list[int] = []
    peak_bytes: list[int] = []
    runs: list[Moved] = []

    def run() -> None:
        with place.room("upload-memory") as room, UploadServer(room / "devserver") as server:
            idle_bytes.append(server.rss_bytes())
            ours = chunk_server_of(server)
            with (
                ours.clients(_MEMORY_CLIENTS, requests) as clients,
                PeakMemory(server.process) as peak,
            ):
                moved, _ = ours.take_in(clients)
            peak_bytes.append(peak.bytes)
            runs.append(moved)

    interleave({"devserver": run}, place.rounds)
    idle_mb = statistics.median(idle_bytes) / 1e6
    yield Row(
        "upload-memory",
        f"{_MEMORY_CLIENTS} clients upload {size_text(size)} of new chunks: memory at the peak",
        f"idle: {idle_mb:.0f} MB",
        "MB",
        None,
        [each / 1e6 for each in peak_bytes],
        [
            describe_moved("devserver", runs),
            f"over idle: {statistics.median(peak_bytes) / 1e6 - idle_mb:.0f} MB",
        ],
        {"idle_bytes": idle_bytes, "peak_bytes": peak_bytes},
    )


def _new_chunks(
    place: Place,
    room: Path,
    servers: Sequence[ChunkServer],
    clients: int,
    requests: int,
    goal: float,
) -> Iterator[Row]:
    size = clients * requests * _REQUEST_BYTES
    floors = [Floor(), Floor(syncs=False)]
    if clients > 1:
        floors.append(Floor(threads=clients))
    again: list[Moved] = []
    of_clients: dict[str, list[Uploaded]] = {server.name: [] for server in servers}

    def upload(server: ChunkServer) -> Moved:
        with server.clients(clients, requests) as uploaders:
            moved, uploaded = server.take_in(uploaders)
            of_clients[server.name].append(uploaded)
            if server is ours:
                again.append(server.take_in(uploaders)[0])
        server.remove()
        return moved

    ours, *peers = servers
    chunks = clients * requests * CHUNKS_OF_A_REQUEST
    subjects: dict[str, Callable[[], Moved]] = {
        floor.name: partial(floor.run, room / "floor", chunks) for floor in floors
    }
    subjects |= {server.name: partial(upload, server) for server in servers}
    warm_up_rounds = 0 if place.quick else 1
    runs = interleave(subjects, place.rounds, warm_up_rounds=warm_up_rounds)
    runs[_SENT_AGAIN] = again[warm_up_rounds:]
    cost = [each.cpu_seconds / each.bytes for each in of_clients[ours.name][warm_up_rounds:]]
    note = f"the clients: CPU {statistics.median(cost) * GIB:.2f} s/GiB"
    what = (
        f"{clients} client{'s' * (clients > 1)} upload{'s' * (clients == 1)} {size_text(size)} of "
        f"new chunks, 4 x 8 MiB a request"
    )
    row = partial(_row, runs=runs, notes=[note])
    for floor in floors:
        is_judged = floor == Floor()
        yield row(what, floor.description, Goal(">=", goal) if is_judged else None, floor.name)
    for peer in peers:
        yield row(what, peer.description, None, peer.name)
        yield row(what, floors[0].description, None, floors[0].name, ours=peer)
    yield row(
        f"{what}, sent again, as they are there already",
        "sending them for the first time",
        None,
        ours.name,
        ours=_SENT_AGAIN,
    )


def _row(
    what: str,
    against: str,
    goal: Goal | None,
    theirs: str,
    *,
    runs: Mapping[str, Sequence[Moved]],
    notes: Sequence[str],
    ours: ChunkServer | str = "devserver",
) -> Row:
    if isinstance(ours, ChunkServer):
        return rate_row(
            _NAME, f"{ours.description}: {what}", against, goal, ours.name, theirs, runs
        )
    return rate_row(_NAME, what, against, goal, ours, theirs, runs, notes)
