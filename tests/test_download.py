"""Staging a build, as a lab machine does: what is answered, fetched, and there afterwards."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import wait_until
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, N_TO_N_PAYLOAD, TARGET

NAME = f"{TARGET}/{BUILD}"
FOREGROUND = ["full_payload", "stateful", "test_suites"]
BACKGROUND = ["autotest", "nton_payload", "mton_payload"]
LISTING = [f"/{NAME}/UPLOADED", f"/{NAME}/", f"/{NAME}/SHA256SUMS"]


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer) -> RunningServer:
    return serve("--allow-archive", archive.url, "--tries", "3")


def test_a_build_is_staged_with_all_that_belongs_to_it(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    assert server.call("/download", archive_url=build_url) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"

    source = archive_directory / NAME
    assert server.file(f"{NAME}/update.gz") == (source / FULL_PAYLOAD).read_bytes()
    assert server.file(f"{NAME}/stateful.tgz") == (source / "stateful.tgz").read_bytes()
    nton = server.file(f"{NAME}/au/{BUILD}_nton/update.gz")
    assert nton == (source / N_TO_N_PAYLOAD).read_bytes()
    linked = server.file(f"{NAME}/au/{BUILD}_nton/stateful.tgz")
    assert linked == (source / "stateful.tgz").read_bytes()
    assert (server.static_directory / NAME / f"au/{BUILD}_mton/stateful.tgz").is_symlink()


def test_an_unpacked_artifact_is_just_what_its_archive_holds(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    server.call("/download", archive_url=build_url)
    server.call("/wait_for_status", archive_url=build_url)
    expected = {}
    for name in ("autotest.tar.bz2", "test_suites.tar.bz2"):
        with tarfile.open(archive_directory / NAME / name) as tar:
            for member in tar:
                if member.isfile():
                    expected[member.name.removeprefix("./")] = tar.extractfile(member).read()
    staged = server.static_directory / NAME / "autotest"
    found = {
        path.relative_to(staged.parent).as_posix(): path.read_bytes()
        for path in staged.rglob("*")
        if path.is_file()
    }
    assert found == expected


def test_the_foreground_is_answered_while_the_background_goes_on(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/autotest.tar.bz2", Fault(hold=hold), times=1)

    assert server.call("/download", archive_url=build_url) == "Success"
    for name in FOREGROUND:
        assert server.call("/is_staged", archive_url=build_url, artifacts=name) == "True"
    assert server.call("/is_staged", archive_url=build_url, artifacts="autotest") == "False"
    assert server.get("/wait_for_status?timeout=0.2", archive_url=build_url).status_code == 504
    assert server.get("/latestbuild", target=TARGET).status_code == 404

    hold.set()
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/is_staged", archive_url=build_url, artifacts="autotest") == "True"
    assert server.call("/latestbuild", target=TARGET) == BUILD


def test_nothing_of_the_background_holds_up_the_foreground(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    for name in ("autotest.tar.bz2", N_TO_N_PAYLOAD):
        archive.misbehave(f"/{NAME}/{name}", Fault(hold=hold, reset=True, head_too=True))
    response = server.session.get(
        f"{server.url}/download", params={"archive_url": build_url}, timeout=10
    )
    assert response.text == "Success"
    assert server.get("/wait_for_status?timeout=0.1", archive_url=build_url).status_code == 504
    archive.behave()
    hold.set()
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"


def test_the_work_outlives_the_client_that_asked_for_it(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(hold=hold), times=1)
    with pytest.raises(Exception, match="timed out"):
        server.session.get(f"{server.url}/download", params={"archive_url": build_url}, timeout=0.5)
    hold.set()
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"


def test_200_clients_in_every_spelling_make_the_archive_serve_each_byte_once(
    server: RunningServer, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    host = archive.url.removeprefix("http://")
    spellings = [
        build_url,
        build_url + "/",
        f"  {build_url}//  ",
        f"HTTP://{host}//{TARGET}//{BUILD}",
        f"http://{host}/{TARGET.replace('x', '%78')}/{BUILD}/",
    ]
    with ThreadPoolExecutor(200) as pool:
        asked = [
            pool.submit(server.call, "/download", archive_url=spellings[number % len(spellings)])
            for number in range(200)
        ]
        assert {future.result() for future in asked} == {"Success"}
    server.call("/wait_for_status", archive_url=build_url)

    staged = [
        path
        for path in (archive_directory / NAME).iterdir()
        if path.name not in {"debug.tgz", "SHA256SUMS"}
    ]
    for path in staged:
        assert archive.bytes_sent(f"/{NAME}/{path.name}") == path.stat().st_size, path.name
    listed = [request.path for request in archive.requests if request.path in LISTING]
    assert sorted(listed) == sorted(LISTING)


def test_asking_again_costs_the_archive_nothing(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    server.call("/download", archive_url=build_url)
    server.call("/wait_for_status", archive_url=build_url)
    asked_before = len(archive.requests)
    for _ in range(3):
        assert server.call("/download", archive_url=build_url) == "Success"
        assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/stage", archive_url=build_url, artifacts="stateful") == "Success"
    assert len(archive.requests) == asked_before


def test_a_background_failure_is_told_to_everyone_until_a_retry(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.misbehave(f"/{NAME}/autotest.tar.bz2", Fault(status=500))
    assert server.call("/download", archive_url=build_url) == "Success"
    for _ in range(3):
        failure = server.get("/wait_for_status", archive_url=build_url)
        assert failure.status_code == 502
        assert "autotest.tar.bz2" in failure.text
        assert "\n" not in failure.text
    asked = server.get("/is_staged", archive_url=build_url, artifacts="autotest")
    assert (asked.status_code, asked.text) == (502, failure.text)
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "True"
    assert server.get("/latestbuild", target=TARGET).status_code == 404

    archive.behave()
    sent_before = archive.bytes_sent(f"/{NAME}/{FULL_PAYLOAD}")
    assert server.call("/download", archive_url=build_url) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert archive.bytes_sent(f"/{NAME}/{FULL_PAYLOAD}") == sent_before
    assert server.call("/latestbuild", target=TARGET) == BUILD


def test_a_new_try_is_not_told_the_failure_of_the_last_one(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.misbehave(f"/{NAME}/stateful.tgz", Fault(status=403))
    asked = {"archive_url": build_url, "artifacts": "stateful"}
    assert server.get("/stage", **asked).status_code == 502

    archive.behave()
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/", Fault(hold=hold))
    assert server.call("/stage?async=True", **asked) == "Success"
    assert server.call("/is_staged", **asked) == "False"
    described = server.get(f"/api/v1/builds/{NAME}").json()
    assert described["state"] == "staging"
    assert [artifact["error"] for artifact in described["artifacts"]] == [None]

    hold.set()
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/is_staged", **asked) == "True"


def test_a_failure_survives_a_restart(
    serve: Serve, server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.misbehave(f"/{NAME}/autotest.tar.bz2", Fault(status=500))
    server.call("/download", archive_url=build_url)
    failure = server.get("/wait_for_status", archive_url=build_url)
    server.stop()
    again = serve("--allow-archive", archive.url)
    told = again.get("/wait_for_status", archive_url=build_url)
    assert (told.status_code, told.text) == (502, failure.text)


def test_a_foreground_failure_is_answered_in_words_and_starts_no_background(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(status=403))
    failure = server.get("/download", archive_url=build_url)
    assert failure.status_code == 502
    assert FULL_PAYLOAD in failure.text and "403" in failure.text
    assert server.get("/wait_for_status", archive_url=build_url).status_code == 502
    assert archive.bytes_sent(f"/{NAME}/autotest.tar.bz2") == 0

    archive.behave()
    assert server.call("/download", archive_url=build_url) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"


def test_the_foreground_is_fetched_at_the_same_time(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/{FULL_PAYLOAD}", Fault(hold=hold), times=1)
    with ThreadPoolExecutor(1) as pool:
        download = pool.submit(server.call, "/download", archive_url=build_url)
        # Stateful is joined: it ends although the payload, which comes first, is held up.
        assert server.call("/stage", archive_url=build_url, artifacts="stateful") == "Success"
        assert not download.done()
        hold.set()
        assert download.result() == "Success"


def test_a_build_that_does_not_exist_is_404_quickly(
    server: RunningServer, archive: ArchiveServer
) -> None:
    url = f"{archive.url}/{TARGET}/R99-1.0.0"
    for call in ("/download", "/wait_for_status"):
        failure = server.get(call, archive_url=url)
        assert failure.status_code == 404
        assert "no such build" in failure.text
    failure = server.get("/is_staged", archive_url=url, artifacts="full_payload")
    assert failure.status_code == 404
    assert not (server.static_directory / TARGET).exists()


def test_a_build_nobody_asked_for_is_404(server: RunningServer, build_url: str) -> None:
    failure = server.get("/wait_for_status", archive_url=build_url)
    assert failure.status_code == 404
    assert "neither staged nor being staged" in failure.text
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "False"


def test_a_required_artifact_that_is_missing_is_named_and_nothing_is_fetched(
    server: RunningServer, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    (archive_directory / NAME / FULL_PAYLOAD).unlink()
    failure = server.get("/download", archive_url=build_url)
    assert failure.status_code == 404
    assert "full_payload" in failure.text
    assert archive.bytes_sent(f"/{NAME}/stateful.tgz") == 0


def test_what_a_build_may_lack_is_not_missed(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    (archive_directory / NAME / "autotest.tar.bz2").unlink()
    (archive_directory / NAME / "test_suites.tar.bz2").unlink()
    assert server.call("/download", archive_url=build_url) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/latestbuild", target=TARGET) == BUILD
    failure = server.get("/stage", archive_url=build_url, artifacts="autotest")
    assert failure.status_code == 404
    assert "autotest" in failure.text
    # What nobody could stage is not what was asked of the build.
    assert server.call("/latestbuild", target=TARGET) == BUILD


def test_another_archive_of_a_staged_build_is_409(
    serve: Serve, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    server = serve("--allow-archive", archive.url, "--allow-archive", f"file://{archive_directory}")
    server.call("/download", archive_url=build_url)
    other = f"file://{archive_directory}/{NAME}"
    for call in ("/download", "/stage?artifacts=stateful"):
        failure = server.get(call, archive_url=other)
        assert failure.status_code == 409
        assert build_url in failure.text
    assert server.get("/list_image_dir", archive_url=other).status_code == 409

    server.call("/wait_for_status", archive_url=build_url)
    deleted = server.session.delete(f"{server.url}/api/v1/builds/{NAME}")
    assert deleted.status_code == 204
    assert server.call("/download", archive_url=other) == "Success"


def test_a_build_under_way_is_not_dropped(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/autotest.tar.bz2", Fault(hold=hold), times=1)
    server.call("/download", archive_url=build_url)
    deleted = server.session.delete(f"{server.url}/api/v1/builds/{NAME}")
    assert deleted.status_code == 409
    assert deleted.json()["error"]["code"] == "conflict"
    hold.set()
    server.call("/wait_for_status", archive_url=build_url)
    assert server.session.delete(f"{server.url}/api/v1/builds/{NAME}").status_code == 204
    assert server.get(f"/static/{NAME}/update.gz").status_code == 404
    assert server.get(f"/api/v1/builds/{NAME}").status_code == 404
    assert not (server.static_directory / NAME).exists()


def test_clean_drops_the_whole_build_first(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    server.call("/download", archive_url=build_url)
    server.call("/wait_for_status", archive_url=build_url)
    staged = server.call("/stage?clean=True", archive_url=build_url, artifacts="stateful")
    assert staged == "Success"
    assert server.call("/list_image_dir", archive_url=build_url) == "stateful.tgz"


def test_files_are_staged_by_name_and_by_glob_as_they_are(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    staged = server.call("/stage", archive_url=build_url, files="debug.tgz,*_full_*,SHA256SUMS")
    assert staged == "Success"
    listed = server.call("/list_image_dir", archive_url=build_url).split("\n")
    assert listed == sorted([FULL_PAYLOAD, "SHA256SUMS", "debug.tgz"])
    for name in listed:
        assert server.file(f"{NAME}/{name}") == (archive_directory / NAME / name).read_bytes()
    assert server.call("/is_staged", archive_url=build_url, files="*_full_*,debug.tgz") == "True"
    assert server.call("/is_staged", archive_url=build_url, files=FULL_PAYLOAD) == "True"
    assert server.call("/is_staged", archive_url=build_url, files="stateful.tgz") == "False"
    failure = server.get("/stage", archive_url=build_url, files="nothing*")
    assert (failure.status_code, "nothing*" in failure.text) == (404, True)


def test_a_file_that_an_artifact_brought_is_not_fetched_again(
    server: RunningServer, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    server.call("/download", archive_url=build_url)
    sent_before = archive.bytes_sent(f"/{NAME}/{FULL_PAYLOAD}")
    assert server.call("/stage", archive_url=build_url, files=FULL_PAYLOAD) == "Success"
    assert archive.bytes_sent(f"/{NAME}/{FULL_PAYLOAD}") == sent_before
    data = (archive_directory / NAME / FULL_PAYLOAD).read_bytes()
    assert server.file(f"{NAME}/{FULL_PAYLOAD}") == data


def test_a_build_whose_files_were_removed_by_hand_is_staged_anew(
    server: RunningServer, build_url: str
) -> None:
    server.call("/download", archive_url=build_url)
    server.call("/wait_for_status", archive_url=build_url)
    shutil.rmtree(server.static_directory / NAME)
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "False"
    assert server.call("/download", archive_url=build_url) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.file(f"{NAME}/stateful.tgz")
    assert (server.static_directory / NAME / "autotest" / "test_suites").is_dir()


def test_async_staging_is_answered_at_once(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(f"/{NAME}/stateful.tgz", Fault(hold=hold), times=1)
    started = server.call("/stage?async=True", archive_url=build_url, artifacts="stateful")
    assert started == "Success"
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "False"
    hold.set()
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "True"


def test_arguments_come_by_form_as_well(server: RunningServer, build_url: str) -> None:
    posted = server.session.post(f"{server.url}/download", data={"archive_url": build_url})
    assert (posted.status_code, posted.text) == (200, "Success")
    assert posted.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_everything_stages_every_file(
    serve: Serve, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    odd = archive_directory / NAME / "symbols"
    odd.mkdir()
    (odd / "with blank & ünïcode+#%41.txt").write_bytes(b"odd")
    (odd / "empty").write_bytes(b"")
    server = serve("--allow-archive", archive.url, "--catalog", "everything")
    assert server.call("/download", archive_url=build_url) == "Success"
    source = archive_directory / NAME
    expected = {
        path.relative_to(source).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in source.rglob("*")
        if path.is_file()
    }
    listed = server.call("/list_image_dir", archive_url=build_url).split("\n")
    assert listed == sorted(expected)
    staged = server.static_directory / NAME
    assert {p: hashlib.sha256((staged / p).read_bytes()).digest() for p in listed} == expected


def test_ten_thousand_files_are_listed_and_staged(
    serve: Serve, tmp_path: Path, archive_directory: Path
) -> None:
    build = archive_directory / "many" / "R1-1.0.0"
    build.mkdir(parents=True)
    for number in range(10_000):
        (build / f"file-{number}").write_bytes(b"%d" % number)
    url = f"file://{build}"
    server = serve("--allow-archive", f"file://{archive_directory}", "--catalog", "everything")
    assert server.call("/download", archive_url=url) == "Success"
    assert len(server.call("/list_image_dir", archive_url=url).split("\n")) == 10_000
    assert server.file("many/R1-1.0.0/file-9999") == b"9999"


def test_names_that_would_leave_the_build_are_passed_over(
    serve: Serve, archive: ArchiveServer, build_url: str, tmp_path: Path
) -> None:
    names = ["../escape", "/etc/hostname", "a/../../b", "tab\there", ".hidden", "stateful.tgz"]
    archive.listing_override(f"/{NAME}/UPLOADED", "\n".join(names).encode(), "text/plain")
    server = serve("--allow-archive", archive.url, "--catalog", "everything")
    assert server.call("/download", archive_url=build_url) == "Success"
    assert server.call("/list_image_dir", archive_url=build_url) == "stateful.tgz"
    assert not list(tmp_path.rglob("escape"))


def test_a_thousand_builds_leave_nothing_behind_in_memory(
    serve: Serve, archive_directory: Path
) -> None:
    for number in range(1000):
        build = archive_directory / "many" / f"R1-{number}.0.0"
        build.mkdir(parents=True)
        (build / "x_full_y.bin").write_bytes(b"%d" % number)
    server = serve("--allow-archive", f"file://{archive_directory}")
    with ThreadPoolExecutor(50) as pool:
        answers = pool.map(
            lambda n: server.call(
                "/download", archive_url=f"file://{archive_directory}/many/R1-{n}.0.0"
            ),
            range(1000),
        )
        assert set(answers) == {"Success"}
    server.call("/wait_for_status", archive_url=f"file://{archive_directory}/many/R1-999.0.0")
    assert server.call("/latestbuild", target="many") == "R1-999.0.0"
    wait_until(lambda: server.get("/check_health").json()["staging_thread_count"] == 0)
    assert not list((server.static_directory / ".devserver" / "under_way").iterdir())
    assert not list((server.static_directory / ".devserver" / "tmp").iterdir())


def test_the_highest_build_is_by_numbers_and_milestone(
    serve: Serve, archive_directory: Path
) -> None:
    server = serve("--allow-archive", f"file://{archive_directory}")
    for build in ("R17-18.0.0", "R17-1413.0.0-a1-b1346", "R16-9999.0.0", "R17-1413.0.0-a1-b99"):
        (archive_directory / "board-release" / build).mkdir(parents=True)
        (archive_directory / "board-release" / build / "x_full_y.bin").write_bytes(b"x")
        server.call("/download", archive_url=f"file://{archive_directory}/board-release/{build}")
    assert server.call("/latestbuild", target="board-release") == "R17-1413.0.0-a1-b1346"
    latest = server.call("/latestbuild", target="board-release", milestone="R16")
    assert latest == "R16-9999.0.0"
    assert server.get("/latestbuild?milestone=R1", target="board-release").status_code == 404
