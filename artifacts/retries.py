"""Trying again what failed in passing."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from artifacts.errors import (
    ArchiveError,
    DevserverError,
    TransientArchiveError,
    shutting_down,
)

_MAX_PAUSE_SECONDS = 30.0
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryLimits:
    """How often something is tried.

    Attributes:
        tries: how many in a row may bring nothing before it is given up.
        first_pause_seconds: before the second try; doubled for each further one, and jittered.
    """

    tries: int = 5
    first_pause_seconds: float = 0.2

    def pause_seconds(self, failed_tries: int, error: DevserverError) -> float:
        """Return how long to wait after ``failed_tries``: at least what the archive asked for."""
        pause: float = (
            self.first_pause_seconds * 2 ** (failed_tries - 1) * random.uniform(0.75, 1.25)
        )
        return min(max(pause, error.retry_after_seconds or 0), _MAX_PAUSE_SECONDS)


def retrying(call: Callable[[], _Result], limits: RetryLimits, stopped: threading.Event) -> _Result:
    """Return what ``call`` returns, trying again after TransientArchiveError, as ``limits`` say.

    Raises:
        ArchiveError: it failed for good, or too often.
        Busy: ``stopped`` was set meanwhile.
    """
    for failed_tries in range(1, limits.tries + 1):
        try:
            return call()
        except TransientArchiveError as error:
            if failed_tries == limits.tries:
                raise ArchiveError(f"{error.message} ({limits.tries} tries)") from error
            if stopped.wait(limits.pause_seconds(failed_tries, error)):
                raise shutting_down() from error
    raise AssertionError("limits allow no try")
