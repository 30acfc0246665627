"""Downloader: one build being staged; and the cache of downloaders with its lock dictionary.

A Downloader lives from the first request that finds something to do until nothing is under way
any more. All that anyone asks of the build meanwhile goes through it, so that each byte is read
once from the archive. What is finished stands in the build's manifest, and is answered from there.

Asking never blocks on an archive: it returns futures. Listing, fetching and unpacking happen on
threads of the downloader, whatever becomes of those who asked.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.build import Asked, Build
from artifacts.equipment import Equipment
from artifacts.errors import (
    BuildNotFound,
    Busy,
    Conflict,
    DevserverError,
    in_words,
    shutting_down,
    storage_error,
)
from artifacts.fetch import Fetch
from artifacts.futures import first_failure, resolve
from artifacts.lock_dictionary import LockDictionary
from artifacts.manifest import Failure, Item
from artifacts.plan import not_in_build
from artifacts.planning import Planner
from artifacts.recent_failures import RecentFailures
from artifacts.shared_fetches import SharedFetches
from artifacts.sources.source import ArchiveFile
from artifacts.standing import asked_of, is_settled, is_staged, matters_to_all
from artifacts.survey import Survey
from artifacts.task import Task, TaskState, Wish, settled_task
from artifacts.tasks import Joined, Tasks, own_view
from artifacts.upload_watch import UploadWatch

_log = logging.getLogger(__name__)


class Downloader:
    """One build being staged: its tasks, and the fetches they share.

    ``settled`` ends when nothing is under way any more, with the failure if something failed.
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
        self._fetches = SharedFetches(self._make_fetch)
        self._tasks = Tasks()

    # --- asking

    def ask(self, wishes: Mapping[Item, Wish], wait_seconds: float = 0) -> dict[Item, Task]:
        """Return a task for each item, joining what is under way and starting what is not.

        Items that are not urgent begin once the urgent ones of the same call have succeeded. What
        the archive does not have is waited for as long as ``wait_seconds``.
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
                self._equipment.threads.submit(
                    lambda: self._watch.keep(self._planner.plan(joined.fresh))
                )
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
        self._fetches.cancel_all()

    def _overall_failure(self) -> DevserverError | None:
        asked = self.build.asked
        catalog = self._equipment.catalog
        for task in self._tasks.failed:
            assert task.error is not None
            if matters_to_all(task.item, Failure.of(task.error), asked, catalog):
                return task.error
        return asked.failure.error() if asked and asked.failure else None

    # --- on the downloader's threads

    def _begin(self, task: Task) -> None:
        """Begin a planned task; if it is gated, that will happen when a gate opens."""
        if task.planned is not None and not task.is_gated:
            self._submit(task)

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
                self._fetches,
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


class DownloaderCache:
    """The downloaders of builds that are being staged, by canonical archive URL.

    Work on one URL is serialized by a lock of its own. Neither locks nor downloaders outlive their
    use: both dictionaries are empty when nothing is under way.
    """

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._staging = equipment.staging
        self._failures = RecentFailures()
        self._locks: LockDictionary[ArchiveUrl] = LockDictionary()
        # Guards the dictionary; taken after a URL's lock, and notified when a downloader leaves.
        self._changed = threading.Condition()
        self._downloaders: dict[ArchiveUrl, Downloader] = {}
        self._is_closed = False

    # --- asking

    def download(self, archive_url: ArchiveUrl, wait_seconds: float = 0) -> Future[None]:
        """Stage what the catalog wants of every build; the future is the foreground's.

        ``wait_seconds``: how long a builder may take to upload what is not there yet.

        Raises:
            Conflict: the build was staged from another archive.
            Busy: the server is shutting down.
        """
        catalog = self._equipment.catalog
        wishes = {
            **{Item.artifact(n): Wish(True, True) for n in catalog.staged_when("foreground")},
            **{Item.artifact(n): Wish(False, True) for n in catalog.staged_when("background")},
        }
        tasks = self._ask(archive_url, {**wishes, **self._brought_by(wishes)}, wait_seconds)
        # That it can be staged at all is waited for even if nothing of it is foreground.
        waited = [task.accepted for task in tasks.values()]
        waited += [tasks[item].future for item, wish in wishes.items() if wish.is_urgent]
        return first_failure(waited)

    def stage(
        self,
        archive_url: ArchiveUrl,
        items: Iterable[Item],
        wait_seconds: float = 0,
        *,
        drop_first: bool = False,
    ) -> Future[None]:
        """Stage just these items; as ``download``. ``drop_first`` takes the build away before.

        What artifacts bring along is staged after them; the future does not wait for it.

        Raises:
            BadRequest: an artifact is not in the catalog.
        """
        items = list(items)
        self._equipment.catalog.check_known(item.name for item in items if item.is_artifact)
        wishes = {item: Wish() for item in items}
        brought = self._brought_by(wishes)
        asked = {**wishes, **brought}
        tasks = self._ask(archive_url, asked, wait_seconds, drop_first=drop_first)
        return first_failure([tasks[item].future for item in wishes])

    def wait_for_status(self, archive_url: ArchiveUrl) -> Future[None]:
        """Return what ends when nothing of the build is under way, with a failure if there is one.

        What was cut off by the end of an earlier server is taken up.

        Raises:
            BuildNotFound: it is neither staged nor being staged.
        """
        build = self._staging.build(archive_url.name)
        self._staging.check_archive(build, archive_url)
        with self._locks.holding(archive_url), _disk_errors_in_words(archive_url.name):
            downloader = self._find(archive_url)
            if downloader is not None:
                return downloader.settled
            build.check_trees()
            asked = asked_of(build, archive_url)
            failures = [
                failure
                for item, failure in self._failures.of(archive_url).items()
                if matters_to_all(item, failure, asked, self._equipment.catalog)
            ]
            if asked is not None and asked.failure:
                failures.append(asked.failure)
            if failures:
                raise failures[0].error()
            if asked is None or not asked.items:
                raise BuildNotFound(f"{archive_url} is neither staged nor being staged")
            if asked.missing:
                downloader = self._open(archive_url)
                downloader.ask({item: self._wish_again(item, asked) for item in asked.missing})
                return downloader.settled
        done: Future[None] = Future()
        resolve(done, None)
        return done

    def is_staged(self, archive_url: ArchiveUrl, items: Iterable[Item]) -> bool:
        """Whether all of the items are staged; changes nothing.

        Raises:
            DevserverError: what one of them failed with.
        """
        items = list(items)
        self._equipment.catalog.check_known(item.name for item in items if item.is_artifact)
        build = self._staging.build(archive_url.name)
        self._staging.check_archive(build, archive_url)
        downloader = self._find(archive_url)
        under_way = downloader.under_way if downloader else set()
        failures = self._failures.of(archive_url)
        answers = [
            item not in under_way and is_staged(build, archive_url, item, failures.get(item))
            for item in items
        ]
        return all(answers)

    def drop(self, name: BuildName) -> None:
        """Take a build off the disk; as ``Staging.drop``, but what the disk refuses is in words."""
        with _disk_errors_in_words(name):
            self._staging.drop(name)

    # --- looking

    def live_downloader(self, name: BuildName) -> Downloader | None:
        with self._changed:
            live = list(self._downloaders.values())
        return next((downloader for downloader in live if downloader.build.name == name), None)

    def live_builds(self) -> set[BuildName]:
        with self._changed:
            return {downloader.build.name for downloader in self._downloaders.values()}

    def failure_of(self, archive_url: ArchiveUrl) -> Failure | None:
        """Return why something else than what does not exist could not be staged lately."""
        failures = self._failures.of(archive_url).values()
        return next((failure for failure in failures if failure.status != 404), None)

    @property
    def is_closed(self) -> bool:
        with self._changed:
            return self._is_closed

    @property
    def sizes(self) -> tuple[int, int]:
        """How many downloaders and how many locks there are."""
        with self._changed:
            return len(self._downloaders), len(self._locks)

    def close(self, timeout_seconds: float) -> None:
        """Refuse what is new, end what only waits, and cut what takes longer than its time."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._is_closed = True
            downloaders = list(self._downloaders.values())
        for downloader in downloaders:
            downloader.stop_waiting()
        with self._changed:
            while self._downloaders and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            cut = list(self._downloaders.values())
        for downloader in cut:
            _log.warning("%s is cut off", downloader.archive_url)
            downloader.cancel()

    # --- inside

    def _brought_by(self, items: Iterable[Item]) -> dict[Item, Wish]:
        """Return what artifacts bring along: wanted after them, and the build may lack it."""
        names = [item.name for item in items if item.is_artifact]
        brought = self._equipment.catalog.brought_by(names)
        return {Item.artifact(name): Wish(False, True) for name in brought}

    def _ask(
        self,
        archive_url: ArchiveUrl,
        wishes: Mapping[Item, Wish],
        wait_seconds: float,
        *,
        drop_first: bool = False,
    ) -> dict[Item, Task]:
        with self._locks.holding(archive_url), _disk_errors_in_words(archive_url.name):
            build = self._staging.build(archive_url.name)
            self._staging.check_archive(build, archive_url)
            if drop_first:
                self._check_is_open()
                self._drop_if_known(archive_url.name)
            build.touch()
            if all(
                is_settled(build, archive_url, item, wish, may_come=wait_seconds > 0)
                for item, wish in wishes.items()
            ):
                self._failures.forget(archive_url, list(self._failures.of(archive_url)))
                return {item: settled_task(item, wish) for item, wish in wishes.items()}
            self._check_is_open()
            downloader = self._find(archive_url) or self._open(archive_url)
            return downloader.ask(wishes, wait_seconds)

    def _check_is_open(self) -> None:
        if self.is_closed:
            raise shutting_down()

    def _drop_if_known(self, name: BuildName) -> None:
        try:
            self._staging.drop(name)
        except BuildNotFound:
            if self._staging.is_claimed(name):
                raise Conflict(f"{name} is being staged; it can be dropped afterwards") from None

    def _find(self, archive_url: ArchiveUrl) -> Downloader | None:
        with self._changed:
            return self._downloaders.get(archive_url)

    def _open(self, archive_url: ArchiveUrl) -> Downloader:
        """Make and cache the downloader of a URL whose lock is held."""
        self._check_is_open()
        build = self._staging.claim(archive_url)
        downloader = Downloader(archive_url, build, self._equipment, self._failures, self._release)
        with self._changed:
            self._downloaders[archive_url] = downloader
        return downloader

    def _release(self, downloader: Downloader) -> bool:
        """Let a downloader go, unless somebody has asked it for more meanwhile."""
        with self._locks.holding(downloader.archive_url):
            if downloader.is_busy or self._find(downloader.archive_url) is not downloader:
                return False
            is_clean = not downloader.has_failed or self._clean_up(downloader.build)
            self._staging.release(downloader.archive_url, is_clean=is_clean)
            with self._changed:
                del self._downloaders[downloader.archive_url]
                self._changed.notify_all()
            return True

    @staticmethod
    def _clean_up(build: Build) -> bool:
        """Remove what a failure left; where that fails, the next start tries again."""
        try:
            build.remove_unrecorded()
        except (OSError, RecursionError):
            _log.exception("cleaning up after a failure of %s", build.name)
            return False
        return True

    def _wish_again(self, item: Item, asked: Asked) -> Wish:
        """Return how an item was wanted that an earlier server was asked for."""
        catalog = self._equipment.catalog
        artifact = catalog.artifacts.get(item.name) if item.is_artifact else None
        if artifact is None:
            return Wish()
        others = [other.name for other in asked.items if other.is_artifact and other != item]
        known = [name for name in others if name in catalog.artifacts]
        came_along = artifact.when != "request" or item.name in catalog.brought_by(known)
        return Wish(artifact.when != "background", came_along and not artifact.required)


@contextlib.contextmanager
def _disk_errors_in_words(name: BuildName) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, str(name)) from error
