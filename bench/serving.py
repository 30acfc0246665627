"""How fast files are served: one large one, and many small ones, to 1, 16 and 128 clients."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench.fast_clients import Fetched, fetch
from bench.measure import Gap, Goal, Row, interleave
from bench.nginx_before import devserver_behind_nginx, nginx_before
from bench.nginx_servers import nginx_slices, nginx_static
from bench.place import GIB, MIB, Place, Unmeasured
from bench.processes import Devserver
from bench.programs import need, versioned
from bench.staged_files import stage_files
from bench.web_servers import (
    WebServer,
    cherrypy_static,
    gunicorn_static,
    need_gunicorn,
    web_server_of,
)
from bench.wrk import answers_per_second

_NAME = "serving"
_CLIENTS = (1, 16, 128)
_MOST_CLIENTS = _CLIENTS[-1]
_LARGE_FILE = "large.bin"
_SMALL_FILES = [f"small-{number:03}.bin" for number in range(256)]
_SMALL_BYTES = 64 << 10
_BEHIND_NGINX = Goal(">=", 0.95)


@dataclass(frozen=True)
class _Load:
    """One kind of files, as clients ask for them.

    Attributes:
        what: devserver does, for the table.
        rate_of: what counts, by the second.
        unit, scale: of that rate, for notes.
        goals: against nginx, by the number of clients.
    """

    what: str
    names: Sequence[str]
    rate_of: Callable[[Fetched], float]
    unit: str
    scale: float
    goals: Mapping[int, Goal]


@dataclass(frozen=True)
class _Servers:
    """``peers`` are those that ``ours`` is compared with; of ``behind``, the first has a goal."""

    ours: WebServer
    nginx: WebServer
    peers: Sequence[WebServer]
    behind: Sequence[WebServer]


@dataclass(frozen=True)
class _Run:
    """What clients got of one server in a while, and what it took for that."""

    fetched: Fetched
    cpu_seconds: float
    rss_bytes: int


def serving(place: Place) -> Iterator[Row | Gap]:
    """One large file and many small ones to 1, 16 and 128 clients, beside nginx and others."""
    need("nginx")
    large_bytes = GIB // 4 if place.quick else GIB
    place.need_disk(5 * large_bytes)
    sizes = dict.fromkeys(_SMALL_FILES, _SMALL_BYTES) | {_LARGE_FILE: large_bytes}
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        build = stage_files(room / "devserver", sizes)
        server = stack.enter_context(Devserver(room / "devserver"))
        files = server.static_directory / build
        nginx = stack.enter_context(nginx_static(room / "nginx", files))
        peers = [
            nginx,
            stack.enter_context(
                nginx_slices(room / "nginx-slices", f"http://127.0.0.1:{nginx.port}")
            ),
            stack.enter_context(cherrypy_static(room / "cherrypy", files)),
        ]
        try:
            need_gunicorn()
            peers.append(stack.enter_context(gunicorn_static(room / "gunicorn", files)))
        except Unmeasured as error:
            yield Gap(_NAME, "serve files, against gunicorn", str(error))
        behind = _behind_nginx(stack, room, sizes)
        servers = _Servers(web_server_of(server, build), nginx, peers, behind)
        for web_server in [servers.ours, *peers, *behind]:
            # All that is asked for is in the page cache from now on, and in that of slices.
            fetch(web_server.port, web_server.paths(list(sizes)), 1, times=len(sizes))
        for load in _loads(large_bytes):
            for clients in _CLIENTS:
                yield from _compare(place, load, clients, servers)
        yield from _by_wrk(place, room, servers)


def _behind_nginx(stack: ExitStack, room: Path, sizes: Mapping[str, int]) -> list[WebServer]:
    """Start a devserver of its own, and nginx before it: once with try_files, once without."""
    directory = room / "devserver-behind"
    build = stage_files(directory, sizes)
    server = stack.enter_context(devserver_behind_nginx(directory))
    return [
        stack.enter_context(
            nginx_before(room / f"nginx-before-{number}", server, directory, build, asks=asks)
        )
        for number, asks in enumerate((False, True))
    ]


def _loads(large_bytes: int) -> list[_Load]:
    size = f"{large_bytes // GIB} GiB" if large_bytes >= GIB else f"{large_bytes // MIB} MiB"
    return [
        _Load(
            what=f"serve a file of {size}",
            names=[_LARGE_FILE],
            rate_of=lambda fetched: fetched.bytes / fetched.seconds,
            unit="GB/s",
            scale=1e9,
            goals=dict.fromkeys(_CLIENTS, Goal(">=", 1)),
        ),
        _Load(
            what=f"serve files of 64 KiB ({len(_SMALL_FILES)} by turns, kept connections)",
            names=_SMALL_FILES,
            rate_of=lambda fetched: fetched.answers / fetched.seconds,
            unit="answers/s",
            scale=1,
            goals={_MOST_CLIENTS: Goal(">=", 0.06)},
        ),
    ]


def _compare(place: Place, load: _Load, clients: int, servers: _Servers) -> Iterator[Row]:
    seconds = 0.3 if place.quick else 1.5
    behind = servers.behind if clients == _MOST_CLIENTS else []
    subjects = {
        each.name: partial(_run, each, load.names, clients, seconds)
        for each in [servers.ours, *servers.peers, *behind]
    }
    runs = interleave(subjects, place.rounds, on_disk=False)
    what = f"{load.what} to {clients} client{'s' * (clients > 1)}"
    for peer in servers.peers:
        goal = load.goals.get(clients) if peer is servers.nginx else None
        yield _row(load, what, goal, servers.ours, peer, runs)
    for each in behind:
        # Where nginx asks for each file, it is the same work as alone, and nginx's beside.
        goal = _BEHIND_NGINX if each is behind[0] else None
        yield _row(load, f"{what}, {each.description}", goal, each, servers.nginx, runs)


def _run(server: WebServer, names: Sequence[str], clients: int, seconds: float) -> _Run:
    cpu_before = server.cpu_seconds()
    fetched = fetch(server.port, server.paths(names), clients, seconds=seconds)
    return _Run(fetched, server.cpu_seconds() - cpu_before, server.rss_bytes())


def _row(
    load: _Load,
    what: str,
    goal: Goal | None,
    subject: WebServer,
    peer: WebServer,
    runs: Mapping[str, Sequence[_Run]],
) -> Row:
    pair = {each.name: runs[each.name] for each in (subject, peer)}
    pairs = zip(runs[subject.name], runs[peer.name], strict=True)
    return Row(
        _NAME,
        what,
        peer.description,
        "x",
        goal,
        [load.rate_of(a.fetched) / load.rate_of(b.fetched) for a, b in pairs],
        [_describe(load, name, of_name) for name, of_name in pair.items()],
        {"runs": {name: [asdict(run) for run in of_name] for name, of_name in pair.items()}},
    )


def _describe(load: _Load, name: str, runs: Sequence[_Run]) -> str:
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


def _by_wrk(place: Place, room: Path, servers: _Servers) -> Iterator[Row | Gap]:
    ours, nginx = servers.ours, servers.nginx
    what = f"serve files of 64 KiB to {_MOST_CLIENTS} clients, asked by wrk"
    try:
        need("wrk")
    except Unmeasured as error:
        yield Gap(_NAME, what, str(error))
        return
    seconds = 1 if place.quick else 2
    subjects = {
        each.name: partial(
            answers_per_second,
            *(room, each.port, each.paths(_SMALL_FILES), _MOST_CLIENTS, seconds),
        )
        for each in (ours, nginx)
    }
    rates = interleave(subjects, place.rounds, on_disk=False)
    yield Row(
        _NAME,
        f"{what} ({versioned('wrk')}, which copies what it gets)",
        nginx.description,
        "x",
        None,
        [a / b for a, b in zip(rates[ours.name], rates[nginx.name], strict=True)],
        [
            f"{name}: {statistics.median(of_name):,.0f} answers/s "
            f"({min(of_name):,.0f} to {max(of_name):,.0f})"
            for name, of_name in rates.items()
        ],
        {"answers_per_second": rates},
    )
