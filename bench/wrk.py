"""wrk, which many know, as another client beside our own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.processes import CALL_SECONDS
from bench.programs import program_path

_ANSWERS_PER_SECOND = re.compile(r"Requests/sec:\s*([\d.]+)")
_FAILURES = re.compile(r"Non-2xx|Socket errors: connect [1-9]")
# Each of its threads begins with the first path and takes them by turns.
_BY_TURNS = """\
local requests, turn = {{}}, 0
function init()
  for path in ("{paths}"):gmatch("%S+") do requests[#requests + 1] = wrk.format("GET", path) end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
"""


def answers_per_second(
    directory: Path, port: int, paths: Sequence[str], clients: int, seconds: int
) -> float:
    """Have wrk, which is there, ask for ``paths`` by turns over kept connections.

    Raises:
        RuntimeError: there were other answers than 200.
    """
    script = directory / "by-turns.lua"
    script.write_text(_BY_TURNS.format(paths=" ".join(paths)), encoding="ascii")
    threads = min(clients, os.cpu_count() or 1)
    result = subprocess.run(
        [
            *(str(program_path("wrk")), f"-t{threads}", f"-c{clients}", f"-d{seconds}s"),
            *("-s", str(script), f"http://127.0.0.1:{port}"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=CALL_SECONDS,
    )
    found = _ANSWERS_PER_SECOND.search(result.stdout)
    if found is None or _FAILURES.search(result.stdout):
        raise RuntimeError(f"wrk says: {result.stdout[-300:]}")
    return float(found[1])
