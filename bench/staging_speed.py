"""How fast a build is staged: from a fast archive, and from one that is far away."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from bench.measure import Goal, Row, Run, describe_runs, interleave, runs_to_json, times_as_fast
from bench.nginx_archive import NginxArchive, nginx_archive, nginx_path, nginx_version
from bench.objects import BUCKET, Object, make_object
from bench.place import GIB, MIB, Place, Unmeasured
from bench.processes import REPOSITORY, Devserver, run_once, wait_until
from bench.shaped_archive import ShapedArchive, shaped_archive

_FAR_BYTES_PER_SECOND = 20e6
_CALL_SECONDS = 120


def fast_archive(place: Place) -> Iterator[Row]:
    """One large file from nginx on loopback, its page cache warm: devserver, curl, Google's."""
    if nginx_path() is None or shutil.which("curl") is None:
        raise Unmeasured("needs nginx and curl")
    size = GIB // 4 if place.quick else GIB
    place.need_disk(4 * size)
    with ExitStack() as stack:
        room = stack.enter_context(place.room("fast-archive"))
        big = make_object(room / "objects", "big/R1-1.0.0/image.bin", size)
        small = make_object(room / "objects", "small/R1-1.0.0/image.bin", MIB)
        archive = stack.enter_context(nginx_archive(room / "nginx", [big, small]))
        server = stack.enter_context(Devserver(room / "devserver", storage_url=archive.url))
        stage(server, archive, small)
        subjects: dict[str, Callable[[], Run]] = {
            "devserver": lambda: stage(server, archive, big),
            "curl": lambda: _curl(archive, big, room / "curl.bin"),
            "google-cloud-storage": lambda: _google(archive, big, room / "google.bin"),
        }
        runs = interleave(subjects, place.rounds, warm_up_rounds=2)
    what = f"stage {_size(size)}, fast archive ({nginx_version()}), verified, durable"
    raw = {"runs": runs_to_json(runs), "size": size}
    ours = describe_runs("devserver", runs["devserver"])
    google = f"google-cloud-storage {version('google-cloud-storage')}"
    for peer, against, goal in (
        ("curl", f"{_curl_version()} -o: not verified, not synced", Goal(">=", 2.5, "x")),
        (
            "google-cloud-storage",
            f"{google} download_to_filename: verified, not synced",
            Goal(">=", 4, "x"),
        ),
    ):
        values = times_as_fast(runs["devserver"], runs[peer])
        notes = [ours, describe_runs(peer, runs[peer])]
        yield Row("fast-archive", what, against, goal, values, notes, raw)


def far_archive(place: Place) -> Iterator[Row]:
    """One file from an archive with 50 ms round trips and 20 MB/s a connection."""
    size = (40 if place.quick else 160) * MIB
    place.need_disk(8 * size)
    with ExitStack() as stack:
        room = stack.enter_context(place.room("far-archive"))
        big = make_object(room / "objects", "big/R1-1.0.0/image.bin", size)
        runs = _run_far(
            stack, room, place, [big], {n: ("--connections", str(n)) for n in (1, 8, 16)}
        )
    what = f"stage {_size(size)}, 50 ms, 20 MB/s a connection"
    raw = {"runs": runs_to_json(runs), "size": size}
    for count, goal in (8, Goal(">=", 5, "x")), (16, Goal(">=", 8, "x")):
        values = times_as_fast(runs[count], runs[1])
        notes = [describe_runs(f"--connections {n}", runs[n]) for n in (count, 1)]
        yield Row(
            "far-archive",
            f"{what}, {count} connections",
            "one connection",
            goal,
            values,
            notes,
            raw,
        )


def many_files(place: Place) -> Iterator[Row]:
    """Many small files from the far archive."""
    count = 50 if place.quick else 200
    with ExitStack() as stack:
        room = stack.enter_context(place.room("many-files"))
        files = [
            make_object(room / "objects", f"many/R1-1.0.0/{n:03}.bin", MIB) for n in range(count)
        ]
        limits = {n: ("--max-connections", str(n)) for n in (1, 64)}
        runs = _run_far(stack, room, place, files, limits)
    values = times_as_fast(runs[64], runs[1])
    notes = [describe_runs("64 connections", runs[64]), describe_runs("one after another", runs[1])]
    yield Row(
        "many-files",
        f"stage {count} x 1 MiB, 50 ms, 20 MB/s a connection, 64 connections in all",
        "one after another (--max-connections 1)",
        Goal(">=", 20, "x"),
        values,
        notes,
        {"runs": runs_to_json(runs), "count": count},
    )


