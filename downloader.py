"""The cache of downloaders, with its lock dictionary: one Downloader for each build under way."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future

from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.build import Asked, Build
from artifacts.downloader import Downloader
from artifacts.equipment import Equipment
from artifacts.errors import BuildNotFound, Conflict, shutting_down, storage_error
from artifacts.futures import first_failure, resolve
from artifacts.live_files import Look
from artifacts.lock_dictionary import LockDictionary
from artifacts.manifest import Failure, Item
from artifacts.recent_failures import RecentFailures
from artifacts.shared_fetches import SharedFetches
from artifacts.sources.source import ArchiveFile
from artifacts.standing import asked_of, is_settled, is_staged, matters_to_all
from artifacts.symbols.staged_symbols import SYMBOLS
from artifacts.task import Task, Wish, settled_task

__all__ = ["Downloader", "DownloaderCache"]

_log = logging.getLogger(__name__)


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
        # Guards all below; taken after a URL's lock, and notified when a downloader leaves.
        self._changed = threading.Condition()
        self._downloaders: dict[ArchiveUrl, Downloader] = {}
        # Those that anybody uses, be it only who reads what is fetched.
        self._fetches: weakref.WeakSet[SharedFetches] = weakref.WeakSet()
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
        listing: Mapping[str, ArchiveFile] | None = None,
    ) -> Future[None]:
        """Stage just these items; as ``download``. ``drop_first`` takes the build away before.

        What artifacts bring along is staged after them; the future does not wait for it. With a
        ``listing`` that has just been made, the archive is not listed again.

        Raises:
            BadRequest: an artifact is not in the catalog.
        """
        items = list(items)
        self._equipment.catalog.check_known(item.name for item in items if item.is_artifact)
        wishes = {item: Wish() for item in items}
        brought = self._brought_by(wishes)
        asked = {**wishes, **brought}
        tasks = self._ask(archive_url, asked, wait_seconds, drop_first=drop_first, listing=listing)
        return first_failure([tasks[item].future for item in wishes])

    def stage_symbols(self, archive_url: ArchiveUrl, wait_seconds: float = 0) -> Future[None]:
        """Stage a build's debug symbols; as ``stage``."""
        return self.stage(archive_url, [SYMBOLS], wait_seconds)

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

    def look(self, name: BuildName, path: str) -> Look:
        """Return the file of a build that is under way; None if none is at ``path``.

        As `LiveFiles.look`; to be called after the manifest has been looked at, and before it is
        looked at again: what is finished in between is in the manifest.
        """
        downloader = self.live_downloader(name)
        return downloader.files.look(path) if downloader else None

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
            fetches = list(self._fetches)
        for downloader in cut:
            _log.warning("%s is cut off", downloader.archive_url)
            downloader.cancel()
        for used in fetches:
            used.cancel_all()

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
        listing: Mapping[str, ArchiveFile] | None = None,
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
            return downloader.ask(wishes, wait_seconds, listing)

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
            self._fetches.add(downloader.fetches)
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
