"""Checking stored blobs against their names, and dropping those that are wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.damage import Damage, find_damage, unreadable
from artifacts.blobs.garbage import RECORD_SECONDS
from artifacts.blobs.incomplete import IncompleteFile, find_incomplete
from artifacts.blobs.inventory import (
    BlobRecord,
    count_recorded,
    pages_of_records,
    unrecorded_blobs,
)
from artifacts.blobs.storage import StorageError
from artifacts.blobs.storage_failures import StorageFailures
from artifacts.database.database import Database
from artifacts.errors import shutting_down
from artifacts.workers import Workers

_READERS = 4
_READERS_END_SECONDS = 60
# Each kind of finding is told in full up to so many.
_MAX_TOLD = 10_000
# More missing blobs than these, and than there are whole ones: it is the wrong storage that is
# looked at, or a disk that is not mounted.
_MAX_MISSING = 100


@dataclass
class CheckReport:
    """What a check has found.

    Attributes:
        blobs, bytes: that were read, and that should have been.
        damaged, missing: how many blobs are not what they are on record for, or not there at all.
        unreadable: at how many blobs the storage fails.
        unrecorded: how many blobs are in the storage, and not on record; collecting garbage
            removes them.
        dropped: how many of these three are forgotten now.
        is_doubtful: nothing was dropped, as more is missing than there, or unreadable than whole.
        findings: what is damaged, missing or unreadable, 10,000 at most.
        incomplete: files that miss blobs, 10,000 at most.
    """

    blobs: int = 0
    bytes: int = 0
    damaged: int = 0
    missing: int = 0
    unreadable: int = 0
    unrecorded: int = 0
    dropped: int = 0
    is_doubtful: bool = False
    findings: list[Damage] = field(default_factory=list)
    incomplete: list[IncompleteFile] = field(default_factory=list)

    @property
    def is_bad(self) -> bool:
        """Whether something is lost that is to be sent again."""
        return bool(self.damaged or self.missing or self.unreadable or self.incomplete)


@dataclass(frozen=True)
class CheckProgress:
    """How far a check is."""

    blobs_done: int
    blobs_total: int
    bytes_done: int
    bytes_total: int


class BlobCheck:
    """One check of all blobs of a database and a storage, made once."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        stopped: threading.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``stopped``: once it is set, the check ends with Busy, as soon as it can."""
        self._database = database
        self._blobs = blobs
        self._stopped = stopped
        self._now = now
        self._lock = threading.Lock()  # guards the progress, the failures, and what was read last
        self._blobs_done = self._bytes_done = 0
        self._blobs_total = self._bytes_total = 0
        self._failures = StorageFailures()
        self._whole: BlobRecord | None = None

    @property
    def progress(self) -> CheckProgress:
        with self._lock:
            return CheckProgress(
                self._blobs_done, self._blobs_total, self._bytes_done, self._bytes_total
            )

    def run(self, *, repair: bool = False) -> CheckReport:
        """Read all blobs; with ``repair``, forget those that are damaged, missing or unreadable.

        Only those among the report's findings are forgotten; another check finds the others.

        These are asked for again when somebody uploads a file that has them.

        Raises:
            Busy: the database is unavailable, a blob is locked for too long, or it was stopped.
            StorageError: the storage cannot be listed, or fails at many blobs one after the other.
        """
        report = CheckReport()
        totals = count_recorded(self._database)
        with self._lock:
            self._blobs_total, self._bytes_total = totals
        readers = Workers("blob-check", _READERS)
        try:
            for page in pages_of_records(self._database, self._now()):
                for damage in filter(None, readers.map(self._check, page)):
                    _note(report, damage)
        finally:
            readers.close(_READERS_END_SECONDS)
        progress = self.progress
        report.blobs, report.bytes = progress.blobs_done, progress.bytes_done
        before = self._now() - RECORD_SECONDS
        for blob in unrecorded_blobs(self._database, self._blobs.storage, self._check_stopped):
            report.unrecorded += blob.stored_at < before
        if repair:
            self._repair(report)
        damaged = [finding.checksum for finding in report.findings]
        report.incomplete = find_incomplete(self._database, damaged, _MAX_TOLD)
        return report

    def _check(self, record: BlobRecord) -> Damage | None:
        self._check_stopped()
        with self._lock:
            self._failures.check()
        failure = None
        try:
            damage = self._read(record)
            is_whole = damage is None
            if not is_whole:
                # It may have been removed, or sent anew, while it was read.
                damage = self._blobs.find_damage(record.checksum)
        except StorageError as error:
            failure, is_whole = error, False
            damage = unreadable(record.checksum, error)
        with self._lock:
            self._blobs_done += 1
            self._bytes_done += record.size
            if is_whole:
                self._whole = record
            if failure is None:
                self._failures.note_success()
            else:
                self._failures.note(failure)
        return damage

    def _repair(self, report: CheckReport) -> None:
        whole = report.blobs - report.damaged - report.missing - report.unreadable
        if report.missing > max(whole, _MAX_MISSING) or report.unreadable > whole:
            report.is_doubtful = True
            return
        read_others = None if self._whole is None else partial(self._read, self._whole)
        for finding in report.findings:
            self._check_stopped()
            report.dropped += self._blobs.drop(finding.checksum, read_others) is not None

    def _read(self, record: BlobRecord) -> Damage | None:
        return find_damage(self._blobs.storage, record.checksum, record.size)

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise shutting_down()


def _note(report: CheckReport, damage: Damage) -> None:
    report.missing += damage.is_missing
    report.unreadable += damage.is_unreadable
    report.damaged += not (damage.is_missing or damage.is_unreadable)
    if len(report.findings) < _MAX_TOLD:
        report.findings.append(damage)
