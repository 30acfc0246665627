"""Extractions: the members that are being extracted, or were lately, each once for all who ask."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

from artifacts.errors import (
    Busy,
    DevserverError,
    InsufficientStorage,
    in_words,
    shutting_down,
    storage_error,
)
from artifacts.extraction import MAX_KEPT_BYTES, Extraction
from artifacts.space import Reservation, Space
from artifacts.timers import Timers
from artifacts.workers import Workers

# What nobody reads any more is kept for the next one who asks: so long, and of all so many.
_KEPT_SECONDS = 60.0
_MAX_KEPT_FILES = 64


class Extractions:
    """The extractions under way or kept, by key; one for all who want the same member."""

    def __init__(self, directory: Path, space: Space, timers: Timers) -> None:
        """``directory`` is on the disk of ``space``."""
        self._directory = directory
        self._space = space
        self._timers = timers
        # Guards the rest; extractions' locks are taken after it.
        self._lock = threading.Lock()
        self._extractions: dict[Hashable, Extraction] = {}
        self._is_tidying_due = False
        self._is_closed = False

    def join(
        self,
        key: Hashable,
        what: str,
        size: int,
        fill: Callable[[Extraction], None],
        workers: Workers,
    ) -> Extraction:
        """Return the extraction of ``key``; have ``fill`` called with a new one if there is none.

        Args:
            what: what messages call the member.
            fill: writes all blocks, on one of ``workers``.

        Raises:
            InsufficientStorage: there is no room for it.
            DevserverError: the disk refuses for another reason.
            Busy: the server is shutting down.
        """
        with self._lock:
            if self._is_closed:
                raise shutting_down()
            there = self._extractions.get(key)
            if there is not None and not there.has_failed:
                return there
            extraction = self._extractions[key] = self._make(what, size)
        try:
            reservation = self._reserve(what, extraction)
        except DevserverError as error:
            self._give_up(key, extraction, error)
            raise

        def run() -> None:
            try:
                fill(extraction)
                extraction.finish()
            except Exception as error:
                self._give_up(key, extraction, in_words(error, "extracting", what))
            finally:
                reservation.release()
                self._tidy()

        try:
            workers.submit(run)
        except Busy as error:
            reservation.release()
            self._give_up(key, extraction, error)
            raise
        return extraction

    def close(self) -> None:
        """Refuse what is new, and cut what is under way."""
        with self._lock:
            self._is_closed = True
            extractions, self._extractions = self._extractions, {}
        for extraction in extractions.values():
            extraction.fail(shutting_down())
            if extraction.is_whole:
                extraction.close()

    def _make(self, what: str, size: int) -> Extraction:
        try:
            return Extraction(size, self._directory, self._space.check_room, self._tidy)
        except OSError as error:
            raise storage_error(error, what) from error

    def _reserve(self, what: str, extraction: Extraction) -> Reservation:
        try:
            return self._space.reserve(extraction.size, what, lambda: extraction.bytes_written)
        except InsufficientStorage:
            self._drop_idle(max_bytes=0)
        return self._space.reserve(extraction.size, what, lambda: extraction.bytes_written)

    def _give_up(self, key: Hashable, extraction: Extraction, error: DevserverError) -> None:
        """Tell a failure; who asks again begins anew."""
        with self._lock:
            if self._extractions.get(key) is extraction:
                del self._extractions[key]
        extraction.fail(error)
        extraction.close()

    def _tidy(self) -> None:
        """Let go of what has been idle for long, and of what is too much; look again later."""
        self._drop_idle()
        with self._lock:
            is_first = not self._is_tidying_due and bool(self._extractions)
            self._is_tidying_due |= is_first
        if is_first:
            with contextlib.suppress(Busy):
                self._timers.at(time.monotonic() + _KEPT_SECONDS, "members", self._tidy_later)

    def _tidy_later(self) -> None:
        with self._lock:
            self._is_tidying_due = False
        self._tidy()

    def _drop_idle(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        """Drop those that nobody reads, the oldest first, if they are too old or too much."""
        oldest = time.monotonic() - _KEPT_SECONDS
        with self._lock:
            since = {key: e.idle_since for key, e in self._extractions.items()}
            idle = {key: at for key, at in since.items() if at is not None}
            kept_bytes = sum(self._extractions[key].size for key in idle)
            dropped: list[Extraction] = []
            for key in sorted(idle, key=idle.__getitem__):
                kept_files = len(idle) - len(dropped)
                is_too_much = kept_bytes > max_bytes or kept_files > _MAX_KEPT_FILES
                if idle[key] <= oldest or is_too_much:
                    dropped.append(self._extractions.pop(key))
                    kept_bytes -= dropped[-1].size
        for extraction in dropped:
            extraction.close()
