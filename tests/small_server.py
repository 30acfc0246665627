"""The HTTP server alone, in the test's own process, with a small application behind it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cherrypy
import psutil

from artifacts.serving.answer import Answer, text_answer
from artifacts.serving.file_answer import FileAnswer, Served, WholeFile, file_answer
from artifacts.serving.front import ClientLimits
from artifacts.serving.http_server import HttpServer
from artifacts.serving.waiting import Exchange, Wait

Environ = dict[str, Any]
Handled = Answer | FileAnswer | Wait | str
Handler = Callable[[Environ], Handled]


class SmallApplication:
    """Handlers by path; others echo the request as JSON."""

    def __init__(self, **handlers: Handler) -> None:
        self._handlers = handlers

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        handler = self._handlers.get(environ["PATH_INFO"].rpartition("/")[2], _echo)
        try:
            handled = handler(environ)
        except cherrypy.HTTPError as error:
            handled = text_answer(str(error), error.code)
        if isinstance(handled, Wait | FileAnswer):
            environ[Exchange.KEY].outcome = handled
            start_response("200 OK", [])
            return []
        if isinstance(handled, str):
            handled = text_answer(handled)
        start_response(handled.status_line, handled.all_headers())
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else handled.body]


def _echo(environ: Environ) -> str:
    body = environ["wsgi.input"].read()
    names = ("REQUEST_METHOD", "REQUEST_URI", "HTTP_HOST", "HTTP_X_NAME")
    return json.dumps([*(environ.get(name, "") for name in names), body.decode("latin-1")])


class Held:
    """A handler that keeps its worker until ``let_go`` is set."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self._begun = threading.Semaphore(0)

    def __call__(self, _: Environ) -> str:
        self._begun.release()
        return "late" if self.let_go.wait(60) else "never let go"

    def wait_for_begun(self, count: int = 1) -> None:
        """Return once so many more requests are with a worker."""
        for _ in range(count):
            assert self._begun.acquire(timeout=60)


def serve_file(path: Path) -> Handler:
    """Return what answers with a file, by the request's conditions and ranges."""

    def handler(environ: Environ) -> FileAnswer:
        file = WholeFile(os.open(path, os.O_RDONLY))
        served = Served(path.name, path.stat().st_size, '"tag"', None)
        headers = {"Range": environ["HTTP_RANGE"]} if "HTTP_RANGE" in environ else {}
        return file_answer(file, served, headers)

    return handler


@contextmanager
def small_server(
    threads: int = 4,
    certificate: tuple[Path, Path] | None = None,
    limits: ClientLimits | None = None,
    **handlers: Handler,
) -> Iterator[HttpServer]:
    """Serve on a free port of 127.0.0.1, with handlers by name."""
    server = HttpServer(
        ("127.0.0.1", 0),
        SmallApplication(**handlers),
        threads,
        limits or ClientLimits(),
        certificate,
    )
    server.start()
    try:
        yield server
    finally:
        server.stop(timeout_seconds=2)


def port_of(server: HttpServer) -> int:
    return int(server.bind_addr[1])


def open_files() -> int:
    """How many files and sockets this process has open."""
    return int(psutil.Process().num_fds())


def serving_threads() -> set[str]:
    """The names of this process's threads that belong to a server."""
    kinds = {"http", "sender", "worker", "disk"}
    return {t.name for t in threading.enumerate() if t.name.partition("-")[0] in kinds}
