"""The cache of downloaders, looked at from inside: one downloader a key, and none left over."""

from __future__ import annotations

import errno
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from polling import wait_until

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.build import Build
from artifacts.catalog import Catalog
from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET
from artifacts.equipment import Equipment
from artifacts.errors import (
    ArchiveError,
    BuildNotFound,
    Busy,
    Conflict,
    DevserverError,
    InsufficientStorage,
    NotFound,
)
from artifacts.fetch import FetchLimits
from artifacts.manifest import Item, StagedFile
from artifacts.retries import RetryLimits
from artifacts.sources.registry import Sources
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts
from artifacts.staging import Staging
from artifacts.timers import Timers
from artifacts.unpack_limits import UnpackLimits
from artifacts.whole_files import kept_file
from artifacts.workers import Workers
from downloader import DownloaderCache

NAME = f"{TARGET}/{BUILD}"
SECONDS = 60


@pytest.fixture
def equipment(tmp_path: Path) -> Iterator[Equipment]:
    staging = Staging(tmp_path / "static")
    sources = Sources(AllowList(["http://", "file://"]), Timeouts(2, 2), 16)
    connections, threads = Workers("connection", 16), Workers("staging", 32)
    writeback, timers = Workers("writeback", 2), Timers("upload-watch", 4, 4)
    yield Equipment(
        staging,
        sources,
        Catalog.load("chromeos"),
        connections,
        writeback,
        threads,
        FetchLimits(4, RetryLimits(2, 0.01)),
        UnpackLimits(),
        timers,
    )
    assert timers.close(timeout_seconds=10)
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


def test_hundreds_of_builds_leave_both_dictionaries_empty(
    cache: DownloaderCache, archive_directory: Path
) -> None:
    urls = []
    for number in range(300):
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


def write_build(directory: Path, **files: bytes) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)


def test_archives_are_not_mixed_even_where_what_is_staged_is_empty(
    cache: DownloaderCache, tmp_path: Path
) -> None:
    write_build(tmp_path / "one/board/R1-1", x=b"")
    write_build(tmp_path / "two/board/R1-1", x=b"hello")
    one, two = (ArchiveUrl.parse(f"file://{tmp_path}/{n}/board/R1-1") for n in ("one", "two"))
    cache.stage(one, [Item.files("x")]).result(SECONDS)
    with pytest.raises(Conflict):
        cache.stage(two, [Item.files("x")])


def test_a_failure_of_one_archive_is_not_told_of_another(
    cache: DownloaderCache, archive: ArchiveServer, archive_directory: Path
) -> None:
    ours = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    theirs = ArchiveUrl.parse(f"file://{archive_directory}/{NAME}")
    archive.misbehave(f"/{NAME}/stateful.tgz", Fault(status=403))
    with pytest.raises(DevserverError):
        cache.stage(ours, [Item.artifact("stateful")]).result(SECONDS)
    with pytest.raises(BuildNotFound):
        cache.wait_for_status(theirs)
    assert not cache.is_staged(theirs, [Item.artifact("stateful")])


def test_what_a_staged_build_does_not_have_is_told_to_who_asked_and_to_nobody_else(
    cache: DownloaderCache, archive_directory: Path
) -> None:
    url = ArchiveUrl.parse(f"file://{archive_directory}/{NAME}")
    cache.stage(url, [Item.artifact("stateful")]).result(SECONDS)
    with pytest.raises(DevserverError, match="typo"):
        cache.stage(url, [Item.files("typo")]).result(SECONDS)
    with pytest.raises(DevserverError, match="typo"):
        cache.is_staged(url, [Item.files("typo")])
    settled(cache, url)


def test_a_build_without_foreground_is_still_looked_for(
    equipment: Equipment, tmp_path: Path
) -> None:
    catalog = tmp_path / "lazy.toml"
    catalog.write_text('[artifacts.x]\nfiles = ["x"]\nwhen = "background"\n')
    cache = DownloaderCache(replace(equipment, catalog=Catalog.load(str(catalog))))
    with pytest.raises(BuildNotFound):
        cache.download(ArchiveUrl.parse(f"file://{tmp_path}/board/R1-1")).result(SECONDS)
    write_build(tmp_path / "board/R1-1", x=b"x")
    url = ArchiveUrl.parse(f"file://{tmp_path}/board/R1-1")
    cache.download(url).result(SECONDS)
    settled(cache, url)
    assert cache.is_staged(url, [Item.artifact("x")])


