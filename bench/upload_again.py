"""Uploading what is there already, with sentry-cli: how little of it travels."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from bench.debug_file import debug_file
from bench.measure import Goal, Row, interleave
from bench.place import MIB, Place, Unmeasured, size_text
from bench.processes import CALL_SECONDS
from bench.upload_servers import ORGANIZATION, UploadServer

_NAME = "upload-again"
_SENTRY_CLI = Path(sys.executable).with_name("sentry-cli")


@dataclass(frozen=True)
class _Run:
    """One run of sentry-cli; ``requests``: methods and paths, as the server has logged them."""

    seconds: float
    requests: list[str]

    @property
    def chunk_requests(self) -> int:
        return sum(each.startswith("POST ") and "/chunk-upload/" in each for each in self.requests)


def upload_again(place: Place) -> Iterator[Row]:
    """A debug file that is there already, uploaded by sentry-cli: requests, chunks and time."""
    if not _SENTRY_CLI.exists():
        raise Unmeasured("needs sentry-cli (pip install --editable '.[bench]')")
    size = (16 if place.quick else 128) * MIB
    place.need_disk(16 * size)
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        server = stack.enter_context(UploadServer(room / "devserver"))
        path = room / "program"

        def upload_new() -> _Run:
            server.remove_blobs()
            path.write_bytes(debug_file(size))
            os.sync()
            return _upload(server, path)

        subjects = {"new": upload_new, "again": lambda: _upload(server, path)}
        runs = interleave(subjects, place.rounds)
    again = runs["again"]
    raw = {"runs": {name: [asdict(run) for run in of_name] for name, of_name in runs.items()}}
    what = (
        f"sentry-cli {version('sentry-cli')} uploads a debug file of {size_text(size)} that is "
        "there already"
    )
    yield Row(
        _NAME,
        f"{what}: requests",
        f"a new one: {len(runs['new'][0].requests)}",
        "requests",
        Goal("<=", 2),
        [len(run.requests) for run in again],
        [f"they were {', '.join(again[0].requests)}"],
        raw,
    )
    yield Row(
        _NAME,
        f"{what}: requests with chunks",
        f"a new one: {runs['new'][0].chunk_requests}",
        "requests",
        Goal("<=", 0),
        [run.chunk_requests for run in again],
        [],
        raw,
    )
    yield Row(
        _NAME,
        f"{what}: time, with --wait",
        "a new one",
        "x",
        None,
        [b.seconds / a.seconds for a, b in zip(runs["new"], again, strict=True)],
        [
            f"{name}: {min(run.seconds for run in of_name):.2f} to "
            f"{max(run.seconds for run in of_name):.2f} s"
            for name, of_name in runs.items()
        ],
        raw,
    )


def _upload(server: UploadServer, path: Path) -> _Run:
    logged_before = server.log.stat().st_size
    begun_at = time.monotonic()
    result = subprocess.run(
        [
            *(str(_SENTRY_CLI), "--url", server.url, "--auth-token", server.token),
            *("debug-files", "upload", "--org", ORGANIZATION, "--project", "devices", "--wait"),
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        env={"PATH": os.environ["PATH"], "HOME": str(path.parent)},
    )
    seconds = time.monotonic() - begun_at
    if result.returncode:
        raise RuntimeError(f"sentry-cli failed: {(result.stdout + result.stderr)[-500:]}")
    return _Run(seconds, server.requests_since(logged_before))
