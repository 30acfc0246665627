"""The floor of building a symcache: symbolic does it, and nothing else is done.

``python -m bench.bare_symcache DEBUG_FILE TO`` does so in a process of its own; ``build`` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from symbolic.debuginfo import Archive

from bench.moved import Moved
from bench.processes import CALL_SECONDS, REPOSITORY


def build(debug_file: Path, to: Path) -> Moved:
    """Write the symcache of a debug file that has one object; starting Python does not count."""
    command = [sys.executable, "-m", "bench.bare_symcache", str(debug_file), str(to)]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, timeout=CALL_SECONDS, cwd=REPOSITORY
    )
    return Moved(**json.loads(result.stdout))


def main() -> None:
    debug_file, to = map(Path, sys.argv[1:])
    before, begun_at = os.times(), time.monotonic()
    [found] = Archive.open(str(debug_file)).iter_objects()
    symcache = found.make_symcache()
    with to.open("wb") as file:
        symcache.dump_into(file)
    seconds, after = time.monotonic() - begun_at, os.times()
    cpu_seconds = after.user + after.system - before.user - before.system
    size = debug_file.stat().st_size
    print(json.dumps({"bytes": size, "seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main()
