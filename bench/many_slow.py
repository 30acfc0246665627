"""Many slow clients: what they leave of a server for others, and what they cost it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial

import requests

from bench.measure import Goal, Row, interleave, percentile
from bench.nginx_archive import nginx_archive
from bench.nginx_servers import nginx_static
from bench.objects import BUCKET, Object, make_object
from bench.place import MIB, Place
from bench.probes import LIMIT_SECONDS, PER_SECOND, probe
from bench.processes import Devserver, PeakMemory, allow_open_files
from bench.programs import need, versioned
from bench.slow_clients import Pace, SlowClients, half_sent_heads
from bench.staged_files import stage_files
from bench.web_servers import WebServer, cherrypy_static, web_server_of

_NAME = "slow-clients"
_CLIENTS = 500
_BYTES_PER_SECOND = 200e3
_HALF_SENT = 300
_FILE, _SMALL_FILE = "large.bin", "small.bin"
_DOWNLOADS = 5
_DOWNLOAD_LIMIT_SECONDS = 10.0
_CALLS_OF_PEERS = 2 * PER_SECOND
_HEALTH = "/check_health"
_BAR = "the bar is 100 ms"
_READING = f"{_CLIENTS} clients reading at {_BYTES_PER_SECOND / 1e3:.0f} kB/s each"


@dataclass(frozen=True)
class _Run:
    """One server beside slow clients; times in seconds, memory in bytes.

    Attributes:
        alone, beside: what calls took before there were clients, and beside them.
        cpu_seconds: for ``serving_seconds`` of serving the clients and answering the calls.
    """

    alone: list[float]
    beside: list[float]
    pace: Pace
    cpu_seconds: float
    serving_seconds: float
    idle_bytes: int
    peak_bytes: int

    @property
    def p99_ms(self) -> float:
        return percentile(self.beside, 99) * 1000

    @property
    def over_idle_mb(self) -> float:
        return (self.peak_bytes - self.idle_bytes) / 1e6


@dataclass
class _More:
    """What only a devserver is asked: one value a run, times in seconds."""

    download_alone: list[float] = field(default_factory=list)
    download_beside: list[float] = field(default_factory=list)
    half_sent: list[list[float]] = field(default_factory=list)


def slow_clients(place: Place) -> Iterator[Row]:
    """500 clients at 200 kB/s each, and 300 half-sent requests; others ask meanwhile."""
    need("nginx")
    allow_open_files(8 * _CLIENTS)
    size = 256 * MIB
    place.need_disk(4 * size)
    calls = PER_SECOND * (2 if place.quick else 5)
    more = _More()
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        directory = room / "devserver"
        build = stage_files(directory, {_FILE: size, _SMALL_FILE: 1000})
        files = directory / "data" / "static" / build
        objects = [make_object(room / "objects", f"small/R1-1.0.0/{n}.bin", MIB) for n in range(4)]
        archive = stack.enter_context(nginx_archive(room / "archive", objects))

        def devserver() -> _Run:
            with Devserver(directory, storage_url=archive.url) as server:
                return _run_devserver(server, build, objects, more, calls)

        def cherrypy(threads: int) -> _Run:
            with (
                place.room(_NAME) as directory,
                cherrypy_static(directory / "cherrypy", files, threads=threads) as server,
            ):
                return _run(server, _HEALTH, _CALLS_OF_PEERS)

        def nginx() -> _Run:
            with place.room(_NAME) as directory, nginx_static(directory / "nginx", files) as server:
                return _run(server, server.prefix + _SMALL_FILE, _CALLS_OF_PEERS)

        subjects: dict[str, Callable[[], _Run]] = {
            "devserver": devserver,
            "CherryPy staticdir, 10 threads": partial(cherrypy, 10),
            "CherryPy staticdir, 150 threads": partial(cherrypy, 150),
            f"{versioned('nginx')}, asked for a small file": nginx,
        }
        runs = interleave(subjects, place.rounds, on_disk=False)
    yield from _our_rows(runs["devserver"], more)
    for name, of_name in runs.items():
        if name != "devserver":
            yield from _rows_of_peer(name, of_name)


def _run_devserver(
    server: Devserver, build: str, objects: Sequence[Object], more: _More, calls: int
) -> _Run:
    idle_bytes = server.rss_bytes()
    # What a server does once in its life is not what is measured.
    _download(server, objects)
    more.download_alone.append(_median_download(server, objects))

    def download_beside() -> None:
        try:
            more.download_beside.append(_median_download(server, objects))
        except requests.Timeout:
            more.download_beside.append(_DOWNLOAD_LIMIT_SECONDS)

    run = _run(web_server_of(server, build), _HEALTH, calls, download_beside, idle_bytes)
    with half_sent_heads(server.port, _HALF_SENT):
        more.half_sent.append(probe(server.port, _HEALTH, calls))
    return run


def _run(
    server: WebServer,
    path: str,
    calls: int,
    meanwhile: Callable[[], None] = lambda: None,
    idle_bytes: int | None = None,
) -> _Run:
    """Call ``path`` alone and beside slow clients; beside them, do something else as well."""
    [process] = server.processes
    idle_bytes = server.rss_bytes() if idle_bytes is None else idle_bytes
    alone = probe(server.port, path, PER_SECOND)
    file = server.prefix + _FILE
    with (
        PeakMemory(process) as peak,
        SlowClients(server.port, file, _CLIENTS, _BYTES_PER_SECOND) as clients,
    ):
        cpu_before, begun_at = server.cpu_seconds(), time.monotonic()
        beside = probe(server.port, path, calls)
        cpu_seconds = server.cpu_seconds() - cpu_before
        serving_seconds = time.monotonic() - begun_at
        meanwhile()
        pace = clients.stop()
    return _Run(alone, beside, pace, cpu_seconds, serving_seconds, idle_bytes, peak.bytes)


def _median_download(server: Devserver, objects: Sequence[Object]) -> float:
    return statistics.median(_download(server, objects) for _ in range(_DOWNLOADS))


def _download(server: Devserver, objects: Sequence[Object]) -> float:
    """Have the build of ``objects`` staged, and drop it; return what the first took."""
    name = objects[0].name.rpartition("/")[0]
    query = {"archive_url": f"gs://{BUCKET}/{name}"}
    begun_at = time.monotonic()
    answer = requests.get(f"{server.url}/download", query, timeout=_DOWNLOAD_LIMIT_SECONDS)
    seconds = time.monotonic() - begun_at
    if answer.text != "Success":
        raise RuntimeError(f"/download answered {answer.text!r}")
    server.drop(name)
    return seconds


def _our_rows(runs: Sequence[_Run], more: _More) -> Iterator[Row]:
    raw = {"runs": [asdict(run) for run in runs], **asdict(more)}
    yield Row(
        _NAME,
        f"{_READING}: p99 of {_HEALTH}, 100 a second, each on its own connection",
        _BAR,
        "ms",
        Goal("<=", 20),
        [run.p99_ms for run in runs],
        _notes(runs),
        raw,
    )
    yield Row(
        _NAME,
        f"{_READING}: memory at the peak, over idle",
        "the same server, idle",
        "MB",
        Goal("<=", 60),
        [run.over_idle_mb for run in runs],
        ["staging a small build is in it"],
        raw,
    )
    yield Row(
        _NAME,
        f"{_READING}: time of a new /download of 4 x 1 MiB (median of {_DOWNLOADS})",
        "its time without the clients",
        "x",
        None,
        [a / b for a, b in zip(more.download_beside, more.download_alone, strict=True)],
        [
            f"{statistics.median(more.download_beside) * 1000:.0f} ms beside them "
            f"(given up after {_DOWNLOAD_LIMIT_SECONDS:g} s), "
            f"{statistics.median(more.download_alone) * 1000:.0f} ms without"
        ],
        raw,
    )
    yield Row(
        _NAME,
        f"{_HALF_SENT} half-sent request heads: p99 of {_HEALTH}, 100 a second",
        _BAR,
        "ms",
        Goal("<=", 20),
        [percentile(seconds, 99) * 1000 for seconds in more.half_sent],
        [_unanswered([each for seconds in more.half_sent for each in seconds])],
        raw,
    )


def _rows_of_peer(name: str, runs: Sequence[_Run]) -> Iterator[Row]:
    raw = {"runs": [asdict(run) for run in runs]}
    yield Row(
        _NAME,
        f"{_READING}, of {name}: p99 of calls beside them",
        _BAR,
        "ms",
        None,
        [run.p99_ms for run in runs],
        _notes(runs),
        raw,
    )
    yield Row(
        _NAME,
        f"{_READING}, of {name}: memory at the peak, over idle",
        "the same server, idle",
        "MB",
        None,
        [run.over_idle_mb for run in runs],
        (),
        raw,
    )


def _notes(runs: Sequence[_Run]) -> list[str]:
    alone = statistics.median(percentile(run.alone, 99) * 1000 for run in runs)
    middle = statistics.median(percentile(run.beside, 50) * 1000 for run in runs)
    served = statistics.median(run.pace.served for run in runs)
    least = min(run.pace.least_rate for run in runs)
    cpu = statistics.median(run.cpu_seconds / run.serving_seconds for run in runs)
    return [
        f"p50 {middle:.1f} ms; p99 without the clients {alone:.1f} ms; "
        + _unanswered([seconds for run in runs for seconds in run.beside]),
        f"{served:g} of {_CLIENTS} clients were served, the slowest at {least / 1e3:.0f} kB/s; "
        f"CPU {cpu:.2f} s a second",
    ]


def _unanswered(seconds: Sequence[float]) -> str:
    count = sum(each >= LIMIT_SECONDS for each in seconds)
    return f"{count} of {len(seconds)} calls not answered within {LIMIT_SECONDS:g} s"
