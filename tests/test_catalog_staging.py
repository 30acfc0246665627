"""Catalogs at work: what is asked for brings others along, parts, and files that clash."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from conftest import Serve
from running_server import RunningServer

from artifacts.commands.sample_build import (
    BUILD,
    FULL_PAYLOAD,
    M_TO_N_PAYLOAD,
    N_TO_N_PAYLOAD,
    TARGET,
)

NAME = f"{TARGET}/{BUILD}"
LAMP = "lamp-release/R1-1.0.0"


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer) -> RunningServer:
    return serve("--allow-archive", archive.url, "--tries", "1")


def lamp(tmp_path: Path, serve: Serve, catalog: str, *names: str) -> tuple[RunningServer, str]:
    """A server with a catalog, and the URL of a build whose files contain their own names."""
    file = tmp_path / "lamps.toml"
    file.write_text(catalog)
    build = tmp_path / "lamps" / LAMP
    build.mkdir(parents=True)
    for name in names:
        (build / name).write_text(name)
    server = serve("--catalog", str(file), "--allow-archive", f"file://{tmp_path}/lamps")
    return server, f"file://{build}"


def states(server: RunningServer, name: str = NAME) -> dict[str, str]:
    """The state of each artifact that was asked of a build."""
    described = server.get(f"/api/v1/builds/{name}").json()
    return {artifact["name"]: artifact["state"] for artifact in described["artifacts"]}


# --- what comes along


def test_the_test_suites_bring_what_their_tests_need(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/autotest_packages.tar", Fault(hold=hold), times=1)

    assert server.call("/stage", archive_url=build_url, artifacts="test_suites") == "Success"
    packages = {"archive_url": build_url, "artifacts": "autotest_packages"}
    assert server.call("/is_staged", **packages) == "False"
    assert server.get("/wait_for_status?timeout=0.2", archive_url=build_url).status_code == 504

    hold.set()
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/is_staged", **packages) == "True"
    assert set(states(server)) == {"test_suites", "control_files", "autotest_packages"}
    checksums = server.file(f"{NAME}/autotest/packages/packages.checksum")
    assert b"test-login_LoginSuccess.tar.bz2:" in checksums
    controls = server.call("/controlfiles", build=NAME).splitlines()
    assert "client/site_tests/login_LoginSuccess/control" in controls


def test_download_brings_them_as_well_and_asking_again_costs_the_archive_nothing(
    server: RunningServer, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    for _ in range(2):
        assert server.call("/download", archive_url=build_url) == "Success"
        assert server.call("/wait_for_status", archive_url=build_url) == "Success"
        assert server.call("/stage", archive_url=build_url, artifacts="test_suites") == "Success"
    assert {"control_files", "autotest_packages"} < set(states(server))
    for name in ("control_files.tar", "autotest_packages.tar"):
        size = (archive_directory / NAME / name).stat().st_size
        assert archive.bytes_sent(f"/{NAME}/{name}") == size


def test_a_build_may_lack_what_comes_along(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    for name in ("control_files.tar", "autotest_packages.tar"):
        (archive_directory / NAME / name).unlink()
    assert server.call("/stage", archive_url=build_url, artifacts="test_suites") == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    refused = server.get("/stage", archive_url=build_url, artifacts="control_files")
    assert refused.status_code == 404
    assert "control_files (control_files.tar" in refused.text


def test_the_failure_of_what_comes_along_is_told_by_the_status_and_not_by_the_answer(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.misbehave(f"/{NAME}/control_files.tar", Fault(status=500))
    assert server.call("/stage", archive_url=build_url, artifacts="test_suites") == "Success"
    failure = server.get("/wait_for_status", archive_url=build_url)
    assert (failure.status_code, "control_files.tar" in failure.text) == (502, True)

    archive.behave()
    assert server.call("/stage", archive_url=build_url, artifacts="test_suites") == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"


def test_what_is_asked_for_by_name_is_waited_for_though_it_would_come_along(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.misbehave(f"/{NAME}/control_files.tar", Fault(status=500))
    failure = server.get("/stage", archive_url=build_url, artifacts="test_suites,control_files")
    assert (failure.status_code, "control_files.tar" in failure.text) == (502, True)


def test_what_is_brought_brings_others(tmp_path: Path, serve: Serve) -> None:
    catalog = "".join(
        f"[artifacts.{name}]\nfiles = ['{name}']\n{brings}\n"
        for name, brings in {"a": "brings = ['b']", "b": "brings = ['c']", "c": ""}.items()
    )
    server, url = lamp(tmp_path, serve, catalog, "a", "b", "c")
    assert server.call("/stage", archive_url=url, artifacts="a") == "Success"
    assert server.call("/wait_for_status", archive_url=url) == "Success"
    assert server.call("/list_image_dir", archive_url=url) == "a\nb\nc"


# --- parts


def test_delta_payloads_are_both_where_each_of_them_goes(
    server: RunningServer, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    both = {"archive_url": build_url, "artifacts": "delta_payloads"}
    assert server.call("/stage", **both) == "Success"
    assert server.call("/is_staged", **both) == "True"
    server.call("/stage", archive_url=build_url, artifacts="stateful,nton_payload,mton_payload")
    for name, kind in ((N_TO_N_PAYLOAD, "nton"), (M_TO_N_PAYLOAD, "mton")):
        content = (archive_directory / NAME / name).read_bytes()
        assert server.file(f"{NAME}/au/{BUILD}_{kind}/update.gz") == content
        assert server.file(f"{NAME}/au/{BUILD}_{kind}/stateful.tgz").startswith(b"\x1f\x8b")
        assert archive.bytes_sent(f"/{NAME}/{name}") == len(content)


def test_delta_payloads_are_those_that_there_are(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    (archive_directory / NAME / M_TO_N_PAYLOAD).unlink()
    server.call("/stage", archive_url=build_url, artifacts="delta_payloads,stateful")
    assert server.call("/list_image_dir", archive_url=build_url).splitlines() == [
        f"au/{BUILD}_nton/stateful.tgz",
        f"au/{BUILD}_nton/update.gz",
        "stateful.tgz",
    ]


def test_a_build_with_no_delta_payload_at_all_has_none(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    for name in (N_TO_N_PAYLOAD, M_TO_N_PAYLOAD):
        (archive_directory / NAME / name).unlink()
    refused = server.get("/stage", archive_url=build_url, artifacts="delta_payloads")
    assert refused.status_code == 404
    assert "delta_payloads (nton_payload or mton_payload)" in refused.text


# --- which files, which members


def test_a_pattern_that_fits_two_files_for_one_is_told_with_their_names(
    server: RunningServer, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    second = FULL_PAYLOAD.replace("x86", "arm")
    (archive_directory / NAME / second).write_bytes(b"CrAU")
    refused = server.get("/download", archive_url=build_url)
    assert refused.status_code == 502
    assert "several files for one" in refused.text
    assert second in refused.text and FULL_PAYLOAD in refused.text
    assert archive.bytes_sent(f"/{NAME}/{FULL_PAYLOAD}") == 0


def test_two_files_for_one_path_are_told_before_anything_is_fetched(
    tmp_path: Path, serve: Serve
) -> None:
    catalog = (
        "[artifacts.image]\nfiles = ['{board}-*.bin']\npublish_as = 'image.bin'\n"
        "[artifacts.others]\nfiles = ['*.bin']\n"
    )
    server, url = lamp(tmp_path, serve, catalog, "lamp-1.bin", "image.bin", "x.txt")
    refused = server.get("/stage", archive_url=url, artifacts="image,others")
    assert refused.status_code == 409
    assert refused.text == (
        f"{LAMP} has two files for image.bin: lamp-1.bin (image) and image.bin (others); "
        "ask for one of them, or mend the catalog"
    )
    assert not (server.static_directory / LAMP).exists()
    assert server.get("/stage", archive_url=url, artifacts="image").text == "Success"
    assert server.file(f"{LAMP}/image.bin") == b"lamp-1.bin"


def test_parts_may_put_one_file_in_two_places(tmp_path: Path, serve: Serve) -> None:
    catalog = (
        "[artifacts.flash]\nfiles = ['lamp.bin']\ndirectory = 'flash'\n"
        "[artifacts.rescue]\nfiles = ['lamp.bin']\ndirectory = 'rescue'\n"
        "[artifacts.both]\nparts = ['flash', 'rescue']\n"
    )
    server, url = lamp(tmp_path, serve, catalog, "lamp.bin")
    assert server.call("/stage", archive_url=url, artifacts="both") == "Success"
    staged = server.call("/list_image_dir", archive_url=url).splitlines()
    assert staged == ["flash/lamp.bin", "rescue/lamp.bin"]
    assert {server.file(f"{LAMP}/{path}") for path in staged} == {b"lamp.bin"}


def test_names_of_the_build_choose_files_places_and_members(tmp_path: Path, serve: Serve) -> None:
    catalog = """
        [artifacts.tools]
        files = ["{board}-tools.tar"]
        directory = "{target}"
        unpack = true
        include = ["{board}/**"]
        exclude = ["**/*-{build}"]
        links = { "current-{board}" = "{target}/{board}" }
        """
    server, url = lamp(tmp_path, serve, catalog, "glow-tools.tar")
    with tarfile.open(tmp_path / "lamps" / LAMP / "lamp-tools.tar", "w") as tar:
        for name in ("./lamp/flash", "./lamp/old-R1-1.0.0", "./glow/flash"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert server.call("/stage", archive_url=url, artifacts="tools") == "Success"
    staged = server.call("/list_image_dir", archive_url=url).splitlines()
    assert staged == ["current-lamp", "lamp-release/lamp/flash"]


def test_an_archive_with_nothing_in_it_is_staged_once(tmp_path: Path, serve: Serve) -> None:
    catalog = "[artifacts.extras]\nfiles = ['extras.tar']\nunpack = true\n"
    server, url = lamp(tmp_path, serve, catalog, "readme")
    with tarfile.open(tmp_path / "lamps" / LAMP / "extras.tar", "w"):
        pass
    query = {"archive_url": url, "artifacts": "extras"}
    assert server.call("/stage", **query) == "Success"
    (tmp_path / "lamps" / LAMP / "extras.tar").unlink()
    assert server.call("/is_staged", **query) == "True"
    assert server.call("/stage", **query) == "Success"
    # What can be lost is still missed, and only that.
    server.call("/stage", archive_url=url, files="readme")
    shutil.rmtree(server.static_directory / LAMP)
    assert server.call("/is_staged", archive_url=url, files="readme") == "False"
    assert server.call("/is_staged", **query) == "True"


def test_an_archive_without_any_wanted_member_is_told(tmp_path: Path, serve: Serve) -> None:
    catalog = (
        "[artifacts.image]\nfiles = ['image.tar']\nunpack = true\ninclude = ['image.bin', '*.img']"
    )
    server, url = lamp(tmp_path, serve, catalog)
    with tarfile.open(tmp_path / "lamps" / LAMP / "image.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    for _ in range(2):
        refused = server.get("/stage", archive_url=url, artifacts="image")
        assert (refused.status_code, refused.text) == (
            404,
            "image.tar has no member that fits image.bin or *.img",
        )


def test_a_server_of_android_builds_stages_what_fastboot_wants(
    tmp_path: Path, serve: Serve
) -> None:
    build = tmp_path / "android" / "shamu-userdebug" / "2284311"
    build.mkdir(parents=True)
    for name in ("shamu-img-2284311.zip", "bootloader.img", "radio.img", "shamu-symbols-1.zip"):
        (build / name).write_text(name)
    server = serve("--catalog", "android", "--allow-archive", f"file://{tmp_path}/android")
    url = f"file://{build}"
    assert server.call("/download", archive_url=url) == "Success"
    assert server.call("/wait_for_status", archive_url=url) == "Success"
    staged = server.call("/list_image_dir", archive_url=url).splitlines()
    assert staged == ["bootloader.img", "radio.img", "shamu-img-2284311.zip"]
