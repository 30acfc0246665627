"""Opening chunked files: to be read from their blobs, or read ahead of whoever reads them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.archive_url import ArchiveUrl
from artifacts.blobs.blob_range import drop_damaged
from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.chunked_file import ChunkedFile, SeekableReader
from artifacts.blobs.files import AssembledFile
from artifacts.blobs.store_range import StoreRange, archive_errors, part_bytes
from artifacts.checksums import Checksums
from artifacts.errors import ArchiveFileChanged
from artifacts.fetch import Fetch, FetchLimits
from artifacts.growing_file import FetchRestarted, GrowingFile
from artifacts.sources.source import ArchiveFile
from artifacts.workers import Workers

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# What messages call the files; they have no name but their checksum.
_FILES = ArchiveUrl("store", "", ("files",))


class ChunkedFiles:
    """Opens assembled files."""

    def __init__(
        self,
        blobs: BlobStore,
        directory: Path,
        connections: Workers,
        limits: FetchLimits,
    ) -> None:
        """``directory``, on this machine, is for temporary files; the rest is as for `Fetch`."""
        self._blobs = blobs
        self._directory = directory
        self._connections = connections
        self._limits = limits

    def open(self, file: AssembledFile, *, prefetch: bool = False) -> io.BufferedReader:
        """Open a file for reading, as ``open(path, "rb")`` does; see `ChunkedFile`.

        Args:
            prefetch: read several blobs at a time, into a temporary file, from now on until all are
                there or the file is closed. It is read while it fills; its last bytes come once all
                are verified: by the file's CRC32C, and by each blob's SHA-1 only if that is
                another. Opening and reading raise what the fetch fails with.
        """
        if not prefetch:
            return ChunkedFile(self._blobs, file)
        fetch = Fetch(
            _FileSource(self._blobs, file),
            _FILES,
            _describe(file),
            self._directory,
            self._connections,
            None,
            self._limits,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(fetch.discard)
            fetch.start()
            reader = _FetchReader(fetch, fetch.open_reader())
            undo.pop_all()
        return io.BufferedReader(reader)


class _FetchReader(SeekableReader):
    """Reads a fetch that is its own: closing it ends the fetch."""

    def __init__(self, fetch: Fetch, file: GrowingFile) -> None:
        super().__init__()
        self._fetch = fetch
        self._file = file

    def tell(self) -> int:
        self.check_open()
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._restart_in_words():
            return self._file.seek(offset, whence)

    def readinto(self, buffer: WriteableBuffer) -> int:
        with self._restart_in_words():
            return self._file.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._fetch.discard()
        super().close()

    @contextlib.contextmanager
    def _restart_in_words(self) -> Iterator[None]:
        try:
            yield
        except FetchRestarted as error:
            # It has failed meanwhile, or will, if the blobs are to blame.
            self._fetch.open_reader().close()
            raise ArchiveFileChanged(
                f"wrong bytes came of the file {self._fetch.name}; open it again"
            ) from error


class _FileSource:
    """One file, as a source that has nothing else; see `Source`."""

    def __init__(self, blobs: BlobStore, file: AssembledFile) -> None:
        self._blobs = blobs
        self._file = file

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        return [_describe(self._file)]

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        # Asked for when wrong bytes have come: to read them again is of no use if they are damaged.
        with archive_errors(f"{archive_url}/{name}"):
            drop_damaged(self._blobs, self._file.parts)
        return _describe(self._file)

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> StoreRange:
        stop = self._file.size if stop is None else stop
        return StoreRange(
            self._blobs,
            self._file.parts,
            file,
            f"{archive_url}/{file.name}",
            start,
            stop,
            checks_blobs=False,
        )

    def close(self) -> None:
        pass


def _describe(file: AssembledFile) -> ArchiveFile:
    return ArchiveFile(
        name=file.checksum,
        size=file.size,
        size_is_exact=True,
        generation=file.checksum,
        has_ranges=True,
        checksums=Checksums(crc32c=file.crc32c),
        part_bytes=part_bytes([part.size for part in file.parts]),
    )
