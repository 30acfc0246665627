"""``/stage`` in detail: files by name and by glob, and staging again from nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from archive_server import ArchiveServer, Fault
from conftest import Serve
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, TARGET

NAME = f"{TARGET}/{BUILD}"
FILES = [
    "100%25.txt",
    "R1.tar.gz",
    "a b.txt",
    "a,b.txt",
    "debug/deep/y.sym",
    "debug/deep/z.txt",
    "debug/x.sym",
    "image.zip",
    "name1.txt",
    "name[1].txt",
    "per%cent",
    "plus+sign.txt",
    "stateful.tgz",
    "ümläut.txt",
]


@pytest.fixture(scope="module")
def odd_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with one build, whose files have odd names and say them; not to be changed."""
    archive = tmp_path_factory.mktemp("odd")
    for name in FILES:
        path = archive / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return archive


@pytest.fixture(scope="module", params=["file", "http"])
def odd(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    odd_archive: Path,
) -> tuple[RunningServer, str]:
    """A server, and the URL of the build with odd names in an archive of either kind."""
    with ArchiveServer(odd_archive) as archive:
        root = archive.url if request.param == "http" else f"file://{odd_archive}"
        server = RunningServer(tmp_path_factory.mktemp("stage"), "--allow-archive", root)
        try:
            yield server, f"{root}/{NAME}"
        finally:
            server.stop()


@pytest.mark.parametrize(
    ("files", "staged"),
    [
        ("image.zip", ["image.zip"]),
        ("debug/x.sym", ["debug/x.sym"]),
        ("image.zip,debug/x.sym", ["debug/x.sym", "image.zip"]),
        (" image.zip , R1.tar.gz ,", ["R1.tar.gz", "image.zip"]),
        ("a b.txt", ["a b.txt"]),
        ("plus+sign.txt", ["plus+sign.txt"]),
        ("per%cent", ["per%cent"]),
        ("100%25.txt", ["100%25.txt"]),
        ("ümläut.txt", ["ümläut.txt"]),
        ("name[1].txt", ["name[1].txt"]),
        ("nam[e]1.txt", ["name1.txt"]),
        ("name[[]1].txt", ["name[1].txt"]),
        ("a?b.txt", ["a b.txt", "a,b.txt"]),
        ("a[!a-z ]b.txt", ["a,b.txt"]),
        ("*.zip", ["image.zip"]),
        ("[iR]*", ["R1.tar.gz", "image.zip"]),
        ("*.sym", None),
        ("debug/*", ["debug/x.sym"]),
        ("debug/*/*.sym", ["debug/deep/y.sym"]),
        ("debug/**", ["debug/deep/y.sym", "debug/deep/z.txt", "debug/x.sym"]),
        ("**/*.sym", ["debug/deep/y.sym", "debug/x.sym"]),
        ("**/deep/*", ["debug/deep/y.sym", "debug/deep/z.txt"]),
        ("**/*.sym,*.zip,*.zip", ["debug/deep/y.sym", "debug/x.sym", "image.zip"]),
        ("*", [name for name in FILES if "/" not in name]),
        ("**", FILES),
        ("a,b.txt", None),
    ],
)
def test_files_are_named_or_described_by_globs(
    files: str, staged: list[str] | None, odd: tuple[RunningServer, str]
) -> None:
    server, url = odd
    asked = {"archive_url": url, "files": files}
    answer = server.get("/stage?clean=True", **asked)
    if staged is None:
        assert answer.status_code == 404
        assert f"a file {files.split(',')[0]}" in answer.text
        return
    assert (answer.status_code, answer.text) == (200, "Success")
    assert server.call("/is_staged", **asked) == "True"
    assert server.call("/list_image_dir", archive_url=url).split("\n") == staged
    for name in staged:
        assert server.file(f"{NAME}/{quote(name)}").decode() == name


def test_empty_files_beside_artifacts_and_empty_artifacts_beside_files_are_none(
    odd: tuple[RunningServer, str],
) -> None:
    server, url = odd
    assert server.call("/stage?files=&clean=True", archive_url=url, artifacts="stateful")
    assert server.call("/list_image_dir", archive_url=url) == "stateful.tgz"
    assert server.call("/is_staged?files=", archive_url=url, artifacts="stateful") == "True"
    assert server.call("/stage?artifacts=&clean=True", archive_url=url, files="image.zip")
    assert server.call("/list_image_dir", archive_url=url) == "image.zip"
    assert server.call("/is_staged?artifacts=", archive_url=url, files="image.zip") == "True"


