"""An archive file that is staged, as its members are read from it."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from artifacts.disk import file_identity
from artifacts.errors import ArchiveError, ArchiveFileChanged, NotFound, busy_if_out_of_files
from artifacts.manifest import StagedFile
from artifacts.member_index import Form, Kind, Member
from artifacts.unpack_zip import buffered_reader, is_stored, stored_start
from artifacts.workers import Workers

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class StagedArchive:
    """One file on disk, as it was when it was looked at.

    Attributes:
        name: what messages call it.
        key: tells it from all other files, and from what takes its place.
        version: the same for the same bytes.
        workers: the threads that may read it.
    """

    name: str
    key: Hashable
    version: str
    workers: Workers
    _path: Path

    @classmethod
    def look_at(cls, name: str, path: Path, staged: StagedFile, workers: Workers) -> StagedArchive:
        """Describe the file at ``path``; raise NotFound where there is none any more."""
        with io.FileIO(_open(path, name), "rb") as file:
            checksum = staged.crc32c
            modified_ns = os.fstat(file.fileno()).st_mtime_ns
            version = f"{modified_ns:x}" if checksum is None else f"{checksum:08x}"
            return cls(name, file_identity(file.fileno()), version, workers, path)

    def check_form(self, form: Form) -> None:
        """Every form can be read."""

    def open(self, stretch: tuple[int, int] | None = None) -> io.FileIO:
        """Return a reader of it.

        Raises:
            ArchiveFileChanged: it is another file by now.
            NotFound: it is gone.
        """
        file = io.FileIO(_open(self._path, self.name), "rb")
        if file_identity(file.fileno()) != self.key:
            file.close()
            raise ArchiveFileChanged(f"{self.name} was replaced while it was read")
        return file

    def place_of(self, form: Form, member: Member) -> int | None:
        """Return where the bytes of ``member`` stand as they are, in one piece; None if nowhere.

        Raises:
            ArchiveError: the archive is damaged.
            ArchiveFileChanged, NotFound: as ``open``.
        """
        if form is Form.TAR:
            return member.start if member.kind is Kind.FILE else None
        entry = member.entry
        if entry is None or not is_stored(entry):
            return None
        if entry.stored_bytes != entry.size:
            raise ArchiveError(f"{entry} is damaged: its sizes contradict each other")
        with self.open() as file, buffered_reader(file) as reader:
            return stored_start(reader, entry)


def _open(path: Path, name: str) -> int:
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        missing = NotFound(f"{name} cannot be read: {error.strerror}")
        raise busy_if_out_of_files(error) or missing from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound(f"{name} is no file any more")
    return descriptor
