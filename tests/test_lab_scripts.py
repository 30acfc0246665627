"""Lab scripts: the sequences of calls that lab clients have used, as those clients make them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Fault
from conftest import Serve
from lab_client import WAYS, LabClient, query
from polling import wait_until
from real_servers import emulated_google_storage
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET

NAME = f"{TARGET}/{BUILD}"
PAYLOAD = f"/{NAME}/{FULL_PAYLOAD}"
BUCKET = "chromeos-image-archive"
ARTIFACTS = "full_payload,stateful"
# What clients send for builds of another kind, or to a server of another time.
EXTRAS = {"os_type": "cros", "branch": "", "target": TARGET, "build_id": BUILD}

# Where what is asked matters more than how.
two_ways = pytest.mark.parametrize("any_lab", ["urllib", "1.1 kept"], indirect=True)


@pytest.fixture
def server(serve: Serve, archive: ArchiveServer) -> RunningServer:
    return serve("--allow-archive", archive.url, "--tries", "2")


@pytest.fixture
def lab(server: RunningServer) -> LabClient:
    return LabClient(server)


@pytest.fixture(params=WAYS)
def any_lab(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[LabClient]:
    """A client of the server, of each kind in turn."""
    client = LabClient(server, request.param)
    yield client
    client.close()


@pytest.fixture(scope="module")
def google_archive(sample_archive: Path) -> Iterator[str]:
    """The URL of an archive in Google Storage, emulated, that has the sample build."""
    with emulated_google_storage() as client:
        bucket = client.create_bucket(BUCKET)
        for path in (sample_archive / NAME).iterdir():
            bucket.blob(f"{NAME}/{path.name}").upload_from_filename(str(path))
        yield f"gs://{BUCKET}"


@pytest.fixture
def google_lab(google_archive: str, serve: Serve) -> LabClient:
    """A client of a server that is as it comes: builds in Google Storage may be staged."""
    return LabClient(serve("--tries", "2"))


def stage_and_poll(lab: LabClient, **arguments: object) -> None:
    """Begin to stage, then ask until all is there, each time with the same arguments."""
    assert lab.call("stage", **{"async": True}, **arguments) == "Success"
    answers: list[str] = []

    def is_staged() -> bool:
        answers.append(lab.call("is_staged", **arguments))
        return answers[-1] == "True"

    wait_until(is_staged)
    assert set(answers) <= {"True", "False"}


def poll_until_refused(lab: LabClient, **arguments: object) -> tuple[int, str]:
    refused: list[tuple[int, str]] = []

    def is_refused() -> bool:
        reply = lab.ask(query("is_staged", **arguments))
        if reply.status != 200:
            refused.append((reply.status, reply.text))
        else:
            assert reply.text == "False"
        return bool(refused)

    wait_until(is_refused)
    return refused[0]


# --- 2012: download, wait, ask for control files


def script_of_2012(lab: LabClient, archive_url: str, source: Path) -> None:
    assert lab.call("download", archive_url=archive_url) == "Success"
    assert lab.ask(f"/static/{NAME}/update.gz").body == (source / FULL_PAYLOAD).read_bytes()
    assert lab.call("wait_for_status", archive_url=archive_url) == "Success"

    paths = lab.call("controlfiles", build=NAME).split("\n")
    assert "client/site_tests/graphics_GLMark/control" in paths
    for path in paths[:3]:
        control = lab.call("controlfiles", build=NAME, control_path=path)
        assert control.startswith("AUTHOR") and 'NAME = "' in control
    assert lab.refusal("controlfiles", build=NAME, control_path="no/control")[0] == 404

    assert lab.call("latestbuild", target=TARGET, milestone="R17") == BUILD
    assert lab.call("latestbuild", target=TARGET, milestone="") == BUILD
    assert lab.refusal("latestbuild", target=TARGET, milestone="R18")[0] == 404
    # Other machines follow with the same build.
    assert lab.call("download", archive_url=f"{archive_url}/") == "Success"
    assert lab.call("wait_for_status", archive_url=archive_url) == "Success"


def test_a_script_of_2012_runs_over_any_connection(
    any_lab: LabClient, archive_directory: Path, build_url: str
) -> None:
    script_of_2012(any_lab, build_url, archive_directory / NAME)


def test_a_script_of_2012_runs_on_google_storage(
    google_lab: LabClient, google_archive: str, sample_archive: Path
) -> None:
    script_of_2012(google_lab, f"{google_archive}/{NAME}", sample_archive / NAME)


def test_a_script_of_2012_runs_on_a_directory(serve: Serve, sample_archive: Path) -> None:
    server = serve("--allow-archive", f"file://{sample_archive}")
    script_of_2012(LabClient(server), f"file://{sample_archive}/{NAME}", sample_archive / NAME)


# --- 2013 to 2019: stage without waiting, and poll


def script_of_2013(lab: LabClient, archive_url: str, source: Path) -> None:
    health = json.loads(lab.call("check_health"))
    assert health["free_disk"] > 0 and health["apache_client_count"] >= 1
    for load in ("cpu_percent", "disk_total_bytes_per_second", "network_total_bytes_per_second"):
        assert health[load] >= 0
    assert isinstance(health["staging_thread_count"], int)

    assert lab.call("is_staged", archive_url=archive_url, artifacts=ARTIFACTS, files="") == "False"
    stage_and_poll(lab, artifacts=ARTIFACTS, files="", archive_url=archive_url)
    assert lab.call("list_image_dir", archive_url=archive_url) == "stateful.tgz\nupdate.gz"
    stage_and_poll(lab, files="debug.tgz,*_full_*", archive_url=archive_url, artifacts="")
    both = "test_suites,autotest"
    stage_and_poll(lab, archive_url=archive_url, artifacts=both, files="", **EXTRAS)

    lines = lab.call("list_image_dir", archive_url=archive_url).splitlines()
    assert {"stateful.tgz", "update.gz", "debug.tgz", FULL_PAYLOAD} < set(lines)
    located = lab.call(
        "locate_file",
        **{"async": False},
        artifacts=both,
        file_name="autoserv",
        archive_url=archive_url,
    )
    assert located == "autotest/server/autoserv" and located in lines

    everything = lab.call("controlfiles", suite_name="", build=NAME).splitlines()
    of_suite = lab.call("controlfiles", suite_name="bvt", build=NAME).splitlines()
    assert set(of_suite) < set(everything)
    controls = json.loads(lab.call("list_suite_controls", suite_name="bvt", build=NAME))
    assert list(controls) == of_suite
    for path in of_suite[:2]:
        assert controls[path] == lab.call("controlfiles", control_path=path, build=NAME)
        assert controls[path] == lab.ask(f"/static/{NAME}/autotest/{path}").text

    install(lab, (source / FULL_PAYLOAD).read_bytes())


def install(lab: LabClient, payload: bytes) -> None:
    """Read the payload as machines do: look, take it whole, or piece by piece."""
    path = f"/static/{NAME}/update.gz"
    head = lab.ask(path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(payload))
    whole = lab.ask(path)
    assert (whole.status, whole.body) == (200, payload)
    middle = len(payload) // 2
    pieces = [
        lab.ask(path, Range=f"bytes=0-{middle - 1}"),
        lab.ask(path, Range=f"bytes={middle}-", **{"If-Range": head.headers["ETag"]}),
    ]
    assert [piece.status for piece in pieces] == [206, 206]
    assert b"".join(piece.body for piece in pieces) == payload
    assert lab.ask(path, Range=f"bytes={len(payload)}-").status == 416
    assert lab.ask(f"/static/{NAME}/nothing").status == 404


def test_a_script_of_2013_runs_over_any_connection(
    any_lab: LabClient, archive_directory: Path, build_url: str
) -> None:
    script_of_2013(any_lab, build_url, archive_directory / NAME)


def test_a_script_of_2013_runs_on_google_storage(
    google_lab: LabClient, google_archive: str, sample_archive: Path
) -> None:
    script_of_2013(google_lab, f"{google_archive}/{NAME}", sample_archive / NAME)


def test_a_script_of_2013_runs_on_a_directory(serve: Serve, sample_archive: Path) -> None:
    server = serve("--allow-archive", f"file://{sample_archive}")
    script_of_2013(LabClient(server), f"file://{sample_archive}/{NAME}", sample_archive / NAME)


def test_staging_is_waited_for_where_a_client_does_not_say_otherwise(
    any_lab: LabClient, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(PAYLOAD, Fault(hold=hold), times=1)
    asked = {"archive_url": build_url, "artifacts": ARTIFACTS, "files": ""}
    with ThreadPoolExecutor(1) as pool:
        stage = pool.submit(any_lab.call, "stage", **asked)
        wait_until(lambda: PAYLOAD in [request.path for request in archive.requests])
        assert not stage.done()
        hold.set()
        assert stage.result() == "Success"
    assert any_lab.call("is_staged", **asked) == "True"


# --- what goes wrong


def test_a_build_that_does_not_exist_is_told_in_words(any_lab: LabClient, build_url: str) -> None:
    gone = build_url.replace(BUILD, "R99-1.0.0")
    asked = {"archive_url": gone, "artifacts": ARTIFACTS, "files": ""}
    assert any_lab.call("stage", **{"async": True}, **asked) == "Success"
    told = poll_until_refused(any_lab, **asked)
    assert told == (404, f"no such build: {gone}")
    assert any_lab.refusal("is_staged", **asked) == told
    assert any_lab.refusal("stage", **asked) == told
    assert any_lab.refusal("download", archive_url=gone) == told
    assert any_lab.refusal("wait_for_status", archive_url=gone) == told
    unknown = f"no such build: {TARGET}/R99-1.0.0"
    assert any_lab.refusal("list_image_dir", archive_url=gone) == (404, unknown)
    assert any_lab.refusal("controlfiles", build=f"{TARGET}/R99-1.0.0") == (404, unknown)


def test_a_build_that_does_not_exist_in_google_storage_is_told_in_words(
    google_lab: LabClient, google_archive: str
) -> None:
    gone = f"{google_archive}/{TARGET}/R99-1.0.0"
    assert google_lab.refusal("download", archive_url=gone) == (404, f"no such build: {gone}")


@two_ways
def test_a_failure_in_the_middle_is_told_to_who_polls_until_somebody_stages_again(
    any_lab: LabClient, archive: ArchiveServer, build_url: str
) -> None:
    archive.misbehave(PAYLOAD, Fault(cut_after=1_000_000), times=1)
    archive.misbehave(PAYLOAD, Fault(status=500, head_too=True))
    asked = {"archive_url": build_url, "artifacts": ARTIFACTS, "files": ""}
    assert any_lab.call("stage", **{"async": True}, **asked) == "Success"
    status, text = poll_until_refused(any_lab, **asked)
    assert status == 502
    assert FULL_PAYLOAD in text and "\n" not in text
    for _ in range(3):
        assert any_lab.refusal("is_staged", **asked) == (status, text)
    assert any_lab.ask(f"/static/{NAME}/update.gz").status == 404

    archive.behave()
    stage_and_poll(any_lab, **asked)
    assert any_lab.ask(f"/static/{NAME}/update.gz", "HEAD").status == 200


def test_an_archive_that_goes_down_and_comes_back_is_told_and_forgotten(
    lab: LabClient, archive: ArchiveServer, build_url: str
) -> None:
    archive.down()
    status, text = lab.refusal("download", archive_url=build_url)
    assert (status, archive.url.removeprefix("http://") in text) == (502, True)
    assert lab.refusal("wait_for_status", archive_url=build_url) == (status, text)
    archive.up()
    assert lab.call("download", archive_url=build_url) == "Success"
    assert lab.call("wait_for_status", archive_url=build_url) == "Success"


@two_ways
@pytest.mark.parametrize("held_path", [f"/{NAME}/", PAYLOAD])
def test_whoever_polls_is_answered_at_once_whatever_the_archive_does(
    held_path: str, any_lab: LabClient, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(held_path, Fault(hold=hold, head_too=True))
    asked = {"archive_url": build_url, "artifacts": ARTIFACTS, "files": ""}
    assert any_lab.call("stage", **{"async": True}, **asked) == "Success"
    wait_until(lambda: held_path in [request.path for request in archive.requests])
    # The client's patience is shorter than the time that the archive holds.
    for _ in range(10):
        assert any_lab.call("is_staged", **asked) == "False"
    hold.set()
    wait_until(lambda: any_lab.call("is_staged", **asked) == "True")


def test_a_client_that_hangs_up_cancels_nothing(
    lab: LabClient, archive: ArchiveServer, build_url: str
) -> None:
    hold = threading.Event()
    archive.misbehave(PAYLOAD, Fault(hold=hold), times=1)
    asked = {"archive_url": build_url, "artifacts": ARTIFACTS, "files": ""}
    for version in ("1.0", "1.1"):
        with lab.connect() as connection:
            request = f"GET {query('stage', **asked)} HTTP/{version}\r\nHost: lab\r\n\r\n"
            connection.sendall(request.encode())
            wait_until(lambda: any(request.path == PAYLOAD for request in archive.requests))
    assert lab.call("is_staged", **asked) == "False"
    hold.set()
    wait_until(lambda: lab.call("is_staged", **asked) == "True")


def test_a_client_that_hangs_up_in_the_middle_of_a_file_harms_nobody(
    lab: LabClient, archive_directory: Path, build_url: str
) -> None:
    assert lab.call("stage", archive_url=build_url, artifacts=ARTIFACTS, files="") == "Success"
    for _ in range(5):
        with lab.connect() as connection:
            connection.sendall(f"GET /static/{NAME}/update.gz HTTP/1.0\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.")
    install(lab, (archive_directory / NAME / FULL_PAYLOAD).read_bytes())
    wait_until(lambda: json.loads(lab.call("check_health"))["apache_client_count"] == 1)
