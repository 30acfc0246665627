"""Files of this machine that are to be published: finding them, and taking their checksums."""

from __future__ import annotations

import os
import stat as stat_module
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artifacts.archive_url import check_relative_path
from artifacts.blobs.sha1 import new_sha1
from artifacts.errors import BadRequest, DevserverError

_BLOCK_BYTES = 1 << 20


class Interrupted(DevserverError):
    """What was under way is given up, because something else has failed, or Ctrl-C was pressed."""

    def __init__(self) -> None:
        super().__init__("interrupted")


@dataclass(frozen=True)
class LocalFile:
    """A file as it was found; ``size`` in bytes.

    Attributes:
        name: that it gets in the build, a path.
        version: what tells whether it has been written to since.
    """

    name: str
    path: Path
    size: int
    version: tuple[int, ...]

    def check_unchanged(self) -> None:
        """Raise DevserverError if the file is not what it was when it was found."""
        with self._errors_in_words():
            if _version(self.path.stat()) != self.version:
                raise self.changed()
            # Not all files have the size that they tell: those of /proc have none.
            with self.path.open("rb", buffering=0) as file:
                if os.pread(file.fileno(), 1, self.size):
                    raise self.changed()

    def changed(self) -> DevserverError:
        return DevserverError(
            f"{self.path} has changed while it was published; publish it once it stays as it is"
        )

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """Read part of the file, a mebibyte at a time; raise DevserverError if it is not there."""
        with self._errors_in_words(), self.path.open("rb", buffering=0) as file:
            while start < stop:
                block = os.pread(file.fileno(), min(_BLOCK_BYTES, stop - start), start)
                if not block:
                    raise self.changed()
                start += len(block)
                yield block

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DevserverError(f"cannot read {self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class LocalChunk:
    """Consecutive bytes of a file; ``start`` and ``size`` in bytes."""

    file: LocalFile
    start: int
    size: int
    checksum: str

    def read(self) -> bytearray:
        """Return its bytes; raise DevserverError if they are not what they were."""
        data = bytearray()
        for block in self.file.blocks(self.start, self.start + self.size):
            data += block
        if new_sha1(data).hexdigest() != self.checksum:
            raise self.file.changed()
        return data


@dataclass(frozen=True)
class HashedFile:
    """A file with its SHA-1, and those of the chunks that it consists of."""

    file: LocalFile
    checksum: str
    chunks: tuple[LocalChunk, ...]


def find_files(paths: Iterable[Path]) -> list[LocalFile]:
    """Return the files that ``paths`` name: a file by its name, a directory's by their paths in it.

    Below directories, names that begin with a dot are passed over, and links to directories.

    Raises:
        BadRequest: there is no such file, it is none, or two of them would have one name.
        DevserverError: a directory cannot be read.
    """
    found: dict[str, LocalFile] = {}
    for path in paths:
        below = _below(path) if path.is_dir() else [(path.absolute().name, path)]
        for name, file_path in below:
            check_relative_path(name, "file name")
            if name in found:
                raise BadRequest(f"{found[name].path} and {file_path} would both be {name}")
            found[name] = _found(name, file_path)
    if not found:
        raise BadRequest("there is nothing to publish: the directories have no files")
    return list(found.values())


def _below(directory: Path) -> Iterator[tuple[str, Path]]:
    def refuse(error: OSError) -> None:
        raise DevserverError(f"cannot read {error.filename}: {error.strerror}") from error

    for parent, directories, names in os.walk(directory, onerror=refuse):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(parent, name)
                yield path.relative_to(directory).as_posix(), path


def _found(name: str, path: Path) -> LocalFile:
    try:
        status = path.stat()
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from error
    if not stat_module.S_ISREG(status.st_mode):
        raise BadRequest(f"{path} is no regular file")
    return LocalFile(name, path, status.st_size, _version(status))


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Hashing:
    """Takes checksums, on all processors; a context manager, which ends its threads.

    A file is read once from the disk, and in small blocks, whatever its size.
    """

    def __init__(self, chunk_bytes: int, advance: Callable[[int], None]) -> None:
        """``advance`` is called, on any thread, with each number of bytes that is done."""
        self._chunk_bytes = chunk_bytes
        self._advance = advance
        self._stopped = threading.Event()
        processors = os.cpu_count() or 1
        self._files = ThreadPoolExecutor(processors, "hash-file")
        self._chunks = ThreadPoolExecutor(processors, "hash-chunk")

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._files.shutdown(cancel_futures=True)
        self._chunks.shutdown(cancel_futures=True)

    def hash(self, files: Iterable[LocalFile]) -> list[HashedFile]:
        """Return the checksums of files.

        Raises:
            DevserverError: one cannot be read, or changes meanwhile.
        """
        return list(self._files.map(self._hash_file, files))

    def _hash_file(self, file: LocalFile) -> HashedFile:
        starts = range(0, file.size, self._chunk_bytes) or range(1)  # an empty file is a chunk, too
        chunks = []
        whole = new_sha1()
        for start in starts:
            stop = min(start + self._chunk_bytes, file.size)
            # Two threads read the same bytes, one of them from the page cache.
            beside = self._chunks.submit(self._sha1, file, start, stop) if len(starts) > 1 else None
            for block in file.blocks(start, stop):
                self._check_stopped()
                whole.update(block)
                self._advance(len(block))
            checksum = beside.result() if beside else whole.hexdigest()
            chunks.append(LocalChunk(file, start, stop - start, checksum))
        file.check_unchanged()
        return HashedFile(file, whole.hexdigest(), tuple(chunks))

    def _sha1(self, file: LocalFile, start: int, stop: int) -> str:
        sha1 = new_sha1()
        for block in file.blocks(start, stop):
            self._check_stopped()
            sha1.update(block)
        return sha1.hexdigest()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Interrupted
