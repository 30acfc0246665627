"""Assembling: files made of blobs that are here, checked, and recorded for what they are for.

A client offers a file, and asks again until the answer is final. What it is told first of all is
what the database says: a file is done if it is on record, whole, for the purpose that was asked.
Else the chunks that are missing are named; else the work begins, once for all who ask, or is under
way. It is on record from when it begins (`BegunWork`), so that it outlives the server. A failure is
kept until it has been told (`Failures`), and then tried again when asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from artifacts.blobs.begun_work import BegunOffer, BegunWork
from artifacts.blobs.blob_pass import BlobPass
from artifacts.blobs.blob_range import BlobDamaged
from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.failures import Failures
from artifacts.blobs.files import BlobPart, Files, parts_of
from artifacts.blobs.offers import Offer
from artifacts.database.database import Database
from artifacts.database.locks import Locks
from artifacts.disk import make_empty_directory
from artifacts.errors import BadRequest, Busy, Conflict, in_words
from artifacts.shared_calls import SharedCalls
from artifacts.turns import Turns
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

# Files that are assembled at a time, and threads that read their blobs.
_FILES_AT_ONCE = 4
_READERS = 12


class Refused(BadRequest):
    """The file cannot be assembled as it is offered, however often it is tried."""


@dataclass(frozen=True)
class Assembly:
    """Where a file stands, in the words of the upload protocol.

    Attributes:
        missing_chunks: each once, in the order of the file; for ``not_found``.
        detail: why it cannot be done; for ``error``.
        dif: what a debug file is; for ``ok``.
    """

    state: Literal["not_found", "assembling", "ok", "error"]
    missing_chunks: tuple[str, ...] = ()
    detail: str | None = None
    dif: Mapping[str, Any] | None = None

    @classmethod
    def error(cls, detail: str) -> Assembly:
        return cls("error", detail=detail)


# Records a file, by its id, for what it is for, within a transaction; may raise Refused.
Record = Callable[[Connection, int], None]


class Purpose(Protocol):
    """What the files of an organization are assembled for.

    Attributes:
        key: tells it from all other purposes of that organization.
        kind, place: what it can be made anew of, with the organization; see `Assembler.knows`.
        needs_file: whether the file's bytes are looked at when it has been assembled.
    """

    organization: str
    key: str
    kind: str
    place: Mapping[str, str]
    max_file_bytes: int
    needs_file: bool

    def find(self, connection: Connection, offers: Collection[Offer]) -> dict[str, Assembly]:
        """Return, by checksum, where those stand that are decided without any work.

        These are ``ok``, for files that are on record for this purpose and whole, or ``error``, for
        what cannot be recorded.
        """

    def examine(self, offer: Offer, path: Path | None) -> Record:
        """Look at the assembled file, if it ``needs_file``; return how it is recorded.

        Raises:
            Refused: it is not what it should be.
            DevserverError: it cannot be looked at now.
        """


# Makes a purpose of its organization and its place.
MakePurpose = Callable[[str, Mapping[str, str]], Purpose]


class Assembler:
    """Assembles files, a few at a time."""

    def __init__(
        self, database: Database, blobs: BlobStore, files: Files, locks: Locks, directory: Path
    ) -> None:
        """``directory`` is for temporary files, and this one's alone; what is there is removed.

        Raises:
            DevserverError: the directory cannot be made.
        """
        self._database = database
        self._blobs = blobs
        self._files = files
        self._locks = locks
        self._failures = Failures(database)
        self._begun = BegunWork(database)
        self._kinds: dict[str, MakePurpose] = {}
        self._directory = directory
        make_empty_directory(directory)
        self._stopped = threading.Event()
        self._workers = Workers("assembling", _FILES_AT_ONCE)
        # By the name of the lock: many may want one file, and keep no worker from other files.
        self._turns: Turns[str] = Turns(self._workers)
        self._readers = Workers("blob-reader", _READERS)
        self._pass = BlobPass(self._blobs, self._readers, self._stopped)
        self._under_way: SharedCalls[str, None] = SharedCalls()

    def answer(self, purpose: Purpose, offers: Collection[Offer]) -> dict[str, Assembly]:
        """Tell where each of the files stands, by checksum; have work begun where it is needed.

        Raises:
            DatabaseUnavailable: that cannot be told now.
        """
        by_digest = {_digest(purpose, offer): offer for offer in offers}
        # Asking costs little while there is nothing new to be told.
        answers = {
            offer.checksum: Assembly("assembling")
            for digest, offer in by_digest.items()
            if self._under_way.is_under_way(digest)
        }
        if len(answers) == len(offers):
            return answers
        with self._database.reading() as connection:
            left = [offer for offer in offers if offer.checksum not in answers]
            answers.update(purpose.find(connection, left))
        undecided = {
            digest: offer for digest, offer in by_digest.items() if offer.checksum not in answers
        }
        answers.update(self._go_on(purpose, undecided))
        return answers

    def knows(self, kind: str, make: MakePurpose) -> None:
        """Have ``make`` make the purposes of a kind, for what is taken up again."""
        self._kinds[kind] = make

    def take_up(self) -> None:
        """Go on with what had begun when a server ended; returns at once."""
        self._workers.submit(self._take_up, urgent=False)

    def close(self, timeout_seconds: float) -> None:
        """Give up what is under way; wait for its threads."""
        self._stopped.set()
        self._workers.close(timeout_seconds)
        self._readers.close(timeout_seconds)

    def _go_on(self, purpose: Purpose, offers: Mapping[str, Offer]) -> dict[str, Assembly]:
        """Tell where those stand that are not decided, by checksum; ``offers`` are by digest."""
        answers: dict[str, Assembly] = {}
        wanted = {chunk for offer in offers.values() for chunk in offer.chunks}
        sizes = self._blobs.lease_owned(purpose.organization, wanted) if wanted else {}
        complete = {}
        for digest, offer in offers.items():
            missing = tuple(dict.fromkeys(c for c in offer.chunks if c not in sizes))
            if sum(sizes.get(chunk, 0) for chunk in offer.chunks) > purpose.max_file_bytes:
                limit = f"{purpose.max_file_bytes:,}"
                answers[offer.checksum] = Assembly.error(f"the file is larger than {limit} bytes")
            elif missing:
                answers[offer.checksum] = Assembly("not_found", missing)
            else:
                complete[digest] = offer
        failures = self._failures.tell(list(complete))
        for digest, detail in failures.items():
            answers[complete.pop(digest).checksum] = Assembly.error(detail)
        self._begin(purpose, complete, sizes)
        answers.update((offer.checksum, Assembly("assembling")) for offer in complete.values())
        return answers

    def _begin(
        self, purpose: Purpose, offers: Mapping[str, Offer], sizes: Mapping[str, int]
    ) -> None:
        if not offers:
            return
        self._begun.note(
            {
                digest: BegunOffer(purpose.organization, purpose.kind, purpose.place, offer)
                for digest, offer in offers.items()
            }
        )
        for digest, offer in offers.items():
            parts = parts_of(offer.chunks, sizes)
            lock = f"assemble {purpose.organization} {offer.checksum}"
            self._under_way.join_with(
                digest,
                partial(self._work, purpose, offer, digest, parts, lock),
                partial(self._turns.submit, lock),
            )

    def _take_up(self) -> None:
        try:
            for digest, begun in self._begun.all():
                make = self._kinds.get(begun.kind)
                if make is None:
                    continue
                purpose = make(begun.organization, begun.place)
                # As if its client asked again.
                answers = self.answer(purpose, [begun.offer])
                if answers[begun.offer.checksum].state != "assembling":
                    self._forget(digest)
        except Busy as error:
            _log.warning("what was being assembled is not taken up: %s", error.message)

    def _forget(self, digest: str) -> None:
        with self._database.writing() as connection:
            self._begun.end(connection, digest)

    def _work(
        self,
        purpose: Purpose,
        offer: Offer,
        digest: str,
        parts: tuple[BlobPart, ...],
        lock: str,
    ) -> None:
        try:
            with self._locks.holding(lock):
                # Somebody else may have been at it, here or in another process.
                if self._is_decided(purpose, offer, digest):
                    self._forget(digest)
                else:
                    self._try(purpose, offer, digest, parts)
        except Exception as error:
            # The outermost edge of the work. It is being assembled elsewhere, or nobody can be told
            # what happened: whoever asks next begins again.
            known = in_words(error, "assembling", f"the file {offer.checksum}")
            _log.warning("%s is not assembled now: %s", offer.checksum, known.message)

    def _is_decided(self, purpose: Purpose, offer: Offer, digest: str) -> bool:
        with self._database.reading() as connection:
            if purpose.find(connection, [offer]):
                return True
        return self._failures.has(digest)

    def _try(
        self, purpose: Purpose, offer: Offer, digest: str, parts: tuple[BlobPart, ...]
    ) -> None:
        try:
            self._assemble(purpose, offer, digest, parts)
            _log.info("assembled %s for %s: %s", offer.checksum, purpose.organization, purpose.key)
        except BlobDamaged as error:
            # Nothing to be told: whoever asks next hears that it is missing.
            _log.error("%s cannot be assembled: %s", offer.checksum, error.message)
            self._forget(digest)
        except Exception as error:
            # The outermost edge, too: whoever asks next has to be told what went wrong.
            if self._stopped.is_set():
                return
            known = in_words(error, "assembling", f"the file {offer.checksum}")
            _log.warning("%s cannot be assembled: %s", offer.checksum, known.message)
            self._failures.remember(digest, known.message, may_pass=not isinstance(known, Refused))

    def _assemble(
        self, purpose: Purpose, offer: Offer, digest: str, parts: tuple[BlobPart, ...]
    ) -> None:
        known = self._files.find(purpose.organization, offer.checksum)
        if known is not None and not purpose.needs_file and not self._files.missing_blobs(known):
            record = purpose.examine(offer, None)
            crc32c, parts = known.crc32c, known.parts
        elif purpose.needs_file:
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix="file-") as file:
                crc32c = self._join(offer, parts, file)
                file.flush()
                record = purpose.examine(offer, Path(file.name))
        else:
            crc32c = self._join(offer, parts, None)
            record = purpose.examine(offer, None)
        try:
            with self._database.writing() as connection:
                file_id = self._files.add(
                    connection, purpose.organization, offer.checksum, crc32c, parts
                )
                if known is not None and known.parts != parts:
                    # Some of the blobs that it was made of once may be lost.
                    self._files.index_anew(connection, file_id, parts)
                record(connection, file_id)
                self._begun.end(connection, digest)
        except IntegrityError as error:
            raise Conflict(
                "somebody else has recorded the same, or removed it, at the same time; try again"
            ) from error

    def _join(self, offer: Offer, parts: tuple[BlobPart, ...], file: IO[bytes] | None) -> int:
        """Check the blobs, and write them to ``file``, if there is one; return their CRC32C."""
        sha1, crc32c = self._pass.run(parts, offer.checksum, file)
        if sha1 != offer.checksum:
            raise Refused(f"checksum mismatch: the chunks make {sha1}")
        return crc32c


def _digest(purpose: Purpose, offer: Offer) -> str:
    precisely = [purpose.organization, purpose.key, offer.checksum, offer.name, offer.chunks]
    return hashlib.sha256(json.dumps(precisely).encode("ascii")).hexdigest()
