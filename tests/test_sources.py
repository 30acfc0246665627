"""What all sources promise (see artifacts/sources/source.py), asked of each of them, for real."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from archive_server import ArchiveServer
from real_servers import (
    S3,
    Nginx,
    emulated_google_storage,
    emulated_s3,
    make_certificate,
    nginx,
)
from stored_files import StoredFiles

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.blobs.store_source import StoreSource
from artifacts.checksums import Verifier
from artifacts.errors import ArchiveFileChanged, ArchiveFileMissing, BuildNotFound
from artifacts.sources.registry import Sources
from artifacts.sources.source import ArchiveFile, Source
from artifacts.sources.transport import Timeouts

if TYPE_CHECKING:
    from google.cloud import storage

BUILD = "target-release/R1-2.3 +%&ü"
SPECIAL_NAMES = [
    "name with spaces",
    "ümläut-日本語.bin",
    "plus+percent%hash#question?amp&",
    "percent%20encoded%2Fname%",
    "quotes'\"`and<brackets>[x]{y}(z)",
    "semi;colon:comma,equals=at@tilde~dollar$bang!star*caret^pipe|",
    "12345 67890",
    "long-" * 30,
    "nested/a directory/with+plus/ümläut#?%.bin",
    "nested/file",
    "nested.file",
]
CONTENT = bytes(range(256)) * 1000
FILES = {
    "image.zip": CONTENT,
    "empty": b"",
    "one byte": b"\0",
    **{name: f"content of {name}".encode() for name in SPECIAL_NAMES},
}
# A build of which the other one's name is the beginning: its files are not the other one's.
NEIGHBOUR = f"{BUILD}x"


@dataclass(frozen=True)
class Archive:
    """A build in an archive, and how the archive is changed: by itself, not by the source."""

    source: Source
    url: ArchiveUrl
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None]
    nginx: Nginx | None = None

    def file(self, name: str) -> ArchiveFile:
        """Describe a file as well as the archive can."""
        return self.source.stat(self.url, name)

    def read(self, file: ArchiveFile, start: int = 0, stop: int | None = None) -> bytes:
        """Read these bytes, whatever the source has to read to get at them."""
        with self.source.open(self.url, file, start, stop) as opened:
            assert opened.start in {0, start}
            blocks = []
            while block := opened.read(50_000):
                assert len(block) <= 50_000
                blocks.append(block)
            assert opened.read(50_000) == b""
        content = b"".join(blocks)
        if opened.stop is not None:
            assert len(content) == opened.stop - opened.start
        end = None if stop is None else stop - opened.start
        return content[start - opened.start : end]


class Directory:
    """An archive on disk, whose files get a later date each time they are put."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._clock = count(1_700_000_000, 10)

    def put(self, name: str, content: bytes) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name("fresh")
        fresh.write_bytes(content)
        now = next(self._clock)
        os.utime(fresh, (now, now))
        fresh.replace(path)

    def remove(self, name: str) -> None:
        (self._directory / name).unlink()


class DirectoryWithNames(Directory):
    """The same, with the names of its files in the file ``UPLOADED``."""

    def put(self, name: str, content: bytes) -> None:
        super().put(name, content)
        with (self._directory / "UPLOADED").open("a", encoding="utf-8") as uploaded:
            uploaded.write(f"{name}\n")


@pytest.fixture(scope="module")
def google_storage() -> Iterator[storage.Client]:
    with emulated_google_storage() as client:
        yield client


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with emulated_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def archive(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archive]:
    """A build of ``FILES`` in the kind of archive that the parameter names; not to be changed."""
    with _opened(request, tmp_path_factory.mktemp(request.param)) as archive:
        yield archive


@pytest.fixture
def own_archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    """The same, for one test alone, which may change it."""
    with _opened(request, tmp_path) as archive:
        yield archive


@contextmanager
def _opened(request: pytest.FixtureRequest, directory: Path) -> Iterator[Archive]:
    with ExitStack() as servers:
        if request.param == "gs":
            archive = _gs(request.getfixturevalue("google_storage"), servers)
        elif request.param == "s3":
            archive = _s3(request.getfixturevalue("s3"), servers)
        else:
            archive = ON_DISK[request.param](directory, servers)
        for name, content in FILES.items():
            archive.put(name, content)
        yield archive


def _connect(servers: ExitStack, base: str) -> tuple[Source, ArchiveUrl]:
    sources = Sources(AllowList([base]), Timeouts(5, 5), max_connections=8)
    servers.callback(sources.close)
    scheme = base.partition(":")[0]
    url = ArchiveUrl.parse(f"{base}/{quote(BUILD) if scheme.startswith('http') else BUILD}")
    return sources.source_of(url), url


