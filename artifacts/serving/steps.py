"""Answers that come in steps: what waits in between holds no thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from artifacts.errors import DevserverError
from artifacts.futures import Steps
from artifacts.serving.waiting import Reply, Wait


def answer_in_steps(steps: Steps[Reply], timeout_seconds: float) -> Reply | Wait:
    """Take the first step of an answer; return it, or the wait for the next step.

    All of it may take ``timeout_seconds``. Raises what a step raises.
    """
    deadline = time.monotonic() + timeout_seconds
    return _take(lambda: steps.send(None), steps, deadline)


def _take(step: Callable[[], Future[Any]], steps: Steps[Reply], deadline: float) -> Reply | Wait:
    try:
        future = step()
    except StopIteration as end:
        reply: Reply = end.value
        return reply
    left = max(0.0, deadline - time.monotonic())
    return Wait(future, left, lambda done: _go_on(done, steps, deadline))


def _go_on(done: Future[Any], steps: Steps[Reply], deadline: float) -> Reply | Wait:
    error = done.exception()
    if error is not None:
        # Others may be told the same one.
        mine = error.again() if isinstance(error, DevserverError) else error
        return _take(lambda: steps.throw(mine), steps, deadline)
    return _take(lambda: steps.send(done.result()), steps, deadline)
