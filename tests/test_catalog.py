"""Catalogs: the right files of a build for each artifact."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.archive_url import BuildName
from artifacts.artifact import Artifact, PlannedFile
from artifacts.catalog import Catalog
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
    assert artifacts["autotest"].unpack and artifacts["test_suites"].unpack
    assert not artifacts["stateful"].unpack
    assert artifacts["autotest"].tree_path(BUILD) == ""


def test_autotest_leaves_to_test_suites_what_is_theirs() -> None:
    artifacts = Catalog.load("chromeos").artifacts
    for name, is_autotests in {
        "autotest/client/control": True,
        "autotest/test_suites/control.bvt": False,
        "autotest/test_suites/deep/down": False,
        "autotest/test_suites_too/control": True,
    }.items():
        assert artifacts["autotest"].members(BUILD).wants(name) is is_autotests
        assert artifacts["test_suites"].members(BUILD).wants(name)


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
    members = artifact.members(BUILD)
    assert members.wants("bin/deep/tool")
    assert members.wants("readme.txt")
    assert not members.wants("bin/x")
    assert not members.wants("deep/readme.txt")


def test_members_are_chosen_by_the_names_of_the_build() -> None:
    artifact = Artifact.model_validate(
        {"files": ["*.tgz"], "include": ["{board}/**"], "exclude": ["regex:.*/{build}"]}
    )
    members = artifact.members(BuildName("x86.[a]-paladin", "R17.1"))
    assert members.wants("x86.[a]/R17-1")
    assert not members.wants("x86.[a]/R17.1")
    assert not members.wants("x86.a/tool")


@pytest.mark.parametrize(
    ("target", "board"),
    [
        ("x86-generic-release", "x86-generic"),
        ("x86-generic-pre-cq", "x86-generic"),
        ("daisy_spring-paladin", "daisy_spring"),
        ("amd64-generic-asan", "amd64-generic"),
        ("hana-public", "hana"),
        ("shamu-userdebug", "shamu"),
        ("lamp", "lamp"),
        ("lamp-special", "lamp-special"),
        ("lamp-release-special", "lamp-release-special"),
        ("lamp-full-release", "lamp-full"),
        ("-release", "-release"),
    ],
)
def test_the_board_is_the_target_without_its_kind(target: str, board: str) -> None:
    artifact = Artifact.model_validate(
        {"files": ["{board}.bin"], "directory": "{board}", "links": {"latest-{board}": "{board}"}}
    )
    build = BuildName(target, "R1")
    assert artifact.plan([f"{board}.bin"], build) == [
        PlannedFile(f"{board}.bin", f"{board}/{board}.bin")
    ]
    assert artifact.links_of(build) == {f"latest-{board}": board}


def test_names_of_a_build_that_look_like_placeholders_are_names() -> None:
    artifact = Artifact.model_validate({"files": ["{target}"], "publish_as": "{target}-{build}"})
    build = BuildName("{build}", "{target}")
    assert artifact.plan(["{build}"], build) == [PlannedFile("{build}", "{build}-{target}")]


def test_braces_of_regular_expressions_count_and_escaped_ones_are_themselves() -> None:
    artifact = Artifact.model_validate({"files": [r"regex:a{2}b{1,3}c{,2}-\{x\}-{build}"]})
    assert artifact.plan(["aabbcc-{x}-R1"], BuildName("t", "R1"))
    assert not artifact.plan(["abc-{x}-R1"], BuildName("t", "R1"))


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


def test_what_is_brought_brings_others_and_comes_once(tmp_path: Path) -> None:
    catalog = catalog_of(
        tmp_path,
        "".join(
            f"[artifacts.{name}]\nfiles = ['{name}']\n{brings}\n"
            for name, brings in {
                "a": "brings = ['b', 'c']",
                "b": "brings = ['d']",
                "c": "brings = ['d']",
                "d": "",
            }.items()
        ),
    )
    assert catalog.brought_by(["a"]) == ["b", "c", "d"]
    assert catalog.brought_by(["a", "d"]) == ["b", "c"]
    assert catalog.brought_by(["c", "b"]) == ["d"]
    assert catalog.brought_by(["d"]) == catalog.brought_by([]) == []


def test_test_suites_bring_what_their_tests_need() -> None:
    brought = Catalog.load("chromeos").brought_by(["full_payload", "test_suites"])
    assert brought == ["control_files", "autotest_packages"]


# Of a build as builders publish it today, and what else they have published over time.
PUBLISHED = [
    "autotest_packages.tar",
    "autotest_server_package.tar.bz2",
    "build_report.json",
    "control_files.tar",
    "chromeos_R128-1.0.0-a1_R128-1.0.0-a1_hana_delta_dev.bin",
    "chromeos_R128-1.0.0-a1_R128-1.0.0-a1_hana_delta_dev.bin.json",
    "chromeos_R127-9.0.0-a1_R128-1.0.0-a1_hana_delta_dev.bin",
    "chromeos_R128-1.0.0-a1_hana_full_dev.bin",
    "chromeos_R128-1.0.0-a1_hana_full_dev.bin.json",
    "chromiumos_base_image.tar.xz",
    "chromiumos_test_image.tar.xz",
    "debug.tgz",
    "debug_breakpad.tar.xz",
    "dlc_sample-dlc_package_R128-1.0.0-a1_R128-1.0.0-a1_hana_delta_dev.bin",
    "dlc_sample-dlc_package_R128-1.0.0-a1_hana_full_dev.bin",
    "factory_image.zip",
    "full_KERN.bin.zst",
    "full_ROOT.bin.zst",
    "full_dev_part_KERN.bin.gz",
    "full_dev_part_ROOT.bin.gz",
    "firmware_from_source.tar.bz2",
    "image.zip",
    "metadata.json",
    "recovery_image.tar.xz",
    "stateful.tgz",
    "stateful.zst",
    "test_suites.tar.bz2",
    "au_control.tar.bz2",
    "ChromeOS-factory-R17-1.0.0-x86-alex.zip",
    "chromeos_1.0.0_hana_recovery_stable-channel_mp-v3.bin",
]


def test_each_artifact_of_a_chromeos_build_is_found_among_all_that_builders_publish() -> None:
    catalog = Catalog.load("chromeos")
    build = BuildName("hana-public", "R128-1.0.0")
    found = {
        name: [file.archive_name for file in artifact.plan(PUBLISHED, build)]
        for name, artifact in catalog.artifacts.items()
        if not artifact.parts
    }
    version = "R128-1.0.0-a1"
    assert found == {
        "full_payload": [f"chromeos_{version}_hana_full_dev.bin"],
        "stateful": ["stateful.tgz"],
        "test_suites": ["test_suites.tar.bz2"],
        "autotest": [],
        "nton_payload": [f"chromeos_{version}_{version}_hana_delta_dev.bin"],
        "mton_payload": [f"chromeos_R127-9.0.0-a1_{version}_hana_delta_dev.bin"],
        "control_files": ["control_files.tar"],
        "autotest_packages": ["autotest_packages.tar"],
        "autotest_server_package": ["autotest_server_package.tar.bz2"],
        "au_suite": ["au_control.tar.bz2"],
        "test_image": ["chromiumos_test_image.tar.xz"],
        "base_image": ["chromiumos_base_image.tar.xz"],
        "recovery_image": ["recovery_image.tar.xz"],
        "signed_image": ["chromeos_1.0.0_hana_recovery_stable-channel_mp-v3.bin"],
        "factory_image": ["ChromeOS-factory-R17-1.0.0-x86-alex.zip"],
        "factory_shim_image": ["factory_image.zip"],
        "quick_provision": ["full_dev_part_KERN.bin.gz", "full_dev_part_ROOT.bin.gz"],
        "firmware": ["firmware_from_source.tar.bz2"],
        "symbols": ["debug.tgz"],
        "symbols_only": ["debug_breakpad.tar.xz"],
    }


@pytest.mark.parametrize(
    ("artifact", "wanted", "unwanted"),
    [
        ("test_image", "chromiumos_test_image.bin", "chromiumos_base_image.bin"),
        ("base_image", "chromiumos_base_image.bin", "chromiumos_test_image.bin"),
        ("recovery_image", "recovery_image.bin", "recovery_image.vmdk"),
    ],
)
def test_images_come_out_of_the_one_archive_where_they_have_none_of_their_own(
    artifact: str, wanted: str, unwanted: str
) -> None:
    assert planned(artifact, ["image.zip"]) == {"image.zip": "image.zip"}
    image = Catalog.load("chromeos").artifacts[artifact]
    assert image.unpack and image.members(BUILD).wants(wanted)
    assert not image.members(BUILD).wants(unwanted)


def test_symbols_are_those_of_breakpad_only() -> None:
    for name in ("symbols", "symbols_only"):
        members = Catalog.load("chromeos").artifacts[name].members(BUILD)
        assert members.wants("debug/breakpad/chrome/F00/chrome.sym")
        assert not members.wants("debug/usr/lib/chrome.debug")


def test_each_artifact_of_an_android_build_is_found_among_the_others() -> None:
    catalog = Catalog.load("android")
    build = BuildName("shamu-userdebug", "2284311")
    names = [
        *("bootloader.img", "radio.img", "fastboot", "android-cts.zip"),
        *(f"shamu-{what}-2284311.zip" for what in ("img", "tests", "target_files", "symbols")),
        *("shamu-brillo-tests-2284311.zip", "shamu-vendor_partitions-2284311.zip"),
    ]
    found = {
        name: [(file.archive_name, file.path) for file in artifact.plan(names, build)]
        for name, artifact in catalog.artifacts.items()
    }
    assert found == {
        "zip_images": [("shamu-img-2284311.zip",) * 2],
        "bootloader_image": [("bootloader.img",) * 2],
        "radio_image": [("radio.img",) * 2],
        "vendor_partitions": [("shamu-vendor_partitions-2284311.zip",) * 2],
        "test_zip": [("shamu-tests-2284311.zip",) * 2],
        "target_files": [("shamu-target_files-2284311.zip",) * 2],
    }
    assert [name for name, artifact in catalog.artifacts.items() if artifact.unpack] == ["test_zip"]
    members = catalog.artifacts["test_zip"].members(build)
    assert members.wants("DATA/nativetest/a") and not members.wants("META-INF/MANIFEST.MF")
    versioned = catalog.artifacts["bootloader_image"].plan(["bootloader-shamu-moa-71.img"], build)
    assert versioned == [PlannedFile("bootloader-shamu-moa-71.img", "bootloader.img")]


def test_an_unknown_artifact_is_refused_with_those_that_are_known() -> None:
    catalog = Catalog.load("chromeos")
    catalog.check_known(["stateful", "autotest"])
    with pytest.raises(BadRequest, match=r"unknown artifact 'statefull'.*full_payload, stateful"):
        catalog.check_known(["stateful", "statefull"])
