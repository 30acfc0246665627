"""What all blob storages promise (see artifacts/blobs/storage.py), asked of each, for real."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faulty_storage import FailingStorage
from real_servers import S3, S3_PAGE_FILES, emulated_google_storage, emulated_s3
from running_server import REPOSITORY

from artifacts.blobs.storage import BlobMissing, BlobStorage
from artifacts.blobs.storages import open_storage
from artifacts.config import Config, ConfigError

if TYPE_CHECKING:
    from google.cloud import storage as google

CHUNK_BYTES = 8 << 20
KINDS = ["directory", "s3", "gs", "wrapped"]


def sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Kept:
    """A storage under test, and how others write to the place where its blobs are."""

    storage: BlobStorage
    put_beside: Callable[[str, bytes], None]

    def put(self, content: bytes) -> str:
        """Put a blob as an upload does; return its checksum."""
        checksum = sha1(content)
        self.storage.put(checksum, self.spool(content))
        return checksum

    def spool(self, content: bytes) -> Path:
        spooled = self.storage.spool_directory / uuid.uuid4().hex
        spooled.write_bytes(content)
        return spooled

    def read(self, checksum: str, start: int = 0, stop: int | None = None) -> bytes:
        blocks = []
        with self.storage.open(checksum, start, stop) as opened:
            while block := opened.read(100_000):
                assert len(block) <= 100_000
                blocks.append(block)
            assert opened.read(100_000) == b""
        return b"".join(blocks)

    def checksums(self) -> list[str]:
        return sorted(blob.checksum for blob in self.storage.list())


@pytest.fixture(scope="module")
def google_storage() -> Iterator[google.Client]:
    with emulated_google_storage() as client:
        yield client


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with emulated_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


_numbers = count(1)


@pytest.fixture
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    """An empty storage of the kind that the parameter names."""
    kind = request.param
    put_beside: Callable[[str, bytes], None]
    if kind == "s3":
        bucket = request.getfixturevalue("s3").create_bucket(f"blobs-{next(_numbers)}")
        location, put_beside = f"s3://{bucket.name}/some/prefix", bucket.put
    elif kind == "gs":
        made = request.getfixturevalue("google_storage").create_bucket(f"blobs-{next(_numbers)}")
        location = f"gs://{made.name}/some/prefix"

        def put_beside(key: str, content: bytes) -> None:
            made.blob(key).upload_from_string(content)
    else:
        location = str(tmp_path / "some" / "prefix")

        def put_beside(key: str, content: bytes) -> None:
            path = tmp_path / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    with opened(location, tmp_path / "data") as storage:
        yield Kept(FailingStorage(storage) if kind == "wrapped" else storage, put_beside)


@contextmanager
def opened(location: str, data_directory: Path) -> Iterator[BlobStorage]:
    config = Config(blob_storage=location, data_dir=data_directory, stall_timeout=5)
    storage = open_storage(config)
    try:
        yield storage
    finally:
        storage.close()


every_storage = pytest.mark.parametrize("kept", KINDS, indirect=True)
CONTENTS = {
    "nothing": b"",
    "one byte": b"\0",
    "lines": b"--\r\n\r\n--boundary\n\r" * 1000,
    "a whole chunk": os.urandom(CHUNK_BYTES // 2) + bytes(CHUNK_BYTES // 2),
}
SOME = bytes(range(256)) * 4000


@every_storage
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_what_was_put_is_there_as_it_was(kept: Kept, content: bytes) -> None:
    checksum = kept.put(content)
    assert kept.read(checksum) == content
    assert kept.checksums() == [checksum]


@every_storage
def test_what_was_put_has_left_the_spool(kept: Kept) -> None:
    kept.put(SOME)
    assert list(kept.storage.spool_directory.iterdir()) == []


@every_storage
def test_any_part_of_a_blob_can_be_read(kept: Kept) -> None:
    checksum = kept.put(SOME)
    end = len(SOME)
    for start, stop in (
        *((0, None), (0, end), (0, 1), (5, 10), (end - 1, None), (end - 1, end)),
        *((300_000, 700_000), (0, 0), (7, 7), (9, 8), (end - 5, end + 100)),
    ):
        assert kept.read(checksum, start, stop) == SOME[start:stop], (start, stop)


@pytest.mark.parametrize("kept", ["directory", "s3"], indirect=True)
def test_a_blob_has_nothing_behind_its_end(kept: Kept) -> None:
    for content in (b"", SOME):
        checksum = kept.put(content)
        for start, stop in ((len(content), None), (len(content) + 5, len(content) + 10)):
            assert kept.read(checksum, start, stop) == b""


@every_storage
def test_what_is_not_there_is_told_to_be_missing(kept: Kept) -> None:
    kept.put(SOME)
    for start, stop in ((0, None), (5, 10), (0, 0)):
        with pytest.raises(BlobMissing) as caught:
            kept.storage.open(sha1(b"another"), start, stop)
        assert (caught.value.status, caught.value.code) == (503, "blob_missing")
        assert sha1(b"another")[2:] in caught.value.message


@every_storage
def test_what_is_put_again_replaces_what_is_there(kept: Kept) -> None:
    checksum = sha1(SOME)
    kept.put_beside(f"some/prefix/{checksum[:2]}/{checksum[2:]}", b"damaged")
    assert kept.read(checksum) == b"damaged"
    kept.storage.put(checksum, kept.spool(SOME))
    assert kept.read(checksum) == SOME
    assert kept.checksums() == [checksum]


@every_storage
def test_what_is_deleted_is_gone_and_can_be_deleted_again(kept: Kept) -> None:
    checksum, other = kept.put(SOME), kept.put(b"other")
    for _ in range(2):
        kept.storage.delete(checksum)
        with pytest.raises(BlobMissing):
            kept.storage.open(checksum)
        assert kept.checksums() == [other]
    assert kept.put(SOME) == checksum
    assert kept.read(checksum) == SOME


@every_storage
def test_the_list_has_sizes_and_times_of_all_pages(kept: Kept) -> None:
    assert kept.checksums() == []
    begun_at = time.time()
    sizes = {kept.put(b"#" * size): size for size in range(2 * S3_PAGE_FILES + 1)}
    listed = list(kept.storage.list())
    assert {blob.checksum: blob.size for blob in listed} == sizes
    assert len(listed) == len(sizes)
    # Clocks of file systems are coarser than those of processes, and S3 tells whole seconds.
    assert all(begun_at - 2 <= blob.stored_at <= time.time() + 2 for blob in listed)


@every_storage
def test_what_is_no_blob_is_passed_over(kept: Kept) -> None:
    checksum = kept.put(SOME)
    name = f"{checksum[:2]}/{checksum[2:]}"
    for foreign in (
        *("readme", "ab/readme", f"{checksum[:2]}/{checksum[2:]}.old", f"ab/{checksum}"),
        *(f"{checksum[:2]}/{checksum[2:].upper()}x", f"abc/{checksum[3:]}", f"x/{name}"),
        f"{checksum[:2]}-{checksum[2:]}",
    ):
        kept.put_beside(f"some/prefix/{foreign}", b"foreign")
    kept.put_beside(f"some/{name}", b"foreign")
    kept.put_beside(f"some/prefix2/{name}", b"foreign")
    kept.put_beside(name, b"foreign")
    assert kept.checksums() == [checksum]
    assert kept.read(checksum) == SOME


@every_storage
def test_many_threads_may_put_read_and_delete_at_once(kept: Kept) -> None:
    def work(number: int) -> None:
        content = os.urandom(10_000) + bytes([number])
        checksum = kept.put(content)
        assert kept.read(checksum) == content
        assert kept.read(checksum, 5, 5000) == content[5:5000]
        if number % 2:
            kept.storage.delete(checksum)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert len(kept.checksums()) == 12


@every_storage
def test_readers_see_a_blob_whole_or_not_at_all_while_it_comes_and_goes(kept: Kept) -> None:
    checksum = sha1(SOME)
    ended = threading.Event()
    seen = set()

    def look() -> None:
        while not ended.is_set():
            try:
                with kept.storage.open(checksum) as opened:
                    seen.add(sha1(b"".join(iter(lambda: opened.read(1 << 20), b""))))
            except BlobMissing:
                seen.add("missing")

    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        for _ in range(10):
            kept.storage.put(checksum, kept.spool(SOME))
            kept.storage.delete(checksum)
        kept.storage.put(checksum, kept.spool(SOME))
        ended.set()
        for one in looking:
            one.result(60)
    assert seen <= {checksum, "missing"}
    assert kept.read(checksum) == SOME


# --- what a configuration names

NO_STORAGES = [
    *("s3://", "s3:", "s3://Bad_Bucket!/x", "s3://bucket/../x", "s3://bucket/a?b"),
    *("http://host/path", "https://host/path", "file:///srv/blobs", "store://a/b", "azure://a/b"),
    *("s3://bucket/a#b", "s3://bucket/\0", "S4://bucket"),
]


@pytest.mark.parametrize("location", NO_STORAGES)
def test_what_is_no_storage_is_refused_in_words(tmp_path: Path, location: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(Config(blob_storage=location, data_dir=tmp_path))
    for word in ("--blob-storage", "a directory", "s3://BUCKET/PREFIX", "gs://BUCKET/PREFIX"):
        assert word in caught.value.message


def test_a_server_says_at_its_start_that_something_is_no_storage(tmp_path: Path) -> None:
    started = subprocess.run(
        [
            *(sys.executable, str(REPOSITORY / "devserver.py"), "--port", "0"),
            *("--data-dir", str(tmp_path), "--blob-storage", "ftp://host"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode == 2, started.stderr
    assert "--blob-storage: 'ftp://host' is neither" in started.stderr
    assert "Traceback" not in started.stderr


def test_by_default_blobs_are_in_the_data_directory(tmp_path: Path) -> None:
    storage = open_storage(Config(data_dir=tmp_path))
    assert storage.spool_directory == tmp_path / "blobs" / ".spool"
    storage.close()


@pytest.mark.parametrize(
    "location", ["s3://bucket", "gs://bucket/", " S3://bucket//some//prefix/ "]
)
def test_a_bucket_is_not_asked_for_anything_at_start(
    tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where nobody listens.
    for variable in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    storage = open_storage(Config(blob_storage=location, data_dir=tmp_path))
    assert storage.spool_directory == tmp_path / "spool"
    storage.close()


def test_a_prefix_may_be_left_out(s3: S3, tmp_path: Path) -> None:
    bucket = s3.create_bucket(f"blobs-{next(_numbers)}")
    with opened(f"s3://{bucket.name}", tmp_path) as storage:
        checksum = Kept(storage, bucket.put).put(SOME)
    with opened(f"s3://{bucket.name}/{checksum[:2]}", tmp_path) as storage:
        assert list(storage.list()) == []
    with opened(f"s3://{bucket.name}/", tmp_path) as storage:
        assert Kept(storage, bucket.put).checksums() == [checksum]
        assert Kept(storage, bucket.put).read(checksum) == SOME


@pytest.mark.parametrize("library", ["boto3", "botocore", "google.cloud.storage", "google.auth"])
def test_what_is_not_used_is_not_imported(tmp_path: Path, library: str) -> None:
    program = (
        "import sys, pathlib; from artifacts.config import Config; "
        "from artifacts.blobs.storages import open_storage; "
        "open_storage(Config(data_dir=pathlib.Path(sys.argv[1]))); "
        f"assert {library!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=REPOSITORY)
