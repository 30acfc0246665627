"""A devserver that dies, as by ``kill -9``, right before one of its steps.

A step is what changes a disk: making a file, writing it out, renaming and removing it; a commit to
the database. They are counted from when the file that DYING_ARMED names is there; before the one
that DYING_STEP numbers, the process kills itself. What is the server's is not changed: the calls of
Python's, and of the database's driver, are wrapped.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_ARMED = os.environ["DYING_ARMED"]
_STEP = int(os.environ["DYING_STEP"])
_lock = threading.Lock()
_steps = 0


def _take_step() -> None:
    global _steps
    with _lock:
        if not os.path.exists(_ARMED):
            return
        _steps += 1
        if _steps == _STEP:
            os.kill(os.getpid(), signal.SIGKILL)


def _dying(call: Callable[..., Any]) -> Callable[..., Any]:
    def step(*arguments: Any, **more: Any) -> Any:
        _take_step()
        return call(*arguments, **more)

    return step


def _wrap_calls() -> None:
    for name in ("fsync", "replace", "rename", "link", "unlink", "mkdir"):
        setattr(os, name, _dying(getattr(os, name)))
    opened = os.open

    def open_dying(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            _take_step()
        return opened(path, flags, *arguments, **more)

    os.open = open_dying  # type: ignore[assignment]
    file_opened = builtins.open

    def file_open_dying(file: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if set(mode) & set("wxa+"):
            _take_step()
        return file_opened(file, mode, *arguments, **more)

    builtins.open = io.open = file_open_dying  # type: ignore[assignment]

    @event.listens_for(Engine, "commit")
    def before_commit(_: Any) -> None:
        _take_step()


_wrap_calls()

if __name__ == "__main__":
    from devserver import main

    main()
