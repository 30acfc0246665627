"""How fast a build is published and staged again, beside copying its file. For information."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.chunks import make_chunks
from bench.measure import Row, interleave
from bench.moved import Moved, rate_row
from bench.place import Place, size_text
from bench.processes import CALL_SECONDS, REPOSITORY, run_once
from bench.programs import need, versioned
from bench.upload_servers import UploadServer

_NAME = "publish"
_FILE = "image.bin"
_COPY = "cp"


def publish(place: Place) -> Iterator[Row]:
    """1 GiB, published by ``devserver publish`` and staged from ``store://``, beside cp."""
    need("cp")
    chunks = 16 if place.quick else 128
    published: list[Moved] = []
    staged: list[Moved] = []
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        server = stack.enter_context(UploadServer(room / "devserver"))
        path, copy = room / _FILE, room / "copy"
        size = chunks * (8 << 20)
        place.need_disk(6 * size)

        def publish_and_stage() -> Moved:
            build = f"bench/R1-{len(published)}.0.0"
            _write_new(path, chunks)
            published.append(_publish(server, build, path))
            staged.append(_stage(server, build, size))
            server.remove_blobs()
            both = published[-1], staged[-1]
            return Moved(
                size, sum(each.seconds for each in both), sum(each.cpu_seconds for each in both)
            )

        def copy_file() -> Moved:
            seconds, cpu_seconds = run_once(["cp", "--reflink=never", str(path), str(copy)])
            copy.unlink()
            return Moved(size, seconds, cpu_seconds)

        # The first round also does what a server does once in its life.
        runs = interleave(
            {"both": publish_and_stage, _COPY: copy_file}, place.rounds, warm_up_rounds=1
        )
    runs["publish"], runs["stage"] = published[1:], staged[1:]
    against = f"{versioned('cp')}: neither verified nor synced"
    for ours, what in (
        ("publish", f"devserver publish of {size_text(size)}, nothing of which is there"),
        ("stage", f"/download of {size_text(size)} from store://"),
        ("both", f"devserver publish of {size_text(size)}, then /download from store://"),
    ):
        yield rate_row(_NAME, what, against, None, ours, _COPY, runs)


def _write_new(path: Path, chunks: int) -> None:
    with path.open("wb") as file:
        for chunk in make_chunks(chunks):
            file.write(chunk)


def _publish(server: UploadServer, build: str, path: Path) -> Moved:
    command = [sys.executable, str(REPOSITORY / "devserver.py"), "publish", build, str(path)]
    options = ["--server", server.url, "--token", server.token]
    cpu_before, begun_at = server.cpu_seconds(), time.monotonic()
    result = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=CALL_SECONDS
    )
    seconds, cpu_seconds = time.monotonic() - begun_at, server.cpu_seconds() - cpu_before
    if result.returncode:
        raise RuntimeError(f"devserver publish failed: {result.stderr[-500:]}")
    return Moved(path.stat().st_size, seconds, cpu_seconds)


def _stage(server: UploadServer, build: str, size: int) -> Moved:
    cpu_before, begun_at = server.cpu_seconds(), time.monotonic()
    answer = server.call("/download", archive_url=f"store://{build}")
    seconds, cpu_seconds = time.monotonic() - begun_at, server.cpu_seconds() - cpu_before
    staged = server.static_directory / build / _FILE
    if answer != "Success" or staged.stat().st_size != size:
        raise RuntimeError(f"/download answered {answer!r}, and not all is there")
    server.drop(build)
    return Moved(size, seconds, cpu_seconds)
