"""The real sentry-cli, as it is on PyPI: what it uploads, prints, and ends with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from archive_faults import Fault
from archive_proxy import ArchiveProxy
from assemble_client import CRASH_LAB, DEBUG_ID, AssembleClient, crash_lab
from conftest import missing_tool
from made_debug_files import breakpad
from polling import wait_until
from running_server import REPOSITORY, RunningServer
from upload_client import blob_directory, make_token, sha1_of

from artifacts.tokens import PUBLISH, READ

CHUNKS = "/api/0/organizations/lab/chunk-upload/"
END_SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """How the program ended, and all that it printed."""

    status: int
    printed: str


@dataclass
class SentryCli:
    """Runs the program against a server, through a proxy that notes what is sent."""

    program: str
    proxy: ArchiveProxy
    client: AssembleClient
    home: Path

    def run(self, *arguments: str) -> Ended:
        ended = subprocess.run(
            [self.program, "--url", self.proxy.url, "--auth-token", self.client.token, *arguments],
            # Nothing of whoever runs the tests.
            env={"PATH": os.environ["PATH"], "HOME": str(self.home)},
            cwd=self.home,
            check=False,
            capture_output=True,
            text=True,
            timeout=END_SECONDS,
        )
        return Ended(ended.returncode, ended.stdout + ended.stderr)

    def upload(self, *arguments: Path | str) -> Ended:
        """Upload debug files."""
        named = ["--org", "lab", "--project", self.client.project]
        return self.run("debug-files", "upload", *named, *map(str, arguments))

    def chunk_bodies(self) -> list[bytes]:
        """The bodies of all requests that sent chunks."""
        return [r.body for r in self.proxy.requests if r.method == "POST" and r.path == CHUNKS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("sentry-cli"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def token(server: RunningServer) -> str:
    """A token as an operator makes it."""
    command = [sys.executable, str(REPOSITORY / "devserver.py"), "token", "create"]
    options = ["--org", "lab", "--scope", PUBLISH, "--data-dir", str(server.directory / "data")]
    made = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    return made.stdout.strip()


@pytest.fixture
def sentry_cli(server: RunningServer, token: str, tmp_path: Path) -> Iterator[SentryCli]:
    # pip puts it beside Python, which need not be on PATH.
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    program = shutil.which("sentry-cli", path=os.pathsep.join(places))
    if program is None:
        missing_tool("sentry-cli")
    assert program is not None
    client = AssembleClient(server)
    client.token = token
    client.project = f"project-{uuid.uuid4().hex}"
    home = tmp_path / "home"
    home.mkdir()
    with ArchiveProxy(server.url) as proxy:
        yield SentryCli(program, proxy, client, home)


@pytest.fixture
def debug(tmp_path: Path) -> Path:
    """An empty directory, for debug files."""
    debug = tmp_path / "debug"
    debug.mkdir()
    return debug


def make_elf(path: Path, padding_bytes: int) -> Path:
    """Make an ELF file that nobody has, of the debug id of the fixtures."""
    # What follows the sections is no part of any.
    path.write_bytes(crash_lab("crash_lab") + os.urandom(padding_bytes))
    return path


def uploaded(sentry_cli: SentryCli) -> dict[str, str]:
    """Names and checksums of what is on record in the project."""
    return {dif["objectName"]: dif["sha1"] for dif in sentry_cli.client.list()}


@pytest.mark.parametrize("wait", [[], ["--wait"]])
@pytest.mark.parametrize("name", ["crash_lab", "crash_lab.sym"])
def test_a_file_is_uploaded_and_nothing_travels_the_second_time(
    sentry_cli: SentryCli, debug: Path, name: str, wait: list[str]
) -> None:
    path = make_elf(debug / name, 100)
    if name.endswith(".sym"):
        path.write_bytes(crash_lab(name) + f"PUBLIC {os.urandom(4).hex()} 0 own\n".encode())
    first = sentry_cli.upload(path, *wait)
    assert first.status == 0, first.printed
    assert "Found 1 debug information file" in first.printed
    assert "Uploaded 1 missing debug information file" in first.printed
    assert DEBUG_ID in first.printed and f"({name}; x86_64" in first.printed
    if wait:
        assert re.search(rf"OK +{DEBUG_ID}", first.printed)
    assert len(sentry_cli.chunk_bodies()) == 1
    # Without --wait, it may be under way yet.
    wait_until(lambda: uploaded(sentry_cli) == {name: sha1_of(path.read_bytes())})
    second = sentry_cli.upload(path, *wait)
    assert second.status == 0, second.printed
    assert "Nothing to upload, all files are on the server" in second.printed
    assert len(sentry_cli.chunk_bodies()) == 1


def test_a_file_of_several_chunks_is_uploaded_and_whole(sentry_cli: SentryCli, debug: Path) -> None:
    path = make_elf(debug / "large", 36_000_000)
    ended = sentry_cli.upload(path, "--wait")
    assert ended.status == 0 and re.search(rf"OK +{DEBUG_ID}", ended.printed), ended.printed
    assert uploaded(sentry_cli) == {"large": sha1_of(path.read_bytes())}
    # The chunks that it shares with another file do not travel again.
    sent = sum(map(len, sentry_cli.chunk_bodies()))
    with path.open("ab") as file:
        file.write(b"more")
    assert sentry_cli.upload(path, "--wait").status == 0
    assert sum(map(len, sentry_cli.chunk_bodies())) - sent < 4_000_000
    assert len(sentry_cli.client.list()) == 2


def test_a_hundred_files_are_uploaded_in_a_few_requests(sentry_cli: SentryCli, debug: Path) -> None:
    (debug / "below").mkdir()
    paths = [make_elf(debug / "below" / f"file-{number}", 10) for number in range(100)]
    ended = sentry_cli.upload(debug, "--wait")
    assert ended.status == 0, ended.printed
    assert "Uploaded 100 missing debug information files" in ended.printed
    assert len(re.findall(rf"OK +{DEBUG_ID}", ended.printed)) == 100
    assert uploaded(sentry_cli) == {path.name: sha1_of(path.read_bytes()) for path in paths}
    bodies = sentry_cli.chunk_bodies()
    assert len(bodies) <= 10
    again = sentry_cli.upload(debug, "--wait")
    assert again.status == 0 and "Nothing to upload" in again.printed
    assert sentry_cli.chunk_bodies() == bodies


def test_files_that_were_made_from_one_program_are_told_apart(
    sentry_cli: SentryCli, debug: Path
) -> None:
    ended = sentry_cli.upload(CRASH_LAB, "--wait")
    assert ended.status == 0, ended.printed
    names = {"crash_lab", "crash_lab.debug", "crash_lab.stripped", "crash_lab.sym"}
    assert set(uploaded(sentry_cli)) == names
    for name, kind in [("crash_lab", "library"), ("crash_lab.debug", "debug companion")]:
        assert f"({name}; x86_64 {kind})" in ended.printed


def test_sources_are_uploaded_beside_the_symbols(sentry_cli: SentryCli, debug: Path) -> None:
    source = debug / "thing.cpp"
    source.write_text("int main() {}\n", encoding="ascii")
    lines = f"FILE 0 {source}\nFUNC 1000 10 0 main\n1000 10 1 0\n"
    (debug / "thing.sym").write_bytes(breakpad(f"{uuid.uuid4().hex}0", lines=lines))
    ended = sentry_cli.upload(debug / "thing.sym", "--include-sources", "--wait")
    assert ended.status == 0 and ended.printed.count(" OK ") == 2, ended.printed
    kinds = {dif["symbolType"]: dif["data"] for dif in sentry_cli.client.list()}
    assert kinds["sourcebundle"] == {"type": "src", "features": ["sources"]}
    assert kinds["breakpad"]["type"] == "dbg"


def test_info_says_what_the_token_may_do(sentry_cli: SentryCli) -> None:
    ended = sentry_cli.run("info")
    assert ended.status == 0 and "project:releases" in ended.printed, ended.printed


def test_a_token_that_is_not_known_or_lacks_the_scope_is_an_error(
    sentry_cli: SentryCli, debug: Path
) -> None:
    path = make_elf(debug / "crash_lab", 10)
    sentry_cli.client.token = "0" * 64
    unknown = sentry_cli.upload(path)
    assert unknown.status == 1 and "401" in unknown.printed, unknown.printed
    sentry_cli.client.token = make_token(sentry_cli.client.server, scopes=[READ])
    denied = sentry_cli.upload(path)
    assert denied.status == 1 and "403" in denied.printed, denied.printed
    assert "project:releases" in denied.printed
    assert sentry_cli.chunk_bodies() == []


def test_a_server_that_is_busy_for_a_while_is_asked_again(
    sentry_cli: SentryCli, debug: Path
) -> None:
    path = make_elf(debug / "crash_lab", 10)
    for call in (CHUNKS, f"/api/0/projects/lab/{sentry_cli.client.project}/files/difs/assemble/"):
        sentry_cli.proxy.misbehave(call, Fault(status=503, retry_after=1), times=1)
    ended = sentry_cli.upload(path, "--wait")
    assert ended.status == 0, ended.printed
    assert uploaded(sentry_cli) == {"crash_lab": sha1_of(path.read_bytes())}


def test_an_error_of_assembling_is_printed_and_passes_with_its_cause(
    sentry_cli: SentryCli, debug: Path
) -> None:
    path = make_elf(debug / "crash_lab", 10)
    directory = sentry_cli.client.server.directory / "data" / "assembling"
    directory.rename(directory.with_name("away"))
    ended = sentry_cli.upload(path, "--wait")
    directory.with_name("away").rename(directory)
    assert ended.status == 1 and "cannot write" in ended.printed, ended.printed
    again = sentry_cli.upload(path, "--wait")
    assert again.status == 0 and "Nothing to upload" not in again.printed, again.printed
    assert uploaded(sentry_cli) == {"crash_lab": sha1_of(path.read_bytes())}


def test_a_server_that_loses_a_chunk_is_sent_it_again(sentry_cli: SentryCli, debug: Path) -> None:
    path = make_elf(debug / "crash_lab", 10)
    assert sentry_cli.upload(path, "--wait").status == 0
    checksum = sha1_of(path.read_bytes())
    stored = blob_directory(sentry_cli.client.server) / checksum[:2] / checksum[2:]
    stored.write_bytes(b"?" * stored.stat().st_size)
    # Another project has it read again.
    sentry_cli.client.project += "-2"
    told = sentry_cli.upload(path, "--wait")
    assert told.status == 1, told.printed
    again = sentry_cli.upload(path, "--wait")
    assert again.status == 0 and re.search(rf"OK +{DEBUG_ID}", again.printed), again.printed
    assert len(sentry_cli.chunk_bodies()) == 2
