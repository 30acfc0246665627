"""Many machines and one build: what they cost the archive, each other, and the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from urllib.parse import quote

from bench.crowd import Crowd, time_calls
from bench.measure import Goal, Row, Run, describe_runs, interleave, percentile, runs_to_json
from bench.objects import BUCKET, Object, make_object
from bench.place import MIB, Place
from bench.processes import Devserver, PeakMemory, allow_open_files
from bench.shaped_archive import ShapedArchive, shaped_archive
from bench.stage import stage

_MACHINES = 1000
_PROBE_PAUSE_SECONDS = 0.01
_ARRIVAL_PROBES = 100


def one_build(place: Place) -> Iterator[Row]:
    """1,000 machines ask for one build at once."""
    allow_open_files(4 * _MACHINES)  # each machine of the crowd is one here
    size = (50 if place.quick else 200) * MIB
    latencies: dict[str, list[list[float]]] = {"crowd": [], "one": []}
    with ExitStack() as stack:
        room = stack.enter_context(place.room("one-build"))
        files = [
            make_object(room / "objects", f"big/R1-1.0.0/{n}.bin", size // 4) for n in range(4)
        ]
        small = make_object(room / "objects", "small/R1-1.0.0/image.bin", 1000)
        # 32 connections: five seconds for the whole build.
        archive = stack.enter_context(
            shaped_archive(room / "archive", [*files, small], bytes_per_second=1.25e6)
        )
        server = stack.enter_context(Devserver(room / "devserver", storage_url=archive.url))
        stage(server, archive, small)
        subjects = {
            "crowd": partial(_download, server, archive, files, _MACHINES, latencies["crowd"]),
            "one": partial(_download, server, archive, files, 1, latencies["one"]),
        }
        runs = interleave(subjects, place.rounds)
    p99s = [percentile(seconds, 99) for seconds in latencies["crowd"]]
    alone = [seconds[0] for seconds in latencies["one"]]
    what = f"{_MACHINES:,} machines /download one build of {size // MIB} MiB at once"
    raw = {"runs": runs_to_json(runs), "crowd_p99_seconds": p99s, "one_seconds": alone}
    notes = [
        describe_runs(f"{_MACHINES:,} machines", runs["crowd"]),
        describe_runs("one", runs["one"]),
    ]
    yield Row(
        "one-build",
        f"{what}: bytes from the archive for each byte of it",
        "the size of the build",
        "x",
        Goal("<=", 1),
        [run.archive_bytes / size for run in runs["crowd"]],
        notes,
        raw,
    )
    yield Row(
        "one-build",
        f"{what}: p99",
        "one machine's time",
        "x",
        Goal("<=", 1.2),
        [crowd / one for crowd, one in zip(p99s, alone, strict=True)],
        notes,
        raw,
    )


def _download(
    server: Devserver,
    archive: ShapedArchive,
    files: list[Object],
    machines: int,
    latencies: list[list[float]],
) -> Run:
    sent_before, cpu_before = archive.bytes_sent(), server.cpu_seconds()
    begun_at = time.monotonic()
    with Crowd(server.port, _path("/download", files[0]), machines) as crowd:
        latencies.append(crowd.answers())
    seconds, cpu_seconds = time.monotonic() - begun_at, server.cpu_seconds() - cpu_before
    sent = archive.bytes_sent() - sent_before
    server.drop(_build_of(files[0]))
    return Run(seconds, cpu_seconds, sent)


def waiters(place: Place) -> Iterator[Row]:
    """1,000 machines wait in /wait_for_status; others ask for /check_health meanwhile."""
    allow_open_files(4 * _MACHINES)  # each machine of the crowd is one here
    probes = 200 if place.quick else 500
    p99s, p50s, p99s_idle, p99s_arriving = [], [], [], []
    over_idle, over_staging, cpu = [], [], []
    with ExitStack() as stack:
        room = stack.enter_context(place.room("waiters"))
        # It is not to end while it is waited for.
        big = make_object(room / "objects", "big/R1-1.0.0/image.bin", 1000 * MIB, sparse=True)
        archive = stack.enter_context(shaped_archive(room / "archive", [big], bytes_per_second=1e6))
        for _ in range(place.rounds):
            with (
                place.room("waiters-server") as directory,
                Devserver(directory, storage_url=archive.url) as server,
            ):
                idle_bytes = server.rss_bytes()
                p99s_idle.append(percentile(_probe(server, probes), 99) * 1000)
                server.call("/stage", **_query(big), files="*.bin", **{"async": "True"})
                staging_bytes = server.rss_bytes()
                cpu_before = server.cpu_seconds()
                with (
                    PeakMemory(server.process) as peak,
                    Crowd(server.port, _path("/wait_for_status", big), _MACHINES) as crowd,
                ):
                    crowd.send()
                    arriving = _probe(server, _ARRIVAL_PROBES)
                    seconds = _probe(server, probes)
                    cpu.append(server.cpu_seconds() - cpu_before)
                p99s_arriving.append(percentile(arriving, 99) * 1000)
                p50s.append(percentile(seconds, 50) * 1000)
                p99s.append(percentile(seconds, 99) * 1000)
                over_idle.append((peak.bytes - idle_bytes) / 1e6)
                over_staging.append((peak.bytes - staging_bytes) / 1e6)
    what = f"{_MACHINES:,} waiters in /wait_for_status, one build under way"
    raw = {
        "check_health_p50_ms": p50s,
        "check_health_p99_ms": p99s,
        "check_health_p99_ms_idle": p99s_idle,
        "check_health_p99_ms_while_they_arrive": p99s_arriving,
        "over_idle_mb": over_idle,
        "over_staging_mb": over_staging,
        "cpu_seconds": cpu,
        "probes": probes,
    }
    median = partial(percentile, percent=50)
    yield Row(
        "waiters",
        f"{what}: p99 of {probes:,} /check_health, 100 a second, each on its own connection",
        "the bar is 100 ms",
        "ms",
        Goal("<=", 20),
        p99s,
        [
            f"p50 {median(p50s):.1f} ms; p99 without waiters {median(p99s_idle):.1f} ms",
            f"p99 in the second after all have asked at once: {median(p99s_arriving):.1f} ms",
            f"CPU {median(cpu):.2f} s for admitting the waiters and answering the calls",
        ],
        raw,
    )
    yield Row(
        "waiters",
        f"{what}: memory at the peak, over idle",
        "the same server, idle",
        "MB",
        Goal("<=", 60),
        over_idle,
        [f"{median(over_staging):.1f} MB over what it had just when the staging had begun"],
        raw,
    )


def _probe(server: Devserver, probes: int) -> list[float]:
    return time_calls(server.port, "/check_health", probes, _PROBE_PAUSE_SECONDS)


def _build_of(each: Object) -> str:
    return each.name.rpartition("/")[0]


def _query(each: Object) -> dict[str, str]:
    return {"archive_url": f"gs://{BUCKET}/{_build_of(each)}"}


def _path(call: str, each: Object) -> str:
    return f"{call}?archive_url={quote(_query(each)['archive_url'], safe='')}"
