"""Servers of files that devserver is measured beside, and how all of them are asked.

Each serves the files of one directory, with its access log on where that is its default.
nginx, in its several parts, is in ``nginx_servers.py``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from bench.place import Unmeasured
from bench.processes import (
    Devserver,
    cpu_seconds_of_tree,
    free_port,
    is_answered,
    rss_of_tree,
    started,
    wait_for_text,
    wait_until,
)

# So many as there are clients at most, and some.
THREADS = 150


@dataclass(frozen=True)
class WebServer:
    """A running server.

    Attributes:
        name: for notes and JSON.
        description: with its version, and how it is set up.
        prefix: what is before a file's name in the path of its URL.
        processes: what it consists of, each with those that it has started.
    """

    name: str
    description: str
    port: int
    prefix: str
    processes: Sequence[psutil.Process]

    def paths(self, names: Sequence[str]) -> list[str]:
        return [self.prefix + name for name in names]

    def cpu_seconds(self) -> float:
        return sum(cpu_seconds_of_tree(process) for process in self.processes)

    def rss_bytes(self) -> int:
        return sum(rss_of_tree(process) for process in self.processes)


def web_server_of(server: Devserver, build: str) -> WebServer:
    """Return a devserver as one that serves the files of a build that it has staged."""
    return WebServer("devserver", "devserver", server.port, f"/static/{build}/", [server.process])


@contextmanager
def cherrypy_static(directory: Path, files: Path, *, threads: int = THREADS) -> Iterator[WebServer]:
    """CherryPy's ``staticdir``, and a ``/check_health`` of one line beside it."""
    directory.mkdir(parents=True)
    portfile = directory / "port"
    command = [sys.executable, "-m", "bench.cherrypy_static", str(files), str(portfile)]
    with started([*command, str(threads)], directory / "log") as process:
        port = int(wait_for_text(portfile, process))
        wait_until(lambda: is_answered(f"http://127.0.0.1:{port}/check_health"))
        name = f"CherryPy, {threads} threads"
        how = f"CherryPy {version('CherryPy')} staticdir, {threads} threads"
        yield WebServer(name, how, port, "/static/", [psutil.Process(process.pid)])


def need_gunicorn() -> None:
    """Raise Unmeasured unless gunicorn and WhiteNoise are there."""
    for name in "gunicorn", "whitenoise":
        if importlib.util.find_spec(name) is None:
            raise Unmeasured(f"needs {name} (pip install --editable '.[bench]')")


@contextmanager
def gunicorn_static(directory: Path, files: Path) -> Iterator[WebServer]:
    """WhiteNoise, which leaves bodies to gunicorn's sendfile, on as many workers as is advised."""
    need_gunicorn()
    directory.mkdir(parents=True)
    workers = 2 * (os.cpu_count() or 1) + 1
    threads = -(-THREADS // workers)
    port = free_port()
    command = [
        *(sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}"),
        *("--worker-class", "gthread", "--workers", str(workers), "--threads", str(threads)),
        f"bench.whitenoise_static:application({str(files)!r})",
    ]
    with started(command, directory / "log") as process:
        name = next(each.name for each in files.iterdir())
        wait_until(lambda: is_answered(f"http://127.0.0.1:{port}/{name}"))
        how = (
            f"gunicorn {version('gunicorn')} gthread, {workers} workers of {threads} threads, "
            f"WhiteNoise {version('whitenoise')}"
        )
        yield WebServer("gunicorn", how, port, "/", [psutil.Process(process.pid)])