def _file(tmp_path: Path, servers: ExitStack) -> Archive:
    root = tmp_path / "root"
    Directory(root / NEIGHBOUR).put("neighbour", b"")
    directory = Directory(root / BUILD)
    source, url = _connect(servers, f"file://{root}")
    return Archive(source, url, directory.put, directory.remove)


def _http(tmp_path: Path, servers: ExitStack, **options: bool) -> Archive:
    root = tmp_path / "root"
    Directory(root / NEIGHBOUR).put("neighbour", b"")
    directory = Directory(root / BUILD)
    server = servers.enter_context(ArchiveServer(root, **options))  # type: ignore[arg-type]
    source, url = _connect(servers, server.url)
    return Archive(source, url, directory.put, directory.remove)


def _http_without_ranges(tmp_path: Path, servers: ExitStack) -> Archive:
    return _http(tmp_path, servers, ranges=False)


def _http_without_validators(tmp_path: Path, servers: ExitStack) -> Archive:
    return _http(tmp_path, servers, validators=False)


def _nginx(
    tmp_path: Path,
    servers: ExitStack,
    autoindex: str = "html",
    kind: type[Directory] = Directory,
    certificate: Path | None = None,
) -> Archive:
    root = tmp_path / "root"
    Directory(root / NEIGHBOUR).put("neighbour", b"")
    directory = kind(root / BUILD)
    server = servers.enter_context(
        nginx(root, tmp_path / "nginx", autoindex=autoindex, certificate=certificate)  # type: ignore[arg-type]
    )
    source, url = _connect(servers, server.url)
    return Archive(source, url, directory.put, directory.remove, server)


def _nginx_json(tmp_path: Path, servers: ExitStack) -> Archive:
    return _nginx(tmp_path, servers, autoindex="json")


def _nginx_uploaded(tmp_path: Path, servers: ExitStack) -> Archive:
    return _nginx(tmp_path, servers, autoindex="off", kind=DirectoryWithNames)


def _nginx_https(tmp_path: Path, servers: ExitStack) -> Archive:
    certificate = make_certificate(tmp_path / "certificate")
    environment = servers.enter_context(pytest.MonkeyPatch.context())
    environment.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    return _nginx(tmp_path, servers, certificate=certificate)


def _gs(client: storage.Client, servers: ExitStack) -> Archive:
    bucket = client.create_bucket(f"archive-{next(_numbers)}")
    bucket.blob(f"{NEIGHBOUR}/neighbour").upload_from_string(b"")
    source, url = _connect(servers, f"gs://{bucket.name}")
    return Archive(
        source,
        url,
        lambda name, content: bucket.blob(f"{BUILD}/{name}").upload_from_string(content),
        lambda name: bucket.delete_blob(f"{BUILD}/{name}"),
    )


def _s3(server: S3, servers: ExitStack) -> Archive:
    bucket = server.create_bucket(f"archive-{next(_numbers)}")
    bucket.put(f"{NEIGHBOUR}/neighbour", b"")
    source, url = _connect(servers, f"s3://{bucket.name}")
    return Archive(
        source,
        url,
        lambda name, content: bucket.put(f"{BUILD}/{name}", content),
        lambda name: bucket.delete(f"{BUILD}/{name}"),
    )


