"""Archive files of builds, wherever they can be read: staged, or where the build lives."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.build import Build
from artifacts.errors import ArchiveFileMissing, BuildNotFound, Conflict, NotFound
from artifacts.futures import Steps
from artifacts.manifest import Item
from artifacts.member_index import Form, Member
from artifacts.remote_archive import RemoteArchive, RemoteArchives
from artifacts.shared_calls import SharedCalls
from artifacts.staged_archive import StagedArchive
from artifacts.staging import Staging
from artifacts.workers import Workers


class Archive(Protocol):
    """An archive file that can be read, wherever it is."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def key(self) -> Hashable:
        """Tells it from all other files, and from what takes its place."""

    @property
    def version(self) -> str:
        """The same for the same bytes."""

    @property
    def workers(self) -> Workers:
        """The threads that may read it."""

    def check_form(self, form: Form) -> None:
        """Raise StagingIsCheaper where members of such an archive cannot be read from here."""

    def open(self, stretch: tuple[int, int] | None = None) -> io.RawIOBase:
        """Return a reader of it, which can seek; ``stretch`` is what will be read in a row.

        Opening, or reading, raises ArchiveFileChanged where it is another file by now.
        """

    def place_of(self, form: Form, member: Member) -> int | None:
        """Return where in the file of ``open`` a member can be sent from; None if it cannot."""


class LiveDownloader(Protocol):
    """A build being staged, as far as it matters here."""

    archive_url: ArchiveUrl


class Downloads(Protocol):
    """The downloader cache, as far as it matters here."""

    def stage(self, archive_url: ArchiveUrl, items: Iterable[Item]) -> Future[None]: ...

    def live_downloader(self, name: BuildName) -> LiveDownloader | None: ...


@dataclass(frozen=True)
class Wanted:
    """An archive file that somebody asks for.

    Attributes:
        build: the build.
        name: the file's name, as published or as in the build's archive.
        may_stage: whether it may be staged for that.
    """

    build: BuildName
    name: str
    may_stage: bool


class ArchiveFiles:
    """Finds archive files, and has them staged where they cannot be read otherwise."""

    def __init__(
        self,
        staging: Staging,
        downloads: Downloads,
        remotes: RemoteArchives,
        parse_archive_url: Callable[[str], ArchiveUrl],
        workers: Workers,
        *,
        has_archive_root: bool,
    ) -> None:
        """``workers`` are the threads that read what is staged."""
        self._staging = staging
        self._downloads = downloads
        self._remotes = remotes
        self._parse_archive_url = parse_archive_url
        self._workers = workers
        self._has_archive_root = has_archive_root
        self._beginning: SharedCalls[Hashable, Future[None]] = SharedCalls()

    def find(self, wanted: Wanted) -> Steps[Archive]:
        """Return the archive file where it can be read.

        Raises:
            BuildNotFound: nobody knows the build.
            NotFound: the build has no such file.
            NotAllowed: the build is in an archive that is not on the allow list.
            Conflict: it would have to be staged, and must not be.
            DevserverError: the archive cannot tell, or staging failed.
        """
        build = self._staging.build(wanted.build)
        build.touch()
        staged = self._staged(build, wanted.name)
        if staged is not None:
            return staged
        archive_url = self._archive_url(build)
        try:
            remote: RemoteArchive = yield self._remotes.look_at(archive_url, wanted.name)
        except ArchiveFileMissing as error:
            raise _not_there(wanted) from error
        if remote.can_be_read:
            return remote
        if not wanted.may_stage:
            raise Conflict(
                f"{wanted.name} has to be staged for that, which neither HEAD nor a page of "
                "another site may do; use GET"
            )
        stage = partial(self._downloads.stage, archive_url, [Item.files(wanted.name)])
        yield (yield self._beginning.join((archive_url, wanted.name), stage, self._workers))
        staged = self._staged(build, wanted.name)
        if staged is None:
            raise _not_there(wanted)
        return staged

    def _staged(self, build: Build, name: str) -> StagedArchive | None:
        found = build.resolve(name)
        if found is None and (whole := build.file_from(name)) is not None:
            found = build.resolve(whole[0])
        if found is None:
            return None
        path, staged = found
        return StagedArchive.look_at(name, build.directory / path, staged, self._workers)

    def _archive_url(self, build: Build) -> ArchiveUrl:
        asked, live = build.asked, self._downloads.live_downloader(build.name)
        if asked is not None:
            return self._parse_archive_url(asked.archive_url)
        if live is not None:
            return live.archive_url
        if self._has_archive_root:
            return self._parse_archive_url(str(build.name))
        raise BuildNotFound(f"no such build: {build.name}")


def _not_there(wanted: Wanted) -> NotFound:
    return NotFound(f"{wanted.build} has no file {wanted.name!r:.200}")
