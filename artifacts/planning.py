"""Planner: from what is asked of a build to tasks that know their files, with room promised."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from artifacts.archive_url import ArchiveUrl
from artifacts.build import Build
from artifacts.equipment import Equipment
from artifacts.errors import Busy, DevserverError, in_words
from artifacts.manifest import Failure, ItemState
from artifacts.plan import Plan, PlannedItem, make_plan
from artifacts.recent_failures import RecentFailures
from artifacts.sources.source import ArchiveFile
from artifacts.space import Reservation
from artifacts.survey import Survey
from artifacts.task import Task, all_ended, resolve
from artifacts.whole_files import kept_file

_log = logging.getLogger(__name__)

# Ends a task: with what it failed with, or None; is_recorded, where the failure needs no record.
Finish = Callable[[Task, DevserverError | None, bool], None]


class Planner:
    """Plans the tasks of one build; blocks on its archive, and so belongs on a thread for that."""

    def __init__(
        self,
        archive_url: ArchiveUrl,
        build: Build,
        survey: Survey,
        equipment: Equipment,
        failures: RecentFailures,
        begin: Callable[[Task], None],
        finish: Finish,
    ) -> None:
        """``begin`` takes a task that is planned, ``finish`` one that has nothing left to do."""
        self._archive_url = archive_url
        self._build = build
        self._survey = survey
        self._equipment = equipment
        self._failures = failures
        self._begin = begin
        self._finish = finish
        self._lock = threading.Lock()  # guards the listing
        self._listing: dict[str, ArchiveFile] = {}

    def plan(self, tasks: Sequence[Task]) -> None:
        """List the archive, decide what to fetch for what one call asked for, and begin."""
        reservation: Reservation | None = None
        try:
            listing = self._survey.list()
            plan = make_plan(
                {task.item: task.wish.may_be_absent for task in tasks},
                listing,
                self._equipment.catalog,
                self._build.name,
            )
            listing = {name: listing[name] for name in plan.archive_names}
            # What comes later is described later: it must not hold up what is urgent.
            at_once = [plan.items[t.item] for t in tasks if t.item in plan.items and not t.gate]
            listing.update(self._describe(at_once, listing))
            reservation = self._reserve(plan, listing, tasks)
            states = {item: ItemState.ASKED for item in plan.items}
            states.update(dict.fromkeys(plan.absent, ItemState.ABSENT))
            self._build.begin(self._archive_url, states)
        except Exception as error:
            if reservation is not None:
                reservation.release()
            self._fail(tasks, in_words(error, "planning", str(self._build.name)))
            return
        ended = all_ended([task.future for task in tasks])
        ended.add_done_callback(lambda _: reservation.release())
        _log.info("%s: staging %s", self._archive_url, ", ".join(i.name for i in plan.items))
        with self._lock:
            self._listing.update(listing)
        for task in tasks:
            task.is_described = plan.items.get(task.item) in at_once
            task.planned = plan.items.get(task.item)
        for task in tasks:
            resolve(task.accepted, None)
            if task.planned is None:
                self._finish(task, None, True)
            else:
                self._begin(task)

    def files_of(self, task: Task) -> dict[str, ArchiveFile]:
        """Return the files of a planned task, by name, with sizes and checksums."""
        assert task.planned is not None
        with self._lock:
            files = {f.archive_name: self._listing[f.archive_name] for f in task.planned.files}
        if not task.is_described:
            files.update(self._describe([task.planned], files))
            task.sizes = {name: file.size for name, file in files.items()}
            with self._lock:
                self._listing.update(files)
        return files

    def _fail(self, tasks: Sequence[Task], failure: DevserverError) -> None:
        _log.warning("%s cannot be staged: %s", self._archive_url, failure.message)
        if not isinstance(failure, Busy):
            items = [task.item for task in tasks]
            self._failures.remember(self._archive_url, items, Failure.of(failure))
        for task in tasks:
            self._finish(task, failure, True)

    def _describe(
        self, items: Iterable[PlannedItem], listing: Mapping[str, ArchiveFile]
    ) -> dict[str, ArchiveFile]:
        return self._survey.describe(listing[f.archive_name] for i in items for f in i.files)

    def _reserve(
        self, plan: Plan, listing: Mapping[str, ArchiveFile], tasks: Sequence[Task]
    ) -> Reservation:
        for task in tasks:
            if planned := plan.items.get(task.item):
                task.sizes = {f.archive_name: listing[f.archive_name].size for f in planned.files}
        kept = {name for name, file in listing.items() if kept_file(self._build, file)}
        needed = sum(planned.needed_bytes(listing, kept) for planned in plan.items.values())
        return self._equipment.staging.space.reserve(
            needed, str(self._build.name), lambda: sum(task.bytes_done for task in tasks)
        )
