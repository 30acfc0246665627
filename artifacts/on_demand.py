"""Staging on demand: a file of a build that nobody has staged is staged by asking for it.

The build is looked for in the archive root. It is listed first; the listing, or why there is none,
is remembered for a few seconds. So any number of machines that ask for files of it, be they there
or not, cost the archive one listing. Only what the listing has is staged, which is why nothing is
left of what was asked for in vain. What could not be staged is not tried again for as long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.equipment import Equipment
from artifacts.errors import BadRequest, Busy, Conflict, DevserverError, in_words
from artifacts.futures import all_ended
from artifacts.live_files import Look, Pending, Unstaged
from artifacts.manifest import Item
from artifacts.offer import Offer, Offered
from artifacts.recent_outcomes import RecentOutcomes
from artifacts.sources.source import ArchiveFile
from artifacts.standing import is_settled
from artifacts.survey import Survey
from artifacts.task import Wish
from artifacts.workers import Workers

_REMEMBERED_SECONDS = 3.0
# So many files there may be in the listings that are remembered; each counts as some more.
_REMEMBERED_FILES = 50_000
_FILES_FOR_A_LISTING = 100
_REMEMBERED_DESCRIPTIONS = 10_000
_REMEMBERED_FAILURES = 1000
# An archive that hangs must not hold up the threads that stage.
_THREADS = 16

_Result = TypeVar("_Result")


class Downloads(Protocol):
    """The downloader cache, as far as staging on demand needs it."""

    def stage(
        self,
        archive_url: ArchiveUrl,
        items: Iterable[Item],
        *,
        listing: Mapping[str, ArchiveFile] | None,
    ) -> Future[None]: ...

    def look(self, name: BuildName, path: str) -> Look: ...


@dataclass(frozen=True)
class _Wanted:
    archive_url: ArchiveUrl
    path: str
    may_stage: bool


class OnDemand:
    """Finds files below an archive root, and has them staged; ended with ``close``."""

    def __init__(
        self, archive_root: ArchiveUrl, equipment: Equipment, downloads: Downloads
    ) -> None:
        """``archive_root`` is the prefix of the builds' archive URLs."""
        self._archive_root = archive_root
        self._equipment = equipment
        self._downloads = downloads
        self._stopped = threading.Event()
        self._threads = Workers("lookup", _THREADS)
        self._offers: RecentOutcomes[ArchiveUrl, Offer] = RecentOutcomes(
            _REMEMBERED_SECONDS,
            _REMEMBERED_FILES,
            lambda offer: _FILES_FOR_A_LISTING + len(offer.listing),
        )
        self._descriptions: RecentOutcomes[tuple[ArchiveUrl, str], ArchiveFile] = RecentOutcomes(
            _REMEMBERED_SECONDS, _REMEMBERED_DESCRIPTIONS
        )
        self._failures: RecentOutcomes[tuple[ArchiveUrl, tuple[Item, ...]], None] = RecentOutcomes(
            _REMEMBERED_SECONDS, _REMEMBERED_FAILURES
        )

    def close(self) -> None:
        self._stopped.set()
        self._threads.close(timeout_seconds=1)

    def look(self, name: BuildName, path: str, *, may_stage: bool) -> Look:
        """Look for a file at ``path``, below a build, that is neither staged nor under way.

        With ``may_stage`` it is staged; without, nothing changes. As with `DownloaderCache.look`,
        the manifest is to be looked at before, and again after None.

        Raises:
            DevserverError: the archive cannot tell, or has no such build; or staging has failed.
        """
        archive_url = self._archive_url_of(name)
        if archive_url is None or not self._may_stage(archive_url):
            return None
        wanted = _Wanted(archive_url, path, may_stage)
        offer = self._offers.get(
            archive_url, lambda: self._submit("listing", archive_url, self._list)
        )
        return _after(offer, partial(self._choose, wanted))

    def _archive_url_of(self, name: BuildName) -> ArchiveUrl | None:
        """Return where a build is to be looked for; None if nothing can be called so there."""
        root = self._archive_root
        url = ArchiveUrl(root.scheme, root.authority, (*root.segments, name.target, name.build))
        with suppress(BadRequest):
            return url if ArchiveUrl.parse(str(url)) == url else None
        return None

    def _may_stage(self, archive_url: ArchiveUrl) -> bool:
        """Whether the build is not another archive's."""
        staging = self._equipment.staging
        try:
            staging.check_archive(staging.build(archive_url.name), archive_url)
        except Conflict:
            return False
        return True

    def _choose(self, wanted: _Wanted, offer: Offer) -> Look:
        for offered in offer.find(wanted.path):
            # What is staged already did not bring the file.
            if not all(self._is_staged(wanted.archive_url, item) for item in offered.items):
                if wanted.may_stage:
                    return self._stage(wanted, offered, offer)
                return self._describe(wanted, offered.file)
        return None

    def _is_staged(self, archive_url: ArchiveUrl, item: Item) -> bool:
        build = self._equipment.staging.build(archive_url.name)
        return is_settled(build, archive_url, item, Wish())

    # --- staging

    def _stage(self, wanted: _Wanted, offered: Offered, offer: Offer) -> Look:
        key = (wanted.archive_url, offered.items)
        if (failure := self._failures.failure_of(key)) is not None:
            raise failure.again()
        try:
            staged = self._downloads.stage(wanted.archive_url, offered.items, listing=offer.listing)
        except Conflict:
            return None  # somebody has just staged it from another archive
        staged.add_done_callback(partial(self._remember_failure, key))
        return self._follow(wanted, staged, self._look_at_downloads(wanted))

    def _remember_failure(
        self, key: tuple[ArchiveUrl, tuple[Item, ...]], staged: Future[None]
    ) -> None:
        if staged.exception() is not None:
            with suppress(Busy):
                self._failures.get(key, lambda: staged)

    def _look_at_downloads(self, wanted: _Wanted) -> Callable[[], Look]:
        return partial(self._downloads.look, wanted.archive_url.name, wanted.path)

    def _follow(self, wanted: _Wanted, staged: Future[None], look: Callable[[], Look]) -> Look:
        """Return what is under way of a file; if it does not come whole, wait for the staging."""
        looked = look()
        if isinstance(looked, Pending):
            return Pending(looked.news, partial(self._follow, wanted, staged, looked.look_again))
        if looked is not None:
            return looked
        if not staged.done():
            look = self._look_at_downloads(wanted)
            return Pending(all_ended([staged]), partial(self._follow, wanted, staged, look))
        return _after(staged, lambda _: None)

    # --- asking the archive

    def _list(self, archive_url: ArchiveUrl) -> Offer:
        return Offer(self._survey(archive_url).list(), self._equipment.catalog, archive_url.name)

    def _describe(self, wanted: _Wanted, file: ArchiveFile | None) -> Look:
        if file is None:
            return None  # it would have to be unpacked
        if file.size_is_exact and not file.stat_tells_more:
            return _unstaged(file)
        name = file.name
        described = self._descriptions.get(
            (wanted.archive_url, name),
            lambda: self._submit(
                "asking for", wanted.archive_url, lambda url: self._survey(url).stat(name)
            ),
        )
        return _after(described, _unstaged)

    def _survey(self, archive_url: ArchiveUrl) -> Survey:
        return Survey(
            self._equipment.sources.source_of(archive_url),
            archive_url,
            self._equipment.connections,
            self._equipment.fetch_limits.retries,
            self._stopped,
        )

    def _submit(
        self, doing: str, archive_url: ArchiveUrl, call: Callable[[ArchiveUrl], _Result]
    ) -> Future[_Result]:
        future: Future[_Result] = Future()

        def work() -> None:
            try:
                result = call(archive_url)
            except Exception as error:
                future.set_exception(in_words(error, doing, str(archive_url)))
            else:
                future.set_result(result)

        self._threads.submit(work)
        return future


def _after(future: Future[_Result], then: Callable[[_Result], Look]) -> Look:
    """Look once a future has ended; raise what it failed with."""
    if not future.done():
        return Pending(all_ended([future]), partial(_after, future, then))
    error = future.exception()
    if isinstance(error, DevserverError):
        raise error.again()
    return then(future.result())


def _unstaged(file: ArchiveFile) -> Unstaged:
    is_plain = file.size_is_exact and file.content_encoding is None
    return Unstaged(file.size if is_plain else None)
