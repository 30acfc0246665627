"""Futures that tell the end of something, and what happens in steps between such ends."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from artifacts.errors import DevserverError

_Result = TypeVar("_Result")

# What goes on without a thread to wait in: it yields futures, is sent their results, or thrown what
# they fail with, and returns its own result. Its steps must not block.
Steps = Generator[Future[Any], Any, _Result]


def resolve(future: Future[None], error: BaseException | None) -> None:
    """End a future; tell an error to each waiter as its own, so that tracebacks do not pile up."""
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error.again() if isinstance(error, DevserverError) else error)


def first_failure(futures: Sequence[Future[None]]) -> Future[None]:
    """Return a future that succeeds when all do, and fails as soon as one does."""
    return _joint(futures, fails_early=True)


def all_ended(futures: Sequence[Future[Any]]) -> Future[None]:
    """Return a future that succeeds when all have ended, one way or the other."""
    return _joint(futures, fails_early=False)


def _joint(futures: Sequence[Future[Any]], *, fails_early: bool) -> Future[None]:
    joint: Future[None] = Future()
    # Guards the two below; not held while the joint future ends, as that calls anything.
    lock = threading.Lock()
    left, is_over = len(futures), False

    def note(future: Future[Any]) -> None:
        nonlocal left, is_over
        error = future.exception() if fails_early else None
        with lock:
            left -= 1
            ends_it = not is_over and (error is not None or left == 0)
            is_over = is_over or ends_it
        if ends_it:
            resolve(joint, error)

    for future in futures:
        future.add_done_callback(note)
    if not futures:
        resolve(joint, None)
    return joint
