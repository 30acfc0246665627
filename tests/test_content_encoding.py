"""Objects stored with ``Content-Encoding: gzip``: verified as stored, published decompressed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import random
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from archive_proxy import ArchiveProxy
from archive_server import Fault
from conftest import Serve
from polling import clients, wait_until
from real_servers import emulated_google_storage, emulated_s3
from running_server import RunningServer

from artifacts.content_encoding import content_encoding

NOTES = "".join(f"line {number}\n" for number in range(20_000)).encode()
CONTROL = b"AUTHOR = 'somebody'\n"
CATALOG = """\
[artifacts.tests]
files = ["tests.tar*"]
unpack = true
when = "request"
"""


@dataclass(frozen=True)
class Storage:
    """A bucket with one build, behind a proxy that fails when told to.

    ``name`` is the build's, and ``url`` its archive URL.
    """

    name: str
    url: str
    proxy: ArchiveProxy
    put: Callable[[str, bytes, str | None], None]
    path_of: Callable[[str], str]  # of a file's bytes, at the proxy

    def times_read(self, name: str) -> int:
        asked = [r for r in self.proxy.requests if r.method == "GET"]
        return sum(request.path == self.path_of(name) for request in asked)


@pytest.fixture(scope="module", params=["gs", "s3"])
def make_storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Storage]]:
    numbers = count(1)
    with pytest.MonkeyPatch.context() as environment:
        if request.param == "gs":
            with (
                emulated_google_storage() as client,
                ArchiveProxy(os.environ["STORAGE_EMULATOR_HOST"], transcodes=True) as proxy,
            ):
                environment.setenv("STORAGE_EMULATOR_HOST", proxy.url)
                yield lambda: _google_bucket(client, proxy, next(numbers))
        else:
            with (
                emulated_s3(tmp_path_factory.mktemp("s3")) as s3,
                ArchiveProxy(s3.url) as proxy,
            ):
                environment.setenv("AWS_ENDPOINT_URL", proxy.url)
                yield lambda: _s3_bucket(s3, proxy, next(numbers))


def _google_bucket(client: Any, proxy: ArchiveProxy, number: int) -> Storage:
    bucket, build = client.create_bucket(f"bucket-{number}"), f"board-release/R1-{number}.0"

    def put(file: str, content: bytes, encoding: str | None) -> None:
        blob = bucket.blob(f"{build}/{file}")
        blob.content_encoding = encoding
        blob.upload_from_string(content)

    def path_of(file: str) -> str:
        return f"/download/storage/v1/b/{bucket.name}/o/{build}/{file}"

    return Storage(build, f"gs://{bucket.name}/{build}", proxy, put, path_of)


def _s3_bucket(s3: Any, proxy: ArchiveProxy, number: int) -> Storage:
    bucket, build = s3.create_bucket(f"bucket-{number}"), f"board-release/R1-{number}.0"

    def put(file: str, content: bytes, encoding: str | None) -> None:
        headers = {"Content_Encoding": encoding} if encoding else {}
        bucket.put(f"{build}/{file}", content, **headers)

    def path_of(file: str) -> str:
        return f"/{bucket.name}/{build}/{file}"

    return Storage(build, f"s3://{bucket.name}/{build}", proxy, put, path_of)


@pytest.fixture
def storage(make_storage: Callable[[], Storage]) -> Iterator[Storage]:
    storage = make_storage()
    yield storage
    storage.proxy.behave()


@pytest.fixture(scope="module")
def server(
    make_storage: Callable[[], Storage], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("server")
    catalog = directory / "catalog.toml"
    catalog.write_text(CATALOG)
    server = RunningServer(
        *(directory, "--catalog", str(catalog), "--tries", "2", "--max-unpacked", "5MB")
    )
    yield server
    server.stop()


def stage(server: RunningServer, storage: Storage, **what: str) -> tuple[int, str]:
    response = server.get("/stage", archive_url=storage.url, **what)
    return response.status_code, response.text


def tar_of(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def assert_nothing_is_left(server: RunningServer) -> None:
    assert not list((server.static_directory / ".devserver" / "tmp").iterdir())


def test_a_file_is_published_decompressed(server: RunningServer, storage: Storage) -> None:
    storage.put("notes.txt", gzip.compress(NOTES), "gzip")
    storage.put("packed.gz", gzip.compress(NOTES), None)

    assert stage(server, storage, files="notes.txt,packed.gz") == (200, "Success")

    assert server.file(f"{storage.name}/notes.txt") == NOTES
    assert gzip.decompress(server.file(f"{storage.name}/packed.gz")) == NOTES
    assert server.call("/is_staged", archive_url=storage.url, files="notes.txt") == "True"
    assert_nothing_is_left(server)


def test_what_is_said_of_it_is_said_of_what_is_served(
    server: RunningServer, storage: Storage
) -> None:
    storage.put("notes.txt", gzip.compress(NOTES), "gzip")
    stage(server, storage, files="notes.txt")

    head = server.session.head(f"{server.url}/static/{storage.name}/notes.txt")
    assert head.headers["Content-Length"] == str(len(NOTES))
    assert "Content-Encoding" not in head.headers
    part = server.session.get(
        f"{server.url}/static/{storage.name}/notes.txt",
        headers={"Range": "bytes=100000-100099", "If-Range": head.headers["ETag"]},
    )
    assert (part.status_code, part.content) == (206, NOTES[100_000:100_100])
    about = server.get(f"/api/fileinfo/{storage.name}/notes.txt").json()
    digest = base64.b64encode(hashlib.sha256(NOTES).digest()).decode()
    assert about == {"size": len(NOTES), "sha256": digest}


def test_who_reads_it_while_it_comes_gets_it_once_it_is_decompressed(
    serve: Serve, storage: Storage
) -> None:
    root = storage.url.removesuffix(f"/{storage.name}")
    server = serve("--archive-root", root, "--catalog", "everything")
    storage.put("notes.txt", gzip.compress(NOTES), "gzip")
    head = server.session.head(f"{server.url}/static/{storage.name}/notes.txt")
    assert (head.status_code, head.headers.get("Content-Length")) == (200, None)
    hold = threading.Event()
    storage.proxy.misbehave(storage.path_of("notes.txt"), Fault(hold=hold), times=1)
    with ThreadPoolExecutor(2) as pool:
        on_demand = pool.submit(server.get, f"/static/{storage.name}/notes.txt")
        wait_until(lambda: storage.times_read("notes.txt") == 1)
        meanwhile = pool.submit(server.get, f"/static/{storage.name}/notes.txt")
        wait_until(lambda: clients(server) >= 3)
        assert not on_demand.done() and not meanwhile.done()
        hold.set()
        for answer in (on_demand.result(), meanwhile.result()):
            assert (answer.status_code, answer.content) == (200, NOTES)
            assert "Content-Encoding" not in answer.headers
    assert storage.times_read("notes.txt") == 1


def test_an_empty_file_is_just_that(server: RunningServer, storage: Storage) -> None:
    storage.put("empty", b"", "gzip")
    storage.put("nothing", gzip.compress(b""), "gzip")
    assert stage(server, storage, files="empty,nothing") == (200, "Success")
    assert server.file(f"{storage.name}/empty") == server.file(f"{storage.name}/nothing") == b""


def test_a_large_one_is_read_in_ranges_of_what_is_stored(
    server: RunningServer, storage: Storage
) -> None:
    content = random.Random(0).randbytes(4_900_000)
    storage.put("random.bin", gzip.compress(content, 1), "gzip")
    assert stage(server, storage, files="random.bin") == (200, "Success")
    assert server.file(f"{storage.name}/random.bin") == content
    assert storage.times_read("random.bin") == 2


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar in gzip"])
def test_an_archive_is_unpacked_out_of_it(
    server: RunningServer, storage: Storage, packed: bool
) -> None:
    tar = tar_of("suite/control", CONTROL)
    storage.put("tests.tar", gzip.compress(gzip.compress(tar) if packed else tar), "gzip")
    assert stage(server, storage, artifacts="tests") == (200, "Success")
    assert server.file(f"{storage.name}/suite/control") == CONTROL
    assert server.get(f"/static/{storage.name}/tests.tar").status_code == 404
    assert_nothing_is_left(server)


def test_an_archive_that_is_published_already_is_unpacked_without_being_fetched_again(
    server: RunningServer, storage: Storage
) -> None:
    storage.put("tests.tar", gzip.compress(tar_of("suite/control", CONTROL)), "gzip")
    assert stage(server, storage, files="tests.tar") == (200, "Success")
    assert stage(server, storage, artifacts="tests") == (200, "Success")
    assert server.file(f"{storage.name}/suite/control") == CONTROL
    assert server.file(f"{storage.name}/tests.tar") == tar_of("suite/control", CONTROL)
    assert storage.times_read("tests.tar") == 1


@pytest.fixture
def half_staged(serve: Serve, storage: Storage) -> RunningServer:
    """A server that has published a.txt, and failed to stage both files."""
    storage.put("a.txt", gzip.compress(b"a" * 1000), "gzip")
    storage.put("b.txt", gzip.compress(b"b" * 1000), "gzip")
    storage.proxy.misbehave(storage.path_of("b.txt"), Fault(status=403))
    server = serve("--max-connections", "1")  # one after the other
    assert stage(server, storage, files="[ab].txt")[0] == 502
    assert storage.times_read("a.txt") == 1
    storage.proxy.behave()
    return server


def test_what_a_failure_left_is_kept_for_the_next_try(
    half_staged: RunningServer, storage: Storage, serve: Serve
) -> None:
    half_staged.stop()
    server = serve()
    assert stage(server, storage, files="[ab].txt") == (200, "Success")
    assert server.file(f"{storage.name}/a.txt") == b"a" * 1000
    assert server.file(f"{storage.name}/b.txt") == b"b" * 1000
    assert storage.times_read("a.txt") == 1


def test_what_has_changed_meanwhile_is_not_kept(
    half_staged: RunningServer, storage: Storage
) -> None:
    # It is now what it came to before, and stored as it is.
    storage.put("a.txt", b"a" * 1000, None)
    assert stage(half_staged, storage, files="[ab].txt") == (200, "Success")
    assert half_staged.file(f"{storage.name}/a.txt") == b"a" * 1000
    assert storage.times_read("a.txt") == 2


NOT_GZIP = {
    "plain": (NOTES, "not gzip"),
    "cut off": (gzip.compress(NOTES)[:-20], "cut off"),
    "damaged": (gzip.compress(NOTES)[:-8] + bytes(8), "damaged"),
    "a bomb": (gzip.compress(bytes(10_000_000)), "5,000,000"),
}


@pytest.mark.parametrize("case", NOT_GZIP)
@pytest.mark.parametrize("what", [{"files": "tests.tar"}, {"artifacts": "tests"}], ids=str)
def test_what_is_not_as_it_says_is_an_error_in_words_and_leaves_nothing(
    server: RunningServer, storage: Storage, case: str, what: dict[str, str]
) -> None:
    content, words = NOT_GZIP[case]
    storage.put("tests.tar", content, "gzip")
    status, text = stage(server, storage, **what)
    assert status == 502
    assert "tests.tar" in text and words in text
    assert server.get(f"/static/{storage.name}/tests.tar").status_code == 404
    assert_nothing_is_left(server)

    storage.put("tests.tar", gzip.compress(tar_of("control", CONTROL)), "gzip")
    assert stage(server, storage, **what) == (200, "Success")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "x" * 3000])
def test_other_encodings_are_refused_by_name(
    server: RunningServer, storage: Storage, encoding: str
) -> None:
    storage.put("notes.txt", NOTES, encoding)
    status, text = stage(server, storage, files="notes.txt")
    assert status == 502
    assert "notes.txt" in text and encoding[:90] in text and "only gzip" in text
    assert_nothing_is_left(server)


def test_wrong_bytes_are_noticed_before_they_are_decompressed(
    server: RunningServer, storage: Storage
) -> None:
    storage.put("notes.txt", gzip.compress(NOTES), "gzip")
    other = gzip.compress(NOTES[::-1])
    storage.proxy.misbehave(storage.path_of("notes.txt"), Fault(swap=other))
    status, text = stage(server, storage, files="notes.txt")
    assert status == 502, text
    assert server.get(f"/static/{storage.name}/notes.txt").status_code == 404
    storage.proxy.behave()
    assert stage(server, storage, files="notes.txt") == (200, "Success")


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        *((None, None), ("", None), ("identity", None), ("gzip", "gzip"), (" GZip ", "gzip")),
        *(("aws-chunked", None), ("gzip,aws-chunked", "gzip"), ("aws-chunked, gzip", "gzip")),
        *(("x-gzip", "x-gzip"), ("br", "br"), ("gzip,br", "gzip, br")),
    ],
)
def test_a_header_says_what_has_to_be_undone(header: str | None, encoding: str | None) -> None:
    assert content_encoding(header) == encoding
