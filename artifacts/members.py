"""Members: what is in the archive files of builds, one member at a time.

Where the bytes come from, and what is read at most once for all who ask:

- the headers of an archive file, into a `MemberIndex` that is kept in memory;
- of a member that stands in a staged file as it is, nothing: that part of the file is sent;
- any other member, into a temporary file that is sent while it grows, an `Extraction`.

All of it happens in steps (see `futures.Steps`), so that nobody's thread waits for it.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from artifacts.archive_url import BuildName
from artifacts.build import Build
from artifacts.errors import ArchiveError, ArchiveFileChanged, NotFound
from artifacts.extraction import Extraction, ExtractionGone, ExtractionReader
from artifacts.extractions import Extractions
from artifacts.futures import Steps
from artifacts.member_bytes import blocks_of, read_link
from artifacts.member_index import Form, Kind, Member, MemberIndex, read_index
from artifacts.member_indexes import MemberIndexes
from artifacts.shared_calls import SharedCalls
from artifacts.staged_archive import StagedArchive
from artifacts.staging import Staging
from artifacts.timers import Timers
from artifacts.unpack_limits import UnpackLimits
from artifacts.workers import Workers

_Result = TypeVar("_Result")

# How often a look begins anew, when what was found has changed meanwhile.
_MAX_LOOKS = 3


@dataclass(frozen=True)
class FoundMember:
    """A file of an archive, as a client is to know of it.

    Attributes:
        size: in bytes.
        etag: with its quotes; the same for the same member of the same archive file.
        modified_at: seconds since 1970; None where the archive does not say, or nothing sensible.
        offset: where it begins in the file that is sent.
    """

    size: int
    etag: str
    modified_at: float | None
    offset: int


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

    def open(self) -> io.RawIOBase:
        """Return a reader of it, which can seek; raises ArchiveFileChanged where it is another."""

    def place_of(self, form: Form, member: Member) -> int | None:
        """Return where in the file of ``open`` a member can be sent from; None if it cannot."""


class Members:
    """The members of the archive files of all builds."""

    def __init__(
        self, staging: Staging, workers: Workers, limits: UnpackLimits, timers: Timers
    ) -> None:
        """``workers`` are the threads that read what is staged."""
        self._staging = staging
        self._workers = workers
        self._limits = limits
        self._indexes = MemberIndexes()
        self._links: SharedCalls[Hashable, str] = SharedCalls()
        self._lists: SharedCalls[Hashable, str] = SharedCalls()
        self._extractions = Extractions(staging.temporary_directory, staging.space, timers)

    def list(self, name: BuildName, archive_name: str) -> Steps[str]:
        """Return the paths of the files and links in an archive file of a build, one a line.

        Raises:
            NotFound: there is no such build or archive file.
            ArchiveError: it is no archive, is damaged, or exceeds a limit.
        """
        return (yield from _anew_where_changed(lambda: self._list(name, archive_name)))

    def extract(
        self,
        name: BuildName,
        archive_name: str,
        path: str,
        wants_bytes: Callable[[FoundMember], bool],
    ) -> Steps[ExtractionReader | int | None]:
        """Find one member, tell ``wants_bytes`` of it, and open it if that says so.

        Returned is a reader of the member alone, or the descriptor of a file that has it at the
        ``offset`` that was told; both are to be closed. ``wants_bytes`` may be called several
        times: the last one counts.

        Raises:
            NotFound: there is no such build, archive file or member, or it is not a file.
            ArchiveError: the archive is no archive, is damaged, exceeds a limit, or has the member
                in a way that cannot be read.
            InsufficientStorage: there is no room to extract it.
        """
        look = partial(self._extract, name, archive_name, path, wants_bytes)
        return (yield from _anew_where_changed(look))

    def close(self) -> None:
        """Cut what is being extracted."""
        self._extractions.close()

    # --- inside

    def _list(self, name: BuildName, archive_name: str) -> Steps[str]:
        archive = self._archive(name, archive_name)
        index = yield from self._index(archive)
        listed = self._lists.join(archive.key, lambda: "\n".join(index.paths()), self._workers)
        paths: str = yield listed
        return paths

    def _extract(
        self,
        name: BuildName,
        archive_name: str,
        path: str,
        wants_bytes: Callable[[FoundMember], bool],
    ) -> Steps[ExtractionReader | int | None]:
        archive = self._archive(name, archive_name)
        index = yield from self._index(archive)
        member = yield from self._find(archive, index, path)
        place = archive.place_of(index.form, member)
        etag = f'"{member.size:x}-{archive.version}-{member.start:x}"'
        found = FoundMember(member.size, etag, _sensible_time(member), place or 0)
        if not wants_bytes(found):
            return None
        if place is not None:
            with archive.open() as file:
                return os.dup(file.fileno())
        extraction = self._extractions.join(
            (archive.key, member.start, member.size),
            f"{member.path} of {archive.name}",
            member.size,
            partial(_fill, archive, index.form, member),
            archive.workers,
        )
        yield extraction.begun
        return extraction.open()

    def _archive(self, name: BuildName, archive_name: str) -> Archive:
        build = self._staging.known_build(name)
        staged = self._staged(build, archive_name)
        if staged is None:
            raise NotFound(f"{name} has no file {archive_name!r:.200} staged")
        build.touch()
        return staged

    def _staged(self, build: Build, archive_name: str) -> StagedArchive | None:
        """Return the archive file if it is published, by its published name or the archive's."""
        found = build.resolve(archive_name)
        if found is None and (whole := build.file_from(archive_name)) is not None:
            found = build.resolve(whole[0])
        if found is None:
            return None
        path, staged = found
        return StagedArchive.look_at(archive_name, build.directory / path, staged, self._workers)

    def _index(self, archive: Archive) -> Steps[MemberIndex]:
        read = partial(_read_index, archive, self._limits)
        index: MemberIndex = yield self._indexes.get(archive.key, read, archive.workers)
        return index

    def _find(self, archive: Archive, index: MemberIndex, path: str) -> Steps[Member]:
        while True:
            try:
                member = index.find(path)
            except NotFound as error:
                raise NotFound(f"{archive.name}: {error.message}") from error
            if member.kind is not Kind.LINK:
                return member
            key = (archive.key, member.path)
            target = yield self._links.join(
                key, partial(_read_link, archive, member), archive.workers
            )
            index.members[member.path] = replace(member, link=target)


def _anew_where_changed(look: Callable[[], Steps[_Result]]) -> Steps[_Result]:
    for _ in range(_MAX_LOOKS - 1):
        try:
            return (yield from look())
        except (ArchiveFileChanged, ExtractionGone):
            continue
    return (yield from look())


def _read_index(archive: Archive, limits: UnpackLimits) -> MemberIndex:
    with _naming(archive), archive.open() as reader:
        return read_index(reader, limits)


def _read_link(archive: Archive, member: Member) -> str:
    with _naming(archive), archive.open() as reader:
        return read_link(reader, member)


def _fill(archive: Archive, form: Form, member: Member, extraction: Extraction) -> None:
    with _naming(archive), archive.open() as reader:
        for offset, block in blocks_of(reader, form, member):
            extraction.write(offset, block)


@contextmanager
def _naming(archive: Archive) -> Iterator[None]:
    """Say which archive file it is that cannot be read."""
    try:
        yield
    except ArchiveError as error:
        # Those that are more than words are acted on by their kind.
        if type(error) is ArchiveError:
            raise ArchiveError(f"{archive.name}: {error.message}") from error
        raise


def _sensible_time(member: Member) -> float | None:
    return member.modified_at if 0 < member.modified_at <= time.time() else None
