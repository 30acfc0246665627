"""What a handler leaves for the server where the answer is not in memory yet."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from artifacts.serving.answer import Answer
from artifacts.serving.file_answer import FileAnswer

Reply = Answer | FileAnswer


@dataclass(frozen=True)
class Wait:
    """What a request waits for: ``answer`` shapes the outcome, which is a result or an error.

    It may also answer with another wait. It is called on a worker's thread; a DevserverError that
    it raises becomes what clients of the path expect. ``given_up`` is called instead, likewise on
    some thread, where the client has hung up.
    """

    future: Future[Any]
    timeout_seconds: float
    answer: Callable[[Future[Any]], Reply | Wait]
    given_up: Callable[[], None] | None = None


class Exchange:
    """One request's way from the handler back to the server; the WSGI environ carries it."""

    KEY = "devserver.exchange"

    def __init__(self) -> None:
        self.outcome: Wait | FileAnswer | None = None
