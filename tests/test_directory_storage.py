"""Blobs in a directory: durable in the right order, on disks that are full, gone, or shared."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import multiprocessing
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from conftest import missing_tool
from source_calls import assert_is_for_people

from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.storage import BlobMissing, StorageError
from artifacts.errors import Busy, DevserverError, InsufficientStorage

DISK_BYTES = 4 << 20
CONTENT = bytes(range(256)) * 4000
CHECKSUM = hashlib.sha1(CONTENT).hexdigest()
PATH = f"{CHECKSUM[:2]}/{CHECKSUM[2:]}"
OTHER = hashlib.sha1(b"other").hexdigest()

OpenStorage = Callable[..., DirectoryStorage]


@pytest.fixture
def open_storage(tmp_path: Path) -> Iterator[OpenStorage]:
    """Open storages, in ``blobs`` if nothing else is said; all of them are closed in the end."""
    with contextlib.ExitStack() as opened:

        def open_it(directory: Path = tmp_path / "blobs") -> DirectoryStorage:
            storage = DirectoryStorage(directory)
            opened.callback(storage.close)
            return storage

        yield open_it


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount(directory, f"size={DISK_BYTES}")
    yield directory
    while os.path.ismount(directory):
        subprocess.run(["umount", "-l", str(directory)], check=True)


def mount(directory: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        missing_tool("the right to mount a small file system")


def spool(storage: DirectoryStorage, content: bytes = CONTENT) -> Path:
    spooled = storage.spool_directory / uuid.uuid4().hex
    spooled.write_bytes(content)
    return spooled


def put(storage: DirectoryStorage, content: bytes = CONTENT) -> str:
    checksum = hashlib.sha1(content).hexdigest()
    storage.put(checksum, spool(storage, content))
    return checksum


def read(storage: DirectoryStorage, checksum: str = CHECKSUM) -> bytes:
    with storage.open(checksum) as opened:
        return b"".join(iter(lambda: opened.read(1 << 20), b""))


def checksums(storage: DirectoryStorage) -> list[str]:
    return sorted(blob.checksum for blob in storage.list())


# --- what is durable, and when


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is forced to disk and what is renamed, from now on, in that order."""
    steps: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        steps.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def noted_replace(source: Path, target: Path) -> None:
        replace(source, target)
        steps.append(("move", str(target)))

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return steps


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux which file it is")
def test_bytes_are_durable_before_their_name_and_that_before_put_returns(
    open_storage: OpenStorage, tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    blobs = tmp_path / "new" / "blobs"
    storage = open_storage(blobs)
    # The directory and the one above it have been made.
    assert steps == [("sync", str(tmp_path / "new")), ("sync", str(tmp_path))]
    for entries in ([("sync", str(blobs))], []):
        steps.clear()
        spooled = spool(storage)
        storage.put(CHECKSUM, spooled)
        path = blobs / PATH
        assert steps == [
            ("sync", str(spooled)),
            *entries,
            ("move", str(path)),
            ("sync", str(path.parent)),
        ]
    steps.clear()
    storage.delete(CHECKSUM)
    assert steps == [("sync", str((blobs / PATH).parent))]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux which file it is")
def test_what_another_process_has_made_is_not_trusted_to_be_durable(
    open_storage: OpenStorage, tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    storage = open_storage()
    (tmp_path / "blobs" / CHECKSUM[:2]).mkdir()
    put(storage)
    assert ("sync", str(tmp_path / "blobs")) in steps


def test_a_directory_that_somebody_tidies_up_is_made_again(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    put(storage)
    storage.delete(CHECKSUM)
    (tmp_path / "blobs" / CHECKSUM[:2]).rmdir()
    storage.delete(CHECKSUM)
    put(storage)
    assert read(storage) == CONTENT


# --- the spool


def test_what_a_crash_has_left_in_the_spool_is_gone_after_the_next_start(
    open_storage: OpenStorage,
) -> None:
    storage = open_storage()
    left = spool(storage)
    put(storage)
    storage.close()  # which the end of the process does, too
    again = open_storage()
    assert not left.exists()
    assert checksums(again) == [CHECKSUM]


def test_the_spool_of_one_who_lives_is_left_alone(open_storage: OpenStorage) -> None:
    first = open_storage()
    spooled = spool(first)
    for _ in range(2):
        open_storage().close()
    first.put(CHECKSUM, spooled)
    assert read(first) == CONTENT


def test_a_directory_that_holds_something_else_loses_nothing_of_it(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    theirs = [tmp_path / "blobs" / name for name in ("tmp/file", "spool/file", "file", "ab/file")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    storage = open_storage()
    put(storage)
    assert checksums(storage) == [CHECKSUM]
    assert all(path.read_text() == "theirs" for path in theirs)


# --- disks


def test_a_disk_that_is_full_is_507_and_keeps_what_it_has(
    open_storage: OpenStorage, small_disk: Path
) -> None:
    storage = open_storage(small_disk)
    put(storage)
    waiting = spool(storage, b"other")
    ballast = small_disk / "ballast"
    # Not even a directory can be made any more.
    subprocess.run(["mount", "-o", "remount,nr_inodes=8", str(small_disk)], check=True)
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    for number in range(8):
        with contextlib.suppress(OSError):
            (small_disk / f"file-{number}").touch()
    with pytest.raises(InsufficientStorage) as caught:
        storage.put(OTHER, waiting)
    assert_is_for_people(caught.value, "disk is full", OTHER, str(small_disk))
    assert checksums(storage) == [CHECKSUM]
    assert read(storage) == CONTENT

    ballast.unlink()
    for path in small_disk.glob("file-*"):
        path.unlink()
    storage.put(OTHER, waiting)
    assert checksums(storage) == sorted([CHECKSUM, OTHER])
    assert list(storage.spool_directory.iterdir()) == []


def test_a_full_disk_is_freed_by_deleting(open_storage: OpenStorage, small_disk: Path) -> None:
    storage = open_storage(small_disk)
    put(storage)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    storage.delete(CHECKSUM)
    put(storage, b"other")
    assert checksums(storage) == [OTHER]


def test_a_disk_that_can_only_be_read_is_refused_at_start(
    open_storage: OpenStorage, small_disk: Path
) -> None:
    put(open_storage(small_disk))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DevserverError) as caught:
        open_storage(small_disk)
    assert_is_for_people(caught.value, "cannot write to", str(small_disk))


def test_a_disk_that_turns_read_only_can_still_be_read(
    open_storage: OpenStorage, small_disk: Path
) -> None:
    storage = open_storage(small_disk)
    put(storage)
    spooled = spool(storage, b"other")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in (lambda: storage.put(OTHER, spooled), lambda: storage.delete(CHECKSUM)):
        with pytest.raises(StorageError) as caught:
            call()
        assert_is_for_people(caught.value, "Read-only file system", str(small_disk))
    assert checksums(storage) == [CHECKSUM]
    assert read(storage) == CONTENT


def test_a_disk_that_is_gone_says_nothing_about_its_blobs(
    open_storage: OpenStorage, small_disk: Path
) -> None:
    storage = open_storage(small_disk)
    put(storage)
    spooled = spool(storage, b"other")
    subprocess.run(["umount", "-l", str(small_disk)], check=True)
    with pytest.raises(StorageError) as caught:
        storage.open(CHECKSUM)
    assert not isinstance(caught.value, BlobMissing)
    assert_is_for_people(caught.value, "is its disk mounted?", str(small_disk))
    with pytest.raises(StorageError):
        storage.put(OTHER, spooled)


def test_a_directory_that_is_empty_all_at_once_says_nothing_about_its_blobs(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    put(storage)
    # As if the disk were not mounted there.
    (tmp_path / "blobs").rename(tmp_path / "elsewhere")
    (tmp_path / "blobs").mkdir()
    with pytest.raises(StorageError) as caught:
        storage.open(CHECKSUM)
    assert not isinstance(caught.value, BlobMissing)


def test_a_spool_on_another_disk_is_refused_at_start(
    open_storage: OpenStorage, tmp_path: Path, small_disk: Path
) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ".spool").symlink_to(small_disk)
    with pytest.raises(DevserverError) as caught:
        open_storage()
    assert_is_for_people(caught.value, ".spool", "must be on the disk of")


@pytest.mark.parametrize("place", ["blobs", "blobs/.spool", "."])
def test_a_file_in_the_place_of_a_directory_is_refused_at_start(
    open_storage: OpenStorage, tmp_path: Path, place: str
) -> None:
    directory = tmp_path / "in" / "blobs"
    file = tmp_path / "in" / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.rmdir() if file.is_dir() else None
    file.write_text("a file")
    with pytest.raises(DevserverError) as caught:
        open_storage(directory)
    assert_is_for_people(caught.value, str(directory))


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EIO, StorageError, "Input/output error"),
        (errno.ESTALE, StorageError, "Stale file handle"),
        (errno.EDQUOT, InsufficientStorage, "disk is full"),
        (errno.EMFILE, Busy, "too many files"),
    ],
)
def test_what_the_system_refuses_is_told_in_words(
    open_storage: OpenStorage,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[DevserverError],
    words: str,
) -> None:
    storage = open_storage()
    put(storage)
    spooled = spool(storage, b"other")

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        with pytest.raises(kind) as caught:
            storage.put(OTHER, spooled)
    assert_is_for_people(caught.value, words)
    assert checksums(storage) == [CHECKSUM]
    storage.put(OTHER, spooled)
    assert read(storage, OTHER) == b"other"


def test_a_blob_that_is_no_file_is_told_in_words(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    (tmp_path / "blobs" / PATH).mkdir(parents=True)
    assert checksums(storage) == []
    for call in (lambda: storage.open(CHECKSUM), lambda: put(storage)):
        with pytest.raises(StorageError) as caught:
            call()
        assert_is_for_people(caught.value, CHECKSUM, "directory")


# --- processes


def _put_many(directory: Path, times: int) -> None:
    storage = DirectoryStorage(directory)
    for _ in range(times):
        put(storage)
    storage.close()


def _delete_many(directory: Path, times: int) -> None:
    storage = DirectoryStorage(directory)
    for _ in range(times):
        storage.delete(CHECKSUM)
    storage.close()


def _read_many(directory: Path, times: int) -> set[str]:
    storage = DirectoryStorage(directory)
    seen = set()
    for _ in range(times):
        try:
            seen.add(hashlib.sha1(read(storage)).hexdigest())
        except BlobMissing:
            seen.add("missing")
        assert checksums(storage) in ([], [CHECKSUM])
    storage.close()
    return seen


def test_processes_put_delete_and_read_one_blob_at_the_same_time(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    directory = tmp_path / "blobs"
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        working = [
            pool.submit(_put_many, directory, 40),
            pool.submit(_put_many, directory, 40),
            pool.submit(_delete_many, directory, 40),
        ]
        seen = pool.submit(_read_many, directory, 40).result(60)
        for one in working:
            one.result(60)
    assert seen <= {CHECKSUM, "missing"}
    storage = open_storage()
    put(storage)
    assert read(storage) == CONTENT
    assert list(storage.spool_directory.iterdir()) == []
