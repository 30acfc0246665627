"""What is asked for without being staged: from a devserver, and from a cache before the archive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.objects import BUCKET, Object
from bench.processes import Devserver
from bench.stage import Archive, stage

BUILD, FILE = "big/R1-1.0.0", "image.bin"


@contextmanager
def on_demand(directory: Path, archive: Archive, small: Object) -> Iterator[tuple[Devserver, int]]:
    """A devserver that stages what it is asked for, and its memory in bytes when it had started.

    It has staged ``small`` once: what a server does once in its life is not what is measured.
    """
    root = ("--archive-root", f"gs://{BUCKET}")
    with Devserver(directory / "devserver", *root, storage_url=archive.url) as server:
        idle_bytes = server.rss_bytes()
        stage(server, archive, small)
        yield server, idle_bytes


def prefix_of(each: Object) -> str:
    """What is before the file's name in its path at the archive, and at a cache before that."""
    return each.media_path.removesuffix(FILE)
