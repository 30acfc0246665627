"""Futures by key: of what is under way, and of what has ended a moment ago."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from artifacts.errors import Busy, DevserverError

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result")

_MAX_UNDER_WAY = 1000


@dataclass(frozen=True)
class _Ended(Generic[_Result]):
    future: Future[_Result]
    until: float
    weight: int


class RecentOutcomes(Generic[_Key, _Result]):
    """What many ask for at the same moment is done once, and its outcome told to all of them.

    Results and failures alike are remembered for ``seconds``, and of these the latest that together
    weigh no more than ``max_weight``. That the server was busy is not remembered.
    """

    def __init__(
        self, seconds: float, max_weight: int, weigh: Callable[[_Result], int] = lambda _: 1
    ) -> None:
        """``weigh`` tells the weight of a result; a failure weighs 1."""
        self._seconds = seconds
        self._max_weight = max_weight
        self._weigh = weigh
        self._lock = threading.Lock()  # guards all below; never held while anything is done
        self._under_way: dict[_Key, Future[_Result]] = {}
        self._ended: OrderedDict[_Key, _Ended[_Result]] = OrderedDict()
        self._weight = 0

    def get(self, key: _Key, begin: Callable[[], Future[_Result]]) -> Future[_Result]:
        """Return the future of ``key``, which ``begin`` makes if there is none.

        Raises:
            Busy: too much is under way.
            Exception: what ``begin`` raises; the others who ask are told it, too.
        """
        with self._lock:
            self._forget_old()
            if (ended := self._ended.get(key)) is not None:
                return ended.future
            if (under_way := self._under_way.get(key)) is not None:
                return under_way
            if len(self._under_way) >= _MAX_UNDER_WAY:
                raise Busy("too much is looked up at the same time")
            future = self._under_way[key] = Future()
        try:
            begun = begin()
        except BaseException as error:
            self._end_with_error(key, error)
            raise
        begun.add_done_callback(partial(self._end, key))
        return future

    def failure_of(self, key: _Key) -> DevserverError | None:
        """Return what ``key`` failed with a moment ago."""
        with self._lock:
            self._forget_old()
            ended = self._ended.get(key)
        error = ended.future.exception() if ended else None
        return error if isinstance(error, DevserverError) else None

    def _end(self, key: _Key, begun: Future[_Result]) -> None:
        if (error := begun.exception()) is not None:
            self._end_with_error(key, error)
            return
        result = begun.result()
        self._leave(key, self._weigh(result)).set_result(result)

    def _end_with_error(self, key: _Key, error: BaseException) -> None:
        is_worth_it = isinstance(error, DevserverError) and not isinstance(error, Busy)
        self._leave(key, 1 if is_worth_it else None).set_exception(error)

    def _leave(self, key: _Key, weight: int | None) -> Future[_Result]:
        """Take note that ``key`` is not under way any more; ``weight``: None if not remembered."""
        with self._lock:
            future = self._under_way.pop(key)
            if weight is not None and weight <= self._max_weight:
                self._ended[key] = _Ended(future, time.monotonic() + self._seconds, weight)
                self._weight += weight
                while self._weight > self._max_weight:
                    self._forget_first()
        return future

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._ended and next(iter(self._ended.values())).until <= now:
            self._forget_first()

    def _forget_first(self) -> None:
        _, ended = self._ended.popitem(last=False)
        self._weight -= ended.weight
