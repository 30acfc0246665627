"""Answers that come in steps: what waits in between holds no thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from artifacts.errors import DevserverError
from artifacts.futures import Steps
from artifacts.serving.waiting import Reply, Wait


def answer_in_steps(
    steps: Steps[Reply], timeout_seconds: float, *, patience_seconds: float = 0.0
) -> Reply | Wait:
    """Take the steps of an answer as far as they go; return it, or the wait for the next step.

    All of it may take ``timeout_seconds``. What a step waits for is waited for here, up to
    ``patience_seconds``: for steps that are usually over before a connection is handed over.
    Where the client hangs up, the steps are closed. Raises what a step raises.
    """
    deadline = time.monotonic() + timeout_seconds
    patient_until = time.monotonic() + patience_seconds
    return _take(lambda: steps.send(None), steps, deadline, patient_until)


def _take(
    step: Callable[[], Future[Any]],
    steps: Steps[Reply],
    deadline: float,
    patient_until: float = 0.0,
) -> Reply | Wait:
    try:
        awaited = step()
        while awaited.done() or _ends_by(awaited, patient_until):
            awaited = _go_on(steps, awaited)
    except StopIteration as end:
        reply: Reply = end.value
        return reply
    left = max(0.0, deadline - time.monotonic())
    return Wait(
        awaited,
        left,
        lambda ended: _take(lambda: _go_on(steps, ended), steps, deadline),
        given_up=steps.close,
    )


def _ends_by(awaited: Future[Any], patient_until: float) -> bool:
    left = patient_until - time.monotonic()
    if left > 0:
        with contextlib.suppress(TimeoutError):
            awaited.exception(left)
    return awaited.done()


def _go_on(steps: Steps[Reply], ended: Future[Any]) -> Future[Any]:
    """Take the step that follows the end of what the last one waited for."""
    error = ended.exception()
    if error is None:
        return steps.send(ended.result())
    # Others may be told the same one.
    return steps.throw(error.again() if isinstance(error, DevserverError) else error)
