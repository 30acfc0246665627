"""What web servers are asked for by many clients, and what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from bench.fast_clients import Fetched, fetch
from bench.measure import Goal, Row, interleave
from bench.place import GIB, Place, size_text
from bench.web_servers import WebServer

CLIENTS = (1, 16, 128)
MOST_CLIENTS = CLIENTS[-1]
_SMALL_FILES = [f"small-{number:03}.bin" for number in range(256)]
_LARGE_FILE = "large.bin"
_SMALL_BYTES = 64 << 10


@dataclass(frozen=True)
class Load:
    """One kind of files, as clients ask for them.

    Attributes:
        what: devserver does, for the table.
        rate_of: what counts, by the second.
        unit, scale: of that rate, for notes.
    """

    what: str
    names: Sequence[str]
    rate_of: Callable[[Fetched], float]
    unit: str
    scale: float


@dataclass(frozen=True)
class ServingRun:
    """What clients got of one server in a while, and what it took for that."""

    fetched: Fetched
    cpu_seconds: float
    rss_bytes: int


def large_file(place: Place) -> Load:
    return Load(
        what=f"serve a file of {size_text(_large_bytes(place))}",
        names=[_LARGE_FILE],
        rate_of=lambda fetched: fetched.bytes / fetched.seconds,
        unit="GB/s",
        scale=1e9,
    )


def small_files() -> Load:
    return Load(
        what=f"serve files of 64 KiB ({len(_SMALL_FILES)} by turns, kept connections)",
        names=_SMALL_FILES,
        rate_of=lambda fetched: fetched.answers / fetched.seconds,
        unit="answers/s",
        scale=1,
    )


def sizes_of_files(place: Place) -> dict[str, int]:
    """Return the files of both loads, with their sizes in bytes."""
    return dict.fromkeys(_SMALL_FILES, _SMALL_BYTES) | {_LARGE_FILE: _large_bytes(place)}


def _large_bytes(place: Place) -> int:
    return GIB // 4 if place.quick else GIB


def compare(
    place: Place, load: Load, clients: int, servers: Sequence[WebServer]
) -> dict[str, list[ServingRun]]:
    """Have clients fetch from each of ``servers`` in turn; return the runs by their names."""
    seconds = 0.3 if place.quick else 1.5
    subjects = {each.name: partial(_run, each, load.names, clients, seconds) for each in servers}
    return interleave(subjects, place.rounds, on_disk=False)


def to_clients(load: Load, clients: int) -> str:
    return f"{load.what} to {clients} client{'s' * (clients > 1)}"


def warm_up(servers: Sequence[WebServer], sizes: Mapping[str, int]) -> None:
    """Have all that will be asked for in the page cache, and in that of a cache."""
    for server in servers:
        fetch(server.port, server.paths(list(sizes)), 1, times=len(sizes))


def _run(server: WebServer, names: Sequence[str], clients: int, seconds: float) -> ServingRun:
    cpu_before = server.cpu_seconds()
    fetched = fetch(server.port, server.paths(names), clients, seconds=seconds)
    return ServingRun(fetched, server.cpu_seconds() - cpu_before, server.rss_bytes())


def serving_row(
    benchmark: str,
    what: str,
    load: Load,
    goal: Goal | None,
    subject: WebServer,
    peer: WebServer,
    runs: Mapping[str, Sequence[ServingRun]],
) -> Row:
    """Compare two of the servers of ``runs``."""
    pair = {each.name: runs[each.name] for each in (subject, peer)}
    pairs = zip(runs[subject.name], runs[peer.name], strict=True)
    return Row(
        benchmark,
        what,
        peer.description,
        "x",
        goal,
        [load.rate_of(a.fetched) / load.rate_of(b.fetched) for a, b in pairs],
        [_describe(load, name, of_name) for name, of_name in pair.items()],
        {"runs": {name: [asdict(run) for run in of_name] for name, of_name in pair.items()}},
    )


def _describe(load: Load, name: str, runs: Sequence[ServingRun]) -> str:
    rates = [load.rate_of(run.fetched) / load.scale for run in runs]
    digits = 2 if max(rates) < 100 else 0
    middle, least, most = (
        f"{each:,.{digits}f}" for each in (statistics.median(rates), min(rates), max(rates))
    )
    cost = statistics.median(run.cpu_seconds / run.fetched.bytes for run in runs) * GIB
    share = statistics.median(run.fetched.least_share for run in runs)
    text = (
        f"{name}: {middle} {load.unit} ({least} to {most}), CPU {cost:.2f} s/GiB, "
        f"memory {max(run.rss_bytes for run in runs) / 1e6:.0f} MB, "
        f"the slowest client got {share:.0%} of its share"
    )
    bad = sum(run.fetched.refusals + run.fetched.cuts for run in runs)
    return text + f", {bad} ANSWERS REFUSED OR CUT" * (bad > 0)
