"""Calls that several want the outcome of at the same time, made once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from artifacts.errors import Busy
from artifacts.workers import Workers

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result")


class SharedCalls(Generic[_Key, _Result]):
    """The calls under way, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the dictionary; never held while anything is called
        self._under_way: dict[_Key, Future[_Result]] = {}

    def join(
        self, key: _Key, call: Callable[[], _Result], workers: Workers, *, urgent: bool = True
    ) -> Future[_Result]:
        """Return the future of the call under way for ``key``; else have ``call`` called.

        The future fails with what the call raises, and with Busy where no worker takes it.
        """
        return self.join_with(key, call, partial(workers.submit, urgent=urgent))

    def join_with(
        self,
        key: _Key,
        call: Callable[[], _Result],
        submit: Callable[[Callable[[], None]], None],
    ) -> Future[_Result]:
        """The same, for those who have it called by something else: ``submit`` may raise Busy."""
        with self._lock:
            if (future := self._under_way.get(key)) is not None:
                return future
            future = self._under_way[key] = Future()

        def run() -> None:
            try:
                result = call()
            except Exception as error:
                self._forget(key)
                future.set_exception(error)
            else:
                self._forget(key)
                future.set_result(result)

        try:
            submit(run)
        except Busy as error:
            self._forget(key)
            future.set_exception(error)
        return future

    def is_under_way(self, key: _Key) -> bool:
        with self._lock:
            return key in self._under_way

    def _forget(self, key: _Key) -> None:
        with self._lock:
            del self._under_way[key]
