"""A build of files for /static, left on the disk by a devserver that staged it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.processes import Devserver

_BUILD = "files/R1-1.0.0"
_BLOCK_BYTES = 1 << 20


def stage_files(directory: Path, sizes: Mapping[str, int]) -> str:
    """Have a devserver with its directories below ``directory`` stage random files, and end.

    ``sizes``: in bytes, by the files' names. Returned is the build's name.
    """
    origin = directory / "origin"
    build = origin / _BUILD
    build.mkdir(parents=True)
    for name, size in sizes.items():
        with (build / name).open("wb") as file:
            for offset in range(0, size, _BLOCK_BYTES):
                file.write(os.urandom(min(_BLOCK_BYTES, size - offset)))
    with Devserver(directory, "--allow-archive", f"file://{origin}") as server:
        server.call("/stage", archive_url=f"file://{build}", files="*")
    shutil.rmtree(origin)
    return _BUILD
