"""The files of a build that is being staged, before any manifest lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from artifacts.build import Build
from artifacts.futures import all_ended
from artifacts.growing_file import FollowedFile
from artifacts.manifest import StagedFile
from artifacts.shared_fetches import SharedFetches
from artifacts.task import Task
from artifacts.tasks import Tasks

_MAX_LINKS = 8


@dataclass(frozen=True)
class Published:
    """A file that is verified and in its place, though no manifest lists it yet."""

    path: str
    file: StagedFile


@dataclass(frozen=True)
class Pending:
    """What is not there yet: once ``news`` has ended, ``look_again``, after the manifest.

    A manifest may list it by then. ``look_again`` returns and raises what looking does.
    """

    news: Future[None]
    look_again: Callable[[], Look]


@dataclass(frozen=True)
class Unstaged:
    """A file that only the archive has; its ``size`` in bytes, None where that is not known."""

    size: int | None


# None: no such file is there, or comes.
Look = FollowedFile | Published | Unstaged | Pending | None


class LiveFiles:
    """What the tasks of one build are going to publish whole; good also after they have ended."""

    def __init__(
        self, build: Build, tasks: Tasks, fetches: SharedFetches, hurry: Callable[[Task], None]
    ) -> None:
        """``hurry`` has a task begin, if it is planned and waits for others."""
        self._build = build
        self._tasks = tasks
        self._fetches = fetches
        self._hurry = hurry

    def look(self, path: str) -> Look:
        """Return the file that is published, or is going to be, at ``path`` below the build.

        What has not begun to come is fetched next.

        Raises:
            DevserverError: what staging it failed with.
        """
        tasks = self._tasks.all
        unplanned = [t.accepted for t in tasks if t.planned is None and not t.accepted.done()]
        path = _behind_links(path, tasks)
        found = [
            (task, name)
            for task in tasks
            if task.planned and (name := task.planned.published_whole.get(path))
        ]
        if found:
            # One that has failed may have been asked for again, as part of something else.
            task, archive_name = min(found, key=lambda one: one[0].error is not None)
            return self._look_at(task, archive_name, path)
        if unplanned:
            return Pending(all_ended(unplanned), partial(self.look, path))
        return None

    def _look_at(self, task: Task, archive_name: str, path: str) -> Look:
        # In this order: a task has its fetch, then publishes, and then ends.
        has_ended, news = task.future.done(), task.news_of(archive_name)
        self._hurry(task)
        followed = self._follow(archive_name)
        if isinstance(followed, FollowedFile):
            return followed
        if followed is not None:
            return Pending(followed, partial(self.look, path))
        if (file := self._build.published_file(path)) is not None:
            return Published(path, file)
        if not has_ended:
            return Pending(news, partial(self.look, path))
        if task.error is not None:
            raise task.error.again()
        return None

    def _follow(self, archive_name: str) -> FollowedFile | Future[None] | None:
        """Follow a file's fetch; see `Fetch.follow`. None also where it has none."""
        fetch = self._fetches.join(archive_name)
        if fetch is None:
            return None
        leave = partial(self._fetches.leave, fetch)
        followed: FollowedFile | Future[None] | None = None
        try:
            fetch.hurry()
            followed = fetch.follow(leave)
        finally:
            if not isinstance(followed, FollowedFile):
                leave()
        return followed


def _behind_links(path: str, tasks: Iterable[Task]) -> str:
    """Return where ``path`` leads to, by the links that tasks are going to make."""
    planned = [task.planned for task in tasks if task.planned is not None]
    links = {link: target for item in planned for link, target in item.links.items()}
    for _ in range(_MAX_LINKS):
        if path not in links:
            break
        path = links[path]
    return path
