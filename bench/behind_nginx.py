"""What nginx in front of devserver leaves of its own speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench.loads import (
    MOST_CLIENTS,
    compare,
    large_file,
    serving_row,
    sizes_of_files,
    small_files,
    to_clients,
    warm_up,
)
from bench.measure import Goal, Row
from bench.nginx_before import devserver_behind_nginx, nginx_before
from bench.nginx_servers import nginx_static
from bench.place import Place
from bench.programs import need
from bench.staged_files import stage_files

_NAME = "behind-nginx"


def behind_nginx(place: Place) -> Iterator[Row]:
    """The same files to 128 clients from devserver behind nginx, beside nginx alone."""
    need("nginx")
    sizes = sizes_of_files(place)
    place.need_disk(3 * sum(sizes.values()))
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        directory = room / "devserver"
        build = stage_files(directory, sizes)
        server = stack.enter_context(devserver_behind_nginx(directory))
        alone = stack.enter_context(nginx_static(room / "nginx", server.static_directory / build))
        by_itself, asking = (
            stack.enter_context(
                nginx_before(room / f"nginx-before-{asks}", server, directory, build, asks=asks)
            )
            for asks in (False, True)
        )
        servers = [alone, by_itself, asking]
        warm_up(servers, sizes)
        for load in large_file(place), small_files():
            runs = compare(place, load, MOST_CLIENTS, servers)
            # Where nginx asks for each file, devserver has as much to do as alone.
            for each, goal in (by_itself, Goal(">=", 0.95)), (asking, None):
                what = f"{to_clients(load, MOST_CLIENTS)}, {each.description}"
                yield serving_row(_NAME, what, load, goal, each, alone, runs)
