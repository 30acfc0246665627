"""Waiting for a builder: what is not in the archive yet is staged when it comes, or is missed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from archive_server import ArchiveServer, Fault
from conftest import Serve
from polling import clients, wait_until
from real_servers import emulated_google_storage
from running_server import REPOSITORY, RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET

NAME = f"{TARGET}/{BUILD}"
UPLOADED = f"/{NAME}/UPLOADED"
FOREGROUND = (FULL_PAYLOAD, "stateful.tgz", "test_suites.tar.bz2")
BACKGROUND = "autotest.tar.bz2"
LONG = 60  # seconds; far more than any of these tests takes


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer, archive_directory: Path) -> RunningServer:
    return serve(
        *("--allow-archive", archive.url, "--allow-archive", f"file://{archive_directory}"),
        *("--tries", "2"),
    )


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as clients:
        yield clients


def upload(archive: ArchiveServer, *names: str) -> None:
    """Have the archive say that these files are there."""
    archive.listing_override(UPLOADED, "\n".join(names).encode(), "text/plain")


def looks(archive: ArchiveServer) -> int:
    return sum(request.path == UPLOADED for request in archive.requests)


def look_again(archive: ArchiveServer, times: int = 2) -> None:
    """Return when the server has looked again so often."""
    wanted = looks(archive) + times
    wait_until(lambda: looks(archive) >= wanted)


def states(server: RunningServer) -> dict[str, str]:
    described = server.get(f"/api/v1/builds/{NAME}").json()
    return {artifact["name"]: artifact["state"] for artifact in described.get("artifacts", [])}


def ask(
    pool: ThreadPoolExecutor, server: RunningServer, call: str, **query: object
) -> Future[requests.Response]:
    return pool.submit(server.get, call, **query)


def text_of(answer: Future[requests.Response]) -> tuple[int, str]:
    response = answer.result(LONG)
    return response.status_code, response.text


def test_what_is_there_is_staged_while_the_rest_is_waited_for(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, FULL_PAYLOAD)
    answer = ask(pool, server, "/download", archive_url=build_url, wait=LONG)
    wait_until(lambda: server.get(f"/static/{NAME}/update.gz").status_code == 200)
    wait_until(
        lambda: server.call("/is_staged", archive_url=build_url, artifacts="full_payload") == "True"
    )
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "False"
    assert states(server)["stateful"] == "waiting"
    assert server.get("/latestbuild", target=TARGET).status_code == 404
    assert server.session.delete(f"{server.url}/api/v1/builds/{NAME}").status_code == 409
    look_again(archive)
    assert not answer.done()

    upload(archive, *FOREGROUND, BACKGROUND)
    assert text_of(answer) == (200, "Success")
    for artifact in ("stateful", "test_suites"):
        assert server.call("/is_staged", archive_url=build_url, artifacts=artifact) == "True"


def test_the_background_that_is_not_there_holds_up_nobody_but_who_asks_for_the_status(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, *FOREGROUND)
    assert server.call("/download", archive_url=build_url, wait=LONG) == "Success"
    status = ask(pool, server, "/wait_for_status", archive_url=build_url)
    look_again(archive)
    assert states(server)["autotest"] == "waiting"
    assert not status.done()

    # Who needs just that does not wait for the others.
    upload(archive, *FOREGROUND, BACKGROUND)
    assert server.call("/stage", archive_url=build_url, artifacts="autotest") == "Success"
    assert not status.done()
    assert server.stop() == 0
    assert text_of(status)[0] == 503


def test_what_never_comes_is_absent_if_it_may_be(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    upload(archive, FULL_PAYLOAD)
    assert server.call("/download", archive_url=build_url, wait=0.3) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "False"
    assert server.call("/latestbuild", target=TARGET) == BUILD
    assert states(server) == {"full_payload": "staged"}


def test_what_never_comes_and_is_required_is_404_which_says_how_long_was_waited(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    upload(archive, "stateful.tgz", "test_suites.tar.bz2")
    begun_at = time.monotonic()
    failure = server.get("/download", archive_url=build_url, wait=0.3)
    assert time.monotonic() - begun_at < 10
    assert failure.status_code == 404
    assert "full_payload" in failure.text and "waited 0." in failure.text
    assert "stateful" not in failure.text

    # What did come is there, but the build is not whole.
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "True"
    asked = server.get("/wait_for_status", archive_url=build_url)
    assert (asked.status_code, asked.text) == (404, failure.text)
    assert server.get("/latestbuild", target=TARGET).status_code == 404

    upload(archive, *FOREGROUND)
    assert server.call("/download", archive_url=build_url) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/latestbuild", target=TARGET) == BUILD


def test_a_required_artifact_is_staged_when_it_comes_though_another_never_does(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, "stateful.tgz")
    answer = ask(pool, server, "/download", archive_url=build_url, wait=3)
    look_again(archive)
    upload(archive, "stateful.tgz", FULL_PAYLOAD)
    assert text_of(answer) == (200, "Success")
    assert server.call("/list_image_dir", archive_url=build_url) == "stateful.tgz\nupdate.gz"


def test_files_that_never_come_are_named_and_forgotten(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    upload(archive, *FOREGROUND)
    server.call("/download", archive_url=build_url)
    server.call("/wait_for_status", archive_url=build_url)
    failure = server.get("/stage", archive_url=build_url, files="typo,*.nothing", wait=0.3)
    assert failure.status_code == 404
    assert "typo" in failure.text and "*.nothing" in failure.text and "waited 0." in failure.text
    asked = server.get("/is_staged", archive_url=build_url, files="typo")
    assert (asked.status_code, asked.text) == (404, failure.text)
    # It was nobody's but theirs who asked for it.
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/latestbuild", target=TARGET) == BUILD


def test_a_build_of_which_nothing_that_was_asked_for_ever_came_leaves_nothing(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    upload(archive, *FOREGROUND)
    query = {"archive_url": build_url, "files": "typo"}
    failure = server.get("/stage", **query, wait=0.3)
    assert failure.status_code == 404
    assert server.get("/api/v1/builds").json() == {"builds": []}
    assert server.get("/wait_for_status", archive_url=build_url).text == failure.text
    own = server.static_directory / ".devserver"
    for directory in (server.static_directory, own / "builds"):
        assert not (directory / TARGET).exists()
    assert not list((own / "under_way").iterdir())
    # Somebody may still want what there is.
    assert server.call("/stage", archive_url=build_url, artifacts="stateful") == "Success"
    assert states(server) == {"stateful": "staged"}


def test_a_build_that_is_not_there_at_all_is_waited_for(
    server: RunningServer, archive_directory: Path, pool: ThreadPoolExecutor
) -> None:
    url = f"file://{archive_directory}/{TARGET}/R99-1.0.0"
    answer = ask(pool, server, "/download", archive_url=url, wait=LONG)
    path = f"/api/v1/builds/{TARGET}/R99-1.0.0"
    wait_until(lambda: server.get(path).status_code == 200)
    described = server.get(path).json()
    assert (described["state"], described["archive_url"]) == ("staging", url)
    assert {artifact["state"] for artifact in described.get("artifacts", [])} == {"waiting"}
    assert server.call("/is_staged", archive_url=url, artifacts="full_payload") == "False"
    assert not answer.done()

    upload_as_a_whole(archive_directory, "R99-1.0.0")
    assert text_of(answer) == (200, "Success")
    assert server.call("/wait_for_status", archive_url=url) == "Success"


def upload_as_a_whole(archive_directory: Path, build: str) -> None:
    aside = archive_directory / "aside"
    shutil.copytree(archive_directory / NAME, aside)
    aside.rename(archive_directory / TARGET / build)


def test_a_build_that_never_comes_is_404_and_leaves_nothing(
    server: RunningServer, archive_directory: Path
) -> None:
    url = f"file://{archive_directory}/{TARGET}/R99-1.0.0"
    for call in ("/download?wait=0.3", "/stage?wait=0.3&artifacts=stateful"):
        failure = server.get(call, archive_url=url)
        assert failure.status_code == 404
        assert "no such build" in failure.text and "waited 0." in failure.text
    assert server.get("/api/v1/builds").json() == {"builds": []}
    assert not (server.static_directory / TARGET).exists()
    assert not list((server.static_directory / ".devserver" / "under_way").iterdir())


def test_what_is_written_but_not_named_in_uploaded_is_not_there_yet(
    server: RunningServer, archive_directory: Path, pool: ThreadPoolExecutor
) -> None:
    build, url = archive_directory / NAME, f"file://{archive_directory}/{NAME}"
    whole = (build / "stateful.tgz").read_bytes()
    (build / "SHA256SUMS").unlink()
    (build / "stateful.tgz").write_bytes(whole[:1000])
    (build / "UPLOADED").write_text(f"{FULL_PAYLOAD}\nnot there\n")
    answer = ask(pool, server, "/stage", archive_url=url, artifacts="stateful", wait=LONG)
    also = ask(pool, server, "/stage", archive_url=url, files="not there", wait=LONG)
    assert server.call("/stage", archive_url=url, artifacts="full_payload", wait=LONG) == "Success"
    assert states(server)["stateful"] == "waiting"
    assert not answer.done() and not also.done()

    (build / "stateful.tgz").write_bytes(whole)
    (build / "not there").write_bytes(b"there")
    with (build / "UPLOADED").open("a") as file:
        file.write("stateful.tgz\n")
    assert text_of(answer) == (200, "Success")
    assert text_of(also) == (200, "Success")
    assert server.file(f"{NAME}/stateful.tgz") == whole
    assert server.file(f"{NAME}/not there") == b"there"


def test_in_the_end_the_listing_decides(server: RunningServer, archive_directory: Path) -> None:
    url = f"file://{archive_directory}/{NAME}"
    (archive_directory / NAME / "UPLOADED").write_text("nothing of interest\n")
    begun_at = time.monotonic()
    assert server.call("/stage", archive_url=url, artifacts="stateful", wait=0.5) == "Success"
    assert time.monotonic() - begun_at >= 0.5
    # Without waiting, it does at once.
    assert server.call("/stage", archive_url=url, artifacts="full_payload") == "Success"


def test_google_storage_is_waited_for_by_its_uploaded_object(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    with emulated_google_storage() as client:
        bucket = client.create_bucket("images")

        def put(name: str, data: bytes) -> None:
            bucket.blob(f"{NAME}/{name}").upload_from_string(data)

        put("a_full_b.bin", b"half")
        put("UPLOADED", b"another.txt")
        server = serve()
        url = f"gs://images/{NAME}"
        answer = ask(pool, server, "/download", archive_url=url, wait=LONG)
        wait_until(lambda: server.get(f"/api/v1/builds/{NAME}").status_code == 200)
        wait_until(lambda: states(server).get("full_payload") == "waiting")
        assert not answer.done()
        put("a_full_b.bin", b"half and half")
        put("stateful.tgz", b"stateful")
        put("test_suites.tar", bytes(10240))
        put("UPLOADED", b"another.txt\na_full_b.bin\nstateful.tgz\ntest_suites.tar\n")
        assert text_of(answer) == (200, "Success")
        assert server.file(f"{NAME}/update.gz") == b"half and half"
        server.stop()


def test_what_one_call_demands_is_not_held_against_another(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, "test_suites.tar.bz2", "control_files.tar")
    go_on = threading.Event()
    archive.misbehave(UPLOADED, Fault(hold=go_on), times=1)
    greedy = ask(
        pool, server, "/stage", archive_url=build_url, artifacts="full_payload,test_suites"
    )
    wait_until(lambda: looks(archive) > 0)
    modest = ask(pool, server, "/stage", archive_url=build_url, artifacts="test_suites")
    wait_until(lambda: clients(server) >= 2)
    go_on.set()
    status, text = text_of(greedy)
    assert (status, "full_payload" in text) == (404, True)
    assert text_of(modest) == (200, "Success")


def test_what_comes_along_does_not_wait_for_what_another_call_lacks(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, "test_suites.tar.bz2", "control_files.tar")
    download = ask(pool, server, "/download", archive_url=build_url, wait=LONG)
    wait_until(lambda: states(server).get("full_payload") == "waiting")
    assert server.call("/stage", archive_url=build_url, artifacts="test_suites") == "Success"
    wait_until(lambda: states(server).get("control_files") == "staged")
    assert not download.done()
    upload(archive, *FOREGROUND, "control_files.tar")
    assert text_of(download) == (200, "Success")


def test_who_joins_a_longer_wait_is_answered_in_their_own_time(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, FULL_PAYLOAD, "stateful.tgz")
    query = {"archive_url": build_url, "artifacts": "autotest"}
    patient = ask(pool, server, "/stage", **query, wait=LONG)
    wait_until(lambda: states(server).get("autotest") == "waiting")
    for more in ({}, {"wait": 0.1}):
        answer = server.get("/stage", **query, **more)
        assert (answer.status_code, "autotest" in answer.text) == (404, True)
    # Nor does who can do without it wait.
    assert server.call("/download", archive_url=build_url) == "Success"
    assert not patient.done()
    upload(archive, FULL_PAYLOAD, "stateful.tgz", BACKGROUND)
    assert text_of(patient) == (200, "Success")


def test_the_longest_wait_counts_for_all_who_waited_before(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, "stateful.tgz")
    query = {"archive_url": build_url, "artifacts": "autotest"}
    answers = [ask(pool, server, "/stage", **query, wait=2)]
    look_again(archive, 1)
    answers.append(ask(pool, server, "/stage", **query, wait=LONG))
    answers.append(ask(pool, server, "/wait_for_status", archive_url=build_url))
    # The pauses grow: by now, the first wait would be over.
    look_again(archive, 4)
    assert not any(answer.done() for answer in answers)
    upload(archive, "stateful.tgz", BACKGROUND)
    assert {text_of(answer) for answer in answers} == {(200, "Success")}


def test_a_pattern_of_several_files_is_not_there_with_the_first_of_them(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, "stateful.tgz")
    go_on = threading.Event()
    archive.misbehave(UPLOADED, Fault(hold=go_on), times=1)
    answer = ask(pool, server, "/stage", archive_url=build_url, files="*.tgz", wait=LONG)
    wait_until(lambda: looks(archive) > 0)
    upload(archive, "stateful.tgz", "debug.tgz")
    go_on.set()
    assert text_of(answer) == (200, "Success")
    listed = server.call("/list_image_dir", archive_url=build_url)
    assert listed.splitlines() == ["debug.tgz", "stateful.tgz"]


def test_who_must_have_what_others_can_do_without_is_told_that_it_is_missing(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, FULL_PAYLOAD)
    download = ask(pool, server, "/download", archive_url=build_url, wait=2)
    wait_until(lambda: looks(archive) > 0 and states(server).get("stateful") == "waiting")
    stage = ask(pool, server, "/stage", archive_url=build_url, artifacts="stateful")
    assert text_of(download) == (200, "Success")
    status, text = text_of(stage)
    assert (status, "stateful" in text) == (404, True)


def test_what_was_absent_is_looked_for_again_by_who_waits(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, FULL_PAYLOAD)
    server.call("/download", archive_url=build_url)
    server.call("/wait_for_status", archive_url=build_url)
    looks_before = looks(archive)
    assert server.call("/download", archive_url=build_url) == "Success"
    assert looks(archive) == looks_before

    answer = ask(pool, server, "/download", archive_url=build_url, wait=LONG)
    look_again(archive)
    assert states(server)["stateful"] == "waiting"
    upload(archive, *FOREGROUND)
    assert text_of(answer) == (200, "Success")
    assert server.call("/is_staged", archive_url=build_url, artifacts="stateful") == "True"


def test_a_build_that_the_archive_has_given_up_stays_as_staged(
    server: RunningServer, archive: ArchiveServer, archive_directory: Path, build_url: str
) -> None:
    upload(archive, FULL_PAYLOAD)
    server.call("/download", archive_url=build_url)
    server.call("/wait_for_status", archive_url=build_url)
    archive.behave()
    shutil.rmtree(archive_directory / NAME)
    assert server.call("/download", archive_url=build_url, wait=0.3) == "Success"
    archive.down()
    assert server.call("/download", archive_url=build_url, wait=0.3) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"
    assert server.call("/latestbuild", target=TARGET) == BUILD


def test_a_complete_build_is_not_looked_at(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    query = {"archive_url": build_url, "artifacts": "full_payload,stateful", "wait": LONG}
    assert server.call("/stage", **query) == "Success"
    requests_before = len(archive.requests)
    assert server.call("/stage", **query) == "Success"
    assert len(archive.requests) == requests_before


def test_the_archive_is_asked_once_however_many_wait(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, "debug.tgz")
    names = ("full_payload", "stateful", "test_suites", "autotest")
    answers = [
        ask(pool, server, "/stage", archive_url=build_url, artifacts=names[i % 4], wait=LONG)
        for i in range(20)
    ]
    wait_until(lambda: states(server).keys() >= set(names))
    looks_before, begun_at = looks(archive), time.monotonic()
    look_again(archive, 3)
    # Pauses of half a second at least, jitter excepted: not one look for each of the four.
    assert looks(archive) - looks_before <= 2 + (time.monotonic() - begun_at) / 0.35
    upload(archive, *FOREGROUND, BACKGROUND)
    assert {text_of(answer) for answer in answers} == {(200, "Success")}


def test_an_archive_that_fails_in_passing_is_asked_on(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    archive.misbehave(UPLOADED, Fault(status=503), times=3)
    upload(archive, *FOREGROUND)
    answer = ask(pool, server, "/download", archive_url=build_url, wait=LONG)
    assert text_of(answer) == (200, "Success")
    assert looks(archive) >= 4


def test_an_archive_that_goes_down_while_it_is_waited_for_may_come_back(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, "stateful.tgz")
    answer = ask(pool, server, "/stage", archive_url=build_url, files=FULL_PAYLOAD, wait=LONG)
    look_again(archive, 1)
    archive.down()
    assert server.get("/stage", archive_url=f"{build_url}x", files="x").status_code == 502
    assert not answer.done()
    upload(archive, FULL_PAYLOAD)
    archive.up()
    assert text_of(answer) == (200, "Success")


def test_an_archive_that_denies_ends_the_waiting_at_once(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, "stateful.tgz")
    answer = ask(pool, server, "/stage", archive_url=build_url, files=FULL_PAYLOAD, wait=LONG)
    look_again(archive, 1)
    archive.misbehave(f"/{NAME}/*", Fault(status=403))
    status, text = text_of(answer)
    assert (status, "403" in text) == (502, True)
    assert server.get("/wait_for_status", archive_url=build_url).status_code == 502


def test_an_archive_that_is_down_to_the_end_is_502(
    server: RunningServer, archive: ArchiveServer, build_url: str
) -> None:
    archive.down()
    failure = server.get("/download", archive_url=build_url, wait=0.3)
    assert failure.status_code == 502


def test_300_builds_that_wait_leave_the_server_staging_others(
    server: RunningServer, archive_directory: Path, build_url: str
) -> None:
    with ThreadPoolExecutor(20) as pool:
        asked = pool.map(
            lambda number: server.call(
                f"/stage?async=True&wait={LONG}&artifacts=full_payload",
                archive_url=f"file://{archive_directory}/many/R1-{number}.0.0",
            ),
            range(300),
        )
        assert set(asked) == {"Success"}
    wait_until(lambda: server.get("/check_health").json()["staging_thread_count"] == 0)
    assert server.call("/download", archive_url=build_url) == "Success"
    assert server.call("/wait_for_status", archive_url=build_url) == "Success"

    # One of them comes.
    comes = archive_directory / "many" / "R1-7.0.0"
    shutil.copytree(archive_directory / NAME, comes)
    assert server.call("/wait_for_status", archive_url=f"file://{comes}") == "Success"
    begun_at = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun_at < 20


def test_an_archive_that_hangs_while_many_wait_for_it_leaves_the_server_staging_others(
    server: RunningServer, archive: ArchiveServer, archive_directory: Path
) -> None:
    archive.misbehave("/many/*", Fault(hold=threading.Event(), reset=True))
    # More than there are threads for staging.
    for number in range(150):
        url = f"{archive.url}/many/R1-{number}.0.0"
        path = f"/stage?async=True&wait={LONG}&artifacts=full_payload"
        assert server.call(path, archive_url=url) == "Success"
    url = f"file://{archive_directory}/{NAME}"
    assert server.call("/download", archive_url=url, wait=0.1) == "Success"
    assert server.get("/check_health").json()["staging_thread_count"] < 20
    archive.behave()


def test_what_was_demanded_before_a_crash_is_missed_after_it(
    serve: Serve,
    server: RunningServer,
    archive: ArchiveServer,
    pool: ThreadPoolExecutor,
    build_url: str,
) -> None:
    upload(archive, *FOREGROUND)
    answer = ask(pool, server, "/stage", archive_url=build_url, artifacts="symbols", wait=LONG)
    look_again(archive, 2)
    server.kill()
    assert answer.exception(LONG) is not None
    again = serve("--allow-archive", archive.url)
    status = again.get("/wait_for_status", archive_url=build_url)
    assert (status.status_code, "symbols" in status.text) == (404, True)


def test_the_end_of_the_server_ends_waits_at_once_and_loses_nothing(
    serve: Serve,
    server: RunningServer,
    archive: ArchiveServer,
    pool: ThreadPoolExecutor,
    build_url: str,
) -> None:
    upload(archive, FULL_PAYLOAD)
    answer = ask(pool, server, "/download", archive_url=build_url, wait=LONG)
    wait_until(lambda: states(server).get("full_payload") == "staged")
    begun_at = time.monotonic()
    stopping = pool.submit(server.stop)
    assert answer.result(LONG).status_code == 503
    assert stopping.result() == 0
    # Though what is under way would get 30 seconds.
    assert time.monotonic() - begun_at < 15

    upload(archive, *FOREGROUND)
    again = serve("--allow-archive", archive.url)
    assert again.call("/is_staged", archive_url=build_url, artifacts="stateful") == "False"
    assert again.call("/wait_for_status", archive_url=build_url) == "Success"
    assert again.call("/is_staged", archive_url=build_url, artifacts="stateful") == "True"


def test_a_look_that_hangs_does_not_hold_up_the_end(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    archive.misbehave(UPLOADED, Fault(stall_after=0))
    upload(archive, FULL_PAYLOAD)
    answer = ask(pool, server, "/download", archive_url=build_url, wait=LONG)
    wait_until(lambda: looks(archive) > 0)
    begun_at = time.monotonic()
    stopping = pool.submit(server.stop)
    assert answer.result(LONG).status_code == 503
    assert stopping.result() == 0
    assert time.monotonic() - begun_at < 15


def test_a_wait_is_bounded_by_the_servers_own(
    serve: Serve, archive: ArchiveServer, build_url: str
) -> None:
    server = serve("--allow-archive", archive.url, "--wait-timeout", "1")
    upload(archive, "stateful.tgz")
    failure = server.get("/download", archive_url=build_url, wait=100_000)
    assert failure.status_code == 404
    assert "waited 1." in failure.text


def test_a_wait_that_is_no_number_of_seconds_is_refused(
    server: RunningServer, build_url: str
) -> None:
    for wrong in ("-1", "soon", "nan", "inf"):
        for call in ("/download", "/stage?artifacts=stateful"):
            failure = server.get(call, archive_url=build_url, wait=wrong)
            assert (failure.status_code, "wait" in failure.text) == (400, True)
    for wrong_json in ("-1", '"soon"', "true", "NaN", "Infinity", "[]", "1e999", "null"):
        refused = server.session.post(
            f"{server.url}/api/v1/builds/{NAME}",
            data=f'{{"archive_url": "{build_url}", "wait": {wrong_json}}}',
            headers={"Content-Type": "application/json"},
        )
        assert refused.status_code == 400, wrong_json


def test_the_command_waits_as_well(
    server: RunningServer, archive: ArchiveServer, pool: ThreadPoolExecutor, build_url: str
) -> None:
    upload(archive, FULL_PAYLOAD)
    command = [sys.executable, str(REPOSITORY / "devserver.py"), "stage", "--server", server.url]
    waiting = pool.submit(
        subprocess.run,
        [*command, "--artifacts", "stateful", "--wait", str(LONG), "--json", build_url],
        capture_output=True,
        timeout=LONG,
        check=False,
    )
    wait_until(lambda: looks(archive) > 0 and states(server).get("stateful") == "waiting")
    upload(archive, FULL_PAYLOAD, "stateful.tgz")
    ended = waiting.result(LONG)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["artifacts"][0]["state"] == "staged"
