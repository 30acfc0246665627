"""UploadWatch: waiting for what a builder is still uploading.

All who wait for something of one build share its watch. At each *look* the archive is asked once;
what is there by then is planned and begun, the rest waits for the next look. Between looks nothing
of it holds a thread. Who has waited long enough is planned as if nobody had said to wait: then the
listing alone decides.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from artifacts.equipment import Equipment
from artifacts.errors import Busy, DevserverError, in_words, shutting_down
from artifacts.futures import all_ended, resolve
from artifacts.planning import Planner, may_pass
from artifacts.sources.source import ArchiveFile
from artifacts.survey import Survey
from artifacts.task import Task

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.5
_PAUSE_GROWTH = 1.5
_MAX_PAUSE_SECONDS = 15.0


class UploadWatch:
    """The tasks of one build that are waited for, in the groups in which they were asked for."""

    def __init__(
        self, planner: Planner, survey: Survey, equipment: Equipment, stopped: threading.Event
    ) -> None:
        """``stopped``, when set, makes it refuse to wait for anything more."""
        self._planner = planner
        self._survey = survey
        self._timers = equipment.timers
        self._threads = equipment.threads
        # Builds of one archive hang together, when it does.
        self._lane = f"{survey.archive_url.scheme}://{survey.archive_url.authority}"
        self._stopped = stopped
        # Guards all below; never held while the archive is asked.
        self._lock = threading.Lock()
        self._groups: list[list[Task]] = []
        self._pause_seconds = 0.0  # what follows the last look
        self._look_at: float | None = None  # when the next look is due; None if there is none
        self._lookers: list[tuple[float, Future[None]]] = []  # who waits for a look, and for when
        self._looks: list[Future[None]] = []  # those under way

    def add(self, tasks: list[Task]) -> None:
        """Look for tasks at once, and from then on until they are there or their time is over."""
        names = ", ".join(task.item.name for task in tasks)
        _log.info("%s: what is not there of %s is waited for", self._survey.archive_url, names)
        with self._lock:
            self._pause_seconds = 0.0
        self._wait(tasks, time.monotonic())

    def keep(self, tasks: Sequence[Task]) -> None:
        """Wait on, for tasks that were not there when looked for."""
        left = [task for task in tasks if not task.is_claimed]
        if left:
            pause = self._pause_seconds * random.uniform(0.75, 1)
            deadline = min(task.wait_until for task in left)
            self._wait(left, min(time.monotonic() + pause, deadline))

    def look_at(self, due: float) -> Future[None]:
        """Have all that is waited for looked for at ``due``, at once if that is over.

        Returned is what ends when that has been done, and what is there has been planned; with the
        reason if the archive could not be asked.
        """
        looked: Future[None] = Future()
        with self._lock:
            self._lookers.append((due, looked))
        self._schedule(max(due, time.monotonic()))
        return looked

    def _wait(self, tasks: list[Task], look_at: float) -> None:
        with self._lock:
            self._groups.append(tasks)
        if self._stopped.is_set():
            self._planner.fail(tasks, shutting_down())
        else:
            self._schedule(look_at)

    def _schedule(self, look_at: float) -> None:
        with self._lock:
            if self._look_at is not None and self._look_at <= look_at:
                return
            self._look_at = look_at
        try:
            self._timers.at(look_at, self._lane, lambda: self._look(look_at))
        except Busy as error:
            with self._lock:
                groups, self._groups = self._groups, []
            for group in groups:
                self._planner.fail(group, error)

    # --- on the timers' threads

    def _look(self, look_at: float) -> None:
        with self._lock:
            if self._look_at != look_at:
                return  # a sooner one has taken its place
            self._look_at = None
            longer = min(self._pause_seconds * _PAUSE_GROWTH, _MAX_PAUSE_SECONDS)
            self._pause_seconds = max(_FIRST_PAUSE_SECONDS, longer)
            groups, self._groups = self._groups, []
            lookers = [looked for due, looked in self._lookers if due <= look_at]
            self._lookers = [(due, looked) for due, looked in self._lookers if due > look_at]
            next_due = min((due for due, _ in self._lookers), default=None)
            this_look: Future[None] = Future()
            self._looks.append(this_look)
            # What another look has just taken is not among the groups of this one.
            looks = all_ended(self._looks)
        failure = self._plan_groups(groups, this_look)
        for looked in lookers:
            looks.add_done_callback(partial(_tell, looked, failure))
        if next_due is not None:
            self._schedule(next_due)

    def _plan_groups(
        self, groups: list[list[Task]], this_look: Future[None]
    ) -> DevserverError | None:
        """Have what is there planned, after which the look has ended; return why it failed."""
        waiting, plannings = [], []
        failure: DevserverError | None = None
        for group in groups:
            left = [task for task in group if not task.is_claimed]
            if due := [task for task in left if not task.has_time_left]:
                plannings.append(self._submit(due, None))
            if early := [task for task in left if task not in due]:
                waiting.append(early)
        try:
            listing = self._survey.glance() if waiting else {}
        except Exception as error:
            failure = in_words(error, "listing", str(self._survey.archive_url))
            for group in waiting:
                if may_pass(error):
                    self.keep(group)
                else:
                    # It fails once more, and ends them.
                    plannings.append(self._submit(group, None))
        else:
            plannings += [self._submit(group, listing) for group in waiting]
        all_ended(plannings).add_done_callback(lambda _: self._end_look(this_look))
        return failure

    def _end_look(self, look: Future[None]) -> None:
        with self._lock:
            self._looks.remove(look)
        resolve(look, None)

    def _submit(self, tasks: list[Task], listing: dict[str, ArchiveFile] | None) -> Future[None]:
        """Have tasks planned: by ``listing``, or for good by one of their own."""
        planned: Future[None] = Future()

        def plan() -> None:
            try:
                if listing is None:
                    self.keep(self._planner.plan(tasks))
                else:
                    self.keep(self._planner.plan_listed(tasks, listing, is_last=False))
            finally:
                resolve(planned, None)

        try:
            self._threads.submit(plan)
        except Busy as error:
            self._planner.fail(tasks, error)
            resolve(planned, None)
        return planned


def _tell(looked: Future[None], failure: DevserverError | None, _: Future[None]) -> None:
    resolve(looked, failure)
