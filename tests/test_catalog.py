"""Catalogs: the right files of a build for each artifact, and mistakes told where they are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.archive_url import BuildName
from artifacts.catalog import Artifact, Catalog, CatalogError, PlannedFile
from artifacts.errors import ArchiveError, BadRequest

BUILD = BuildName("x86-mario-release", "R17-1413.0.0-a1-b1346")
NEW, OLD = "R17-1413.0.0-a1", "R17-1412.0.0-a1"
BOARDS = ["x86-mario", "x86-alex_he", "daisy_spring_freon"]


def files_of_a_build(board: str, *, new: str = NEW, old: str = OLD) -> list[str]:
    names = [
        f"chromeos_{new}_{board}_full_dev.bin",
        f"chromeos_{new}_{new}_{board}_delta_dev.bin",
        f"chromeos_{old}_{new}_{board}_delta_dev.bin",
        "stateful.tgz",
        "autotest.tar.bz2",
        "test_suites.tar.bz2",
        "debug.tgz",
        "image.zip",
        "SHA256SUMS",
        "UPLOADED",
        f"chromeos_{new}_{board}_full_dev.bin.json",
        "manifests/stateful.tgz",
    ]
    random.Random(board).shuffle(names)
    return names


def planned(artifact: str, names: list[str], build: BuildName = BUILD) -> dict[str, str]:
    files = Catalog.load("chromeos").artifacts[artifact].plan(names, build)
    return {file.archive_name: file.path for file in files}


def catalog_of(directory: Path, text: str) -> Catalog:
    path = directory / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return Catalog.load(str(path))


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize(
    ("new", "old"),
    [
        (NEW, OLD),
        ("R17-1413.0.0", "R16-1193.0.0"),
        ("R17-1413.0.0-a1-b1346", "R17-1413.0.0-a1"),
        ("R17-1413.0.0-a1", "R17-1413.0.0-a1-b1346"),
        ("0.17.1413.0", "0.17.141.0"),
    ],
)
def test_each_payload_of_a_chromeos_build_is_told_from_the_others(
    board: str, new: str, old: str
) -> None:
    names = files_of_a_build(board, new=new, old=old)
    assert planned("full_payload", names) == {
        f"chromeos_{new}_{board}_full_dev.bin": "update.gz",
    }
    assert planned("nton_payload", names) == {
        f"chromeos_{new}_{new}_{board}_delta_dev.bin": f"au/{BUILD.build}_nton/update.gz",
    }
    assert planned("mton_payload", names) == {
        f"chromeos_{old}_{new}_{board}_delta_dev.bin": f"au/{BUILD.build}_mton/update.gz",
    }


def test_the_archives_of_a_chromeos_build_are_found_and_unpacked_or_not() -> None:
    names = files_of_a_build("x86-mario")
    assert planned("stateful", names) == {"stateful.tgz": "stateful.tgz"}
    assert list(planned("autotest", names)) == ["autotest.tar.bz2"]
    assert list(planned("test_suites", names)) == ["test_suites.tar.bz2"]
    artifacts = Catalog.load("chromeos").artifacts
    assert {name for name, artifact in artifacts.items() if artifact.unpack} == {
        "autotest",
        "test_suites",
    }
    assert artifacts["autotest"].tree_path(BUILD) == ""


def test_autotest_leaves_to_test_suites_what_is_theirs() -> None:
    artifacts = Catalog.load("chromeos").artifacts
    for name, is_autotests in {
        "autotest/client/control": True,
        "autotest/test_suites/control.bvt": False,
        "autotest/test_suites/deep/down": False,
        "autotest/test_suites_too/control": True,
    }.items():
        assert artifacts["autotest"].wants_member(name) is is_autotests
        assert artifacts["test_suites"].wants_member(name)


def test_the_first_pattern_that_fits_anything_counts() -> None:
    compressed = ["autotest.tar", "autotest.tar.bz2"]
    assert list(planned("autotest", compressed)) == ["autotest.tar.bz2"]
    assert list(planned("autotest", ["autotest.tar"])) == ["autotest.tar"]
    named_otherwise = f"chromeos_{NEW}_x86-mario_full_mp-v3.signed"
    assert list(planned("full_payload", [named_otherwise])) == [named_otherwise]


def test_a_build_without_deltas_lacks_them_and_nothing_else() -> None:
    names = [name for name in files_of_a_build("x86-mario") if "_delta_" not in name]
    assert planned("nton_payload", names) == planned("mton_payload", names) == {}
    assert planned("full_payload", names)


def test_deltas_bring_a_link_to_the_stateful_update() -> None:
    artifacts = Catalog.load("chromeos").artifacts
    assert artifacts["nton_payload"].links_of(BUILD) == {
        f"au/{BUILD.build}_nton/stateful.tgz": "stateful.tgz"
    }
    assert artifacts["mton_payload"].links_of(BUILD) == {
        f"au/{BUILD.build}_mton/stateful.tgz": "stateful.tgz"
    }


def test_a_lab_machine_waits_for_what_it_boots_from_and_not_for_the_rest() -> None:
    catalog = Catalog.load("chromeos")
    assert catalog.staged_when("foreground") == ["full_payload", "stateful", "test_suites"]
    assert catalog.staged_when("background") == ["autotest", "nton_payload", "mton_payload"]
    assert [name for name, artifact in catalog.artifacts.items() if artifact.required] == [
        "full_payload"
    ]


def test_several_files_for_one_name_are_the_archives_mistake() -> None:
    names = [f"chromeos_{NEW}_{board}_full_dev.bin" for board in ("x86-mario", "x86-alex")]
    with pytest.raises(ArchiveError, match="several files for one") as refusal:
        planned("full_payload", names)
    assert all(name in refusal.value.message for name in names)
    assert str(BUILD) in refusal.value.message


@given(names=st.sets(st.lists(st.text("ab.[*é ", min_size=1), min_size=1).map("/".join)))
def test_the_catalog_of_everything_plans_every_file_as_it_is(names: set[str]) -> None:
    catalog = Catalog.load("everything")
    assert catalog.staged_when("foreground") == ["everything"]
    files = catalog.artifacts["everything"].plan(names, BUILD)
    assert set(files) == {PlannedFile(name, name) for name in names}


def test_placeholders_stand_for_the_build_whatever_characters_it_has() -> None:
    artifact = Artifact.model_validate(
        {
            "files": ["image-{target}-{build}.bin", r"regex:image-{target}-{build}\.img"],
            "directory": "{target}",
            "publish_as": "{build}.bin",
        }
    )
    build = BuildName("x86+[a]", "R17*(1)")
    for name in ("image-x86+[a]-R17*(1).bin", "image-x86+[a]-R17*(1).img"):
        assert artifact.plan([name], build) == [PlannedFile(name, "x86+[a]/R17*(1).bin")]
    assert artifact.plan(["image-x86+a-R17x(1).bin", "image-x866a-R177(1).img"], build) == []


def test_members_are_chosen_by_patterns() -> None:
    artifact = Artifact.model_validate(
        {"files": ["*.tgz"], "unpack": True, "include": ["bin/**", "*.txt"], "exclude": ["**/x"]}
    )
    assert artifact.wants_member("bin/deep/tool")
    assert artifact.wants_member("readme.txt")
    assert not artifact.wants_member("bin/x")
    assert not artifact.wants_member("deep/readme.txt")


def test_several_files_keep_their_names_in_a_directory(tmp_path: Path) -> None:
    catalog = catalog_of(
        tmp_path, '[artifacts.logs]\nfiles = ["**/*.log"]\ndirectory = "logs/{build}"\n'
    )
    files = catalog.artifacts["logs"].plan(["a.log", "b/c.log", "d.txt"], BUILD)
    assert files == [
        PlannedFile("a.log", f"logs/{BUILD.build}/a.log"),
        PlannedFile("b/c.log", f"logs/{BUILD.build}/b/c.log"),
    ]


def test_an_artifact_is_staged_on_request_unless_the_catalog_says_otherwise(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, '[artifacts.image]\nfiles = ["image.zip"]\n')
    assert list(catalog.artifacts) == ["image"]
    assert catalog.staged_when("foreground") == catalog.staged_when("background") == []


def test_an_unknown_artifact_is_refused_with_those_that_are_known() -> None:
    catalog = Catalog.load("chromeos")
    catalog.check_known(["stateful", "autotest"])
    with pytest.raises(BadRequest, match=r"unknown artifact 'statefull'.*full_payload, stateful"):
        catalog.check_known(["stateful", "statefull"])


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("files = [", "", "not TOML"),
        ("", "artifacts", "required"),
        ("[artifacts]", "artifacts", "at least 1 item"),
        ("[artifact.image]\nfiles = ['x']", "artifacts", "required"),
        ("title = 'x'\n[artifacts.image]\nfiles = ['x']", "title", "not permitted"),
        ("[artifacts.image]", "artifacts.image.files", "required"),
        ("[artifacts.image]\nfiles = []", "artifacts.image.files", "at least 1 item"),
        ("[artifacts.image]\nfiles = 'x'", "artifacts.image.files", "valid tuple"),
        ("[artifacts.image]\nfiles = [1]", "artifacts.image.files.0", "valid string"),
        ("[artifacts.image]\nfiles = ['x']\nfile = 'y'", "artifacts.image.file", "not permitted"),
        ("[artifacts.image]\nfiles = ['x']\nwhen = 'now'", "artifacts.image.when", "'foreground'"),
        ("[artifacts.image]\nfiles = ['x']\nunpack = 'x'", "artifacts.image.unpack", "boolean"),
        ("[artifacts.Image]\nfiles = ['x']", "artifacts", "lower-case letters"),
        ("[artifacts.'a b']\nfiles = ['x']", "artifacts", "'a b'"),
        ("[artifacts.image]\nfiles = ['regex:(']", "artifacts.image.files", "regular expression"),
        (
            "[artifacts.image]\nfiles = ['regex:a{99999999999}']",
            "artifacts.image.files",
            "regular expression",
        ),
        (
            "[artifacts.image]\nfiles = ['x']\nexclude = ['y', 'regex:[']",
            "artifacts.image.exclude",
            "regular expression: '['",
        ),
        (
            "[artifacts.image]\nfiles = ['x']\ndirectory = '/etc'",
            "artifacts.image.directory",
            "must be relative",
        ),
        (
            "[artifacts.image]\nfiles = ['x']\ndirectory = 'a//b'",
            "artifacts.image.directory",
            "empty segment",
        ),
        (
            "[artifacts.image]\nfiles = ['x']\npublish_as = '../x'",
            "artifacts.image.publish_as",
            "'..'",
        ),
        (
            "[artifacts.image]\nfiles = ['x']\nlinks = { a = '../../etc/passwd' }",
            "artifacts.image.links",
            "'..'",
        ),
        (
            "[artifacts.image]\nfiles = ['x']\nlinks = { '../a' = 'b' }",
            "artifacts.image.links",
            "'..'",
        ),
    ],
)
def test_a_mistake_in_a_catalog_is_told_by_file_key_and_reason(
    tmp_path: Path, text: str, key: str, reason: str
) -> None:
    with pytest.raises(CatalogError) as refusal:
        catalog_of(tmp_path, text)
    message = refusal.value.message
    assert message.startswith(f"catalog {tmp_path / 'mine.toml'}: {key}")
    assert reason in message
    assert "Value error" not in message


def test_a_catalog_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    for name in ("androit", str(tmp_path / "none.toml"), "../catalogs/chromeos"):
        with pytest.raises(CatalogError, match="No such file") as refusal:
            Catalog.load(name)
        assert name in refusal.value.message


def test_a_catalog_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CatalogError, match="not TOML"):
        Catalog.load(str(tmp_path / "mine.toml"))
    with pytest.raises(CatalogError, match="directory"):
        Catalog.load(str(tmp_path))