@pytest.mark.parametrize("changed", [b"longer than before", b"NEW"])
def test_a_file_of_a_failed_try_that_has_changed_since_is_fetched_anew(
    changed: bytes, equipment: Equipment, archive: ArchiveServer, archive_directory: Path
) -> None:
    build = archive_directory / "board/R1-1"
    write_build(build, a=b"old", b=b"bee")
    cache = DownloaderCache(replace(equipment, connections=Workers("one", 1)))
    url = ArchiveUrl.parse(f"{archive.url}/board/R1-1")
    # One connection: "a" is there before "b" fails.
    archive.misbehave("/board/R1-1/b", Fault(status=403), times=1)
    with pytest.raises(DevserverError):
        cache.stage(url, [Item.files("[ab]")]).result(SECONDS)
    write_build(build, a=changed, SHA256SUMS=hashlib.sha256(changed).hexdigest().encode() + b"  a")
    cache.stage(url, [Item.files("[ab]")]).result(SECONDS)
    assert (equipment.staging.directory / "board/R1-1/a").read_bytes() == changed


def test_a_file_that_comes_while_another_looks_for_it_is_not_taken_for_an_old_one(
    cache: DownloaderCache,
    archive: ArchiveServer,
    archive_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked, hold, hold_of_b = threading.Event(), threading.Event(), threading.Event()
    write_build(archive_directory / "board/R1-1", a=b"a", b=b"b")

    def look_in_time_and_wait(build: Build, file: ArchiveFile) -> tuple[str, StagedFile] | None:
        there = kept_file(build, file)
        if not looked.is_set():
            looked.set()
            wait_until(lambda: build.find("a") is not None)
            archive.misbehave("/board/R1-1/a", Fault(hold=hold), times=1)
            hold_of_b.set()
        return there

    monkeypatch.setattr("artifacts.task.kept_file", look_in_time_and_wait)
    url = ArchiveUrl.parse(f"{archive.url}/board/R1-1")
    archive.misbehave("/board/R1-1/b", Fault(hold=hold_of_b), times=1)
    one = cache.stage(url, [Item.files("a")])
    assert looked.wait(SECONDS)
    both = cache.stage(url, [Item.files("[ab]")])
    both.result(SECONDS)
    hold.set()
    one.result(SECONDS)


def test_a_retry_needs_room_only_for_what_is_missing(
    equipment: Equipment, archive: ArchiveServer, archive_directory: Path
) -> None:
    size = 100_000_000
    write_build(archive_directory / "board/R1-1", a=bytes(size), b=b"b")
    cache = DownloaderCache(replace(equipment, connections=Workers("one", 1)))
    url = ArchiveUrl.parse(f"{archive.url}/board/R1-1")
    archive.misbehave("/board/R1-1/b", Fault(status=403), times=1)
    with pytest.raises(DevserverError):
        cache.stage(url, [Item.files("[ab]")]).result(SECONDS)
    space = equipment.staging.space
    hog = space.reserve(space.free_bytes() - size // 2, "another", lambda: 0)
    with pytest.raises(InsufficientStorage):
        space.reserve(size, "as much as all of it", lambda: 0)
    cache.stage(url, [Item.files("[ab]")]).result(SECONDS)
    assert archive.bytes_sent("/board/R1-1/a") == size
    hog.release()


def test_a_failure_ends_though_what_it_left_cannot_be_removed(
    cache: DownloaderCache,
    archive: ArchiveServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Build) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Build, "remove_unrecorded", refuse)
    url = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    archive.misbehave(f"/{NAME}/stateful.tgz", Fault(status=403), times=1)
    with pytest.raises(DevserverError, match="403"):
        cache.stage(url, [Item.artifact("stateful")]).result(SECONDS)
    assert cache.sizes == (0, 0)
    cache.stage(url, [Item.artifact("stateful")]).result(SECONDS)


def test_an_archive_staged_as_it_is_is_unpacked_without_fetching_it_again(
    cache: DownloaderCache, archive: ArchiveServer, archive_directory: Path
) -> None:
    url = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    cache.stage(url, [Item.files("autotest.tar.bz2")]).result(SECONDS)
    cache.stage(url, [Item.artifact("autotest")]).result(SECONDS)
    size = (archive_directory / NAME / "autotest.tar.bz2").stat().st_size
    assert archive.bytes_sent(f"/{NAME}/autotest.tar.bz2") == size


def test_clean_while_shutting_down_drops_nothing(
    cache: DownloaderCache, archive_directory: Path
) -> None:
    url = ArchiveUrl.parse(f"file://{archive_directory}/{NAME}")
    cache.stage(url, [Item.artifact("stateful")]).result(SECONDS)
    cache.close(timeout_seconds=0.1)
    with pytest.raises(Busy):
        cache.stage(url, [Item.artifact("stateful")], drop_first=True)
    assert cache.is_staged(url, [Item.artifact("stateful")])


def test_clean_of_another_archive_drops_nothing(
    cache: DownloaderCache, archive: ArchiveServer, archive_directory: Path
) -> None:
    ours = ArchiveUrl.parse(f"{archive.url}/{NAME}")
    theirs = ArchiveUrl.parse(f"file://{archive_directory}/{NAME}")
    cache.stage(ours, [Item.artifact("stateful")]).result(SECONDS)
    with pytest.raises(Conflict):
        cache.stage(theirs, [Item.artifact("stateful")], drop_first=True)
    assert cache.is_staged(ours, [Item.artifact("stateful")])


def test_whatever_comes_or_not_while_many_wait_all_are_answered_and_nothing_is_left_over(
    equipment: Equipment,
    cache: DownloaderCache,
    archive_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("artifacts.upload_watch._FIRST_PAUSE_SECONDS", 0.01)
    names = ["x_full_y.bin", "stateful.tgz", "a", "b", "c"]
    build, aside = archive_directory / "board/R1-1", archive_directory / "aside"
    url = ArchiveUrl.parse(f"file://{build}")
    ended = threading.Event()

    def upload(seed: int) -> None:
        chance = random.Random(seed)
        build.mkdir(parents=True)
        while not ended.is_set():
            name = chance.choice(names)
            # As a whole: what is half there could be staged, and in the way of the rest.
            write_build(aside, **{name: b"same"})
            (aside / name).replace(build / name)
            if chance.random() < 0.7:
                (build / chance.choice(names)).unlink(missing_ok=True)

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        wait_seconds = chance.choice([0, 0.02, 0.1, 0.3])
        if chance.random() < 0.3:
            future = cache.download(url, wait_seconds)
        else:
            items = [Item.artifact("stateful"), *map(Item.files, names)]
            future = cache.stage(url, chance.sample(items, 2), wait_seconds)
        error = future.exception(SECONDS)
        # What the listing names may be gone when it is fetched.
        assert error is None or isinstance(error, NotFound | ArchiveError)

    uploader = threading.Thread(target=upload, args=(0,))
    uploader.start()
    try:
        with ThreadPoolExecutor(30) as pool:
            for asked in [pool.submit(ask, seed) for seed in range(600)]:
                asked.result()
    finally:
        ended.set()
        uploader.join()
    wait_until(lambda: cache.sizes == (0, 0))
    write_build(build, **dict.fromkeys(names, b"same"))
    items = [Item.artifact("full_payload"), *map(Item.files, names)]
    cache.stage(url, items).result(SECONDS)
    assert cache.is_staged(url, items)
    # Promises of disk are all given back.
    space = equipment.staging.space
    space.reserve(space.free_bytes() - 10_000_000, "all of it", lambda: 0).release()


def test_waiting_ends_with_the_cache_at_once(cache: DownloaderCache, tmp_path: Path) -> None:
    urls = [ArchiveUrl.parse(f"file://{tmp_path}/board/R1-{number}") for number in range(20)]
    waiting = [cache.download(url, 1000) for url in urls]
    begun_at = time.monotonic()
    cache.close(timeout_seconds=30)
    assert time.monotonic() - begun_at < 5
    for future in waiting:
        with pytest.raises(Busy):
            future.result(SECONDS)
    assert cache.sizes == (0, 0)
