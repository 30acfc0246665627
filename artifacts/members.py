"""Members: what is in the archive files of builds, one member at a time.

Where the bytes come from, and what is read at most once for all who ask:

- the headers of an archive file, into a `MemberIndex` that is kept in memory;
- of a member that stands in a staged file as it is, nothing: that part of the file is sent;
- any other member, into a temporary file that is sent while it grows, an `Extraction`.

What is not staged is read where the build lives, by ranges, as long as that is cheaper than staging
the archive file (`RemoteReads` counts), and where it can be: not in a compressed tar archive.
Otherwise it is staged first.

All of it happens in steps (see `futures.Steps`), so that nobody's thread waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from artifacts.archive_files import Archive, ArchiveFiles, Wanted
from artifacts.errors import ArchiveError, ArchiveFileChanged, NotFound
from artifacts.extraction import Extraction, ExtractionGone, ExtractionReader
from artifacts.extractions import Extractions
from artifacts.futures import Steps
from artifacts.member_bytes import blocks_of, read_link
from artifacts.member_index import Form, Kind, Member, MemberIndex, form_of, read_index
from artifacts.member_indexes import MemberIndexes
from artifacts.remote_file import StagingIsCheaper
from artifacts.shared_calls import SharedCalls
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


class Members:
    """The members of the archive files of all builds."""

    def __init__(
        self,
        archive_files: ArchiveFiles,
        extractions: Extractions,
        workers: Workers,
        limits: UnpackLimits,
    ) -> None:
        """``workers`` are the threads that put lists together."""
        self._archive_files = archive_files
        self._extractions = extractions
        self._workers = workers
        self._limits = limits
        self._indexes = MemberIndexes()
        self._links: SharedCalls[Hashable, str] = SharedCalls()
        self._lists: SharedCalls[Hashable, str] = SharedCalls()

    def list(self, wanted: Wanted) -> Steps[str]:
        """Return the paths of the files and links in an archive file, one a line.

        Raises:
            ArchiveError: it is no archive, is damaged, or exceeds a limit.
            DevserverError: it is not to be had; as `ArchiveFiles.find`.
        """
        return (yield from _anew_where_changed(lambda: self._list(wanted)))

    def extract(
        self, wanted: Wanted, path: str, wants_bytes: Callable[[FoundMember], bool]
    ) -> Steps[ExtractionReader | int | None]:
        """Find one member, tell ``wants_bytes`` of it, and open it if that says so.

        Returned is a reader of the member alone, or the descriptor of a file that has it at the
        ``offset`` that was told; both are to be closed. ``wants_bytes`` may be called several
        times: the last one counts.

        Raises:
            NotFound: there is no such member, or it is not a file.
            ArchiveError: the archive is no archive, is damaged, exceeds a limit, or has the member
                in a way that cannot be read.
            InsufficientStorage: there is no room to extract it.
            DevserverError: the archive is not to be had; as `ArchiveFiles.find`.
        """
        return (yield from _anew_where_changed(lambda: self._extract(wanted, path, wants_bytes)))

    # --- inside

    def _list(self, wanted: Wanted) -> Steps[str]:
        archive = yield from self._archive_files.find(wanted)
        index = yield from self._index(archive)
        listed = self._lists.join(archive.key, lambda: "\n".join(index.paths()), self._workers)
        paths: str = yield listed
        return paths

    def _extract(
        self, wanted: Wanted, path: str, wants_bytes: Callable[[FoundMember], bool]
    ) -> Steps[ExtractionReader | int | None]:
        archive = yield from self._archive_files.find(wanted)
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
        except (ArchiveFileChanged, ExtractionGone, StagingIsCheaper):
            continue
    return (yield from look())


def _read_index(archive: Archive, limits: UnpackLimits) -> MemberIndex:
    with _naming(archive), archive.open() as reader:
        form = form_of(reader)
        archive.check_form(form)
        return read_index(reader, form, limits)


def _read_link(archive: Archive, member: Member) -> str:
    with _naming(archive), archive.open(member.stretch) as reader:
        return read_link(reader, member)


def _fill(archive: Archive, form: Form, member: Member, extraction: Extraction) -> None:
    stretch = member.stretch if form is not Form.COMPRESSED_TAR else None
    with (
        _naming(archive),
        archive.open(stretch) as reader,
        closing(blocks_of(reader, form, member)) as blocks,
    ):
        for offset, block in blocks:
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
