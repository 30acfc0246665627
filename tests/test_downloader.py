"""The cache of downloaders, looked at from inside: one downloader a key, and none left over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.catalog import Catalog
from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET
from artifacts.errors import BuildNotFound, Busy, Conflict, DevserverError
from artifacts.extract import UnpackLimits
from artifacts.fetch import FetchLimits
from artifacts.manifest import Item
from artifacts.retries import RetryLimits
from artifacts.sources.registry import Sources
from artifacts.sources.transport import Timeouts
from artifacts.staging import Staging
from artifacts.workers import Workers
from downloader import DownloaderCache, Equipment

NAME = f"{TARGET}/{BUILD}"
SECONDS = 60


@pytest.fixture
def equipment(tmp_path: Path) -> Iterator[Equipment]:
    staging = Staging(tmp_path / "static")
    sources = Sources(AllowList(["http://", "file://"]), Timeouts(2, 2), 16)
    connections, threads = Workers("connection", 16), Workers("staging", 32)
    writeback = Workers("writeback", 2)
    yield Equipment(
        staging,
        sources,
        Catalog.load("chromeos"),
        connections,
        writeback,
        threads,
        FetchLimits(4, RetryLimits(2, 0.01)),
        UnpackLimits(),
    )
    assert threads.close(timeout_seconds=10)
    assert connections.close(timeout_seconds=10)
    assert writeback.close(timeout_seconds=10)
    sources.close()
    staging.close()


@pytest.fixture
def cache(equipment: Equipment) -> DownloaderCache:
    return DownloaderCache(equipment)


def settled(cache: DownloaderCache, url: ArchiveUrl) -> None:
    cache.wait_for_status(url).result(SECONDS)


def test_a_thousand_builds_leave_both_dictionaries_empty(
    cache: DownloaderCache, archive_directory: Path
) -> None:
    urls = []
    for number in range(1000):
        build = archive_directory / "many" / f"R1-{number}.0.0"
        build.mkdir(parents=True)
        (build / "x_full_y.bin").write_bytes(b"%d" % number)
        urls.append(ArchiveUrl.parse(f"file://{build}"))
    with ThreadPoolExecutor(20) as pool:
        for future in pool.map(cache.download, urls):
            future.result(SECONDS)
    for url in urls:
        settled(cache, url)
    assert cache.sizes == (0, 0)


def test_failures_leave_both_dictionaries_empty(
    cache: DownloaderCache, archive_directory: Path
) -> None:
    for number in range(50):
        url = ArchiveUrl.parse(f"file://{archive_directory}/none/R1-{number}.0.0")
        with pytest.raises(BuildNotFound):
            cache.download(url).result(SECONDS)
        with pytest.raises(DevserverError):
            settled(cache, url)
    assert cache.sizes == (0, 0)


def test_who_hears_of_the_end_may_drop_the_build(
    cache: DownloaderCache, archive_directory: Path
) -> None:
    url = ArchiveUrl.parse(f"file://{archive_directory}/{NAME}")
    for _ in range(20):
        cache.stage(url, [Item.artifact("stateful")]).result(SECONDS)
        assert cache.sizes == (0, 0)
        cache.drop(url.name)


def test_two_archives_of_one_build_are_not_mixed(
    cache: DownloaderCache, archive: ArchiveServer, archive_directory: Path
) -> None:
    ours = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    theirs = ArchiveUrl.parse(f"file://{archive_directory}/{NAME}")
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(hold=hold), times=1)
    under_way = cache.download(ours)
    with pytest.raises(Conflict):
        cache.download(theirs)
    hold.set()
    under_way.result(SECONDS)
    settled(cache, ours)
    with pytest.raises(Conflict):
        cache.stage(theirs, [Item.artifact("stateful")])
    assert cache.sizes == (0, 0)


def test_another_archive_may_take_over_a_build_of_which_nothing_could_be_staged(
    cache: DownloaderCache, archive: ArchiveServer, archive_directory: Path
) -> None:
    ours = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    theirs = ArchiveUrl.parse(f"file://{archive_directory}/{NAME}")
    archive.misbehave(f"/{NAME}/*", Fault(status=403))
    with pytest.raises(DevserverError):
        cache.stage(ours, [Item.artifact("stateful")]).result(SECONDS)
    cache.stage(theirs, [Item.artifact("stateful")]).result(SECONDS)


def test_a_background_artifact_asked_for_by_name_does_not_wait_for_the_foreground(
    cache: DownloaderCache, archive: ArchiveServer
) -> None:
    url = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(hold=hold), times=1)
    foreground = cache.download(url)
    cache.stage(url, [Item.artifact("autotest")]).result(SECONDS)
    assert not foreground.done()
    hold.set()
    foreground.result(SECONDS)
    settled(cache, url)


def test_a_failed_item_is_tried_again_while_others_are_under_way(
    cache: DownloaderCache, archive: ArchiveServer
) -> None:
    url = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(hold=hold), times=1)
    archive.misbehave(f"/{NAME}/stateful.tgz", Fault(status=403), times=1)
    with pytest.raises(DevserverError, match="403"):
        cache.download(url).result(SECONDS)
    assert cache.sizes[0] == 1
    again = cache.download(url)
    hold.set()
    again.result(SECONDS)
    settled(cache, url)
    assert cache.is_staged(url, [Item.artifact("stateful"), Item.artifact("autotest")])


def test_a_closed_cache_refuses_what_is_new_and_cuts_what_takes_too_long(
    cache: DownloaderCache, archive: ArchiveServer, archive_directory: Path
) -> None:
    url = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(hold=hold), times=1)
    under_way: Future[None] = cache.download(url)
    cache.close(timeout_seconds=0.1)
    with pytest.raises(Busy):
        under_way.result(SECONDS)
    other = ArchiveUrl.parse(f"file://{archive_directory}/board/R1-1.0.0")
    with pytest.raises(Busy):
        cache.download(other)
    hold.set()


def test_many_threads_asking_for_the_same_and_different_things_agree(
    cache: DownloaderCache, archive: ArchiveServer, archive_directory: Path
) -> None:
    url = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    names = ["full_payload", "stateful", "test_suites", "autotest", "nton_payload"]
    with ThreadPoolExecutor(40) as pool:
        asked = [
            pool.submit(cache.stage, url, [Item.artifact(names[number % len(names)])])
            for number in range(200)
        ]
        for future in asked:
            future.result(SECONDS).result(SECONDS)
    settled(cache, url)
    assert cache.sizes == (0, 0)
    size = (archive_directory / NAME / FULL_PAYLOAD).stat().st_size
    assert archive.bytes_sent(f"/{NAME}/{FULL_PAYLOAD}") == size
