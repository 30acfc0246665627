"""The first look-up in a symcache: who is asked has not opened it, or is not even running."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path

from bench.large_debug_files import LargeDebugFile
from bench.look_up_layers import (
    KeptConnection,
    Reader,
    path_of,
    running_timers,
    symbolic_alone,
)
from bench.measure import Goal, Row, interleave
from bench.place import Place
from bench.symbol_server import SymbolServer
from bench.timed import time_each, timed_row

_NAME = "look-ups"
_ALONE, _RUNNING, _NOT_RUNNING = "symbolic alone", "reader is running", "reader is not running"
_GOAL = Goal("<=", 5)
_HEALTH = "/check_health"


def first_of_symcache(
    place: Place, directory: Path, what: str, symcache: Path, addresses: Sequence[int]
) -> Iterator[Row]:
    """Time the first look-up in a symcache, by its reader, which runs or does not; no HTTP."""
    directory.mkdir()
    names, wanted = itertools.count(), itertools.cycle(addresses)
    openings = 5 if place.quick else 20

    def new_name() -> Path:
        # Whoever has it open under another name does not know it under this one.
        path = directory / str(next(names))
        os.link(symcache, path)
        return path

    with ExitStack() as stack:
        timers = stack.enter_context(running_timers())
        reader = stack.enter_context(Reader(timers))
        reader.look_up(symcache, addresses[:1])

        def ask_new_reader() -> float:
            with Reader(timers) as new:
                [seconds] = time_each([partial(new.look_up, new_name(), [next(wanted)])])
            return seconds

        subjects: dict[str, Callable[[], float]] = {
            _ALONE: lambda: _median(
                [partial(_ask_alone, new_name(), next(wanted)) for _ in range(openings)]
            ),
            _RUNNING: lambda: _median(
                [partial(reader.look_up, new_name(), [next(wanted)]) for _ in range(openings)]
            ),
            _NOT_RUNNING: ask_new_reader,
        }
        runs = interleave(subjects, place.rounds, warm_up_rounds=1, on_disk=False)
    milliseconds = {name: [each * 1000 for each in of_name] for name, of_name in runs.items()}
    against = f"symbolic {version('symbolic')} opens it in the process that asks"
    for name, goal in ((_RUNNING, _GOAL), (_NOT_RUNNING, None)):
        yield timed_row(
            _NAME,
            f"{what}: the first look-up in it, by the process that reads symcaches; {name}",
            *(against, "ms", goal, milliseconds[name], milliseconds[_ALONE]),
        )


def first_of_server(
    place: Place,
    directory: Path,
    what: str,
    debug_file: LargeDebugFile,
    addresses: Sequence[int],
) -> Iterator[Row]:
    """Time the first look-up over HTTP: of a server that was started, and of a file that came."""
    started, came, second = [], [], []
    wanted = itertools.cycle(addresses)
    for _ in range(place.rounds):
        with SymbolServer(directory) as server, KeptConnection(server.port) as connection:

            def time_look_up(connection: KeptConnection = connection) -> float:
                path = path_of(debug_file.debug_id, [next(wanted)])
                [seconds] = time_each([lambda: connection.get(path)])
                return seconds * 1000

            connection.get(_HEALTH)
            started.append(time_look_up())
            server.take_in(debug_file.another())
            came.append(time_look_up())
            second.append(time_look_up())
    against = "the second look-up there"
    for values, when, goal in (
        (came, "of a file that has just come; reader is running", _GOAL),
        (started, "of a server that has just started; reader is not running", None),
    ):
        name = f"{what}: the first look-up over HTTP, {when}"
        yield timed_row(_NAME, name, against, "ms", goal, values, second)


def _median(calls: Sequence[Callable[[], object]]) -> float:
    return statistics.median(time_each(calls))


def _ask_alone(symcache: Path, address: int) -> None:
    symbolic_alone(symcache)([address])
