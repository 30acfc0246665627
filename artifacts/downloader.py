"""Downloader: one build being staged.

A Downloader lives from the first request that finds something to do until nothing is under way
any more. All that anyone asks of the build meanwhile goes through it, so that each byte is read
once from the archive. What is finished stands in the build's manifest, and is answered from there.

Asking never blocks on an archive: it returns futures. Listing, fetching and unpacking happen on
threads of the downloader, whatever becomes of those who asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from artifacts.archive_url import ArchiveUrl
from artifacts.build import Build
from artifacts.equipment import Equipment
from artifacts.errors import Busy, DevserverError, in_words, shutting_down
from artifacts.fetch import Fetch
from artifacts.futures import first_failure, resolve
from artifacts.live_files import LiveFiles
from artifacts.manifest import Failure, Item
from artifacts.plan import not_in_build
from artifacts.planning import Planner
from artifacts.recent_failures import RecentFailures
from artifacts.shared_fetches import SharedFetches
from artifacts.sources.source import ArchiveFile
from artifacts.standing import is_settled, matters_to_all
from artifacts.survey import Survey
from artifacts.task import Task, TaskState, Wish
from artifacts.tasks import Joined, Tasks, own_view
from artifacts.upload_watch import UploadWatch

_log = logging.getLogger(__name__)


class Downloader:
    """One build being staged: its tasks, and the fetches they share.

    ``settled`` ends when nothing is under way any more, with the failure if something failed.
    ``files`` are those that are coming; who reads them may do so for longer.
    """

    def __init__(
        self,
        archive_url: ArchiveUrl,
        build: Build,
        equipment: Equipment,
        failures: RecentFailures,
        on_idle: Callable[[Downloader], bool],
    ) -> None:
        """``on_idle`` is called, without any lock held, when nothing seems to be under way.

        It says whether it has let go of this downloader, after another look.
        """
        self.archive_url = archive_url
        self.build = build
        self.settled: Future[None] = Future()
        self._equipment = equipment
        self._source = equipment.sources.source_of(archive_url)
        self._stopped = threading.Event()
        self._failures = failures
        survey = Survey(
            self._source,
            archive_url,
            equipment.connections,
            equipment.fetch_limits.retries,
            self._stopped,
        )
        self._planner = Planner(
            archive_url, build, survey, equipment, failures, self._begin, self._finish
        )
        self._watch = UploadWatch(self._planner, survey, equipment, self._stopped)
        self._on_idle = on_idle
        self.fetches = SharedFetches(self._make_fetch)
        self._tasks = Tasks()
        self.files = LiveFiles(build, self._tasks, self.fetches, self._hurry)

    # --- asking

    def ask(
        self,
        wishes: Mapping[Item, Wish],
        wait_seconds: float = 0,
        listing: Mapping[str, ArchiveFile] | None = None,
    ) -> dict[Item, Task]:
        """Return a task for each item, joining what is under way and starting what is not.

        Items that are not urgent begin once the urgent ones of the same call have succeeded. What
        the archive does not have is waited for as long as ``wait_seconds``. With a ``listing`` that
        has just been made, the archive is not listed again.
        """
        wait_until = time.monotonic() + wait_seconds if wait_seconds else 0
        joined = self._tasks.join(
            wishes,
            wait_until,
            lambda item, wish: is_settled(
                self.build, self.archive_url, item, wish, may_come=wait_seconds > 0
            ),
        )
        # What is known of those that are shared is being told to others just now.
        shared = {task.item for task in joined.shared}
        self._failures.forget(self.archive_url, [item for item in wishes if item not in shared])
        for task in joined.promoted:
            self._begin(task)
        if joined.fresh and wait_seconds:
            self._watch.add(joined.fresh)
        elif joined.fresh:
            try:
                self._equipment.threads.submit(partial(self._plan, joined.fresh, listing))
            except Busy as error:
                self._planner.fail(joined.fresh, error)
        views = self._views_of(joined, wishes, wait_until)
        gate = first_failure([views[item].future for item, w in wishes.items() if w.is_urgent])
        for task in (*joined.fresh, *joined.shared):
            if not wishes[task.item].is_urgent:
                gate.add_done_callback(partial(self._gate_ended, task))
        return views

    def _views_of(
        self, joined: Joined, wishes: Mapping[Item, Wish], wait_until: float
    ) -> dict[Item, Task]:
        """Return the tasks as the one who asked sees them, whatever the others can do without."""
        impatient = [t for t in joined.shared if t.planned is None and t.wait_until > wait_until]
        looked = self._watch.look_at(wait_until) if impatient else None
        views = dict(joined.tasks)
        for task in (*joined.fresh, *joined.shared):
            views[task.item] = own_view(
                task,
                must_be_there=not wishes[task.item].may_be_absent,
                looked=looked if task in impatient else None,
                absent=self._absent,
            )
        return views

    def _absent(self, item: Item) -> DevserverError:
        error = not_in_build([item], self._equipment.catalog, self.build.name)
        self._failures.remember(self.archive_url, [item], Failure.of(error))
        return error

    @property
    def has_failed(self) -> bool:
        return bool(self._tasks.failed)

    @property
    def is_busy(self) -> bool:
        return self._tasks.are_under_way

    @property
    def under_way(self) -> set[Item]:
        return self._tasks.under_way

    def progress(self) -> dict[Item, dict[str, Any]]:
        """Return the state of what is under way, or was a moment ago, by item."""
        return {task.item: task.to_json() for task in self._tasks.all}

    def stop_waiting(self) -> None:
        """Fail with Busy what the archive does not have yet; it stays asked for."""
        waiting = [task for task in self._tasks.all if task.wait_until and task.planned is None]
        self._planner.fail(waiting, shutting_down())

    def cancel(self) -> None:
        """Fail what is under way with Busy; it stays asked for."""
        self._stopped.set()
        self.stop_waiting()
        self.fetches.cancel_all()

    def _overall_failure(self) -> DevserverError | None:
        asked = self.build.asked
        catalog = self._equipment.catalog
        for task in self._tasks.failed:
            assert task.error is not None
            if matters_to_all(task.item, Failure.of(task.error), asked, catalog):
                return task.error
        return asked.failure.error() if asked and asked.failure else None

    # --- on the downloader's threads

    def _plan(self, tasks: list[Task], listing: Mapping[str, ArchiveFile] | None) -> None:
        if listing is None:
            self._watch.keep(self._planner.plan(tasks))
        else:
            self._watch.keep(self._planner.plan_by(tasks, listing))

    def _begin(self, task: Task) -> None:
        """Begin a planned task; if it is gated, that will happen when a gate opens."""
        if task.planned is not None and not task.is_gated:
            self._submit(task)

    def _hurry(self, task: Task) -> None:
        if task.hurry():
            self._begin(task)

    def _gate_ended(self, task: Task, gate: Future[None]) -> None:
        error = gate.exception()
        if error is None:
            task.open_gate()
            self._begin(task)
        elif isinstance(error, DevserverError) and task.close_gate() and task.claim():
            self._finish(task, error, True)

    def _submit(self, task: Task) -> None:
        if not task.claim():
            return
        try:
            self._equipment.threads.submit(lambda: self._run(task), urgent=task.wish.is_urgent)
        except Busy as error:
            self._finish(task, error)

    def _run(self, task: Task) -> None:
        try:
            self._planner.describe_files(task)
            task.run(
                self.build,
                self._equipment.staging,
                self.fetches,
                self._equipment.unpack_limits,
            )
        except Exception as error:
            self._finish(task, in_words(error, f"staging {task.item.name}", str(self.build.name)))
        else:
            self._finish(task)

    def _finish(
        self, task: Task, error: DevserverError | None = None, is_recorded: bool = False
    ) -> None:
        task.error = error
        task.state = TaskState.STAGED if error is None else TaskState.FAILED
        if error is not None and not is_recorded and not isinstance(error, Busy):
            _log.warning("%s of %s: %s", task.item.name, self.archive_url, error.message)
            self._record_failure(task.item, Failure.of(error))
        if error is None and task.planned is not None:
            _log.info("%s: %s is staged", self.archive_url, task.item.name)
        is_idle = self._tasks.note_end()
        task.accept(error)
        is_released = False
        try:
            # Before the future: who hears of the end may count on the downloader's being gone.
            is_released = is_idle and self._on_idle(self)
        finally:
            resolve(task.future, error)
            task.end_news()
        if is_released:
            resolve(self.settled, self._overall_failure())

    def _record_failure(self, item: Item, failure: Failure) -> None:
        try:
            self.build.record_failed(item, failure)
        except OSError:
            # On a full disk: what cannot be kept with the build is kept in memory.
            _log.exception("recording the failure of %s", self.build.name)
            self._failures.remember(self.archive_url, [item], failure)

    def _make_fetch(self, file: ArchiveFile) -> Fetch:
        return Fetch(
            self._source,
            self.archive_url,
            file,
            self._equipment.staging.temporary_directory,
            self._equipment.connections,
            self._equipment.writeback,
            self._equipment.fetch_limits,
        )
