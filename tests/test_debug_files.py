"""Debug files: what uploaded ones are, and listing them."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from assemble_client import CODE_ID, DEBUG_ID, AssembleClient, crash_lab
from conftest import Serve
from made_debug_files import ARM64, X86_64, breakpad, fat_macho, macho, pe
from polling import unread_bytes, wait_until
from running_server import RunningServer
from upload_client import chunk, make_token, sha1_of

from artifacts.blobs.assembly import Refused
from artifacts.errors import BadRequest, Busy
from artifacts.symbols.debug_ids import parse_debug_id
from artifacts.symbols.inspection import InspectionFailed, Inspector
from artifacts.timers import Timers
from artifacts.tokens import PUBLISH, READ

IDENTITY = uuid.UUID(DEBUG_ID)
FEATURES = {
    "crash_lab": ["symtab", "debug", "unwind"],
    "crash_lab.debug": ["symtab", "debug"],
    "crash_lab.stripped": ["symtab", "unwind"],
    "crash_lab.sym": ["symtab", "debug", "unwind"],
}


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("debug-files"))
    yield server
    server.stop()


@pytest.fixture
def client(shared_server: RunningServer) -> AssembleClient:
    """A client with a project of its own."""
    client = AssembleClient(shared_server)
    client.project = f"project-{uuid.uuid4().hex}"
    return client


@pytest.fixture
def timers() -> Iterator[Timers]:
    timers = Timers("tested-timers", 2, 2)
    yield timers
    assert timers.close(30)


@pytest.fixture
def inspector(timers: Timers) -> Iterator[Inspector]:
    """One that gives a file a second."""
    inspector = Inspector(timers, seconds_a_file=1)
    yield inspector
    inspector.close()
    assert inspecting(psutil.Process()) == []


@pytest.fixture
def elf(tmp_path: Path) -> Path:
    path = tmp_path / "elf"
    path.write_bytes(crash_lab("crash_lab"))
    return path


def inspecting(process: psutil.Process) -> list[psutil.Process]:
    """The processes of a server in which debug files are opened."""
    found = []
    for child in process.children():
        # Others of a test run may be ending just now.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "inspect" in child.cmdline():
                found.append(child)
    return found


def server_process(server: RunningServer) -> psutil.Process:
    return psutil.Process(server.process.pid)


def test_an_elf_file_is_described_as_the_protocol_says(client: AssembleClient) -> None:
    content = crash_lab("crash_lab")
    dif = client.upload(content, "crash_lab")
    created = datetime.fromisoformat(dif.pop("dateCreated"))
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=5)
    assert isinstance(dif.pop("id"), str)
    assert dif == {
        "uuid": DEBUG_ID,
        "debugId": DEBUG_ID,
        "codeId": CODE_ID,
        "objectName": "crash_lab",
        "cpuName": "x86_64",
        "symbolType": "elf",
        "sha1": sha1_of(content),
        "size": len(content),
        "headers": {"Content-Type": "application/x-elf-binary"},
        "data": {"type": "lib", "features": ["symtab", "debug", "unwind"]},
    }


def test_files_of_one_debug_id_are_kept_side_by_side(client: AssembleClient) -> None:
    for name in FEATURES:
        client.upload(crash_lab(name), name)
    listed = client.list(debug_id=DEBUG_ID)
    assert [dif["objectName"] for dif in listed] == list(reversed(FEATURES))
    assert {dif["objectName"]: dif["data"]["features"] for dif in listed} == FEATURES
    assert {dif["debugId"] for dif in listed} == {DEBUG_ID}
    kinds = {dif["objectName"]: (dif["symbolType"], dif["data"]["type"]) for dif in listed}
    assert kinds["crash_lab.debug"] == ("elf", "dbg")
    assert kinds["crash_lab.sym"] == ("breakpad", "dbg")


def test_a_fat_file_has_a_row_for_each_object(client: AssembleClient) -> None:
    other = uuid.uuid4()
    content = fat_macho([(X86_64, macho(IDENTITY)), (ARM64, macho(other, ARM64))])
    assert client.upload(content, "fat")["debugId"] == DEBUG_ID
    listed = client.list(query="fat")
    assert [(dif["debugId"], dif["cpuName"]) for dif in listed] == [
        (DEBUG_ID, "x86_64"),
        (str(other), "arm64"),
    ]
    assert len({dif["id"] for dif in listed}) == 2
    assert {dif["sha1"] for dif in listed} == {sha1_of(content)}
    assert [dif["cpuName"] for dif in client.list(debug_id=str(other))] == ["arm64"]


def test_a_file_of_windows_has_its_age_in_its_debug_id(client: AssembleClient) -> None:
    dif = client.upload(pe(IDENTITY, 0x2A), "crash_lab.dll")
    assert dif["debugId"] == f"{DEBUG_ID}-2a" and dif["uuid"] == DEBUG_ID
    assert dif["codeId"] == "5ab380773000" and dif["symbolType"] == "pe"
    for spelled in (f"{DEBUG_ID}-2a", f"{DEBUG_ID}-2A".upper(), f"{IDENTITY.hex}2A"):
        assert [dif["sha1"] for dif in client.list(debug_id=spelled)] == [dif["sha1"]]
    assert client.list(debug_id=DEBUG_ID) == []


def test_a_code_id_without_end_is_left_out(client: AssembleClient) -> None:
    lines = f"INFO CODE_ID {'AB' * 5000} thing\n"
    dif = client.upload(breakpad(f"{IDENTITY.hex}0", lines=lines))
    assert (dif["debugId"], dif["codeId"]) == (DEBUG_ID, None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no debug file\n" * 1000,
        crash_lab("crash_lab")[:5000],
        crash_lab("crash_lab")[:20],
        fat_macho([(X86_64, macho(IDENTITY))] * 65),
        fat_macho([(X86_64, macho(IDENTITY)), (ARM64, b"rubbish" * 100)]),
        breakpad("0" * 33),
    ],
    ids=["empty", "text", "cut", "head", "too-fat", "half-fat", "no-id"],
)
def test_what_is_no_debug_file_is_an_error_that_says_why(
    client: AssembleClient, content: bytes
) -> None:
    answer = client.settle(client.difs, content)
    assert (answer["state"], answer["missingChunks"]) == ("error", [])
    assert answer["detail"].startswith("not a debug file: ") and "\n" not in answer["detail"]
    assert "dif" not in answer
    assert client.list() == []


def test_projects_and_organizations_see_their_own(client: AssembleClient) -> None:
    client.upload(crash_lab("crash_lab"), "ours")
    other_project = AssembleClient(client.server)
    # Projects are named as clients like, percent-encoded in paths.
    other_project.project = f"{client.project} + \N{LATIN SMALL LETTER U WITH DIAERESIS}"
    assert other_project.list() == []
    assert other_project.upload(crash_lab("crash_lab"), "theirs")["objectName"] == "theirs"
    # Of the same name, in another organization.
    others = AssembleClient(client.server, "others")
    others.project = client.project
    assert others.list() == []
    content = crash_lab("crash_lab")
    offer = {sha1_of(content): {"name": "x", "chunks": [sha1_of(content)]}}
    assert others.ask(others.difs, offer)[sha1_of(content)] == {
        "state": "not_found",
        "missingChunks": [sha1_of(content)],
    }
    assert others.upload(content, "of others")["objectName"] == "of others"
    assert [dif["objectName"] for dif in others.list()] == ["of others"]
    assert [dif["objectName"] for dif in client.list()] == ["ours"]


def test_words_are_looked_for_in_all_that_is_known(client: AssembleClient) -> None:
    for name in FEATURES:
        client.upload(crash_lab(name), name)

    def names(query: str) -> set[str]:
        return {dif["objectName"] for dif in client.list(query=query)}

    assert names("BREAKPAD") == {"crash_lab.sym"}
    assert names("elf dbg") == {"crash_lab.debug"}
    assert names("crash unwind") == set(FEATURES) - {"crash_lab.debug"}
    assert names("8fd7dd32-7311") == names("x86_64") == set(FEATURES)
    assert names(sha1_of(crash_lab("crash_lab"))[:12]) == {"crash_lab"}
    assert names(CODE_ID[:10].upper()) == set(FEATURES)
    assert names("crash%lab") == names("crash_lab arm64") == names("'; --") == set()


def test_the_listing_says_what_is_wrong_with_its_arguments(client: AssembleClient) -> None:
    path = f"/api/0/projects/lab/{client.project}/files/dsyms/"
    for query in ("debug_id=x", "debug_id=a&debug_id=b", "query=%00", "query=a%01b"):
        answer = client.get(f"{path}?{query}")
        assert (answer.status_code, list(answer.json())) == (400, ["detail"]), query


def test_those_who_may_read_list_and_those_who_publish_do_too(client: AssembleClient) -> None:
    client.upload(crash_lab("crash_lab"))
    for scope, status in [(READ, 403), (PUBLISH, 200)]:
        client.token = make_token(client.server, scopes=[scope])
        assert len(client.list()) == 1
        assert client.post(client.difs, b"{}").status_code == status
    client.token = "0" * 64
    assert client.post(client.difs, b"{}").status_code == 401
    assert client.get(f"/api/0/projects/lab/{client.project}/files/dsyms/").status_code == 401


def test_a_file_is_there_after_a_restart(serve: Serve) -> None:
    client = AssembleClient(serve())
    dif = client.upload(crash_lab("crash_lab"))
    client.server.kill()
    again = AssembleClient(serve())
    content = crash_lab("crash_lab")
    offer = {sha1_of(content): {"name": "x", "chunks": [sha1_of(content)]}}
    assert again.ask(again.difs, offer)[sha1_of(content)]["dif"] == dif


def test_the_process_that_opens_files_may_be_killed_and_ends_with_the_server(serve: Serve) -> None:
    client = AssembleClient(serve())
    client.upload(crash_lab("crash_lab"))
    (process,) = inspecting(server_process(client.server))
    process.kill()
    wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
    assert client.upload(crash_lab("crash_lab.debug"))["data"]["type"] == "dbg"
    (other,) = inspecting(server_process(client.server))
    assert other.pid != process.pid
    client.server.kill()
    wait_until(lambda: not other.is_running())


def test_a_file_whose_process_ends_is_an_error_told_once_and_can_be_tried_again(
    client: AssembleClient,
) -> None:
    client.upload(crash_lab("crash_lab"))
    content = crash_lab("crash_lab.sym")
    assert client.send(chunk(content)).status_code == 200
    (process,) = inspecting(server_process(client.server))
    process.suspend()
    # Until then it may still read.
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    offer = {sha1_of(content): {"name": "thing", "chunks": [sha1_of(content)]}}
    assert client.ask(client.difs, offer)[sha1_of(content)]["state"] == "assembling"
    wait_until(lambda: unread_bytes(process) > 0)
    process.kill()
    answer = client.settle(client.difs, content)
    assert answer["state"] == "error" and "ended with status -9" in answer["detail"]
    assert client.upload(content)["symbolType"] == "breakpad"


def test_the_process_that_opens_files_is_not_given_the_servers_secrets(
    inspector: Inspector, elf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    monkeypatch.setenv("DEVSERVER_DATABASE_URL", "postgresql://devserver:geheim@/lab")
    assert inspector.inspect(elf)
    [process] = inspecting(psutil.Process())
    assert "PATH" in process.environ()
    assert "geheim" not in str(process.environ())


def test_a_file_that_never_opens_is_an_error_and_the_next_one_is_opened(
    inspector: Inspector, elf: Path, tmp_path: Path
) -> None:
    # To open a pipe is to wait for whoever writes to it.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InspectionFailed, match="took over 1 s"):
        inspector.inspect(tmp_path / "pipe")
    assert [found.debug_id for found in inspector.inspect(elf)] == [DEBUG_ID]
    with pytest.raises(Refused):
        inspector.inspect(tmp_path / "not-there")


def test_files_are_opened_by_one_process_however_many_want_it(
    inspector: Inspector, elf: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(inspector.inspect, [elf] * 40))
    assert {objects[0].debug_id for objects in found} == {DEBUG_ID}
    assert len(inspecting(psutil.Process())) == 1


def test_the_process_ends_when_it_is_idle_and_another_one_begins(timers: Timers, elf: Path) -> None:
    inspector = Inspector(timers, idle_seconds=0.05)
    for _ in range(2):
        inspector.inspect(elf)
        wait_until(lambda: inspecting(psutil.Process()) == [])
    inspector.close()


def test_an_end_of_the_server_does_not_wait_for_a_file_that_never_opens(
    timers: Timers, elf: Path, tmp_path: Path
) -> None:
    inspector = Inspector(timers)
    inspector.inspect(elf)
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        inspected = pool.submit(inspector.inspect, tmp_path / "pipe")
        inspector.close()
        with pytest.raises(Busy):
            inspected.result(30)
    assert inspecting(psutil.Process()) == []


@pytest.mark.parametrize(
    ("text", "debug_id"),
    [
        (DEBUG_ID, DEBUG_ID),
        (DEBUG_ID.upper(), DEBUG_ID),
        (f" {IDENTITY.hex}0 ", DEBUG_ID),
        (f"{IDENTITY.hex.upper()}0A", f"{DEBUG_ID}-a"),
        (f"{DEBUG_ID}-10", f"{DEBUG_ID}-10"),
        (f"{DEBUG_ID}-0", DEBUG_ID),
    ],
)
def test_debug_ids_have_one_spelling(text: str, debug_id: str) -> None:
    assert parse_debug_id(text) == debug_id


@pytest.mark.parametrize("text", ["", "x", IDENTITY.hex[:-1], f"{DEBUG_ID}-", f"{DEBUG_ID}-g"])
def test_what_is_no_debug_id_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_debug_id(text)
