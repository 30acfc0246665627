"""Task: one item of a build on its way from fetches to published and recorded files."""

from __future__ import annotations

import enum
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.build import Build
from artifacts.content_encoding import check_content_encoding
from artifacts.errors import ArtifactNotFound, DevserverError
from artifacts.fetch import Fetch
from artifacts.futures import resolve
from artifacts.manifest import Item, StagedFile
from artifacts.plan import PlannedItem
from artifacts.shared_fetches import SharedFetches
from artifacts.sources.source import ArchiveFile
from artifacts.staging import Staging
from artifacts.unpack_limits import UnpackLimits
from artifacts.unpacker import Unpacker
from artifacts.whole_files import kept_file, publish_fetched


class TaskState(enum.StrEnum):
    WAITING = "waiting"
    FETCHING = "fetching"
    UNPACKING = "unpacking"
    STAGED = "staged"
    FAILED = "failed"


@dataclass(frozen=True)
class Wish:
    """How an item is wanted: urgently, or after others; and whether the build may lack it."""

    is_urgent: bool = True
    may_be_absent: bool = False


class Task:
    """One item being staged; ``future`` tells its end."""

    def __init__(self, item: Item, wish: Wish, wait_until: float = 0) -> None:
        """``wait_until``, of ``time.monotonic()``: until when its files may come; 0: not at all.

        A task that is not urgent is *gated*: it begins when what one of those who want it asked for
        with more urgency has succeeded, and fails when that of all of them has failed.
        """
        self.item = item
        self.wish = wish
        self.is_gated = not wish.is_urgent
        self.future: Future[None] = Future()
        self.wait_until = wait_until
        # Ends when there is such a build, and that it can be staged is known or waited for.
        self.accepted: Future[None] = Future()
        self.state = TaskState.WAITING
        self.error: DevserverError | None = None
        self.is_described = False
        self.planned: PlannedItem | None = None
        self.files: dict[str, ArchiveFile] = {}  # once it is planned: those that it needs, by name
        self.sizes: dict[str, int | None] = {}
        self._last_seen: frozenset[str] = frozenset()
        self._asked_at = time.monotonic()
        self._lock = threading.Lock()  # guards joining, claiming and gates, and the fetches
        self._is_claimed = False
        self._is_accepted = False
        self._has_company = False
        self._gates = 0 if wish.is_urgent else 1
        self._fetches: dict[Fetch, None] = {}  # in the order in which they were acquired
        # Who waits for news of a file, by its name in the archive; None when there will be no more.
        self._news: dict[str, Future[None]] | None = {}
        self._bytes_there = 0

    def join(self, wish: Wish, wait_until: float) -> bool:
        """Let somebody join, who waits so long; False where this will not be staged any more."""
        with self._lock:
            has_failed = self.error is not None and self.future.done()
            if has_failed or (self._is_claimed and self.planned is None):
                return False
            self._has_company = True
            self.wait_until = max(self.wait_until, wait_until)
            self._gates += 0 if wish.is_urgent else 1
            self.wish = Wish(
                self.wish.is_urgent or wish.is_urgent,
                self.wish.may_be_absent or wish.may_be_absent,
            )
            return True

    def claim(self, *, if_time_is_over: bool = False, if_alone: bool = False) -> bool:
        """Whether the caller is the first, who may begin or end it.

        Nobody is while somebody waits for its files still (``if_time_is_over``), or if somebody
        else has joined it (``if_alone``).
        """
        with self._lock:
            is_kept = (if_time_is_over and self.has_time_left) or (if_alone and self._has_company)
            if self._is_claimed or is_kept:
                return False
            self._is_claimed = True
            return True

    def has_seen(self, planned: PlannedItem) -> bool:
        """Whether it was the same files when the builder's archive was last looked at."""
        last_seen = self._last_seen
        self._last_seen = frozenset(file.archive_name for file in planned.files)
        return self._last_seen == last_seen

    def open_gate(self) -> bool:
        """Whether it was gated until now."""
        with self._lock:
            was_gated, self.is_gated = self.is_gated, False
            return was_gated

    def close_gate(self) -> bool:
        """Note that one gate will never open; return whether none is left that may."""
        with self._lock:
            self._gates -= 1
            return self.is_gated and self._gates == 0

    def accept(self, error: DevserverError | None = None) -> None:
        """End ``accepted``, unless it has ended before."""
        with self._lock:
            was_accepted, self._is_accepted = self._is_accepted, True
        if not was_accepted:
            resolve(self.accepted, error)

    def hurry(self) -> bool:
        """Make it urgent, as somebody waits for its files; return whether it was gated."""
        with self._lock:
            self.wish = replace(self.wish, is_urgent=True)
        return self.open_gate()

    def news_of(self, archive_name: str) -> Future[None]:
        """Return what ends when a file's fetch is there, or it is published, or the task has ended.

        At once, if that has happened to the task. Whoever looks afterwards misses nothing.
        """
        with self._lock:
            if self._news is not None:
                return self._news.setdefault(archive_name, Future())
        over: Future[None] = Future()
        resolve(over, None)
        return over

    def _tell_news_of(self, archive_name: str) -> None:
        with self._lock:
            told = self._news.pop(archive_name, None) if self._news else None
        if told is not None:
            resolve(told, None)

    def end_news(self) -> None:
        """Tell everybody who waits for news; the future has ended."""
        with self._lock:
            left, self._news = self._news or {}, None
        for told in left.values():
            resolve(told, None)

    @property
    def is_claimed(self) -> bool:
        with self._lock:
            return self._is_claimed

    @property
    def has_time_left(self) -> bool:
        return time.monotonic() < self.wait_until

    @property
    def waited_seconds(self) -> float:
        """For how long its files have been waited for."""
        return time.monotonic() - self._asked_at if self.wait_until else 0.0

    # --- what it is doing

    @property
    def bytes_done(self) -> int:
        with self._lock:
            return self._bytes_there + sum(fetch.bytes_done for fetch in self._fetches)

    @property
    def bytes_total(self) -> int | None:
        """What there is to fetch, as far as it is known by now; None if nothing is."""
        with self._lock:
            self.sizes.update((fetch.name, fetch.bytes_total) for fetch in self._fetches)
            known = [size for size in self.sizes.values() if size is not None]
        return sum(known) if known else None

    @property
    def bytes_per_second(self) -> float:
        with self._lock:
            if self.state is not TaskState.FETCHING or not self._fetches:
                return 0.0
            seconds = max(fetch.seconds_under_way for fetch in self._fetches)
            done = sum(fetch.bytes_done for fetch in self._fetches)
        return done / seconds if seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state.value,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            "bytes_per_second": round(self.bytes_per_second),
        }

    # --- doing it

    def run(
        self,
        build: Build,
        staging: Staging,
        fetches: SharedFetches,
        limits: UnpackLimits,
    ) -> None:
        """Stage the item, whose files are described; blocks until it is recorded.

        Raises:
            DevserverError: it failed; nothing of it is recorded as staged.
            OSError: the disk refused.
        """
        assert self.planned is not None
        self.state = TaskState.FETCHING
        try:
            paths: list[str] = []
            trees: list[dict[str, StagedFile]] = []
            if self.planned.is_unpacked:
                trees = self._stage_trees(build, staging, fetches, limits)
            else:
                paths = self._stage_files(build, fetches, limits)
            for path, target in self.planned.links.items():
                build.publish_link(path, target)
                paths.append(path)
            build.record_staged(self.item, paths, trees)
        finally:
            for fetch in list(self._fetches):
                self._let_go(fetches, fetch)

    def _acquire(self, fetches: SharedFetches, file: ArchiveFile) -> Fetch:
        check_content_encoding(file.content_encoding, file.name)
        fetch = fetches.acquire(file, urgent=self.wish.is_urgent)
        with self._lock:
            self._fetches[fetch] = None
        self._tell_news_of(file.name)
        return fetch

    def _let_go(self, fetches: SharedFetches, fetch: Fetch) -> None:
        with self._lock:
            del self._fetches[fetch]
            self._bytes_there += fetch.bytes_done
            self.sizes[fetch.name] = fetch.bytes_total
        fetches.release(fetch)
        self._tell_news_of(fetch.name)

    def _stage_files(self, build: Build, fetches: SharedFetches, limits: UnpackLimits) -> list[str]:
        assert self.planned is not None
        ended: queue.SimpleQueue[Fetch] = queue.SimpleQueue()
        paths_of: dict[str, list[str]] = {}  # parts may put one file of the archive in many places
        for planned in self.planned.files:
            paths_of.setdefault(planned.archive_name, []).append(planned.path)
        under_way: list[str] = []
        for name, paths in paths_of.items():
            # Before the other look: what somebody else publishes in between is not stale.
            found = {path: build.published_file(path) for path in paths}
            if there := kept_file(build, self.files[name]):
                for path in paths:
                    if path != there[0]:
                        build.publish_file(build.directory / there[0], path, there[1])
                with self._lock:
                    self._bytes_there += (there[1].stored or there[1]).size
                self._tell_news_of(name)
            else:
                under_way.append(name)
                for path, stale in found.items():
                    if stale is not None:
                        build.withdraw(path, stale)
        for name in under_way:
            self._acquire(fetches, self.files[name]).when_ended(ended.put)
        for _ in under_way:
            fetch = _next_ended(ended, build)
            publish_fetched(build, paths_of[fetch.name], fetch.name, fetch.wait(), limits)
            self._let_go(fetches, fetch)
        return [planned.path for planned in self.planned.files]

    def _stage_trees(
        self,
        build: Build,
        staging: Staging,
        fetches: SharedFetches,
        limits: UnpackLimits,
    ) -> list[dict[str, StagedFile]]:
        assert self.planned is not None
        files = [self.files[planned.archive_name] for planned in self.planned.files]
        origins: list[Fetch | Path] = []
        for file in files:
            there = kept_file(build, file)
            origins.append(build.directory / there[0] if there else self._acquire(fetches, file))
        trees = [self._stage_tree(origin, build, staging, limits) for origin in origins]
        if self.planned.members.include and not any(trees):
            names = " and ".join(file.name for file in files)
            wanted = " or ".join(self.planned.members.include)
            raise ArtifactNotFound(f"{names} has no member that fits {wanted}")
        return trees

    def _stage_tree(
        self, origin: Fetch | Path, build: Build, staging: Staging, limits: UnpackLimits
    ) -> dict[str, StagedFile]:
        assert self.planned is not None and self.planned.artifact is not None
        top = self.planned.artifact.tree_path(build.name)
        unpacker = Unpacker(self.planned.members.wants, limits, self._note_unpacking)
        while True:
            directory = staging.new_directory()
            try:
                (directory / top).mkdir(parents=True, exist_ok=True)
                members = unpacker.unpack(origin, directory / top)
                if members is None:
                    continue
                tree = {f"{top}/{path}" if top else path: file for path, file in members.items()}
                build.publish_tree(directory, tree)
                return tree
            finally:
                staging.throw_away(directory)

    def _note_unpacking(self) -> None:
        self.state = TaskState.UNPACKING


def _next_ended(ended: queue.SimpleQueue[Fetch], build: Build) -> Fetch:
    """Return the next fetch that has ended; meanwhile, record what is published already."""
    try:
        return ended.get(timeout=build.seconds_to_recording)
    except queue.Empty:
        build.record_published()
        return ended.get()


def settled_task(item: Item, wish: Wish) -> Task:
    """Return a task that has nothing left to do."""
    task = Task(item, wish)
    task.accept()
    resolve(task.future, None)
    return task
