"""Chunked files are read as any other file is; what is read whole is what its blobs' names say."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_storage import Trouble
from hypothesis import given, settings
from hypothesis import strategies as st
from polling import wait_until
from stored_files import StoredFiles, cut, sha1_of

from artifacts.blobs.blob_range import BlobDamaged
from artifacts.blobs.chunked_file import ChunkedFile
from artifacts.blobs.chunked_files import ChunkedFiles
from artifacts.blobs.files import AssembledFile, parts_of
from artifacts.blobs.storage import BlobMissing, StorageError
from artifacts.errors import ArchiveError, ArchiveFileChanged, DevserverError
from artifacts.fetch import FetchLimits
from artifacts.retries import RetryLimits
from artifacts.workers import Workers

MIB = 2**20
CONTENT = random.Random(5).randbytes(3 * MIB)
SIZES = (MIB, 0, MIB // 2, MIB // 2)

both_ways = pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetch"])


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredFiles]:
    with StoredFiles(tmp_path / "data") as stored:
        yield stored


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    directory = tmp_path / "tmp"
    directory.mkdir()
    return directory


@pytest.fixture
def chunked_files(stored: StoredFiles, temporary: Path) -> Iterator[ChunkedFiles]:
    connections = Workers("connection", 8)
    limits = FetchLimits(8, RetryLimits(2, 0.01))
    yield ChunkedFiles(stored.blobs, temporary, connections, limits)
    assert connections.close(timeout_seconds=10)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoredFiles]:
    """What no test changes for others."""
    with StoredFiles(tmp_path_factory.mktemp("data")) as stored:
        yield stored


def damage(stored: StoredFiles, file: AssembledFile, number: int) -> str:
    """Turn one bit of a blob over; return its checksum."""
    checksum = file.parts[number].checksum
    path = stored.path_of(checksum)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return checksum


# --- as any file


@both_ways
def test_a_chunked_file_is_read_whole(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    with chunked_files.open(stored.add(CONTENT, SIZES), prefetch=prefetch) as file:
        assert file.read() == CONTENT
        assert file.read() == b""


@both_ways
@pytest.mark.parametrize("sizes", [(), (0, 0)])
def test_an_empty_file_is_read(
    sizes: tuple[int, ...], prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    with chunked_files.open(stored.add(b"", sizes), prefetch=prefetch) as file:
        assert (file.read(), file.seek(0, os.SEEK_END)) == (b"", 0)


@both_ways
def test_a_closed_file_cannot_be_used(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    file = chunked_files.open(stored.add(CONTENT, SIZES), prefetch=prefetch)
    with file:
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
    assert file.closed
    file.close()
    uses: list[Callable[[], object]] = [
        *(file.read, file.tell, file.readable, file.__enter__, file.readline),
        *(lambda: file.seek(0), lambda: file.readinto(bytearray(1)), lambda: next(file)),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()


@both_ways
def test_there_is_nothing_before_the_start_and_nothing_to_write(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    with chunked_files.open(stored.add(CONTENT, SIZES), prefetch=prefetch) as file:
        for offset, whence in ((-1, os.SEEK_SET), (-1, os.SEEK_CUR), (-len(CONTENT) - 1, 2)):
            with pytest.raises(ValueError, match=r"no position|negative"):
                file.seek(offset, whence)
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 99)
        assert file.tell() == 0
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()


@both_ways
def test_behind_the_end_there_is_nothing(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    with chunked_files.open(stored.add(CONTENT, SIZES), prefetch=prefetch) as file:
        assert file.seek(10, os.SEEK_END) == len(CONTENT) + 10
        assert (file.read(), file.read(7), file.tell()) == (b"", b"", len(CONTENT) + 10)
        assert file.seek(-20, os.SEEK_CUR) == len(CONTENT) - 10
        assert file.read() == CONTENT[-10:]


@both_ways
def test_lines_are_iterated(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    text = b"".join(b"line %d\n" % number for number in range(5000)) + b"the last"
    with chunked_files.open(stored.add(text, (1, 9999)), prefetch=prefetch) as file:
        assert list(file) == text.splitlines(keepends=True)


@both_ways
def test_what_reads_files_reads_chunked_files(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles, tmp_path: Path
) -> None:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/member", CONTENT)
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        info = tarfile.TarInfo("a/member")
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
    for packed in (zipped.getvalue(), tarred.getvalue()):
        stored_file = stored.add(packed, (100_000, 1_000_000))
        with chunked_files.open(stored_file, prefetch=prefetch) as file:
            if packed == zipped.getvalue():
                with zipfile.ZipFile(file) as archive:
                    assert archive.read("a/member") == CONTENT
            else:
                with tarfile.open(fileobj=file) as tar:
                    member = tar.extractfile("a/member")
                    assert member is not None
                    assert member.read() == CONTENT
        with chunked_files.open(stored_file, prefetch=prefetch) as file:
            with (tmp_path / "copy").open("wb") as copy:
                shutil.copyfileobj(file, copy)
            assert (tmp_path / "copy").read_bytes() == packed


OFFSETS = st.integers(-70, 70)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.one_of(st.none(), st.integers(-1, 70))),
        st.tuples(st.just("read1"), st.integers(-1, 70)),
        st.tuples(st.just("readinto"), st.integers(0, 70)),
        st.tuples(st.just("readline"), st.integers(-1, 70)),
        st.tuples(st.just("seek"), OFFSETS, st.integers(0, 2)),
        st.tuples(st.just("tell")),
        st.tuples(st.just("close")),
    ),
    max_size=20,
)


def take(file: io.BufferedIOBase, step: tuple[object, ...]) -> object:
    name, *arguments = step
    try:
        if name == "readinto":
            buffer = bytearray(arguments[0])  # type: ignore[call-overload]
            return file.readinto(buffer), bytes(buffer)
        return getattr(file, str(name))(*arguments)
    except ValueError:
        return ValueError


def is_before_the_start(model: io.BytesIO, step: tuple[object, ...]) -> bool:
    if model.closed:
        return False
    _, offset, whence = step
    assert isinstance(offset, int)
    assert isinstance(whence, int)
    bases = {os.SEEK_SET: 0, os.SEEK_CUR: model.tell(), os.SEEK_END: len(model.getvalue())}
    return bases[whence] + offset < 0


def laid_out(stored: StoredFiles, content: bytes, sizes: list[int]) -> AssembledFile:
    """Return a file whose blobs are where they are read, without anything on record."""
    chunks = {sha1_of(chunk): chunk for chunk in cut(content, sizes)}
    for checksum, chunk in chunks.items():
        path = stored.path_of(checksum)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chunk)
    lengths = {checksum: len(chunk) for checksum, chunk in chunks.items()}
    parts = parts_of([sha1_of(chunk) for chunk in cut(content, sizes)], lengths)
    return AssembledFile(1, sha1_of(content), len(content), 0, parts)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"b", b"\n"]), max_size=60).map(b"".join),
    st.lists(st.integers(0, 20), max_size=5),
    st.sampled_from([1, 3, 8, 64]),
    STEPS,
)
def test_a_chunked_file_does_what_a_file_in_memory_does(
    shared: StoredFiles,
    content: bytes,
    sizes: list[int],
    buffer_bytes: int,
    steps: list[tuple[object, ...]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("artifacts.blobs.chunked_file._BUFFER_BYTES", buffer_bytes)
        file = ChunkedFile(shared.blobs, laid_out(shared, content, sizes))
    with file, io.BytesIO(content) as model:
        for step in steps:
            if step[0] == "read1":
                # As much as comes at once: any part of what there is.
                expected, got = take(model, step), take(file, step)
                assert bool(got) == bool(expected)
                if isinstance(got, bytes) and isinstance(expected, bytes):
                    assert expected.startswith(got)
                    model.seek(file.tell())
            elif step[0] == "seek" and is_before_the_start(model, step):
                # In memory, one arrives at the start instead.
                assert take(file, step) is ValueError
            else:
                assert take(file, step) == take(model, step), step


# --- what is read of the storage


def test_what_is_read_in_order_is_read_blob_by_blob(
    stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    added = stored.add(CONTENT, SIZES)
    with chunked_files.open(added) as file:
        assert b"".join(iter(lambda: file.read(1000), b"")) == CONTENT
    whole = [(part.checksum, 0, part.size) for part in added.parts if part.size]
    assert stored.storage.opened == whole


def test_what_is_read_here_and_there_costs_little(
    stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    added = stored.add(CONTENT, SIZES)
    with chunked_files.open(added) as file:
        for position in (5 * MIB // 4, 100, 2 * MIB + 7):
            file.seek(position)
            assert file.read(50) == CONTENT[position : position + 50]
    assert all(stop - start <= MIB // 8 for _, start, stop in stored.storage.opened if stop)
    assert len(stored.storage.opened) == 3


# --- what is damaged, lost or out of reach


@both_ways
def test_a_damaged_blob_is_told_and_dropped_and_fine_once_it_is_sent_again(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    added = stored.add(CONTENT, SIZES)
    checksum = damage(stored, added, 2)
    kind: type[DevserverError] = ArchiveError if prefetch else BlobDamaged
    with (
        pytest.raises(kind, match=f"{checksum} is damaged"),
        chunked_files.open(added, prefetch=prefetch) as file,
    ):
        file.read()
    assert stored.files.missing_blobs(added) == [checksum]
    assert not stored.path_of(checksum).exists()

    stored.keep(CONTENT[MIB : MIB + MIB // 2])
    with chunked_files.open(added, prefetch=prefetch) as file:
        assert file.read() == CONTENT


@both_ways
def test_a_shortened_blob_is_a_damaged_one(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    added = stored.add(CONTENT, SIZES)
    checksum = added.parts[0].checksum
    os.truncate(stored.path_of(checksum), MIB - 1)
    with (
        pytest.raises(DevserverError, match=f"{checksum} is damaged"),
        chunked_files.open(added, prefetch=prefetch) as file,
    ):
        file.read()
    assert stored.files.missing_blobs(added) == [checksum]


@both_ways
def test_a_lost_blob_is_told_and_asked_for_again(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    added = stored.add(CONTENT, SIZES)
    checksum = added.parts[3].checksum
    stored.path_of(checksum).unlink()
    kind: type[DevserverError] = ArchiveError if prefetch else BlobMissing
    with (
        pytest.raises(kind, match=checksum),
        chunked_files.open(added, prefetch=prefetch) as file,
    ):
        file.read()
    assert stored.files.missing_blobs(added) == [checksum]


def test_a_blob_sent_again_while_its_damage_was_noticed_is_not_dropped(
    stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    added = stored.add(CONTENT, SIZES)
    whole = stored.path_of(added.parts[0].checksum).read_bytes()
    checksum = damage(stored, added, 0)
    with chunked_files.open(added) as file:
        assert file.read(MIB // 2)
        stored.path_of(checksum).with_suffix(".new").write_bytes(whole)
        stored.path_of(checksum).with_suffix(".new").rename(stored.path_of(checksum))
        with pytest.raises(StorageError, match="came damaged"):
            file.read()
    assert stored.files.missing_blobs(added) == []


@both_ways
def test_a_storage_that_fails_is_told_and_nothing_is_dropped(
    prefetch: bool, stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    added = stored.add(CONTENT, SIZES)
    trouble = Trouble(error=StorageError("the storage does not answer"))
    stored.storage.misbehave("open", trouble, checksum=added.parts[2].checksum)
    with (
        pytest.raises(DevserverError, match="does not answer"),
        chunked_files.open(added, prefetch=prefetch) as file,
    ):
        file.read()
    assert stored.files.missing_blobs(added) == []


# --- with prefetch


def test_several_blobs_are_read_at_a_time(stored: StoredFiles, chunked_files: ChunkedFiles) -> None:
    content = random.Random(6).randbytes(32 * MIB)
    added = stored.add(content, [4 * MIB] * 7)
    stored.storage.misbehave("open", Trouble(hold=threading.Event()))
    with chunked_files.open(added, prefetch=True) as file:
        wait_until(lambda: stored.storage.most_at_once == 8)
        stored.storage.behave()
        assert file.read() == content
    assert sorted(stored.storage.opened) == sorted((p.checksum, 0, p.size) for p in added.parts)


def test_what_has_come_is_read_while_the_rest_comes(
    stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    big = random.Random(7).randbytes(12 * MIB)
    added = stored.add(big, [4 * MIB] * 2)
    hold = threading.Event()
    stored.storage.misbehave("open", Trouble(hold=hold), checksum=added.parts[2].checksum)
    with chunked_files.open(added, prefetch=True) as file:
        assert file.read(8 * MIB) == big[: 8 * MIB]
        hold.set()
        assert file.read() == big[8 * MIB :]


def test_closing_ends_the_fetch_and_removes_its_file(
    stored: StoredFiles, chunked_files: ChunkedFiles, temporary: Path
) -> None:
    added = stored.add(CONTENT, SIZES)
    with chunked_files.open(added, prefetch=True) as file:
        assert file.read(10) == CONTENT[:10]
        assert len(list(temporary.iterdir())) == 1
    assert not list(temporary.iterdir())


def test_bytes_that_came_damaged_once_never_come_to_an_end_and_nothing_is_dropped(
    stored: StoredFiles, chunked_files: ChunkedFiles
) -> None:
    added = stored.add(CONTENT, SIZES)
    hold = threading.Event()
    stored.storage.misbehave("open", Trouble(hold=hold, flip_at=1000), times=1)
    with chunked_files.open(added, prefetch=True) as file:
        hold.set()
        with pytest.raises(ArchiveFileChanged, match="open it again"):
            file.read()
    assert stored.files.missing_blobs(added) == []
    with chunked_files.open(added, prefetch=True) as file:
        assert file.read() == CONTENT


def test_wrong_bytes_that_no_blob_tells_never_come_to_an_end(
    stored: StoredFiles, chunked_files: ChunkedFiles, temporary: Path
) -> None:
    added = replace(stored.add(CONTENT, SIZES), crc32c=1)
    with (
        pytest.raises(ArchiveError, match=r"wrong bytes|CRC32C"),
        chunked_files.open(added, prefetch=True) as file,
    ):
        file.read()
    assert not list(temporary.iterdir())
