"""What it takes to assemble a debug file, now that its symcache is built meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from bench import bare_symcache
from bench.large_debug_files import LargeDebugFile, large_debug_files
from bench.measure import Gap, Row, interleave
from bench.moved import Moved
from bench.place import MIB, Place
from bench.symbol_server import SymbolServer

_NAME = "symcaches"
_OURS, _BARE = "devserver", "symbolic alone"


def symcaches(place: Place) -> Iterator[Row | Gap]:
    """Debug files assembled, with their symcaches, beside building the symcaches and no more."""
    place.need_disk(2000 * MIB)
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        server = stack.enter_context(SymbolServer(room / "devserver"))
        for debug_file in large_debug_files(place, _NAME):
            if isinstance(debug_file, Gap):
                yield debug_file
            else:
                yield _row(place, room, server, debug_file)


def _row(place: Place, room: Path, server: SymbolServer, debug_file: LargeDebugFile) -> Row:
    path, symcache = room / "debug-file", room / "symcache"

    def build() -> Moved:
        path.write_bytes(debug_file.another())
        return bare_symcache.build(path, symcache)

    subjects: dict[str, Callable[[], Moved]] = {
        _OURS: lambda: server.take_in(debug_file.another()),
        _BARE: build,
    }
    # The processes that look into debug files are started by the first one.
    runs = interleave(subjects, place.rounds, warm_up_rounds=1)
    return Row(
        _NAME,
        f"assemble {debug_file.what}, with its symcache: time",
        f"symbolic {version('symbolic')} builds the symcache and writes it: not synced, and the "
        "file not checked",
        "x",
        None,
        [a.seconds / b.seconds for a, b in zip(runs[_OURS], runs[_BARE], strict=True)],
        [
            *(_describe(name, of_name) for name, of_name in runs.items()),
            f"the symcache has {symcache.stat().st_size / 1e6:.1f} MB",
        ],
        {
            "runs": {name: [asdict(run) for run in of_name] for name, of_name in runs.items()},
            "symcache_bytes": symcache.stat().st_size,
        },
    )


def _describe(name: str, runs: Sequence[Moved]) -> str:
    seconds = [run.seconds for run in runs]
    cpu = statistics.median(run.cpu_seconds for run in runs)
    return (
        f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"CPU {cpu:.2f} s"
    )
