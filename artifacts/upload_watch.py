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

from artifacts.equipment import Equipment
from artifacts.errors import Busy
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

    def _wait(self, tasks: list[Task], look_at: float) -> None:
        with self._lock:
            self._groups.append(tasks)
            is_next = self._look_at is None or look_at < self._look_at
            if is_next:
                self._look_at = look_at
        try:
            if self._stopped.is_set():
                raise Busy("the server is shutting down")
            if is_next:
                self._timers.at(look_at, self._lane, lambda: self._look(look_at))
        except Busy as error:
            self._planner.fail(tasks, error)

    # --- on the timers' threads

    def _look(self, look_at: float) -> None:
        with self._lock:
            if self._look_at != look_at:
                return  # a sooner one has taken its place
            self._look_at = None
            longer = min(self._pause_seconds * _PAUSE_GROWTH, _MAX_PAUSE_SECONDS)
            self._pause_seconds = max(_FIRST_PAUSE_SECONDS, longer)
            groups, self._groups = self._groups, []
        waiting = []
        for group in groups:
            left = [task for task in group if not task.is_claimed]
            if due := [task for task in left if not task.has_time_left]:
                self._submit(due, None)
            if early := [task for task in left if task not in due]:
                waiting.append(early)
        if not waiting:
            return
        try:
            listing = self._survey.glance()
        except Exception as error:
            for group in waiting:
                if may_pass(error):
                    self.keep(group)
                else:
                    # It fails once more, and ends them.
                    self._submit(group, None)
            return
        for group in waiting:
            self._submit(group, listing)

    def _submit(self, tasks: list[Task], listing: dict[str, ArchiveFile] | None) -> None:
        """Have tasks planned: by ``listing``, or for good by one of their own."""

        def plan() -> None:
            if listing is None:
                self.keep(self._planner.plan(tasks))
            else:
                self.keep(self._planner.plan_listed(tasks, listing, is_last=False))

        try:
            self._threads.submit(plan)
        except Busy as error:
            self._planner.fail(tasks, error)
