"""The sample build has the files, the shapes and the checksums of a real one."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import tarfile
from pathlib import Path

import pytest

from artifacts.commands import sample_build
from artifacts.commands.sample_build import make_sample_build

ATTRIBUTES = re.compile(r'^ATTRIBUTES = "(.*)"$', re.MULTILINE)
PAYLOADS = {
    "chromeos_R17-1208.0.0_x86-generic_full_dev.bin": 3_000_001,
    "chromeos_R17-1208.0.0_R17-1208.0.0_x86-generic_delta_dev.bin": 2_000_000,
    "chromeos_R16-1193.0.0_R17-1208.0.0_x86-generic_delta_dev.bin": 2_000_000,
}
TARS = {
    *("stateful.tgz", "autotest.tar.bz2", "test_suites.tar.bz2", "debug.tgz"),
    *("control_files.tar", "autotest_packages.tar"),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = tmp_path_factory.mktemp("images") / "not-there-yet"
    make_sample_build(archive, payload_bytes=3_000_001)
    return archive


@pytest.fixture
def build(archive: Path) -> Path:
    return archive / "x86-generic-release" / "R17-1208.0.0"


def read_tar(path: Path) -> dict[str, bytes]:
    """The regular files of a tar, by name."""
    with tarfile.open(path) as tar:
        readers = {member.name: tar.extractfile(member) for member in tar}
        return {name: reader.read() for name, reader in readers.items() if reader}


def test_the_archive_holds_the_build_and_nothing_else(archive: Path, build: Path) -> None:
    assert sorted(archive.rglob("*/")) == [build.parent, build]
    assert {path.name for path in build.iterdir()} == {*PAYLOADS, *TARS, "SHA256SUMS"}


def test_payloads_have_their_size_and_magic_and_are_all_different(build: Path) -> None:
    contents = {name: (build / name).read_bytes() for name in PAYLOADS}
    assert {name: len(content) for name, content in contents.items()} == PAYLOADS
    assert all(content.startswith(b"CrAU") for content in contents.values())
    assert len({content[:2_000_000] for content in contents.values()}) == 3


def test_checksums_cover_every_file_and_hold(build: Path) -> None:
    lines = (build / "SHA256SUMS").read_text().splitlines()
    sums = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    assert sums == {
        name: hashlib.sha256((build / name).read_bytes()).hexdigest() for name in {*PAYLOADS, *TARS}
    }


def test_the_stateful_partition_has_both_its_trees(build: Path) -> None:
    files = read_tar(build / "stateful.tgz")
    assert {name.split("/")[0] for name in files} == {"var_new", "dev_image_new"}
    assert sum(map(len, files.values())) > 2_000_000


def test_tars_name_directories_before_what_is_in_them(build: Path) -> None:
    for name in TARS:
        seen = {""}
        with tarfile.open(build / name) as tar:
            for member in tar:
                assert os.path.dirname(member.name) in seen, f"{member.name} in {name}"
                if member.isdir():
                    seen.add(member.name)


def test_autotest_has_some_sixty_tests_with_code_and_control_files(build: Path) -> None:
    files = read_tar(build / "autotest.tar.bz2")
    controls = [name for name in files if name.endswith("/control")]
    assert 55 <= len(controls) <= 65
    assert {name.split("/")[1] for name in controls} == {"client", "server"}
    assert "autotest/client/site_tests/platform_AccurateTime/control.stress" in files
    for control in controls:
        directory, _, _ = control.rpartition("/")
        test_name = directory.rpartition("/")[2]
        assert f"job.run_test('{test_name}'".encode() in files[control]
        assert f"class {test_name}(".encode() in files[f"{directory}/{test_name}.py"]


def test_control_files_and_test_code_are_python(build: Path) -> None:
    for name, content in read_tar(build / "autotest.tar.bz2").items():
        if "/control" in name or name.endswith(".py"):
            ast.parse(content, name)


def test_the_map_of_suites_lists_the_control_files_whose_attributes_name_them(build: Path) -> None:
    files = read_tar(build / "autotest.tar.bz2")
    listed = ast.literal_eval(files["autotest/test_suites/suite_to_control_file_map"].decode())
    by_attributes: dict[str, list[str]] = {"bvt": [], "smoke": []}
    for name in sorted(name for name in files if "/control" in name):
        attributes = ATTRIBUTES.search(files[name].decode())
        for suite in by_attributes:
            if attributes and f"suite:{suite}" in attributes[1].split(", "):
                by_attributes[suite].append(name.removeprefix("autotest/"))
    assert listed == by_attributes
    assert all(listed.values())
    assert set(listed["bvt"]) & set(listed["smoke"])


def test_the_suites_alone_are_the_same_bytes_as_in_autotest(build: Path) -> None:
    autotest = read_tar(build / "autotest.tar.bz2")
    in_autotest = {n: c for n, c in autotest.items() if n.startswith("autotest/test_suites/")}
    assert read_tar(build / "test_suites.tar.bz2") == in_autotest
    assert {Path(name).name for name in in_autotest} == {
        "control.bvt",
        "control.smoke",
        "suite_to_control_file_map",
    }


def test_control_files_and_packages_alone_are_the_same_bytes_as_in_autotest(build: Path) -> None:
    autotest = read_tar(build / "autotest.tar.bz2")
    controls = read_tar(build / "control_files.tar")
    assert controls == {
        name: content
        for name, content in autotest.items()
        if "/control" in name and not name.startswith("autotest/test_suites/")
    }
    packages = read_tar(build / "autotest_packages.tar")
    assert packages == {n: c for n, c in autotest.items() if n.startswith("autotest/packages/")}
    listed = packages.pop("autotest/packages/packages.checksum").decode().splitlines()
    assert len(controls) > 60 and len(packages) > 40
    assert dict(line.split(":") for line in listed) == {
        Path(name).name: hashlib.md5(content).hexdigest() for name, content in packages.items()
    }


def test_symbol_files_lie_where_their_first_line_says(build: Path) -> None:
    files = read_tar(build / "debug.tgz")
    assert len(files) >= 3
    for path, content in files.items():
        _, _, _, debug_id, name = content.decode().splitlines()[0].split(" ")
        assert path == f"debug/breakpad/{name}/{debug_id}/{name}.sym"
        assert re.fullmatch(r"[0-9A-F]{33}", debug_id)


def test_a_build_that_is_there_is_kept(tmp_path: Path) -> None:
    build = tmp_path / "x86-generic-release" / "R17-1208.0.0"
    build.mkdir(parents=True)
    (build / "precious").write_text("mine")
    assert make_sample_build(tmp_path, payload_bytes=1000) == build
    assert [path.name for path in build.iterdir()] == ["precious"]


def test_an_interrupted_run_leaves_nothing_and_the_next_one_makes_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar = sample_build._write_tar

    def interrupted(path: Path, mode: str, files: dict[str, bytes]) -> None:
        if path.name == "debug.tgz":
            raise KeyboardInterrupt
        write_tar(path, mode, files)

    with monkeypatch.context() as patch:
        patch.setattr(sample_build, "_write_tar", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_sample_build(tmp_path, payload_bytes=1000)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not list(tmp_path.glob("*/R17*"))
    assert (make_sample_build(tmp_path, payload_bytes=1000) / "SHA256SUMS").is_file()


def test_a_build_that_somebody_else_made_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = sample_build._fill

    def overtaken(unfinished: Path, payload_bytes: int) -> None:
        fill(unfinished, payload_bytes)
        monkeypatch.undo()
        make_sample_build(tmp_path, payload_bytes=2000)

    monkeypatch.setattr(sample_build, "_fill", overtaken)
    build = make_sample_build(tmp_path, payload_bytes=1000)
    assert (build / sample_build.FULL_PAYLOAD).stat().st_size == 2000
    assert [path.name for path in tmp_path.iterdir()] == ["x86-generic-release"]


def test_a_payload_too_small_for_its_magic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 4 bytes"):
        make_sample_build(tmp_path, payload_bytes=3)
    assert list(tmp_path.iterdir()) == []
