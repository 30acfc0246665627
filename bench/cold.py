"""A file that nobody has staged, asked for by many clients at once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from bench.fast_clients import Fetched, fetch
from bench.measure import Goal, Row, interleave
from bench.nginx_archive import NginxArchive, nginx_archive
from bench.nginx_servers import nginx_slices, nginx_static
from bench.objects import Object, make_object
from bench.on_demand import BUILD, FILE, on_demand, prefix_of
from bench.place import Place
from bench.processes import PeakMemory
from bench.programs import need, versioned
from bench.stage import bytes_sent_since
from bench.web_servers import WebServer, web_server_of

_NAME = "cold"
_CLIENTS = 60
_NGINX, _SLICES = "nginx", "nginx slices"


@dataclass(frozen=True)
class _Cold:
    """Clients that asked at once for a file that nobody had staged."""

    fetched: Fetched
    archive_bytes: int
    idle_bytes: int
    peak_bytes: int
    cpu_seconds: float


def cold(place: Place) -> Iterator[Row]:
    """60 clients at once of a file that nobody has staged, beside nginx as a cache of slices."""
    need("nginx")
    size = 64_000_000 if place.quick else 256_000_000
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        big = make_object(room / "objects", f"{BUILD}/{FILE}", size)
        small = make_object(room / "objects", "small/R1-1.0.0/image.bin", 1000)
        archive = stack.enter_context(nginx_archive(room / "archive", [big, small]))
        nginx = stack.enter_context(nginx_static(room / "nginx", big.path.parent))

        def devserver() -> _Cold:
            with (
                place.room(_NAME) as directory,
                on_demand(directory, archive, small) as (server, idle_bytes),
            ):
                return _fetch_cold(web_server_of(server, BUILD), archive, big, idle_bytes)

        def slices() -> _Cold:
            with (
                place.room(_NAME) as directory,
                nginx_slices(directory / "nginx", archive.url, prefix_of(big)) as server,
            ):
                return _fetch_cold(server, archive, big, server.rss_bytes())

        subjects: dict[str, Callable[[], _Cold]] = {
            "devserver": devserver,
            _NGINX: lambda: _fetch_cold(nginx, archive, big, nginx.rss_bytes()),
            _SLICES: slices,
        }
        runs = interleave(subjects, place.rounds, on_disk=False)
    yield from _rows_of_cold(size, runs)


def _fetch_cold(server: WebServer, archive: NginxArchive, big: Object, idle_bytes: int) -> _Cold:
    sent_before, cpu_before = archive.bytes_sent(), server.cpu_seconds()
    with PeakMemory(server.processes[0]) as peak:
        fetched = fetch(server.port, server.paths([FILE]), _CLIENTS, times=1)
    cpu_seconds = server.cpu_seconds() - cpu_before
    if fetched.bytes != _CLIENTS * big.size or fetched.cuts or fetched.refusals:
        raise RuntimeError(f"{server.name} did not give all clients the whole file")
    sent = bytes_sent_since(archive, sent_before, big.size if server.name != _NGINX else 0)
    return _Cold(fetched, sent, idle_bytes, peak.bytes, cpu_seconds)


def _rows_of_cold(size: int, runs: Mapping[str, Sequence[_Cold]]) -> Iterator[Row]:
    raw = {name: [asdict(run) for run in of_name] for name, of_name in runs.items()}
    what = f"{_CLIENTS} clients at once, a cold file of {size / 1e6:.0f} MB"
    notes = [_describe(name, of_name) for name, of_name in runs.items()]
    against = f"{versioned('nginx')} that has the file"
    yield Row(
        _NAME,
        f"{what}: wall time",
        against,
        "x",
        Goal("<=", 1.1),
        _times_as_long(runs["devserver"], runs[_NGINX]),
        notes,
        raw,
    )
    yield Row(
        _NAME,
        f"{what}, of nginx as a cache of 8 MiB slices: wall time",
        against,
        "x",
        None,
        _times_as_long(runs[_SLICES], runs[_NGINX]),
        (),
        raw,
    )
    yield Row(
        _NAME,
        f"{what}: memory at the peak, over idle",
        "the same server, just started",
        "MB",
        Goal("<=", 60),
        [(run.peak_bytes - run.idle_bytes) / 1e6 for run in runs["devserver"]],
        (),
        raw,
    )
    yield Row(
        _NAME,
        f"{what}: bytes from the archive for each byte of it",
        "its size",
        "x",
        Goal("<=", 1),
        [run.archive_bytes / size for run in runs["devserver"]],
        [f"{_SLICES}: {statistics.median(run.archive_bytes / size for run in runs[_SLICES]):.2f}"],
        raw,
    )


def _times_as_long(subject: Sequence[_Cold], peer: Sequence[_Cold]) -> list[float]:
    return [a.fetched.seconds / b.fetched.seconds for a, b in zip(subject, peer, strict=True)]


def _describe(name: str, runs: Sequence[_Cold]) -> str:
    seconds = [run.fetched.seconds for run in runs]
    first = statistics.median(statistics.median(run.fetched.first_byte_seconds) for run in runs)
    over_idle = max(run.peak_bytes - run.idle_bytes for run in runs) / 1e6
    return (
        f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"first byte {first:.3f} s (median of clients), "
        f"CPU {statistics.median(run.cpu_seconds for run in runs):.2f} s, "
        f"memory +{over_idle:.0f} MB"
    )
