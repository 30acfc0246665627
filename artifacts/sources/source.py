"""What an archive can be asked: list a build, describe a file, open a range of its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from artifacts.archive_url import ArchiveUrl
from artifacts.checksums import Checksums


@dataclass(frozen=True)
class ArchiveFile:
    """One file of a build, as its archive describes it.

    Attributes:
        name: below the build, segments joined by slashes.
        size: in bytes; None where the archive does not say.
        size_is_exact: whether ``size`` is the archive's word, or only good enough for planning.
        generation: what tells this object from a later one of the same name (a generation number, a
            strong ETag, a modification date); None where the archive gives no such thing.
        has_ranges: whether the archive answers ranges of it.
        checksums: what the bytes have to amount to.
        content_encoding: what its bytes, which are always read as they are stored, are encoded
            with, and are not to be when they are published: ``gzip``; None where there is nothing
            to undo, or only the answer to ``open`` tells.
        stat_tells_more: whether asking for this file alone tells checksums, encoding or parts,
            which its listing lacks.
        part_bytes: the size of the parts, all but the last, that the archive keeps the file in and
            had best be asked for, several at a time; None where it does not matter.
    """

    name: str
    size: int | None = None
    size_is_exact: bool = False
    generation: str | None = None
    has_ranges: bool = False
    checksums: Checksums = field(default_factory=Checksums)
    content_encoding: str | None = None
    stat_tells_more: bool = False
    part_bytes: int | None = None


class OpenedRange(Protocol):
    """Bytes of a file on their way here. Closed by whoever opened it (it is a context manager).

    Attributes:
        file: the file as this answer describes it, with what was learned from the answer.
        start: offset of the first byte that ``read`` returns. It is 0 where a source cannot do
            ranges, whatever was asked for.
        stop: offset behind the last byte; None where the length is not known beforehand.
        end_is_told: with no ``stop``: whether a proper end can be told from a cut connection.
    """

    file: ArchiveFile
    start: int
    stop: int | None
    end_is_told: bool

    def read(self, max_bytes: int) -> bytes:
        """Return what has come, 1 to ``max_bytes`` bytes; b"" at the end.

        Raises:
            TransientArchiveError: the connection was cut, or no byte came for too long.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Source(Protocol):
    """One kind of archive. Methods block, within the time limits of the configuration.

    Errors of all methods: TransientArchiveError (worth another try), ArchiveError (not worth one),
    NotAllowed (it led to where the allow list does not).
    """

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        """Return the files of a build, each name once, in any order.

        Raises:
            BuildNotFound: the archive has no such build.
        """

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        """Describe one file as it is now.

        Raises:
            ArchiveFileMissing: there is none of that name.
        """

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> OpenedRange:
        """Open bytes ``start`` up to ``stop`` (to the end, if None) of just this generation.

        Raises:
            ArchiveFileChanged: the object has another generation or size by now.
            ArchiveFileMissing: there is none of that name any more.
        """

    def close(self) -> None:
        """Let go of connections."""
