"""Copies of uploaded debug files on this machine, for programs that want a file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from artifacts.blobs.blob_range import BlobDamaged
from artifacts.blobs.chunked_files import ChunkedFiles
from artifacts.blobs.files import Files
from artifacts.blobs.storage import BlobMissing
from artifacts.errors import ArchiveError, NotFound, storage_error
from artifacts.space import RoomWatch
from artifacts.symbols.debug_files import StoredObject

# What is raised where a debug file is damaged, or gone: another one may do instead.
NOT_THERE = (NotFound, ArchiveError, BlobDamaged, BlobMissing)

_BLOCK_BYTES = 1 << 20
# Smaller ones are a blob or two.
_PREFETCHED_BYTES = 32 << 20


class DebugFileCopies:
    """Makes them, in a directory of temporary files."""

    def __init__(
        self,
        files: Files,
        chunked_files: ChunkedFiles,
        directory: Path,
        check_room: Callable[[], None],
    ) -> None:
        """``check_room`` raises InsufficientStorage where the disk of the directory is full."""
        self._files = files
        self._chunked_files = chunked_files
        self._directory = directory
        self._check_room = check_room

    @contextlib.contextmanager
    def copied(self, stored: StoredObject) -> Iterator[Path]:
        """Have a copy, which is removed in the end; errors as of ``write``."""
        with self._temporary() as file:
            self.write(stored, file)
            yield Path(file.name)

    def write(self, stored: StoredObject, to: IO[bytes]) -> None:
        """Write a debug file, checked, to ``to``.

        Raises:
            NotFound, ArchiveError, BlobDamaged, BlobMissing: it is not there any more, or damaged.
            StorageError: the blob storage fails.
            InsufficientStorage: the disk is full.
        """
        room = RoomWatch(self._check_room)
        file = self._files.find(stored.organization, stored.checksum)
        if file is None:
            raise NotFound(f"the debug file {stored.checksum} is not there any more")
        prefetch = file.size > _PREFETCHED_BYTES
        try:
            with self._chunked_files.open(file, prefetch=prefetch) as opened:
                while block := opened.read(_BLOCK_BYTES):
                    room.note(len(block))
                    to.write(block)
            to.flush()
        except OSError as error:
            raise storage_error(error, f"a copy of the debug file {stored.checksum}") from error

    def watched(self, file: IO[bytes]) -> WatchedFile:
        """Return what writes to a file as long as there is room on the disk."""
        return WatchedFile(file, self._check_room)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[IO[bytes]]:
        with contextlib.ExitStack() as undo:
            try:
                file = undo.enter_context(
                    tempfile.NamedTemporaryFile(dir=self._directory, prefix="debug-file-")
                )
            except OSError as error:
                raise storage_error(error, "a copy of a debug file") from error
            yield file


class WatchedFile:
    """A file that is written as long as there is room; else InsufficientStorage is raised."""

    def __init__(self, file: IO[bytes], check_room: Callable[[], None]) -> None:
        self._file = file
        self._room = RoomWatch(check_room)

    def write(self, data: bytes, /) -> int:
        self._room.note(len(data))
        return self._file.write(data)
