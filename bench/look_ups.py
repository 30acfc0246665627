"""How fast addresses are looked up in symcaches: open ones, and those that nobody has read yet."""

from __future__ import annotations

import random
import statistics
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from bench.first_look_ups import first_of_server, first_of_symcache
from bench.large_debug_files import LargeDebugFile, large_debug_files
from bench.look_up_layers import (
    Found,
    KeptConnection,
    LookUp,
    Reader,
    all_but_http,
    found_in,
    path_of,
    running_timers,
    symbolic_alone,
)
from bench.measure import Gap, Goal, Row, interleave, percentile
from bench.place import MIB, Place
from bench.symbol_server import SymbolServer
from bench.timed import time_each, timed_row

_NAME = "look-ups"
_ADDRESSES = 10_000
_MANY = 100
_SEED = 20
_HEALTH = "/check_health"
_ALONE, _READER, _INSIDE, _HTTP = "symbolic alone", "reader", "inside", "HTTP"
_READER_GOAL, _HTTP_GOAL = Goal("<=", 50), Goal("<=", 1000)


def look_ups(place: Place) -> Iterator[Row | Gap]:
    """Addresses looked up in symcaches, by layer and over HTTP, beside symbolic alone."""
    place.need_disk(3000 * MIB)
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        for debug_file in large_debug_files(place, _NAME):
            if isinstance(debug_file, Gap):
                yield debug_file
            else:
                yield from _of_debug_file(place, room / uuid.uuid4().hex, debug_file)


def _of_debug_file(place: Place, room: Path, debug_file: LargeDebugFile) -> Iterator[Row]:
    with SymbolServer(room / "devserver") as server:
        server.take_in(debug_file.content)
        symcache = server.symcache_of(debug_file.content)
        addresses = _addresses_in(symcache, debug_file.top)
        what = f"{debug_file.what}, symcache of {symcache.stat().st_size / 1e6:.1f} MB"
        costs: list[float] = []
        runs = _time_open(place, room, server, debug_file, addresses, costs)
        yield from _rows(what, runs, costs[-place.rounds :])
        yield from first_of_symcache(place, room / "linked", what, symcache, addresses)
    yield from first_of_server(place, room / "devserver", what, debug_file, addresses)


def _addresses_in(symcache: Path, top: int) -> list[int]:
    """Return addresses at which there is something, the same in every run."""
    look_up, numbers = symbolic_alone(symcache), random.Random(_SEED)
    found: list[int] = []
    while len(found) < _ADDRESSES:
        drawn = [numbers.randrange(top) for _ in range(_ADDRESSES)]
        found += [a for a, frames in zip(drawn, look_up(drawn), strict=True) if frames]
    return found[:_ADDRESSES]


def _time_open(
    place: Place,
    room: Path,
    server: SymbolServer,
    debug_file: LargeDebugFile,
    addresses: Sequence[int],
    costs: list[float],
) -> dict[str, list[list[float]]]:
    """Time look-ups in a symcache that all who are asked have open, of one address and of many.

    Returns, by who was asked and of how much, what each request took, of each round. What a request
    of one address over HTTP takes of the server, in CPU seconds, is added to ``costs``.
    """
    symcache = server.symcache_of(debug_file.content)
    with ExitStack() as stack:
        timers = stack.enter_context(running_timers())
        reader = stack.enter_context(Reader(timers))
        inside = stack.enter_context(all_but_http(server.data_directory, debug_file.debug_id, room))
        connection = stack.enter_context(KeptConnection(server.port))
        layers: dict[str, LookUp] = {
            _ALONE: symbolic_alone(symcache),
            _READER: partial(reader.look_up, symcache),
            _INSIDE: inside,
            _HTTP: lambda some: found_in(connection.get(path_of(debug_file.debug_id, some))),
        }
        _check_that_they_agree(layers, addresses[:_MANY])
        one = [[address] for address in addresses]
        many = [list(addresses[at : at + _MANY]) for at in range(0, len(addresses), _MANY)]
        requests = 200 if place.quick else 1000
        subjects: dict[str, Callable[[], list[float]]] = {
            _HEALTH: lambda: time_each([lambda: connection.get(_HEALTH)] * requests)
        }
        for name, look_up in layers.items():
            for count, wanted in ((1, one[:requests]), (_MANY, many[: requests // 10])):
                if name == _HTTP:
                    # What counts is that all of the answer is there, not to parse it.
                    paths = [path_of(debug_file.debug_id, some) for some in wanted]
                    calls: list[Callable[[], object]] = [partial(connection.get, p) for p in paths]
                else:
                    calls = [partial(look_up, some) for some in wanted]
                subjects[_key(name, count)] = partial(time_each, calls)
        asking = subjects[_key(_HTTP, 1)]

        def ask_and_count() -> list[float]:
            before = server.cpu_seconds()
            seconds = asking()
            costs.append((server.cpu_seconds() - before) / len(seconds))
            return seconds

        subjects[_key(_HTTP, 1)] = ask_and_count
        return interleave(subjects, place.rounds, warm_up_rounds=1, on_disk=False)


def _check_that_they_agree(layers: dict[str, LookUp], addresses: Sequence[int]) -> None:
    found: dict[str, Found] = {name: look_up(addresses) for name, look_up in layers.items()}
    for name, of_name in found.items():
        if of_name != found[_ALONE]:
            raise RuntimeError(f"{name} finds other functions than symbolic alone")


def _key(name: str, count: int) -> str:
    return f"{name}, {count} address" + "es" * (count > 1)


def _rows(
    what: str, runs: Mapping[str, Sequence[list[float]]], costs: Sequence[float]
) -> Iterator[Row]:
    alone = f"symbolic {version('symbolic')} in the process that asks"
    for name, how, count, goal in (
        (_READER, "by the process that reads symcaches", 1, _READER_GOAL),
        (_READER, "by the process that reads symcaches", _MANY, _READER_GOAL),
        (_INSIDE, "as the server does it, without HTTP", 1, _HTTP_GOAL),
        (_INSIDE, "as the server does it, without HTTP", _MANY, None),
        (_HTTP, "over HTTP", 1, _HTTP_GOAL),
        (_HTTP, "over HTTP", _MANY, None),
    ):
        asked = "an address" if count == 1 else f"each of {count} addresses of a request"
        ours, theirs = runs[_key(name, count)], runs[_key(_ALONE, count)]
        yield _row(f"{what}, open: {asked}, {how}", alone, goal, ours, theirs, count, 50)
    health = f"{_HEALTH} on the same connection"
    ours, theirs = runs[_key(_HTTP, 1)], runs[_HEALTH]
    row = _row(f"{what}, open: an address, over HTTP", health, None, ours, theirs, 1, 50)
    cpu = f"CPU of the server: {statistics.median(costs) * 1e6:.0f} µs a request"
    yield replace(row, notes=[cpu], raw={**row.raw, "cpu_seconds_a_request": list(costs)})
    what = f"{what}, open: an address, over HTTP, p99"
    yield _row(what, f"{health}, p99", None, ours, theirs, 1, 99)


def _row(
    what: str,
    against: str,
    goal: Goal | None,
    ours: Sequence[list[float]],
    theirs: Sequence[list[float]],
    addresses: int,
    percent: float,
) -> Row:
    """Compare what so many percent of the requests took at most, for each of their addresses."""
    values = [percentile(seconds, percent) * 1e6 / addresses for seconds in ours]
    peer = [percentile(seconds, percent) * 1e6 / addresses for seconds in theirs]
    return timed_row(_NAME, what, against, "µs", goal, values, peer)
