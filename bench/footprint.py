"""What a server takes: memory while it stages, memory and processes when idle, time to start."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from artifacts.manifest import Item, ItemRecord, ItemState, Manifest, StagedFile
from bench.autotest_tree import TreeSize, pack_zeros
from bench.measure import Gap, Goal, Row, Run, describe_runs, interleave, runs_to_json
from bench.nginx_archive import nginx_archive
from bench.objects import BUCKET, make_object, object_of_file
from bench.place import GIB, Place, Unmeasured
from bench.processes import Devserver, PeakMemory
from bench.programs import need, versioned
from bench.stage import UNPACKING_CATALOG, stage, stage_unpacked

_FREE_DISK_BYTES = 25e9
# So fast as can be, with the usual window.
_PACKERS = {
    "tar.xz": ("xz", "--stdout", "-T0", "--lzma2=preset=0,dict=8MiB"),
    "tar.zst": ("zstd", "--quiet", "--stdout", "-T0"),
}
_BUILDS = 10_000
_FILES_OF_A_BUILD = 5


def memory(place: Place) -> Iterator[Row | Gap]:
    """The server's memory while it stages 10 GiB, and while it unpacks 4 GiB."""
    need("nginx")
    yield _staging(place)
    for suffix, packer in _PACKERS.items():
        size = (1 if place.quick else 4) * GIB
        what = f"memory while staging and unpacking {size // GIB} GiB of zeros, {suffix}"
        try:
            need(packer[0])
            yield _unpacking(place, what, size, suffix, packer)
        except Unmeasured as error:
            yield Gap("memory", what, str(error))


def _staging(place: Place) -> Row:
    size = 10 * GIB
    what = "memory while staging"
    if place.quick or place.free_bytes() < _FREE_DISK_BYTES:
        size = 2 * GIB
        what += f" (10 GiB need {_FREE_DISK_BYTES / 1e9:.0f} GB of free disk)" * (not place.quick)
    place.need_disk(size + GIB)
    with ExitStack() as stack:
        room = stack.enter_context(place.room("memory"))
        big = make_object(room / "objects", "big/R1-1.0.0/image.bin", size, sparse=True)
        archive = stack.enter_context(nginx_archive(room / "nginx", [big]))
        server = stack.enter_context(Devserver(room / "devserver", storage_url=archive.url))
        idle_bytes = server.rss_bytes()
        with PeakMemory(server.process) as peak:
            run = stage(server, archive, big)
    return _row(
        f"{what} {size // GIB} GiB, one file of zeros, fast archive ({versioned('nginx')})",
        size,
        idle_bytes,
        peak.bytes,
        run,
    )


def _unpacking(place: Place, what: str, size: int, suffix: str, packer: Sequence[str]) -> Row:
    place.need_disk(2 * size)
    with ExitStack() as stack:
        room = stack.enter_context(place.room("memory"))
        path = room / "packed"
        pack_zeros(path, size, packer)
        packed = object_of_file(path, f"zeros/R1-1.0.0/autotest.{suffix}")
        archive = stack.enter_context(nginx_archive(room / "nginx", [packed]))
        server = stack.enter_context(
            Devserver(room / "devserver", storage_url=archive.url, catalog=UNPACKING_CATALOG)
        )
        idle_bytes = server.rss_bytes()
        with PeakMemory(server.process) as peak:
            run = stage_unpacked(server, archive, packed, TreeSize(files=1, bytes=size))
    return _row(f"{what}, fast archive ({versioned('nginx')})", size, idle_bytes, peak.bytes, run)


def _row(what: str, size: int, idle_bytes: int, peak_bytes: int, run: Run) -> Row:
    return Row(
        "memory",
        what,
        f"idle: {idle_bytes / 1e6:.0f} MB",
        "MB",
        Goal("<=", 150),
        [peak_bytes / 1e6],
        [describe_runs("devserver", [run])],
        {"size": size, "idle_bytes": idle_bytes, "peak_bytes": peak_bytes, "seconds": run.seconds},
    )


def idle(place: Place) -> Iterator[Row]:
    """The server when idle, and its start with many builds staged."""
    builds = _BUILDS // 10 if place.quick else _BUILDS
    rss: list[float] = []
    processes: list[int] = []
    with ExitStack() as stack:
        room = stack.enter_context(place.room("idle"))
        empty, full = room / "empty", room / "full"
        _make_staged_builds(full / "data" / "static", builds)

        def start(directory: Path) -> Run:
            with Devserver(directory) as server:
                rss.append(server.rss_bytes() / 1e6)
                processes.append(server.process_count())
                return Run(server.start_seconds, server.cpu_seconds(), 0)

        runs = interleave(
            {"full": lambda: start(full), "empty": lambda: start(empty)}, place.rounds
        )
    raw = {"runs": runs_to_json(runs), "rss_mb": rss, "processes": processes, "builds": builds}
    yield Row(
        "idle",
        f"idle, just started: memory of {statistics.median(processes):g} process",
        "itself",
        "MB",
        Goal("<=", 100),
        rss,
        [f"processes: {max(processes)} (goal 1)"],
        raw,
    )
    yield Row(
        "idle",
        f"start with {builds:,} staged builds of {_FILES_OF_A_BUILD} files: so much later",
        "start with none",
        "s",
        Goal("<=", 0.5),
        [a.seconds - b.seconds for a, b in zip(runs["full"], runs["empty"], strict=True)],
        [describe_runs(f"{builds:,} builds", runs["full"]), describe_runs("none", runs["empty"])],
        raw,
    )


def _make_staged_builds(static_directory: Path, count: int) -> None:
    """Write what a server that staged ``count`` builds would have left, as fast as can be."""
    item = Item.artifact("everything")
    names = [f"{number}.bin" for number in range(_FILES_OF_A_BUILD)]
    content = b"bench"
    for number in range(count):
        target, build = f"target-{number % 100}-release", f"R{number // 100}-{number}.0.0"
        manifest = Manifest(f"gs://{BUCKET}/{target}/{build}")
        manifest.files.update((name, StagedFile(len(content), 0, None, name)) for name in names)
        manifest.items[item] = ItemRecord(
            ItemState.STAGED, tuple(names), (), len(content) * len(names)
        )
        records = static_directory / ".devserver" / "builds" / target / build
        files = static_directory / target / build
        for directory in (records, files):
            directory.mkdir(parents=True)
        (records / "manifest.json").write_bytes(manifest.to_json())
        (records / "staged.timestamp").touch()
        for name in names:
            (files / name).write_bytes(content)