def test_a_glob_that_fits_nothing_is_named_and_nothing_else_is_staged(
    odd: tuple[RunningServer, str],
) -> None:
    server, url = odd
    asked = {"archive_url": url, "files": "image.zip,no[pt]hing/**,gone.txt"}
    for call in ("/stage?clean=True", "/is_staged"):
        answer = server.get(call, **asked)
        assert answer.status_code == 404, call
        assert "a file no[pt]hing/**, a file gone.txt" in answer.text
        assert "image.zip" not in answer.text
    assert server.get(f"/static/{NAME}/image.zip").status_code == 404


@pytest.mark.parametrize(
    "files", ["..", "../*", "debug/../image.zip", "/image.zip", "debug//x.sym", "debug/", "./*"]
)
def test_files_that_leave_the_build_are_refused(files: str, odd: tuple[RunningServer, str]) -> None:
    server, url = odd
    for call in ("/stage", "/is_staged"):
        answer = server.get(call, archive_url=url, files=f"image.zip,{files}")
        assert (answer.status_code, "files" in answer.text) == (400, True)


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer) -> RunningServer:
    return serve("--allow-archive", archive.url, "--tries", "2")


def listed(server: RunningServer, url: str) -> list[str]:
    return server.call("/list_image_dir", archive_url=url).split("\n")


def test_a_clean_stage_fetches_everything_again(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    asked = {"archive_url": build_url, "artifacts": "stateful", "files": "debug.tgz"}
    server.call("/stage", **asked)
    sent_before = archive.bytes_sent(f"/{NAME}/stateful.tgz")
    server.call("/stage?clean=False", **asked)
    assert archive.bytes_sent(f"/{NAME}/stateful.tgz") == sent_before
    server.call("/stage?clean=true", **asked)
    assert archive.bytes_sent(f"/{NAME}/stateful.tgz") == 2 * sent_before
    assert listed(server, build_url) == ["debug.tgz", "stateful.tgz"]


def test_a_clean_stage_of_a_build_that_nobody_staged_is_just_a_stage(
    server: RunningServer, build_url: str
) -> None:
    assert server.call("/stage?clean=True", archive_url=build_url, files="debug.tgz") == "Success"
    assert listed(server, build_url) == ["debug.tgz"]


def test_a_clean_stage_need_not_be_waited_for(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    server.call("/stage", archive_url=build_url, artifacts="stateful", files="debug.tgz")
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/stateful.tgz", Fault(hold=hold), times=1)
    asked = {"archive_url": build_url, "artifacts": "stateful"}
    assert server.call("/stage?clean=True&async=True", **asked) == "Success"
    assert server.call("/is_staged", **asked) == "False"
    assert server.get(f"/static/{NAME}/debug.tgz").status_code == 404
    hold.set()
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert listed(server, build_url) == ["stateful.tgz"]


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ("artifacts=bogus", 400),
        ("artifacts=stateful&files=../x", 400),
        ("artifacts=stateful&async=perhaps", 400),
        ("artifacts=stateful&clean=perhaps", 400),
        ("files=", 400),
    ],
)
def test_a_clean_stage_that_is_refused_drops_nothing(
    wrong: str, status: int, server: RunningServer, build_url: str
) -> None:
    server.call("/stage", archive_url=build_url, files="debug.tgz")
    clean = "" if "clean" in wrong else "&clean=True"
    assert server.get(f"/stage?{wrong}{clean}", archive_url=build_url).status_code == status
    assert listed(server, build_url) == ["debug.tgz"]


def test_a_clean_stage_from_another_archive_is_409_and_drops_nothing(
    serve: Serve, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    root = f"file://{archive_directory}"
    server = serve("--allow-archive", archive.url, "--allow-archive", root)
    server.call("/stage", archive_url=build_url, files="debug.tgz")
    answer = server.get("/stage?clean=True&files=debug.tgz", archive_url=f"{root}/{NAME}")
    assert (answer.status_code, build_url in answer.text) == (409, True)
    assert listed(server, build_url) == ["debug.tgz"]


def test_a_build_under_way_is_not_staged_clean(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/stateful.tgz", Fault(hold=hold), times=1)
    server.call("/stage?async=True", archive_url=build_url, artifacts="stateful")
    answer = server.get("/stage?clean=True", archive_url=build_url, files="debug.tgz")
    assert (answer.status_code, "being staged" in answer.text) == (409, True)
    hold.set()
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert listed(server, build_url) == ["stateful.tgz"]


def test_a_clean_stage_forgets_failures(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.misbehave(f"/{NAME}/stateful.tgz", Fault(status=403))
    both = {"archive_url": build_url, "artifacts": "stateful", "files": "debug.tgz"}
    assert server.get("/stage", **both).status_code == 502
    # The other file may still be under way.
    assert server.get("/wait_for_status", archive_url=build_url).status_code == 502
    server.call("/stage?clean=True", archive_url=build_url, files="debug.tgz")
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/is_staged", **both) == "False"
    archive.behave()
    assert server.call("/stage", **both) == "Success"
