"""The static directory: what is published and recorded is there, now, later and after a crash."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import pytest
from polling import wait_until

from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.build import Build
from artifacts.disk import boot_id, link_into_place, write_durably
from artifacts.errors import ArchiveFileChanged, BuildNotFound, Conflict, DevserverError
from artifacts.manifest import Failure, Item, ItemState, StagedFile
from artifacts.staging import Staging

ARCHIVE_URL = ArchiveUrl.parse("gs://images/x86-generic/R17-1208.0.0")
OTHER_URL = ArchiveUrl.parse("gs://copies/x86-generic/R17-1208.0.0")
NAME = ARCHIVE_URL.name
PAYLOAD = Item.artifact("full_payload")
AUTOTEST = Item.artifact("autotest")
LOGS = Item.files("*.log")

OpenStaging = Callable[..., Staging]
Tree = Mapping[str, bytes | str]  # a str is the target of a link


@pytest.fixture
def static(tmp_path: Path) -> Path:
    return tmp_path / "static"


@pytest.fixture
def open_staging(static: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenStaging]:
    """Open the static directory; who had it before gives it up."""
    # What is published one by one is recorded when a test says so.
    monkeypatch.setattr("artifacts.build._RECORDING_SHARE", 1e-9)
    monkeypatch.setattr("artifacts.build._MAX_UNRECORDED_SECONDS", 3600)
    opened: list[Staging] = []

    def open_it(directory: Path = static) -> Staging:
        if opened:
            opened[-1].close()
        opened.append(Staging(directory))
        return opened[-1]

    yield open_it
    opened[-1].close()


@pytest.fixture
def staging(open_staging: OpenStaging) -> Staging:
    return open_staging()


def described(content: bytes | str) -> StagedFile:
    if isinstance(content, str):
        return StagedFile(0, 0, link=content)
    return StagedFile(len(content), google_crc32c.value(content))


def publish(build: Build, path: str, data: bytes, *, archive_name: str | None = None) -> None:
    source = build.directory.parents[2] / "fetched"
    source.write_bytes(data)
    crc32c = google_crc32c.value(data)
    build.publish_file(source, path, StagedFile(len(data), crc32c, archive_name=archive_name))
    source.unlink()


def publish_tree(build: Build, tree: Tree) -> dict[str, StagedFile]:
    source = build.directory.parents[2] / "unpacked"
    for path, content in tree.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            (source / path).symlink_to(content)
        else:
            (source / path).write_bytes(content)
    members = {path: described(content) for path, content in tree.items()}
    try:
        build.publish_tree(source, members)
    finally:
        shutil.rmtree(source, ignore_errors=True)
    return members


def begun(staging: Staging, *items: Item) -> Build:
    build = staging.claim(ARCHIVE_URL)
    build.begin(ARCHIVE_URL, dict.fromkeys(items, ItemState.ASKED))
    return build


def stage(staging: Staging, files: Mapping[str, bytes], tree: Tree | None = None) -> Build:
    """Stage a build of files and, if one is given, a tree."""
    build = begun(staging, PAYLOAD)
    for path, data in files.items():
        publish(build, path, data)
    build.record_staged(PAYLOAD, files, [])
    if tree is not None:
        build.begin(ARCHIVE_URL, {AUTOTEST: ItemState.ASKED})
        build.record_staged(AUTOTEST, [], [publish_tree(build, tree)])
    staging.release(ARCHIVE_URL)
    return build


def after_crash(static: Path) -> Path:
    """A copy of the directory as it is this instant: what the next process would find."""
    return shutil.copytree(static, static.with_name("after-crash"), symlinks=True)


def on_disk(directory: Path) -> set[str]:
    return {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def trash_of(staging: Staging) -> list[Path]:
    """What is left when all that has been thrown away so far is deleted."""
    staging._cleaner.map(bool, [True])
    return list((staging.directory / ".devserver" / "trash").iterdir())


# --- publishing and recording


def test_what_is_published_and_recorded_is_there_and_stays(
    staging: Staging, open_staging: OpenStaging
) -> None:
    stage(staging, {"update.gz": b"payload", "au/x/update.gz": b"delta"}, {"autotest/a": b"a"})
    for each in (staging, open_staging()):
        build = each.known_build(NAME)
        assert set(build.files()) == {"update.gz", "au/x/update.gz", "autotest/a"}
        assert build.find("update.gz") == described(b"payload")
        assert build.find("autotest/a") == described(b"a")
        assert (build.directory / "au/x/update.gz").read_bytes() == b"delta"
        asked = build.asked
        assert asked is not None and asked.is_staged
        assert (asked.archive_url, build.size) == (str(ARCHIVE_URL), 13)
        assert set(build.files_of(PAYLOAD)) == {"update.gz", "au/x/update.gz"}
        assert set(build.files_of(AUTOTEST)) == {"autotest/a"}


def test_a_build_that_nobody_asked_for_is_not_known(staging: Staging) -> None:
    build = staging.build(NAME)
    assert build.asked is None
    assert build.find("update.gz") is build.resolve("update.gz") is None
    assert build.files() == build.files_of(PAYLOAD) == {}
    assert build.state_of(PAYLOAD) is build.last_used is None
    assert not build.record_failed(PAYLOAD, Failure(502, "archive_error", "gone"))
    with pytest.raises(BuildNotFound, match=f"no such build: {NAME}"):
        staging.known_build(NAME)
    assert list(staging.all_builds()) == staging.targets() == []


def test_what_is_published_but_not_recorded_is_invisible(staging: Staging) -> None:
    build = begun(staging, PAYLOAD, AUTOTEST)
    publish(build, "update.gz", b"payload")
    build.publish_link("latest", "update.gz")
    publish_tree(build, {"autotest/a": b"a"})
    assert build.files() == {}
    assert build.find("update.gz") is build.resolve("update.gz") is build.resolve("latest") is None
    assert on_disk(build.directory) == {"update.gz", "latest", "autotest/a"}


def test_what_a_crash_left_unrecorded_is_removed_and_what_was_recorded_stays(
    staging: Staging, open_staging: OpenStaging, static: Path
) -> None:
    stage(staging, {"update.gz": b"payload"}, {"autotest/a": b"a", "autotest/l": "a"})
    build = begun(staging, LOGS)
    publish(build, "logs/build.log", b"log")
    build.publish_link("latest", "update.gz")
    build.publish_link("logs/all", "autotest")
    publish_tree(build, {"autotest/b": b"b", "deep/down/c": b"c", "deep/d": "down"})
    again = open_staging(after_crash(static)).known_build(NAME)
    assert set(again.files()) == {"update.gz", "autotest/a", "autotest/l"}
    assert on_disk(again.directory) == {"update.gz", "autotest/a", "autotest/l"}
    assert not (again.directory / "logs").exists()
    assert not (again.directory / "deep").exists()
    assert again.asked is not None and again.asked.missing == [LOGS]


def test_files_recorded_before_their_item_is_complete_survive_a_crash(
    staging: Staging, open_staging: OpenStaging, static: Path
) -> None:
    build = begun(staging, LOGS)
    assert build.seconds_to_recording is None
    publish(build, "a.log", b"a", archive_name="a.log")
    assert build.seconds_to_recording
    assert build.file_from("a.log") == (
        "a.log",
        StagedFile(1, google_crc32c.value(b"a"), None, "a.log"),
    )
    build.record_published()
    assert build.seconds_to_recording is None
    publish(build, "b.log", b"b", archive_name="b.log")
    again = open_staging(after_crash(static)).known_build(NAME)
    assert set(again.files()) == on_disk(again.directory) == {"a.log"}
    assert again.file_from("a.log") is not None
    assert again.file_from("b.log") is None
    assert again.asked is not None and not again.asked.is_staged


def test_a_crash_before_anything_is_recorded_leaves_nothing(
    staging: Staging, open_staging: OpenStaging, static: Path
) -> None:
    staging.claim(ARCHIVE_URL)
    (static / str(NAME)).mkdir(parents=True)
    (static / str(NAME) / "half").write_bytes(b"half")
    again = open_staging(after_crash(static))
    assert not (again.directory / str(NAME)).exists()
    assert list(again.all_builds()) == []


def test_files_that_nobody_marked_are_left_alone(
    staging: Staging, open_staging: OpenStaging, static: Path
) -> None:
    stage(staging, {"update.gz": b"payload"})
    placed = {f"{NAME}/by-hand", "x86-generic/R18-1.0.0/image.bin", "readme.txt"}
    for path in placed:
        (static / path).parent.mkdir(parents=True, exist_ok=True)
        (static / path).write_bytes(b"by hand")
    again = open_staging()
    assert all((static / path).read_bytes() == b"by hand" for path in placed)
    assert set(again.known_build(NAME).files()) == {"update.gz"}
    assert list(again.all_builds()) == [NAME]


def test_a_directory_of_somebody_elses_behind_a_link_is_left_alone(
    staging: Staging, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"precious")
    build = staging.build(NAME)
    build.directory.parent.mkdir()
    build.directory.symlink_to(tmp_path / "elsewhere")
    begun(staging, PAYLOAD)
    with pytest.raises(Conflict):
        publish(build, "update.gz", b"payload")
    build.remove_unrecorded()
    build.forget([PAYLOAD])
    staging.release(ARCHIVE_URL)
    assert build.directory.is_symlink()
    assert on_disk(tmp_path / "elsewhere") == {"file"}


def test_a_marker_that_was_not_written_whole_marks_nothing(
    staging: Staging, open_staging: OpenStaging, static: Path, caplog: pytest.LogCaptureFixture
) -> None:
    markers = static / ".devserver" / "under_way"
    (static / "x86-generic" / "R17").mkdir(parents=True)
    (static / "x86-generic" / "R17" / "by-hand").write_bytes(b"by hand")
    (markers / ".0badcafe.aside").write_text("x86-generic/R17")
    (markers / "0badcafe").write_text("x86-generic/R17")
    (markers / "empty").write_text("")
    (markers / "rubbish").write_bytes(b"\xff")
    open_staging()
    assert (static / "x86-generic" / "R17" / "by-hand").exists()
    assert list(markers.iterdir()) == []
    assert "names no build" in caplog.text


def test_a_build_of_which_nothing_is_asked_any_more_goes_with_its_claim_or_after_a_crash(
    staging: Staging, open_staging: OpenStaging, static: Path
) -> None:
    build = begun(staging, LOGS)
    publish(build, "a.log", b"a", archive_name="a.log")
    build.record_published()
    build.forget([LOGS])
    crashed = after_crash(static)
    staging.release(ARCHIVE_URL)
    assert trash_of(staging) == []
    again = open_staging(crashed)
    assert trash_of(again) == []
    for each in (staging, again):
        assert list(each.all_builds()) == each.targets() == []
        assert not (each.directory / NAME.target).exists()
        assert list((each.directory / ".devserver" / "under_way").iterdir()) == []
    stage(again, {"update.gz": b"payload"})
    assert set(again.known_build(NAME).files()) == {"update.gz"}


# --- who may


def test_a_second_process_is_refused_in_words(staging: Staging, static: Path) -> None:
    with pytest.raises(DevserverError) as refusal:
        Staging(static)
    assert refusal.value.message == (
        f"another devserver (process {os.getpid()}) works in {static}: "
        "stop it, or give this one directories of its own"
    )
    staging.close()
    Staging(static).close()


def test_a_directory_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DevserverError, match=f"{tmp_path / 'file'}.*Not a directory"):
        Staging(tmp_path / "file")


def test_the_directory_proves_writable_to_many_at_once(staging: Staging) -> None:
    together = threading.Barrier(8)

    def check() -> None:
        together.wait(30)
        for _ in range(50):
            staging.check_writable()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(check) for _ in range(8)]:
            future.result(30)
    assert list(staging.temporary_directory.iterdir()) == []


def test_a_build_is_claimed_for_one_archive_at_a_time(staging: Staging) -> None:
    build = staging.claim(ARCHIVE_URL)
    assert staging.claim(ARCHIVE_URL) is build is staging.build(NAME)
    with pytest.raises(
        Conflict, match=f"{NAME} is staged from {ARCHIVE_URL}, not from {OTHER_URL}"
    ):
        staging.claim(OTHER_URL)
    staging.release(OTHER_URL)
    assert staging.is_claimed(NAME)
    staging.release(ARCHIVE_URL)
    assert not staging.is_claimed(NAME)
    assert list((staging.directory / ".devserver" / "under_way").iterdir()) == []
    staging.claim(OTHER_URL)


def test_a_staged_build_belongs_to_its_archive_until_it_is_dropped(
    staging: Staging, open_staging: OpenStaging
) -> None:
    stage(staging, {"update.gz": b"payload"})
    staging = open_staging()
    with pytest.raises(Conflict, match="drop it first") as refusal:
        staging.claim(OTHER_URL)
    assert refusal.value.code == "other_archive"
    staging.claim(ARCHIVE_URL)
    staging.release(ARCHIVE_URL)
    staging.drop(NAME)
    staging.claim(OTHER_URL)


def test_a_build_of_which_nothing_is_staged_may_come_from_another_archive(
    staging: Staging, open_staging: OpenStaging
) -> None:
    build = begun(staging, PAYLOAD, LOGS)
    publish(build, "a.log", b"a", archive_name="a.log")
    build.record_published()
    build.record_failed(PAYLOAD, Failure(502, "archive_error", "gone"))
    staging.release(ARCHIVE_URL)
    build = staging.claim(OTHER_URL)
    build.begin(OTHER_URL, {AUTOTEST: ItemState.ASKED})
    assert build.files() == {}
    assert build.file_from("a.log") is None
    assert on_disk(build.directory) == set()
    publish(build, "a.log", b"other bytes")
    for each in (staging, open_staging()):
        asked = each.known_build(NAME).asked
        assert asked is not None and asked.archive_url == str(OTHER_URL)
        assert list(asked.items) == [AUTOTEST]


# --- conflicts


def test_the_same_bytes_may_be_published_again(staging: Staging) -> None:
    build = stage(staging, {"update.gz": b"payload"}, {"autotest/a": b"a", "autotest/l": "a"})
    publish(build, "update.gz", b"payload")
    publish_tree(build, {"autotest/a": b"a", "autotest/l": "a", "autotest/b": b"b"})
    build.publish_link("latest", "update.gz")
    build.publish_link("latest", "update.gz")
    assert (build.directory / "autotest/b").exists()


@pytest.mark.parametrize(
    "path", ["update.gz", "autotest/a", "autotest/l", "update.gz/x", "autotest"]
)
def test_other_bytes_at_the_same_path_are_a_conflict(staging: Staging, path: str) -> None:
    build = stage(staging, {"update.gz": b"payload"}, {"autotest/a": b"a", "autotest/l": "a"})
    for publish_other in (
        lambda: publish(build, path, b"other"),
        lambda: publish_tree(build, {path: b"other"}),
        lambda: build.publish_link(path, "elsewhere"),
    ):
        with pytest.raises(Conflict, match=str(NAME)) as refusal:
            publish_other()
        assert path in refusal.value.message
    assert (build.directory / "update.gz").read_bytes() == b"payload"
    assert (build.directory / "autotest/a").read_bytes() == b"a"
    assert os.readlink(build.directory / "autotest/l") == "a"


def test_nothing_is_published_through_a_link(staging: Staging, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    build = stage(staging, {}, {"dir/a": b"a", "in": "dir", "out": str(tmp_path / "outside")})
    for link in ("in", "out"):
        with pytest.raises(Conflict, match=f"{link}/b needs a directory"):
            publish(build, f"{link}/b", b"b")
        with pytest.raises(Conflict, match=f"{link}/b needs a directory"):
            publish_tree(build, {f"{link}/b": b"b"})
        with pytest.raises(Conflict, match=f"{link}/b needs a directory"):
            build.publish_link(f"{link}/b", "dir/a")
    assert on_disk(tmp_path / "outside") == set()
    assert on_disk(build.directory) == {"dir/a", "in", "out"}


def test_what_is_published_and_not_recorded_yet_is_not_overwritten(staging: Staging) -> None:
    build = begun(staging, PAYLOAD, AUTOTEST, LOGS)
    publish(build, "update.gz", b"payload")
    tree = publish_tree(build, {"autotest/a": b"a", "autotest/b": b"b"})
    with pytest.raises(Conflict):
        publish(build, "update.gz", b"other")
    with pytest.raises(Conflict):
        publish(build, "autotest/a", b"other")
    with pytest.raises(Conflict):
        publish_tree(build, {"autotest/c": b"c", "autotest/a": b"other"})
    publish_tree(build, {"autotest/a": b"a"})
    build.record_staged(AUTOTEST, [], [tree])
    assert (build.directory / "autotest/a").read_bytes() == b"a"
    assert not (build.directory / "autotest/c").exists()


def test_what_failed_and_was_removed_is_in_nobodys_way(staging: Staging) -> None:
    build = begun(staging, PAYLOAD, AUTOTEST)
    publish(build, "update.gz", b"payload")
    publish_tree(build, {"autotest/a": b"a"})
    build.remove_unrecorded()
    publish(build, "update.gz", b"other")
    publish_tree(build, {"autotest/a": b"other"})


def test_what_is_out_of_date_is_withdrawn_once_and_what_others_count_on_never(
    staging: Staging, static: Path
) -> None:
    build = begun(staging, PAYLOAD, AUTOTEST, LOGS)
    for path in ("a.log", "autotest/a", "update.gz"):
        publish(build, path, b"old")
    build.record_staged(PAYLOAD, ["update.gz"], [])
    tree = publish_tree(build, {"autotest/a": b"old"})
    build.record_staged(AUTOTEST, [], [tree])
    found = {path: build.published_file(path) for path in ("a.log", "autotest/a", "update.gz")}
    for _ in range(2):
        for path, stale in found.items():
            assert stale is not None
            build.withdraw(path, stale)
        assert set(build.files()) >= {"autotest/a", "update.gz"}
        publish(build, "a.log", b"new")
    build.record_published()
    assert build.find("a.log") == described(b"new")
    assert (build.directory / "a.log").read_bytes() == b"new"
    publish(build, "c.log", b"never recorded")
    stale = build.published_file("c.log")
    assert stale is not None
    build.withdraw("c.log", stale)
    publish(build, "c.log", b"new")
    with pytest.raises(ArchiveFileChanged, match=r"b.log of x86-generic.*ask for it again"):
        build.record_staged(LOGS, ["a.log", "b.log"], [])


# --- links


def test_links_within_the_build_lead_to_its_files(staging: Staging) -> None:
    build = stage(
        staging, {"stateful.tgz": b"s"}, {"a/file": b"a", "a/here": "file", "b": "a", "c": "b"}
    )
    build.publish_link("au/x/stateful.tgz", "stateful.tgz")
    build.record_published()
    expected = {
        "au/x/stateful.tgz": "stateful.tgz",
        "a/here": "a/file",
        "b/file": "a/file",
        "b/here": "a/file",
        "c/here": "a/file",
        "a/file": "a/file",
    }
    for path, real in expected.items():
        found = build.resolve(path)
        assert found is not None and found[0] == real
    assert os.readlink(build.directory / "au/x/stateful.tgz") == "../../stateful.tgz"
    assert build.resolve("a") is build.resolve("b") is None  # directories


def test_links_out_of_the_build_lead_nowhere(staging: Staging, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    other = staging.directory / "x86-generic" / "R18" / "file"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of another build")
    build = stage(
        staging,
        {"update.gz": b"payload"},
        {
            "absolute": str(tmp_path / "secret"),
            "climbing": "../../../secret",
            "sibling": "../R18/file",
            "directory": "../..",
            "own": "../../.devserver/builds/x86-generic/R17-1208.0.0/manifest.json",
            "unpublished": "by-hand",
            "self": "self",
            "dangling": "nothing",
            "through": "update.gz/x",
        },
    )
    (build.directory / "by-hand").write_bytes(b"by hand")
    for path in [*build.files_of(AUTOTEST), "directory/x86-generic/R18/file"]:
        assert build.resolve(path) is None, path
    assert build.resolve("../R18/file") is build.resolve("a\0b") is None
    assert not {"self", "dangling", "through"} & set(build.files())


# --- damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: b"\xff" + data,
        lambda data: b"[]",
        lambda data: b"null",
        lambda data: b"[" * 100_000,
        lambda data: json.dumps(json.loads(data) | {"version": 99}).encode(),
        lambda data: json.dumps(json.loads(data) | {"files": []}).encode(),
        lambda data: json.dumps(json.loads(data) | {"items": None}).encode(),
        lambda data: json.dumps(json.loads(data) | {"items": [["a", "b", {}]]}).encode(),
        lambda data: json.dumps(json.loads(data) | {"items": [["a", "b", None]]}).encode(),
        lambda data: data.replace(b'"staged"', b'"melted"'),
    ],
)
def test_a_build_whose_manifest_is_damaged_counts_as_not_staged(
    staging: Staging,
    open_staging: OpenStaging,
    static: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    stage(staging, {"update.gz": b"payload", "old": b"old"})
    manifest = static / ".devserver" / "builds" / str(NAME) / "manifest.json"
    manifest.write_bytes(damage(manifest.read_bytes()))
    staging = open_staging()
    with pytest.raises(BuildNotFound):
        staging.known_build(NAME)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(manifest) in record.getMessage()
    assert "counts as not staged" in record.getMessage()
    build = begun(staging, PAYLOAD)
    assert on_disk(build.directory) == set()
    publish(build, "update.gz", b"other")
    build.record_staged(PAYLOAD, ["update.gz"], [])
    assert set(open_staging().known_build(NAME).files()) == {"update.gz"}


@pytest.mark.parametrize("damaged", [None, b"", b"{", b"[]", b'{"a": 1}'])
def test_an_item_whose_tree_is_damaged_is_to_be_staged_anew(
    staging: Staging,
    open_staging: OpenStaging,
    static: Path,
    caplog: pytest.LogCaptureFixture,
    damaged: bytes | None,
) -> None:
    stage(staging, {"update.gz": b"payload"}, {"autotest/a": b"a"})
    (tree,) = (static / ".devserver" / "builds" / str(NAME)).glob("*.tree.json")
    if damaged is None:
        tree.unlink()
    else:
        tree.write_bytes(damaged)
    staging.claim(ARCHIVE_URL)
    build = open_staging(after_crash(static)).known_build(NAME)
    record = build.state_of(AUTOTEST)
    assert record is not None and record.state is ItemState.ASKED
    assert set(build.files()) == on_disk(build.directory) == {"update.gz"}
    assert "autotest of x86-generic/R17-1208.0.0 did not survive" in caplog.text


@pytest.fixture
def after_boot(
    staging: Staging, open_staging: OpenStaging, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Build]:
    """Stage two trees, let the machine crash, and return the build."""
    build = stage(staging, {"update.gz": b"payload"}, {"autotest/a": b"aaaa", "autotest/l": "a"})
    build.begin(ARCHIVE_URL, {LOGS: ItemState.ASKED})
    build.record_staged(LOGS, [], [publish_tree(build, {"logs/b": b"b"})])

    def boot() -> Build:
        monkeypatch.setattr("artifacts.staging.boot_id", lambda: "another boot")
        return open_staging().known_build(NAME)

    return boot


def test_trees_that_survived_a_crash_of_the_machine_are_still_staged(
    after_boot: Callable[[], Build], open_staging: OpenStaging
) -> None:
    build = after_boot()
    for item in (PAYLOAD, AUTOTEST, LOGS):
        record = build.state_of(item)
        assert record is not None and record.state is ItemState.STAGED
    assert set(build.files()) == {"update.gz", "autotest/a", "autotest/l", "logs/b"}
    # Once is enough: what is altered afterwards is not looked at again.
    (build.directory / "autotest/a").write_bytes(b"bbbb")
    assert open_staging().known_build(NAME).find("autotest/a") == described(b"aaaa")


@pytest.mark.parametrize(
    "alter",
    [
        lambda tree: (tree / "a").write_bytes(b"bbbb"),
        lambda tree: (tree / "a").write_bytes(b"aaa"),
        lambda tree: (tree / "a").write_bytes(b""),
        lambda tree: (tree / "a").unlink(),
        lambda tree: (tree / "l").unlink(),
        lambda tree: shutil.rmtree(tree),
        lambda tree: ((tree / "l").unlink(), (tree / "l").symlink_to("b")),
        lambda tree: ((tree / "l").unlink(), (tree / "l").write_bytes(b"")),
    ],
    ids=["other bytes", "cut", "empty", "missing", "no link", "nothing", "other link", "a file"],
)
def test_a_tree_that_did_not_survive_is_to_be_staged_anew(
    after_boot: Callable[[], Build],
    static: Path,
    caplog: pytest.LogCaptureFixture,
    alter: Callable[[Path], object],
) -> None:
    alter(static / str(NAME) / "autotest")
    build = after_boot()
    record = build.state_of(AUTOTEST)
    assert record is not None and record.state is ItemState.ASKED
    assert set(build.files()) == {"update.gz", "logs/b"}
    assert "autotest of x86-generic/R17-1208.0.0 did not survive" in caplog.text
    build.record_staged(AUTOTEST, [], [publish_tree(build, {"autotest/a": b"aaaa"})])
    assert (build.directory / "autotest/a").read_bytes() == b"aaaa"
    assert build.asked is not None and build.asked.is_staged


# --- dropping


def test_a_dropped_build_is_gone_and_its_bytes_are_deleted(
    staging: Staging, open_staging: OpenStaging, static: Path
) -> None:
    build = stage(staging, {"update.gz": b"payload"}, {"autotest/a": b"a"})
    staging.drop(NAME)
    assert build.asked is None
    assert build.files() == {}
    assert build.find("autotest/a") is None
    assert not (static / NAME.target).exists()
    assert trash_of(staging) == []
    for each in (staging, open_staging()):
        assert list(each.all_builds()) == each.targets() == []
        with pytest.raises(BuildNotFound):
            each.drop(NAME)


def test_other_builds_of_the_target_stay(staging: Staging) -> None:
    stage(staging, {"update.gz": b"payload"})
    other = staging.claim(ArchiveUrl.parse("gs://images/x86-generic/R18-1.0.0"))
    other.begin(ArchiveUrl.parse("gs://images/x86-generic/R18-1.0.0"), {PAYLOAD: ItemState.ASKED})
    publish(other, "update.gz", b"other")
    other.record_staged(PAYLOAD, ["update.gz"], [])
    assert staging.builds_of("x86-generic") == [NAME, other.name]
    staging.drop(NAME)
    assert staging.builds_of("x86-generic") == [other.name]
    assert (other.directory / "update.gz").read_bytes() == b"other"


def test_a_build_being_staged_cannot_be_dropped(staging: Staging) -> None:
    stage(staging, {"update.gz": b"payload"})
    staging.claim(ARCHIVE_URL)
    with pytest.raises(Conflict, match="is being staged"):
        staging.drop(NAME)
    assert staging.known_build(NAME).find("update.gz") is not None


def test_a_dropped_build_can_be_staged_again(staging: Staging, open_staging: OpenStaging) -> None:
    stage(staging, {"update.gz": b"payload"}, {"autotest/a": b"a"})
    staging.drop(NAME)
    stage(staging, {"update.gz": b"other"}, {"autotest/a": b"other"})
    assert open_staging().known_build(NAME).find("autotest/a") == described(b"other")


def test_a_crash_while_dropping_leaves_no_half_build(
    staging: Staging, open_staging: OpenStaging, static: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(directory: Path) -> None:
        raise OSError(errno.EIO, "crash")

    stage(staging, {"update.gz": b"payload"})
    with monkeypatch.context() as broken, pytest.raises(OSError, match="crash"):
        broken.setattr("artifacts.build.fsync_directory", crash)
        staging.drop(NAME)
    assert (static / str(NAME) / "update.gz").exists()
    again = open_staging(after_crash(static))
    assert not (again.directory / str(NAME)).exists()
    assert list(again.all_builds()) == trash_of(again) == []


def test_a_crash_while_dropping_on_a_full_disk_leaves_no_files_that_nobody_knows(
    staging: Staging, open_staging: OpenStaging, static: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, f"no room for {path}")

    def crash(directory: Path) -> None:
        raise OSError(errno.EIO, "crash")

    stage(staging, {"update.gz": b"payload"})
    with monkeypatch.context() as broken, pytest.raises(OSError, match="crash"):
        broken.setattr("artifacts.staging.write_durably", no_room)
        broken.setattr("artifacts.build.fsync_directory", crash)
        staging.drop(NAME)
    again = open_staging(after_crash(static))
    assert not (again.directory / str(NAME)).exists()
    record = again.known_build(NAME).state_of(PAYLOAD)
    assert record is not None and record.state is ItemState.ASKED
    again.drop(NAME)
    assert list(again.all_builds()) == []


def test_temporary_directories_are_thrown_away_or_swept(
    staging: Staging, open_staging: OpenStaging
) -> None:
    directory = staging.new_directory()
    (directory / "member").write_bytes(b"member")
    staging.throw_away(directory)
    assert not directory.exists()
    assert trash_of(staging) == []
    forgotten = staging.new_directory()
    (forgotten / "member").write_bytes(b"member")
    (staging.temporary_directory / "fetch-1").write_bytes(b"half")
    staging = open_staging()
    assert list(staging.temporary_directory.iterdir()) == trash_of(staging) == []


# --- what is remembered of a build


def test_failures_and_checksums_are_remembered(staging: Staging, open_staging: OpenStaging) -> None:
    build = stage(staging, {"update.gz": b"payload"})
    failure = Failure(502, "archive_error", "the archive sent wrong bytes")
    build.record_sha256("update.gz", "abc=")
    build.begin(ARCHIVE_URL, {AUTOTEST: ItemState.ASKED, LOGS: ItemState.ABSENT})
    assert build.record_failed(AUTOTEST, failure)
    for each in (staging, open_staging()):
        build = each.known_build(NAME)
        asked = build.asked
        assert asked is not None and asked.failure == failure and not asked.is_staged
        assert asked.items[LOGS].state is ItemState.ABSENT
        assert build.sha256_of("update.gz") == "abc="
        assert build.sha256_of("other") is None


def test_the_last_use_is_remembered_on_disk(
    staging: Staging, open_staging: OpenStaging, static: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(staging, {"update.gz": b"payload"})
    timestamp = static / ".devserver" / "builds" / str(NAME) / "staged.timestamp"
    os.utime(timestamp, (1000, 1000))
    build = open_staging().known_build(NAME)
    assert build.last_used == 1000
    build.touch()
    used = build.last_used
    assert used is not None and used > 1000
    os.utime(timestamp, (1000, 1000))
    build.touch()
    assert build.last_used == 1000  # every few seconds at most
    unknown = staging.build(BuildName("x86-generic", "R18"))
    unknown.touch()
    assert unknown.last_used is None


def test_a_build_is_one_object_and_memory_does_not_grow_with_builds(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artifacts.staging._KEPT_IN_MEMORY", 10)
    kept = staging.build(NAME)
    for number in range(100):
        staging.build(BuildName("x86-generic", f"R{number}"))
    assert staging.build(NAME) is kept
    assert len(staging._builds) <= 12


# --- the disk


def test_a_file_written_durably_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_durably(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "crash")

    for step in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as broken, pytest.raises(OSError, match="crash"):
            broken.setattr(step, fail)
            write_durably(path, b"new")
        assert path.read_bytes() == b"old"
        assert on_disk(tmp_path) == {"manifest.json"}
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"


def test_data_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("fsync of the directory" if is_directory else "fsync of the file")
        real_fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(path, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("pathlib.Path.replace", replace)
    write_durably(tmp_path / "file", b"data")
    assert steps == ["fsync of the file", "rename", "fsync of the directory"]


def test_a_file_is_put_into_place_by_a_link_or_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(b"data")
    destination.write_bytes(b"old")
    link_into_place(source, destination)
    assert destination.samefile(source)

    def refuse(error: int) -> Callable[..., None]:
        def link(*_: object) -> None:
            raise OSError(error, os.strerror(error))

        return link

    destination.unlink()
    monkeypatch.setattr("os.link", refuse(errno.EPERM))
    link_into_place(source, destination)
    assert not destination.samefile(source)
    assert destination.read_bytes() == b"data"
    monkeypatch.setattr("os.link", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        link_into_place(source, tmp_path / "third")
    assert on_disk(tmp_path) == {"source", "destination"}


def test_the_boot_id_stays_while_the_machine_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert boot_id() == boot_id() != ""

    def not_linux(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", not_linux)
    assert boot_id() == boot_id()
    assert boot_id().isdigit()


def test_one_thing_that_cannot_be_deleted_holds_up_no_other(open_staging: OpenStaging) -> None:
    before = open_staging()
    trash = before.directory / ".devserver" / "trash"
    before.close()
    # Deeper than Python may be able to go, as only somebody's own hands can have made it.
    levels = [f"{trash}/deep{'/d' * depth}" for depth in range(1100)]
    for level in levels:
        os.mkdir(level)
    for number in range(20):
        (trash / f"file-{number}").write_bytes(b"1")
    open_staging()
    wait_until(lambda: {path.name for path in trash.iterdir()} <= {"deep"})
    for level in reversed(levels):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(level)
