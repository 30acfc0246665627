"""An assembler over a storage that a test can make fail, and what clients ask it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

from faulty_storage import FailingStorage
from polling import wait_until
from sqlalchemy import Connection
from stored_uploads import ORGANIZATION, StoredUploads, sha1

from artifacts.archive_url import BuildName
from artifacts.blobs.assembly import Assembler, Assembly, Purpose, Record
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.offers import Offer
from artifacts.blobs.published_builds import BuildFiles
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks

END_SECONDS = 30


class NotedPurpose:
    """Files that are looked at, and forgotten: notes the bytes of each, and waits when told to."""

    organization = ORGANIZATION
    key = kind = "tests"
    place: Mapping[str, str] = MappingProxyType({})
    needs_file = True

    def __init__(self, max_file_bytes: int = 1 << 30) -> None:
        self.max_file_bytes = max_file_bytes
        self.seen: list[bytes] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def find(self, connection: Connection, offers: Collection[Offer]) -> dict[str, Assembly]:
        seen = {sha1(content) for content in self.seen}
        return {o.checksum: Assembly("ok") for o in offers if o.checksum in seen}

    def examine(self, offer: Offer, path: Path | None) -> Record:
        assert path is not None
        content = path.read_bytes()
        assert self.may_go_on.wait(END_SECONDS)

        def record(connection: Connection, file_id: int) -> None:
            self.seen.append(content)

        return record


class Assembling:
    """What a server has of uploads, and an assembler of it."""

    def __init__(self, database: Database, directory: Path, temporary: Path) -> None:
        self.storage = FailingStorage(DirectoryStorage(directory / "blobs"))
        self.locks = ProcessLocks()
        self.stored = StoredUploads(database, self.storage, self.locks)
        self.directory = temporary
        self.assembler = self.make_assembler(self.directory)

    def make_assembler(self, directory: Path) -> Assembler:
        """Make an assembler as another server on the same database and storage has it."""
        stored = self.stored
        return Assembler(stored.database, stored.blobs, stored.files, self.locks, directory)

    def build(self, name: str = "board/R1", organization: str = ORGANIZATION) -> BuildFiles:
        stored = self.stored
        build = BuildName.parse(name)
        return BuildFiles(stored.database, stored.files, organization, "builds", build)

    def send(self, *chunks: bytes, organization: str = ORGANIZATION) -> None:
        for chunk in chunks:
            self.stored.send(chunk, organization)

    def ask(self, purpose: Purpose, *offers: Offer) -> list[Assembly]:
        answers = self.assembler.answer(purpose, offers)
        return [answers[offer.checksum] for offer in offers]

    def settle(self, purpose: Purpose, offer: Offer) -> Assembly:
        """Ask until the answer is another one than that the file is being assembled."""
        answers: list[Assembly] = []

        def is_settled() -> bool:
            answers.extend(self.ask(purpose, offer))
            return answers[-1].state != "assembling"

        wait_until(is_settled)
        return answers[-1]

    @property
    def opened(self) -> list[str]:
        """The blobs that have been opened, in the order of that."""
        return [checksum for method, checksum in self.storage.calls if method == "open"]


@contextmanager
def assembling(
    database: Database, directory: Path, temporary: Path | None = None
) -> Iterator[Assembling]:
    """Keep blobs below ``directory``, and files that are being assembled in ``temporary``."""
    with ExitStack() as undo:
        made = Assembling(database, directory, temporary or directory / "assembling")
        undo.callback(lambda: made.assembler.close(END_SECONDS))
        # Nobody is to wait for storage that a test holds.
        undo.callback(made.storage.behave)
        yield made


def offer_of(
    chunks: Sequence[bytes], name: str = "image.bin", checksum: str | None = None
) -> Offer:
    """What a client says of a file that consists of ``chunks``."""
    return Offer(checksum or sha1(b"".join(chunks)), name, tuple(sha1(chunk) for chunk in chunks))
