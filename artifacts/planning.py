"""Planner: from what is asked of a build to tasks that know their files, with room promised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from artifacts.archive_url import ArchiveUrl
from artifacts.build import Build
from artifacts.equipment import Equipment
from artifacts.errors import (
    ArchiveFileChanged,
    ArchiveFileMissing,
    ArtifactNotFound,
    BuildNotFound,
    Busy,
    DevserverError,
    NotFound,
    TransientArchiveError,
    in_words,
)
from artifacts.futures import all_ended
from artifacts.manifest import Failure, ItemState
from artifacts.patterns import is_glob
from artifacts.plan import Plan, PlannedItem, make_plan, not_in_build
from artifacts.recent_failures import RecentFailures
from artifacts.sources.source import ArchiveFile
from artifacts.space import Reservation
from artifacts.standing import asked_of, is_required
from artifacts.survey import Survey
from artifacts.task import Task
from artifacts.whole_files import kept_file

_log = logging.getLogger(__name__)

# Ends a task: with what it failed with, or None; is_recorded, where the failure needs no record.
Finish = Callable[[Task, DevserverError | None, bool], None]


def may_pass(error: Exception) -> bool:
    """Whether a listing that failed so is worth another one, while a build is being uploaded."""
    is_passing = isinstance(
        error, BuildNotFound | TransientArchiveError | ArchiveFileMissing | ArchiveFileChanged
    )
    return is_passing or isinstance(error.__cause__, TransientArchiveError)


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

    def plan(self, tasks: Sequence[Task]) -> list[Task]:
        """List the archive, decide what to fetch, and begin.

        Tasks that the archive does not have fail, or end as absent. Returned are those of them that
        somebody waits for still.
        """
        try:
            listing = self._survey.list()
        except Exception as error:
            failure = in_words(error, "listing", str(self._archive_url))
            unknown = self._end_known_absent(tasks, if_time_is_over=may_pass(error))
            if may_pass(error):
                return self._give_up(unknown, self._after_waiting(failure, unknown))
            self.fail(unknown, failure)
            return []
        return self.plan_listed(tasks, listing, is_last=True)

    def plan_by(self, tasks: Sequence[Task], listing: Mapping[str, ArchiveFile]) -> list[Task]:
        """As ``plan``, by a listing that is not older than a few seconds."""
        self._survey.take_over(listing)
        return self.plan_listed(tasks, listing, is_last=True)

    def plan_listed(
        self, tasks: Sequence[Task], listing: Mapping[str, ArchiveFile], *, is_last: bool
    ) -> list[Task]:
        """As ``plan``, by this listing; if it is not the last, all that it lacks is waited for."""
        reservation: Reservation | None = None
        try:
            plan = make_plan(
                {task.item: task.wish.may_be_absent for task in tasks},
                listing,
                self._equipment.catalog,
                self._build.name,
            )
            if not is_last:
                plan = self._without_growing(plan, tasks)
            found = [task for task in tasks if task.item in plan.items]
            lacking = [task for task in tasks if task.item not in plan.items]
            waiting = {task for task in lacking if not is_last or task.has_time_left}
            absent = [t for t in lacking if t.item in plan.absent and t not in waiting]
            missing = [t for t in lacking if t.item in plan.missing and t not in waiting]
            if missing and not any(task.wait_until for task in tasks):
                # Nothing is fetched of a build that lacks something, unless that was waited for.
                left = self._give_up(missing, self._take_back(missing), tasks)
                return self.plan_listed(left, listing, is_last=is_last) if left else []
            described = {name: listing[name] for name in plan.archive_names}
            # What comes later is described later: it must not hold up what is urgent.
            at_once = [plan.items[t.item] for t in tasks if t.item in plan.items and not t.is_gated]
            described.update(self._describe(at_once, described))
            if plan.items:
                reservation = self._reserve(plan, described, found)
            self._record(plan, absent, waiting)
        except Exception as error:
            if reservation is not None:
                reservation.release()
            self.fail(tasks, in_words(error, "planning", str(self._build.name)))
            return []
        if reservation is not None:
            ended = all_ended([task.future for task in found])
            ended.add_done_callback(lambda _: reservation.release())
            _log.info("%s: staging %s", self._archive_url, ", ".join(i.name for i in plan.items))
        for task in found:
            planned = plan.items[task.item]
            task.files = {f.archive_name: described[f.archive_name] for f in planned.files}
            task.is_described = planned in at_once
            task.planned = planned
        for task in (*found, *waiting):
            task.accept()
        for task in found:
            self._begin(task)
        for task in absent:
            if task.claim(if_time_is_over=True):
                self._finish(task, None, True)
        if missing:
            self._give_up(missing, self._take_back(missing))
        return [task for task in lacking if not task.is_claimed]

    @staticmethod
    def _without_growing(plan: Plan, tasks: Iterable[Task]) -> Plan:
        """Return the plan without what may get more files yet: two looks have to see the same."""
        growing = {
            task.item
            for task in tasks
            if (planned := plan.items.get(task.item))
            and (
                planned.artifact.may_have_several_files
                if planned.artifact
                else is_glob(task.item.name)
            )
            and not task.has_seen(planned)
        }
        return replace(plan, items={i: p for i, p in plan.items.items() if i not in growing})

    def describe_files(self, task: Task) -> None:
        """Give the files of a planned task their sizes and checksums."""
        assert task.planned is not None
        if not task.is_described:
            task.files.update(self._describe([task.planned], task.files))
            task.sizes = {name: file.size for name, file in task.files.items()}

    def fail(self, tasks: Sequence[Task], failure: DevserverError) -> None:
        """End tasks that cannot be planned, however long somebody would wait for them."""
        self._remember(tasks, failure)
        for task in [task for task in tasks if task.claim()]:
            self._finish(task, failure, True)

    def _end_known_absent(self, tasks: Sequence[Task], *, if_time_is_over: bool) -> list[Task]:
        """End what the archive did not have before and cannot tell of now; return the rest."""
        asked = asked_of(self._build, self._archive_url)
        known = asked.items if asked else {}
        for task in tasks:
            is_absent = task.item in known and known[task.item].state is ItemState.ABSENT
            if (
                is_absent
                and task.wish.may_be_absent
                and task.claim(if_time_is_over=if_time_is_over)
            ):
                self._finish(task, None, True)
        return [task for task in tasks if not task.is_claimed]

    def _give_up(
        self, tasks: Sequence[Task], failure: DevserverError, with_them: Sequence[Task] = ()
    ) -> list[Task]:
        """End tasks for want of files, but for those that are waited for still.

        Those ``with_them``, asked for by the same call, end as well unless others want them, too.
        Returned are those of all of them that have not ended.
        """
        # Whoever joins a task is either in time to keep it, or gets a new one and finds this done.
        everyone = list(dict.fromkeys((*tasks, *with_them)))
        self._remember(everyone, failure)
        for task in everyone:
            lacks = task in tasks
            if task.claim(if_time_is_over=lacks, if_alone=not lacks):
                # Somebody who can do without it may have joined since it was planned.
                is_absent = (
                    lacks and task.wish.may_be_absent and isinstance(failure, ArtifactNotFound)
                )
                if is_absent and not is_required(task.item, self._equipment.catalog):
                    self._finish(task, None, True)
                else:
                    self._finish(task, failure, True)
        left = [task for task in everyone if not task.is_claimed]
        self._failures.forget(self._archive_url, [task.item for task in left])
        return left

    @staticmethod
    def _after_waiting(failure: DevserverError, tasks: Sequence[Task]) -> DevserverError:
        """Return the failure in words that say how long was waited."""
        seconds = max((task.waited_seconds for task in tasks), default=0)
        if not seconds or not isinstance(failure, NotFound):
            return failure
        return type(failure)(f"{failure.message} (waited {seconds:.1f} s for it)")

    def _remember(self, tasks: Sequence[Task], failure: DevserverError) -> None:
        if tasks:
            _log.warning("%s cannot be staged: %s", self._archive_url, failure.message)
        if tasks and not isinstance(failure, Busy):
            items = [task.item for task in tasks]
            self._failures.remember(self._archive_url, items, Failure.of(failure))

    def _take_back(self, missing: Sequence[Task]) -> DevserverError:
        """Return what tells that these are missing; where they are recorded as asked for, too."""
        catalog = self._equipment.catalog
        items = [task.item for task in missing]
        error = self._after_waiting(not_in_build(items, catalog, self._build.name), missing)
        asked = asked_of(self._build, self._archive_url)
        known = asked.items if asked else {}
        recorded = [i for i in items if i in known and known[i].state is ItemState.ASKED]
        try:
            for item in recorded:
                if is_required(item, catalog):
                    self._build.record_failed(item, Failure.of(error))
            self._build.forget(recorded)
        except OSError:
            # On a full disk; it is told from memory, and looked for again after a restart.
            _log.exception("recording what %s does not have", self._build.name)
        return error

    def _record(self, plan: Plan, absent: Iterable[Task], waiting: Iterable[Task]) -> None:
        """Record what is asked for, and what is absent; once is enough for what is waited for."""
        asked = asked_of(self._build, self._archive_url)
        known = asked.items if asked else {}
        states = dict.fromkeys(plan.items, ItemState.ASKED)
        states.update((task.item, ItemState.ABSENT) for task in absent)
        for item in (task.item for task in waiting):
            if item not in known or known[item].state is not ItemState.ASKED:
                states[item] = ItemState.ASKED
        if states:
            self._build.begin(self._archive_url, states)

    def _describe(
        self, items: Iterable[PlannedItem], listing: Mapping[str, ArchiveFile]
    ) -> dict[str, ArchiveFile]:
        return self._survey.describe(listing[f.archive_name] for i in items for f in i.files)

    def _reserve(
        self, plan: Plan, listing: Mapping[str, ArchiveFile], tasks: Sequence[Task]
    ) -> Reservation:
        for task in tasks:
            files = plan.items[task.item].files
            task.sizes = {f.archive_name: listing[f.archive_name].size for f in files}
        kept = {name for name, file in listing.items() if kept_file(self._build, file)}
        needed = sum(planned.needed_bytes(listing, kept) for planned in plan.items.values())
        return self._equipment.staging.space.reserve(
            needed, str(self._build.name), lambda: sum(task.bytes_done for task in tasks)
        )
