"""A build of files for /static, staged by the devserver that is measured."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.processes import Devserver

_BUILD = "files/R1-1.0.0"
_BLOCK_BYTES = 1 << 20


def devserver_with_files(
    directory: Path, sizes: Mapping[str, int], *options: str, storage_url: str | None = None
) -> tuple[Devserver, str]:
    """Start a devserver, and have it stage a build of random files; return it, and the build.

    ``sizes``: in bytes, by the files' names.
    """
    origin = directory / "origin"
    build = origin / _BUILD
    build.mkdir(parents=True)
    for name, size in sizes.items():
        with (build / name).open("wb") as file:
            for offset in range(0, size, _BLOCK_BYTES):
                file.write(os.urandom(min(_BLOCK_BYTES, size - offset)))
    server = Devserver(
        *(directory, "--allow-archive", f"file://{origin}", "--allow-archive", "gs://"),
        *options,
        storage_url=storage_url,
    )
    try:
        server.call("/stage", archive_url=f"file://{build}", files="*")
    except BaseException:
        server.stop()
        raise
    shutil.rmtree(origin)
    return server, _BUILD
