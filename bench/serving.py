"""How fast files are served: one large one, and many small ones, to 1, 16 and 128 clients."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.loads import (
    CLIENTS,
    MOST_CLIENTS,
    compare,
    large_file,
    serving_row,
    sizes_of_files,
    small_files,
    to_clients,
    warm_up,
)
from bench.measure import Gap, Goal, Row, interleave
from bench.nginx_servers import nginx_slices, nginx_static
from bench.place import Place, Unmeasured
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
_GOALS_OF_LARGE = dict.fromkeys(CLIENTS, Goal(">=", 1))
_GOALS_OF_SMALL = {MOST_CLIENTS: Goal(">=", 0.06)}


def serving(place: Place) -> Iterator[Row | Gap]:
    """One large file and many small ones to 1, 16 and 128 clients, beside nginx and others."""
    need("nginx")
    sizes = sizes_of_files(place)
    place.need_disk(4 * sum(sizes.values()))
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        build = stage_files(room / "devserver", sizes)
        server = stack.enter_context(Devserver(room / "devserver"))
        ours = web_server_of(server, build)
        files = server.static_directory / build
        nginx = stack.enter_context(nginx_static(room / "nginx", files))
        nginx_url = f"http://127.0.0.1:{nginx.port}"
        peers = [
            nginx,
            stack.enter_context(nginx_slices(room / "nginx-slices", nginx_url)),
            stack.enter_context(cherrypy_static(room / "cherrypy", files)),
        ]
        try:
            need_gunicorn()
            peers.append(stack.enter_context(gunicorn_static(room / "gunicorn", files)))
        except Unmeasured as error:
            yield Gap(_NAME, "serve files, against gunicorn", str(error))
        warm_up([ours, *peers], sizes)
        for load, goals in (large_file(place), _GOALS_OF_LARGE), (small_files(), _GOALS_OF_SMALL):
            for clients in CLIENTS:
                runs = compare(place, load, clients, [ours, *peers])
                for peer in peers:
                    goal = goals.get(clients) if peer is nginx else None
                    what = to_clients(load, clients)
                    yield serving_row(_NAME, what, load, goal, ours, peer, runs)
        yield from _by_wrk(place, room, ours, nginx)


def _by_wrk(place: Place, room: Path, ours: WebServer, nginx: WebServer) -> Iterator[Row | Gap]:
    what = f"serve files of 64 KiB to {MOST_CLIENTS} clients, asked by wrk"
    try:
        need("wrk")
    except Unmeasured as error:
        yield Gap(_NAME, what, str(error))
        return
    seconds = 1 if place.quick else 2
    subjects = {
        each.name: partial(
            answers_per_second,
            *(room, each.port, each.paths(small_files().names), MOST_CLIENTS, seconds),
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
