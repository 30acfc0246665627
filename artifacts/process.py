"""The process that a server is: log, limits, signals, and the files that announce it."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cherrypy

from artifacts.disk import write_durably
from artifacts.errors import DevserverError

_SAME_ORDER_SECONDS = 1.0


def set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    # CherryPy's own log is for what nobody expected; requests are logged when they are answered.
    cherrypy.config.update({"log.screen": False, "checker.on": False})
    cherrypy.log.error_log.setLevel(logging.WARNING)
    cherrypy.log.access_log.disabled = True
    for chatty in ("urllib3", "google", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
    # What it says of a client's mistakes, the client is told.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def raise_open_files_limit() -> None:
    """Allow as many open files as the system lets: each waiting client is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS names no hard limit, and takes none above 10,240.
    for wanted in (65536, 10240) if hard == resource.RLIM_INFINITY else (hard,):
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def signalled_end() -> Callable[[], None]:
    """Return what blocks until SIGTERM or Ctrl-C; a later one ends the process on the spot."""
    # A pipe: a lock may just be held by the thread that is interrupted, and a thread that is about
    # to wait for one is not woken.
    told, telling = os.pipe()
    os.set_blocking(telling, False)
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    signalled_at: list[float] = []

    def end(*_: object) -> None:
        # One order may come as several signals: to the process, and to its group.
        if signalled_at and time.monotonic() - signalled_at[0] > _SAME_ORDER_SECONDS:
            os._exit(1)
        signalled_at.append(time.monotonic())

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)

    def wait() -> None:
        os.read(told, 1)

    return wait


@contextlib.contextmanager
def announced(files: Mapping[Path | None, str]) -> Iterator[None]:
    """Write files (port, process id), and remove them in the end; None stands for no file.

    Raises:
        DevserverError: one cannot be written.
    """
    paths = [path.absolute() for path in files if path is not None]
    try:
        try:
            for path, text in files.items():
                if path is not None:
                    write_durably(path.absolute(), text.encode("ascii"))
        except OSError as error:
            raise DevserverError(f"cannot write {path}: {error.strerror}") from error
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
