"""A thread that calls back: when sockets are ready, when time is over, and when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)


class LoopThread:
    """An event loop of asyncio and the thread that it runs on.

    ``loop`` is for callbacks on that thread only; the methods here are for any other.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.loop.set_exception_handler(_log_failure)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def call(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """Have ``callback`` called soon, unless the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback, *arguments)

    def close(self) -> None:
        """End the loop; what it has not called by now is not called."""
        if self._thread.is_alive():
            self.call(self.loop.stop)
            self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self.loop.close()

    def _run(self) -> None:
        self.loop.run_forever()


def _log_failure(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _log.error("%s", context.get("message"), exc_info=context.get("exception"))