def _store(tmp_path: Path, servers: ExitStack) -> Archive:
    stored = servers.enter_context(StoredFiles(tmp_path / "data"))
    url = ArchiveUrl.parse(f"store://{BUILD}")
    stored.publish(NEIGHBOUR, "neighbour", stored.add(b""))
    return Archive(
        StoreSource(stored.database, stored.blobs),
        url,
        lambda name, content: stored.publish(
            BUILD, name, stored.add(content, [50_000] * (len(content) // 50_000))
        ),
        lambda name: stored.unpublish(BUILD, name),
    )


_numbers = count(1)
ON_DISK = {
    "file": _file,
    "http": _http,
    "http_without_ranges": _http_without_ranges,
    "http_without_validators": _http_without_validators,
    "nginx_html": _nginx,
    "nginx_json": _nginx_json,
    "nginx_uploaded": _nginx_uploaded,
    "nginx_https": _nginx_https,
    "store": _store,
}
KINDS = [*ON_DISK, "gs", "s3"]


def every_archive(**but: str) -> pytest.MarkDecorator:
    """Run a test with every kind of ``archive``, but those for which a reason is given."""
    return these_archives(*_kinds_but(but))


def every_own_archive(**but: str) -> pytest.MarkDecorator:
    """Run a test with every kind of ``own_archive``, but those for which a reason is given."""
    return these_own_archives(*_kinds_but(but))


def these_archives(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("archive", kinds, indirect=True)


def these_own_archives(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("own_archive", kinds, indirect=True)


def _kinds_but(reasons: Mapping[str, str]) -> list[str]:
    assert reasons.keys() <= set(KINDS)
    return [kind for kind in KINDS if kind not in reasons]


# --- listing


@every_archive()
def test_a_build_is_listed_with_all_its_files_each_once(archive: Archive) -> None:
    names = [file.name for file in archive.source.list(archive.url)]
    assert sorted(names) == sorted(FILES)


@every_archive()
def test_a_build_that_is_not_there_is_not_found(archive: Archive) -> None:
    for missing in (f"{archive.url}y", f"{archive.url}/image.zip"):
        if archive.url.scheme == "store" and missing.endswith("image.zip"):
            continue  # that is no URL there
        with pytest.raises(BuildNotFound):
            archive.source.list(ArchiveUrl.parse(missing))


@every_archive(nginx_uploaded="it has nothing but names")
def test_a_listing_has_sizes_to_plan_with(archive: Archive) -> None:
    sizes = {file.name: file.size for file in archive.source.list(archive.url)}
    assert sizes == {name: len(content) for name, content in FILES.items()}


@these_archives("file", "gs")
def test_a_listing_describes_files_as_well_as_asking_for_each(archive: Archive) -> None:
    for file in archive.source.list(archive.url):
        assert file == archive.file(file.name)


@every_own_archive(nginx_uploaded="there a name stays")
def test_a_listing_is_of_now(own_archive: Archive) -> None:
    own_archive.source.list(own_archive.url)
    own_archive.remove("one byte")
    own_archive.put("nested/later", b"later")
    names = {file.name for file in own_archive.source.list(own_archive.url)}
    assert names == FILES.keys() - {"one byte"} | {"nested/later"}


# --- describing


@every_archive()
def test_a_file_is_described_by_its_exact_size(archive: Archive) -> None:
    for name, content in FILES.items():
        file = archive.file(name)
        assert (file.name, file.size, file.size_is_exact) == (name, len(content), True)


@every_archive()
def test_a_file_is_described_the_same_as_long_as_it_is_the_same(archive: Archive) -> None:
    assert archive.file("image.zip") == archive.file("image.zip")


@every_own_archive(http_without_validators="that is what it lacks")
def test_a_replaced_file_has_another_generation(own_archive: Archive) -> None:
    before = own_archive.file("image.zip")
    own_archive.put("image.zip", CONTENT[::-1])
    after = own_archive.file("image.zip")
    assert before.generation is not None
    assert after.generation not in {None, before.generation}


@every_archive(http_without_ranges="that is what it lacks")
def test_it_is_told_where_ranges_can_be_asked_for(archive: Archive) -> None:
    assert archive.file("image.zip").has_ranges


@every_archive()
def test_a_file_that_is_not_there_cannot_be_described(archive: Archive) -> None:
    for name in ("nothing", "nested/nothing", "nothing/nested", "image.zip/nothing"):
        with pytest.raises(ArchiveFileMissing):
            archive.file(name)


# --- reading


@every_archive()
def test_a_whole_file_is_read(archive: Archive) -> None:
    for name, content in FILES.items():
        assert archive.read(archive.file(name)) == content


@every_archive()
def test_a_file_is_read_without_having_been_described(archive: Archive) -> None:
    if archive.url.scheme == "gs":
        files = {file.name: file for file in archive.source.list(archive.url)}
    else:
        files = {name: ArchiveFile(name) for name in FILES}
    for name, content in FILES.items():
        assert archive.read(files[name]) == content


@every_archive()
def test_what_is_opened_is_described(archive: Archive) -> None:
    described = archive.file("image.zip")
    with archive.source.open(archive.url, described) as opened:
        assert (opened.start, opened.stop) == (0, len(CONTENT))
        assert opened.file.size == len(CONTENT)
        assert opened.file.size_is_exact
        assert opened.file.generation == described.generation


@every_archive()
@pytest.mark.parametrize(
    ("start", "stop"),
    [
        *((0, 1), (0, 1000), (1, 2), (1000, 200_000), (len(CONTENT) - 1, len(CONTENT))),
        *((0, None), (1, None), (100_000, None), (len(CONTENT) - 1, None), (0, len(CONTENT))),
    ],
)
def test_a_range_is_read(archive: Archive, start: int, stop: int | None) -> None:
    assert archive.read(archive.file("image.zip"), start, stop) == CONTENT[start:stop]


@every_archive(http_without_ranges="that is what it lacks")
def test_a_range_begins_and_ends_where_it_was_asked_to(archive: Archive) -> None:
    with archive.source.open(archive.url, archive.file("image.zip"), 1000, 2000) as opened:
        assert (opened.start, opened.stop) == (1000, 2000)
    with archive.source.open(archive.url, archive.file("image.zip"), 1000) as opened:
        assert (opened.start, opened.stop) == (1000, len(CONTENT))


@these_archives("http_without_ranges")
def test_where_there_are_no_ranges_the_whole_file_comes(archive: Archive) -> None:
    file = archive.file("image.zip")
    assert not file.has_ranges
    with archive.source.open(archive.url, file, 1000, 2000) as opened:
        assert (opened.start, opened.stop) == (0, len(CONTENT))
        assert opened.read(100) == CONTENT[:100]


@every_archive()
def test_an_empty_file_is_read(archive: Archive) -> None:
    for file in (archive.file("empty"), *archive.source.list(archive.url)):
        if file.name == "empty":
            for stop in (None, 0):
                assert archive.read(file, 0, stop) == b""


@every_archive()
def test_a_read_gives_one_byte_at_least_and_no_more_than_asked_for(archive: Archive) -> None:
    with archive.source.open(archive.url, archive.file("image.zip"), 10, 30_000) as opened:
        content, sizes = b"", count(1)
        while block := opened.read(size := next(sizes)):
            assert len(block) <= size
            content += block
    assert content[10 - opened.start : 30_000 - opened.start] == CONTENT[10:30_000]


@every_archive()
def test_many_ranges_are_read_at_the_same_time(archive: Archive) -> None:
    file = archive.file("image.zip")
    step = len(CONTENT) // 16
    starts = range(0, len(CONTENT), step)
    with ThreadPoolExecutor(4) as threads:
        pieces = threads.map(lambda start: archive.read(file, start, start + step), starts)
    assert b"".join(pieces) == CONTENT


@every_archive()
def test_what_was_opened_need_not_be_read(archive: Archive) -> None:
    for _ in range(20):
        with archive.source.open(archive.url, archive.file("image.zip")) as opened:
            opened.read(1)
    assert archive.read(archive.file("image.zip")) == CONTENT


@these_own_archives("nginx_html", "nginx_https")
def test_a_connection_is_used_again(own_archive: Archive) -> None:
    file = own_archive.file("image.zip")
    for start in range(20):
        own_archive.read(file, start, start + 100_000)
        own_archive.read(file)
        own_archive.read(own_archive.file("empty"))
        own_archive.source.list(own_archive.url)
        with pytest.raises(ArchiveFileMissing):
            own_archive.file("nothing")
        with pytest.raises(ArchiveFileMissing):
            own_archive.read(ArchiveFile("nothing"))
    assert own_archive.nginx is not None
    assert len(own_archive.nginx.connections()) == 1


# --- what changes meanwhile

RANGES = pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 500), (500, None), (500, 1000)])


@every_own_archive(
    http_without_validators="nothing but the size tells one file from another",
    gs="the emulator ignores which generation is asked for; a checksum tells, see below",
)
@RANGES
def test_a_file_replaced_by_one_of_the_same_size_has_changed(
    own_archive: Archive, start: int, stop: int | None
) -> None:
    file = own_archive.file("image.zip")
    own_archive.put("image.zip", CONTENT[::-1])
    with pytest.raises(ArchiveFileChanged):
        own_archive.read(file, start, stop)
    assert own_archive.read(own_archive.file("image.zip")) == CONTENT[::-1]


@these_own_archives("gs")
def test_a_google_object_comes_with_what_its_bytes_amount_to(own_archive: Archive) -> None:
    file = own_archive.file("image.zip")
    verifier = Verifier()
    verifier.expect(file.checksums)
    verifier.update(own_archive.read(file))
    assert file.checksums.crc32c is not None
    assert verifier.mismatch(file.checksums) is None

    own_archive.put("image.zip", CONTENT[::-1])
    verifier = Verifier()
    verifier.expect(file.checksums)
    verifier.update(own_archive.read(file))
    assert verifier.mismatch(file.checksums) is not None


@every_own_archive()
@RANGES
def test_a_file_that_has_grown_or_shrunk_has_changed(
    own_archive: Archive, start: int, stop: int | None
) -> None:
    for content in (CONTENT + b"more", CONTENT[:-1]):
        file = own_archive.file("image.zip")
        own_archive.put("image.zip", content)
        with pytest.raises(ArchiveFileChanged):
            own_archive.read(file, start, stop)


@every_own_archive(gs="its objects are known by generation: what is gone was replaced or removed")
@RANGES
def test_a_file_that_is_gone_is_missing(own_archive: Archive, start: int, stop: int | None) -> None:
    file = own_archive.file("image.zip")
    own_archive.remove("image.zip")
    with pytest.raises(ArchiveFileMissing):
        own_archive.read(file, start, stop)


@these_own_archives("gs")
@RANGES
def test_a_google_object_that_is_gone_has_changed(
    own_archive: Archive, start: int, stop: int | None
) -> None:
    file = own_archive.file("image.zip")
    own_archive.remove("image.zip")
    with pytest.raises(ArchiveFileChanged):
        own_archive.read(file, start, stop)
    with pytest.raises(ArchiveFileMissing):
        own_archive.file("image.zip")
