"""``devserver gc`` and ``devserver fsck``: by the server that runs, or by themselves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from conftest import Serve, missing_tool
from polling import wait_until
from real_servers import make_certificate
from running_server import REPOSITORY, RunningServer
from stored_uploads import HOUR, ORGANIZATION, StoredUploads, sha1
from test_command_line import devserver
from upload_client import UploadClient, chunk, make_token

from artifacts.blobs import check
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.commands.upkeep import fsck_command
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from artifacts.database.tables import blobs, leases
from artifacts.disk import DirectoryLock
from artifacts.local_server import url_on_this_machine
from artifacts.tokens import ADMIN, PUBLISH

DYING = REPOSITORY / "tests" / "dying_server.py"
# There are fewer steps in a command than there are tries.
MIN_STEPS, MAX_STEPS = 5, 60
GC, FSCK = "/api/v1/upkeep/gc", "/api/v1/upkeep/fsck"


@contextlib.contextmanager
def uploads_in(data_directory: Path) -> Iterator[StoredUploads]:
    """What is kept of uploads in a data directory, beside a server or without."""
    data_directory.mkdir(parents=True, exist_ok=True)
    database = Database.in_directory(data_directory)
    yield StoredUploads(database, DirectoryStorage(data_directory / "blobs"), ProcessLocks())
    database.close()


@pytest.fixture
def data_directory(tmp_path: Path) -> Path:
    """The data directory of a server to come: ``unused`` can go, ``used`` cannot."""
    directory = tmp_path / "server" / "data"
    with uploads_in(directory) as uploads:
        uploads.send(b"unused")
        uploads.send(b"used")
        uploads.add_debug_file("crash_lab", [b"used"])
        forget_leases(uploads)
    return directory


def forget_leases(uploads: StoredUploads) -> None:
    with uploads.database.writing() as connection:
        connection.execute(leases.delete())


def damage(data_directory: Path, data: bytes) -> None:
    name = sha1(data)
    (data_directory / "blobs" / name[:2] / name[2:]).write_bytes(b"-" * len(data))


def told_in(data_directory: Path) -> dict[str, str]:
    told: dict[str, str] = json.loads((data_directory / "server.json").read_bytes())
    return told


def post(server: RunningServer, path: str, token: str = "", **more: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.post(server.url + path, json={}, headers={**headers, **more}, timeout=60)


@pytest.mark.parametrize("is_running", [False, True], ids=["alone", "by the server"])
def test_gc_removes_what_nobody_needs(is_running: bool, serve: Serve, data_directory: Path) -> None:
    server = serve() if is_running else None
    ended = devserver("gc", "--data-dir", str(data_directory))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "removed 1 blobs, 0 files and 0 temporary files: 0.0 MB\n"
    with uploads_in(data_directory) as uploads:
        assert uploads.count(blobs) == 1 and uploads.is_stored(sha1(b"used"))
        assert not uploads.is_stored(sha1(b"unused"))
    if server is not None:
        assert f"POST {GC} HTTP/1.1" in server.log
    again = devserver("gc", "--data-dir", str(data_directory), "--json")
    assert json.loads(again.stdout)["blobs"] == 0


def test_what_was_confirmed_is_there_when_it_is_assembled_after_gc(serve: Serve) -> None:
    server = serve()
    client = UploadClient(server)
    chunks = [b"one" * 10_000, b"two" * 10_000]
    path = f"{server.url}/api/0/projects/{ORGANIZATION}/builds/builds/lamp/R1/assemble/"
    whole = sha1(b"".join(chunks))
    offer = {whole: {"name": "image", "chunks": [sha1(data) for data in chunks]}}

    def ask() -> dict[str, object]:
        answer = requests.post(path, json=offer, headers=client.authorization, timeout=60)
        told: dict[str, object] = answer.json()[whole]
        return told

    for data in chunks:
        assert client.send(chunk(data)).status_code == 200
        collected = devserver("gc", "--data-dir", str(server.directory / "data"), "--json")
        assert json.loads(collected.stdout)["blobs"] == 0
    wait_until(lambda: ask()["state"] == "ok")
    # Now it is the file that keeps them.
    with uploads_in(server.directory / "data") as uploads:
        forget_leases(uploads)
    collected = devserver("gc", "--data-dir", str(server.directory / "data"), "--json")
    assert json.loads(collected.stdout)["blobs"] == 0
    assert ask()["state"] == "ok"


@pytest.mark.parametrize("is_running", [False, True], ids=["alone", "by the server"])
def test_fsck_tells_and_drops_what_is_damaged(
    is_running: bool, serve: Serve, data_directory: Path
) -> None:
    if is_running:
        serve()
    whole = devserver("fsck", "--data-dir", str(data_directory))
    assert whole.returncode == 0
    counted = "0 missing, 0 unreadable, 0 not on record"
    assert whole.stdout == f"2 blobs, 0.0 MB: 0 damaged, {counted}; 0 dropped\n"

    damage(data_directory, b"used")
    for option, dropped in (("--json", 0), ("--repair", 1)):
        found = devserver("fsck", "--data-dir", str(data_directory), option)
        assert found.returncode == 1 and "Traceback" not in found.stderr
        assert sha1(b"used") in found.stdout
        if option == "--json":
            report = json.loads(found.stdout)
            assert (report["damaged"], report["dropped"]) == (1, dropped)
            assert report["incomplete"][0]["name"] == "crash_lab"
        else:
            assert f"damaged {sha1(b'used')}: " in found.stdout
            assert "incomplete debug files of lab/devices: crash_lab" in found.stdout
            assert found.stdout.endswith(f"1 damaged, {counted}; 1 dropped\n")
    with uploads_in(data_directory) as uploads:
        asked = [sha1(b"used"), sha1(b"unused")]
        assert uploads.blobs.lease_owned(ORGANIZATION, asked).keys() == {sha1(b"unused")}
        uploads.send(b"used")
    assert devserver("fsck", "--data-dir", str(data_directory)).returncode == 0


def test_who_repairs_is_told_to_do_it_again_where_more_is_damaged_than_is_told(
    data_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_MAX_TOLD", 1)
    for data in (b"used", b"unused"):
        damage(data_directory, data)
    arguments = ["--repair", "--data-dir", str(data_directory)]
    first, second = (CliRunner().invoke(fsck_command, arguments) for _ in range(2))
    assert "1 more are left" in first.stderr and "run this again" in first.stderr
    assert "1 dropped" in second.stdout and "left" not in second.stderr


def test_the_calls_are_for_the_server_s_user_and_for_admins(
    serve: Serve, data_directory: Path
) -> None:
    server = serve()
    secret = told_in(data_directory)["secret"]
    admin, publisher = (make_token(server, scopes=[scope]) for scope in (ADMIN, PUBLISH))
    for path in (GC, FSCK):
        assert post(server, path).status_code == 401
        assert post(server, path).headers["WWW-Authenticate"] == "Bearer"
        assert post(server, path, "unknown").status_code == 401
        assert post(server, path, secret[:-1]).status_code == 401
        assert post(server, path, "é").status_code == 401
        assert post(server, path, publisher).status_code == 403
        foreign = post(server, path, secret, Origin="http://elsewhere.example")
        assert foreign.status_code == 403
        assert post(server, f"{path}/more", secret).status_code == 404
        for token in (secret, admin):
            assert post(server, path, token).status_code == 200
    assert server.get(GC).status_code == 405
    assert server.get(FSCK).status_code == 401
    assert secret not in server.log


def test_fsck_takes_nothing_but_true_and_false_for_repair(
    serve: Serve, data_directory: Path
) -> None:
    server = serve()
    headers = {"Authorization": f"Bearer {told_in(data_directory)['secret']}"}
    for body in (b'{"repair": "no"}', b'{"repair": 1}', b"[]", b"{"):
        answer = requests.post(server.url + FSCK, body, headers=headers, timeout=60)
        assert answer.status_code == 400
    progress = requests.get(server.url + FSCK, headers=headers, timeout=60)
    assert progress.json() == {"progress": None}


def test_the_secret_is_the_server_s_own_and_of_one_run(serve: Serve, data_directory: Path) -> None:
    server = serve()
    file = data_directory / "server.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = told_in(data_directory)["secret"]
    server.stop()
    assert not file.exists()
    again = serve()
    assert told_in(data_directory)["secret"] != first
    assert post(again, GC, first).status_code == 401


def test_a_server_that_was_killed_is_not_asked(serve: Serve, data_directory: Path) -> None:
    serve().kill()
    assert (data_directory / "server.json").exists()
    ended = devserver("gc", "--data-dir", str(data_directory), "--json")
    assert ended.returncode == 0 and json.loads(ended.stdout)["blobs"] == 1


def test_a_directory_that_another_command_works_in_is_left(
    serve: Serve, data_directory: Path
) -> None:
    serve().kill()
    lock = DirectoryLock(data_directory, data_directory / "lock")
    try:
        ended = devserver("gc", "--data-dir", str(data_directory))
    finally:
        lock.release()
    assert ended.returncode == 1
    assert f"process {os.getpid()} works in" in ended.stderr
    assert len(ended.stderr.strip().split("\n")) == 1


def test_a_server_of_https_is_asked(serve: Serve, tmp_path: Path, data_directory: Path) -> None:
    certificate = make_certificate(tmp_path / "certificate.pem")
    server = serve("--tls-certificate", str(certificate))
    assert told_in(data_directory)["url"] == f"https://127.0.0.1:{server.port}"
    ended = devserver(
        *("gc", "--data-dir", str(data_directory), "--json"),
        # Neither a proxy nor a file of certificates has anything to say here.
        environment={"HTTPS_PROXY": "http://127.0.0.1:9", "REQUESTS_CA_BUNDLE": "/dev/null"},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["blobs"] == 1


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:8080"),
        ("192.0.2.7", "http://192.0.2.7:8080"),
    ],
)
def test_a_server_is_reached_where_it_listens(host: str, url: str) -> None:
    assert url_on_this_machine(host, 8080, is_https=False) == url


def test_a_server_on_all_addresses_is_asked(serve: Serve, data_directory: Path) -> None:
    server = serve("--host", "")
    ended = devserver("gc", "--data-dir", str(data_directory), "--json")
    assert json.loads(ended.stdout)["blobs"] == 1
    assert f"POST {GC}" in server.log


def test_another_user_is_refused_and_leaves_nothing(data_directory: Path) -> None:
    if os.geteuid() != 0:
        missing_tool("the right to give files away")
    before = {path.name for path in data_directory.iterdir()} | {"lock"}
    os.chown(data_directory, 65534, -1)
    ended = devserver("gc", "--data-dir", str(data_directory))
    assert ended.returncode == 1 and "65534" in ended.stderr
    assert {path.name for path in data_directory.iterdir()} <= before


@pytest.mark.parametrize("command", ["gc", "fsck"])
def test_mistakes_are_told_in_one_line(command: str, tmp_path: Path, data_directory: Path) -> None:
    missing = devserver(command, "--data-dir", str(tmp_path / "none"))
    assert missing.returncode == 1 and "--data-dir" in missing.stderr
    assert not (tmp_path / "none").exists()
    wrong = devserver(command, "--data-dir", str(data_directory), "--database-url", "mysql://x/y")
    assert wrong.returncode == 2 and "mysql" in wrong.stderr
    for ended in (missing, wrong):
        assert ended.stdout == "" and len(ended.stderr.strip().split("\n")) == 1
    assert devserver(command, "--nonsense").returncode == 2
    # The directory is free again.
    assert devserver("gc", "--data-dir", str(data_directory)).returncode == 0


def test_what_a_database_does_not_know_is_told(data_directory: Path, tmp_path: Path) -> None:
    with uploads_in(data_directory) as uploads:
        for number in range(101):
            name = uploads.send(b"%d" % number)
            os.utime(data_directory / "blobs" / name[:2] / name[2:], (0, 0))
    wrong = ("--database-url", f"sqlite:///{tmp_path / 'wrong.db'}")
    ended = devserver("gc", "--data-dir", str(data_directory), *wrong)
    assert ended.returncode == 0
    assert "101 blobs" in ended.stderr and "right database" in ended.stderr
    assert devserver("fsck", "--data-dir", str(data_directory)).returncode == 0


def died_before(step: int, data_directory: Path, *command: str) -> bool:
    """Run a command that is to die before one of its steps; return whether it came to it."""
    ended = subprocess.run(
        [sys.executable, str(DYING), *command, "--data-dir", str(data_directory)],
        env={**os.environ, "DYING_ARMED": str(data_directory), "DYING_STEP": str(step)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode in {0, 1, -signal.SIGKILL}, ended.stderr
    return ended.returncode == -signal.SIGKILL


def test_gc_may_die_before_any_step_and_leaves_whole_what_is_needed(data_directory: Path) -> None:
    for step in range(1, MAX_STEPS):
        with uploads_in(data_directory) as uploads:
            unused = uploads.send(b"unused %d" % step)
            forget_leases(uploads)
        has_died = died_before(step, data_directory, "gc")
        with uploads_in(data_directory) as uploads:
            assert uploads.is_recorded(sha1(b"used"))
            assert not uploads.check().is_bad
            if not has_died:
                break
            # What is not removed wholly can be removed later, and what comes again is there.
            uploads.send(b"unused %d" % step)
            assert uploads.is_recorded(unused) and uploads.is_stored(unused)
    assert MIN_STEPS <= step < MAX_STEPS - 1
    with uploads_in(data_directory) as uploads:
        uploads.later = 2 * HOUR
        uploads.collect()
        assert uploads.count(blobs) == len(list(uploads.storage.list())) == 1


def test_fsck_may_die_before_any_step_and_goes_on_the_next_time(data_directory: Path) -> None:
    for step in range(1, MAX_STEPS):
        with uploads_in(data_directory) as uploads:
            uploads.send(b"damaged")
            damage(data_directory, b"damaged")
        has_died = died_before(step, data_directory, "fsck", "--repair")
        with uploads_in(data_directory) as uploads:
            assert uploads.is_recorded(sha1(b"used"))
            assert uploads.check(repair=True).damaged <= 1
            assert uploads.blobs.lease_owned(ORGANIZATION, [sha1(b"damaged")]) == {}
            uploads.send(b"damaged")
            assert not uploads.check().is_bad
        if not has_died:
            break
    assert MIN_STEPS <= step < MAX_STEPS - 1
