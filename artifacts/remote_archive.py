"""Archive files that are not staged, as their members are read from where builds live."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from artifacts.archive_url import ArchiveUrl
from artifacts.errors import Busy, DevserverError
from artifacts.member_index import Form, Member
from artifacts.remote_file import RemoteFile, RemoteReads
from artifacts.retries import RetryLimits, retrying
from artifacts.shared_calls import SharedCalls
from artifacts.sources.registry import Sources
from artifacts.sources.source import ArchiveFile, Source
from artifacts.workers import Workers

# What the archive has said of a file, or that it has none, is believed for so long.
_BELIEVED_SECONDS = 5.0
_MAX_KEPT = 256


@dataclass(frozen=True)
class RemoteArchive:
    """One generation of a file in an archive; attributes as in `members.Archive`."""

    source: Source
    archive_url: ArchiveUrl
    file: ArchiveFile
    reads: RemoteReads
    workers: Workers
    retries: RetryLimits
    stopped: threading.Event

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def key(self) -> Hashable:
        return self.archive_url, self.file.name, self.file.generation, self.file.size

    @property
    def version(self) -> str:
        said = f"{self.file.generation} {self.file.size}"
        return hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    @property
    def can_be_read(self) -> bool:
        """Whether members are to be read by ranges; else the file is to be staged."""
        file = self.file
        is_pinned = bool(file.size) and file.size_is_exact and file.generation is not None
        return (
            is_pinned
            and file.has_ranges
            and file.content_encoding is None
            and not self.reads.are_dear
        )

    def check_form(self, form: Form) -> None:
        if form is Form.COMPRESSED_TAR:
            raise self.reads.give_up()

    def open(self, stretch: tuple[int, int] | None = None) -> RemoteFile:
        return RemoteFile(
            self.source,
            self.archive_url,
            self.file,
            self.reads,
            self.retries,
            self.stopped,
            stretch,
        )

    def place_of(self, form: Form, member: Member) -> int | None:
        return None


@dataclass(frozen=True)
class _Said:
    """What the archive has said of a file, and when (of ``time.monotonic()``)."""

    at: float
    archive: RemoteArchive | None
    error: DevserverError | None


class RemoteArchives:
    """Asks archives for their files: one question for all who ask at the same time."""

    def __init__(
        self, sources: Sources, connections: Workers, retries: RetryLimits, stopped: threading.Event
    ) -> None:
        """``connections`` are the threads that read from archives."""
        self._sources = sources
        self._connections = connections
        self._retries = retries
        self._stopped = stopped
        self._asking: SharedCalls[tuple[ArchiveUrl, str], RemoteArchive] = SharedCalls()
        self._lock = threading.Lock()  # guards what was said
        self._said: OrderedDict[tuple[ArchiveUrl, str], _Said] = OrderedDict()

    def look_at(self, archive_url: ArchiveUrl, name: str) -> Future[RemoteArchive]:
        """Describe a file of a build as it is, or was a moment ago.

        The future fails with ArchiveFileMissing where there is none, and other DevserverErrors.
        """
        said = self._last_said(archive_url, name)
        if said is None or time.monotonic() - said.at > _BELIEVED_SECONDS:
            ask = partial(self._ask, archive_url, name)
            return self._asking.join((archive_url, name), ask, self._connections)
        future: Future[RemoteArchive] = Future()
        if said.archive is not None:
            future.set_result(said.archive)
        else:
            future.set_exception(said.error)
        return future

    def _last_said(self, archive_url: ArchiveUrl, name: str) -> _Said | None:
        with self._lock:
            said = self._said.get((archive_url, name))
        has_changed = (
            said is not None and said.archive is not None and said.archive.reads.has_changed
        )
        return None if has_changed else said

    def _ask(self, archive_url: ArchiveUrl, name: str) -> RemoteArchive:
        source = self._sources.source_of(archive_url)
        try:
            file = retrying(lambda: source.stat(archive_url, name), self._retries, self._stopped)
        except Busy:
            raise
        except DevserverError as error:
            self._keep(archive_url, name, None, error)
            raise
        before = self._last_said(archive_url, name)
        archive = RemoteArchive(
            source,
            archive_url,
            file,
            RemoteReads(file.size or 0),
            self._connections,
            self._retries,
            self._stopped,
        )
        if before is not None and before.archive is not None and before.archive.key == archive.key:
            archive = before.archive
        self._keep(archive_url, name, archive, None)
        return archive

    def _keep(
        self,
        archive_url: ArchiveUrl,
        name: str,
        archive: RemoteArchive | None,
        error: DevserverError | None,
    ) -> None:
        with self._lock:
            self._said[archive_url, name] = _Said(time.monotonic(), archive, error)
            self._said.move_to_end((archive_url, name))
            if len(self._said) > _MAX_KEPT:
                self._said.popitem(last=False)