def _run_far(
    stack: ExitStack,
    room: Path,
    place: Place,
    objects: list[Object],
    options: dict[int, tuple[str, ...]],
) -> dict[int, list[Run]]:
    """Stage the objects, which are of one build, by servers that differ in their options."""
    small = make_object(room / "objects", "small/R1-1.0.0/image.bin", 1000)
    archive = stack.enter_context(
        shaped_archive(room / "archive", [*objects, small], bytes_per_second=_FAR_BYTES_PER_SECOND)
    )
    subjects: dict[int, Callable[[], Run]] = {}
    for key, more in options.items():
        directory = room / f"devserver-{key}"
        server = stack.enter_context(Devserver(directory, *more, storage_url=archive.url))
        # What a server does once in its life is not what is measured.
        stage(server, archive, small)
        subjects[key] = partial(stage, server, archive, *objects)
    runs = interleave({str(key): run for key, run in subjects.items()}, place.rounds)
    return {int(key): of_key for key, of_key in runs.items()}


def stage(server: Devserver, archive: NginxArchive | ShapedArchive, *objects: Object) -> Run:
    """Stage objects of one build by one call of /stage, and drop them again."""
    target, build, _ = objects[0].name.split("/")
    query = {"archive_url": f"gs://{BUCKET}/{target}/{build}", "files": "*.bin"}
    sent_before, cpu_before = archive.bytes_sent(), server.cpu_seconds()
    begun_at = time.monotonic()
    answer = server.call("/stage", **query)
    seconds, cpu_seconds = time.monotonic() - begun_at, server.cpu_seconds() - cpu_before
    staged = server.static_directory / objects[0].name
    if answer != "Success" or staged.stat().st_size != objects[0].size:
        raise RuntimeError(f"/stage answered {answer!r}")
    sent = _bytes_sent_since(archive, sent_before, sum(each.size for each in objects))
    server.drop(f"{target}/{build}")
    return Run(seconds, cpu_seconds, sent)


def _curl(archive: NginxArchive, each: Object, path: Path) -> Run:
    sent_before = archive.bytes_sent()
    command = ["curl", "--silent", "--fail", "-o", str(path), archive.media_url(each)]
    seconds, cpu_seconds = run_once(command)
    return _peer_run(archive, each, path, Run(seconds, cpu_seconds, sent_before))


def _google(archive: NginxArchive, each: Object, path: Path) -> Run:
    sent_before = archive.bytes_sent()
    result = subprocess.run(
        [sys.executable, "-m", "bench.google_download", archive.url, BUCKET, each.name, str(path)],
        capture_output=True,
        check=True,
        timeout=_CALL_SECONDS,
        cwd=REPOSITORY,
    )
    measured = json.loads(result.stdout)
    return _peer_run(
        archive, each, path, Run(measured["seconds"], measured["cpu_seconds"], sent_before)
    )


def _peer_run(archive: NginxArchive, each: Object, path: Path, run: Run) -> Run:
    """Check and remove what a peer has downloaded; ``archive_bytes`` were sent before it began."""
    if path.stat().st_size != each.size:
        raise RuntimeError(f"{path} has {path.stat().st_size} bytes")
    path.unlink()
    return replace(run, archive_bytes=_bytes_sent_since(archive, run.archive_bytes, each.size))


def _bytes_sent_since(
    archive: NginxArchive | ShapedArchive, sent_before: int, expected: int
) -> int:
    """Return what was sent since; nginx notes an answer a moment after its last byte."""
    with suppress(TimeoutError):
        wait_until(lambda: archive.bytes_sent() - sent_before >= expected, seconds=2)
    return archive.bytes_sent() - sent_before


def _size(size: int) -> str:
    return f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"


def _curl_version() -> str:
    result = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True)
    return " ".join(result.stdout.split()[:2])
