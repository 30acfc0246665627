"""Upkeep of a running server: garbage is collected now and then, and what is asked for is done."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from artifacts.blobs.check import BlobCheck, CheckProgress, CheckReport
from artifacts.blobs.garbage import Collected, GarbageCollector
from artifacts.blobs.uploads import Uploads
from artifacts.errors import Busy, DevserverError
from artifacts.shared_calls import SharedCalls
from artifacts.timers import Timers
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

# Not at once: what a server has to do first when it starts is to answer. Jittered, as several may
# share a database.
_FIRST_SECONDS = 300.0
_PERIOD_SECONDS = 3600.0
_JITTER = 0.25
_LANE = "upkeep"


class Upkeep:
    """Does one thing at a time, each once for all who ask for it meanwhile."""

    def __init__(self, uploads: Uploads, timers: Timers) -> None:
        self._uploads = uploads
        self._timers = timers
        self._stopped = threading.Event()
        self._workers = Workers("upkeep", 1)
        self._under_way: SharedCalls[str, Any] = SharedCalls()
        self._check: BlobCheck | None = None

    def start(self) -> None:
        """Collect garbage some minutes from now, and then about once an hour, until ``close``."""
        self._collect_in(_FIRST_SECONDS)

    def collect_garbage(self) -> Future[Collected]:
        """Have garbage collected; see `GarbageCollector.collect`."""
        uploads = self._uploads
        collector = GarbageCollector(uploads.database, uploads.blobs, uploads.files, self._stopped)
        return self._under_way.join("gc", collector.collect, self._workers)

    def check(self, *, repair: bool) -> Future[CheckReport]:
        """Have all blobs checked; see `BlobCheck.run`."""

        def run() -> CheckReport:
            check = BlobCheck(self._uploads.database, self._uploads.blobs, self._stopped)
            self._check = check
            try:
                return check.run(repair=repair)
            finally:
                self._check = None

        return self._under_way.join(f"fsck, repair={repair}", run, self._workers)

    @property
    def progress(self) -> CheckProgress | None:
        """How far the check under way is; None if there is none."""
        check = self._check
        return None if check is None else check.progress

    def stop(self) -> None:
        """End what is under way as soon as it can be; who waits for it is told Busy."""
        self._stopped.set()

    def close(self, timeout_seconds: float) -> None:
        self.stop()
        self._workers.close(timeout_seconds)

    def _collect_in(self, seconds: float) -> None:
        jittered = seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
        # Busy: the server ends.
        with contextlib.suppress(Busy):
            self._timers.at(time.monotonic() + jittered, _LANE, self._collect_on_time)

    def _collect_on_time(self) -> None:
        self.collect_garbage().add_done_callback(self._go_on)

    def _go_on(self, ended: Future[Collected]) -> None:
        error = ended.exception()
        if self._stopped.is_set():
            return
        if error is None:
            _log_collected(ended.result())
        elif isinstance(error, DevserverError):
            _log.warning("collecting garbage: %s", error.message)
        else:
            _log.error("collecting garbage failed", exc_info=error)
        self._collect_in(_PERIOD_SECONDS)


def _log_collected(collected: Collected) -> None:
    if left := collected.unrecorded_blobs_left:
        _log.warning(
            "the blob storage has %d blobs that the database has no record of, more than others: "
            "they are left; is it the right database?",
            left,
        )
    if removed := {what: count for what, count in asdict(collected).items() if count}:
        _log.info("collected garbage: %s", removed)
