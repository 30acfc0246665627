"""Staging by a devserver, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.autotest_tree import TreeSize, size_of_tree
from bench.measure import Run
from bench.nginx_archive import NginxArchive
from bench.objects import BUCKET, Object
from bench.processes import Devserver, wait_until
from bench.shaped_archive import ShapedArchive

Archive = NginxArchive | ShapedArchive
# With this catalog a devserver unpacks what `stage_unpacked` asks for.
UNPACKING_CATALOG = Path(__file__).with_name("unpacking.toml")


def stage(server: Devserver, archive: Archive, *objects: Object) -> Run:
    """Stage objects of one build by one call of /stage, and drop them again."""

    def is_there(build: Path) -> bool:
        return (build / Path(objects[0].name).name).stat().st_size == objects[0].size

    return _stage(server, archive, objects, ("files", "*.bin"), is_there)


def stage_unpacked(server: Devserver, archive: Archive, each: Object, size: TreeSize) -> Run:
    """Stage and unpack an object by one call of /stage, and drop it again.

    ``server`` has the catalog ``UNPACKING_CATALOG``; ``size`` is what has to be there afterwards.
    """

    def is_there(build: Path) -> bool:
        return size_of_tree(build) == size

    return _stage(server, archive, [each], ("artifacts", "autotest"), is_there)


def bytes_sent_since(archive: Archive, sent_before: int, expected: int) -> int:
    """Return what was sent since; nginx notes an answer a moment after its last byte."""
    with suppress(TimeoutError):
        wait_until(lambda: archive.bytes_sent() - sent_before >= expected, seconds=2)
    return archive.bytes_sent() - sent_before


def _stage(
    server: Devserver,
    archive: Archive,
    objects: Sequence[Object],
    wish: tuple[str, str],
    is_there: Callable[[Path], bool],
) -> Run:
    name = objects[0].name.rpartition("/")[0]
    query = {"archive_url": f"gs://{BUCKET}/{name}", wish[0]: wish[1]}
    sent_before, cpu_before = archive.bytes_sent(), server.cpu_seconds()
    begun_at = time.monotonic()
    answer = server.call("/stage", **query)
    seconds, cpu_seconds = time.monotonic() - begun_at, server.cpu_seconds() - cpu_before
    if answer != "Success" or not is_there(server.static_directory / name):
        raise RuntimeError(f"/stage answered {answer!r}, and not all is there")
    sent = bytes_sent_since(archive, sent_before, sum(each.size for each in objects))
    server.drop(name)
    return Run(seconds, cpu_seconds, sent)
