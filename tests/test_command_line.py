"""The command line: starting, configuring and ending a server; staging and status through it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
from archive_server import ArchiveServer, Fault
from conftest import Serve
from running_server import REPOSITORY

from artifacts.commands.sample_build import BUILD, TARGET

NAME = f"{TARGET}/{BUILD}"


def devserver(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "devserver.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["serve"],
        ["stage"],
        ["status"],
        ["publish"],
        ["symbolicate"],
        ["demo"],
        ["catalog"],
        ["catalog", "check"],
        ["gc"],
        ["fsck"],
        ["token"],
        ["token", "create"],
    ],
)
def test_every_command_has_help(arguments: list[str]) -> None:
    shown = devserver(*arguments, "--help")
    assert shown.returncode == 0
    assert "Usage" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "word"),
    [
        (["--port", "http"], {}, "--port"),
        (["--port=70000"], {}, "--port"),
        (["--nonsense", "1"], {}, "nonsense"),
        (["--allow-archive", "nonsense"], {}, "--allow-archive"),
        (["--catalog", "nonsense"], {}, "everything"),
        (["--connections", "0"], {}, "--connections"),
        ([], {"DEVSERVER_PORT": "http"}, "DEVSERVER_PORT"),
        (["--config", "/no/such/file"], {}, "/no/such/file"),
    ],
)
def test_a_mistake_is_told_at_start_with_its_name(
    arguments: list[str], environment: dict[str, str], word: str, tmp_path: Path
) -> None:
    ended = devserver(*arguments, "--data-dir", str(tmp_path), environment=environment)
    assert ended.returncode in {1, 2}
    assert word in ended.stderr and "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [("port = 'http'", "port"), ("prot = 1", "prot"), ("port = ", "TOML")],
)
def test_a_mistake_in_the_file_is_told_with_key_and_file(
    text: str, word: str, tmp_path: Path
) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(text)
    ended = devserver("serve", "--config", str(file), "--data-dir", str(tmp_path))
    assert ended.returncode == 2
    assert word in ended.stderr and "lab.toml" in ended.stderr


def test_flags_go_over_environment_over_file(
    serve: Serve, tmp_path: Path, archive_directory: Path
) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(
        f"allow-archive = ['file://{archive_directory}']\ncatalog = 'everything'\n"
        "static_dir = '/nonexistent/file'\n"
    )
    server = serve(
        *("--config", str(file), "--log_level", "debug"),
        environment={"DEVSERVER_CATALOG": "chromeos", "DEVSERVER_STATIC_DIR": "/nonexistent/env"},
    )
    staged = server.call("/download", archive_url=f"file://{archive_directory}/{NAME}")
    assert staged == "Success"
    assert (server.static_directory / NAME / "update.gz").exists()


def test_a_second_server_on_the_same_directories_is_refused(serve: Serve, tmp_path: Path) -> None:
    first = serve()
    for options in (
        ["--data-dir", str(first.directory / "data"), "--static-dir", str(tmp_path / "other")],
        ["--data-dir", str(tmp_path / "other"), "--static-dir", str(first.static_directory)],
    ):
        second = devserver("--port", "0", *options)
        assert second.returncode == 1
        assert str(first.process.pid) in second.stderr
        assert len(second.stderr.strip().split("\n")) == 1
    assert first.get("/health").status_code == 200


def test_a_port_in_use_is_refused(serve: Serve, tmp_path: Path) -> None:
    first = serve()
    port = first.url.rpartition(":")[2]
    second = devserver("--host", "127.0.0.1", "--port", port, "--data-dir", str(tmp_path / "other"))
    assert second.returncode == 1
    assert f"port {port} is in use" in second.stderr
    assert len(second.stderr.strip().split("\n")) == 1


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    for directory in (in_the_way, Path("/proc/devserver")):
        for option in ("--data-dir", "--static-dir"):
            options = ["--data-dir", str(tmp_path / "data"), option, str(directory)]
            ended = devserver("--port", "0", *options)
            assert ended.returncode == 1
            assert str(directory) in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(signal_number: int, serve: Serve) -> None:
    server = serve()
    pidfile = server.directory / "port"
    server.get("/health")
    server.process.send_signal(signal_number)
    assert server.process.wait(timeout=30) == 0
    assert not pidfile.exists()
    assert "Traceback" not in server.log


def test_one_order_to_end_may_come_as_several_signals(serve: Serve) -> None:
    server = serve()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        server.process.send_signal(number)
    assert server.process.wait(timeout=30) == 0
    assert server.log.rstrip().endswith("ended")


def test_a_portfile_that_cannot_be_written_is_told_and_ends_the_server(tmp_path: Path) -> None:
    ended = devserver(
        *("--port", "0", "--data-dir", str(tmp_path), "--portfile", "/nonexistent/port")
    )
    assert ended.returncode == 1
    assert "cannot write /nonexistent/port" in ended.stderr and "Traceback" not in ended.stderr


def test_the_version_is_told() -> None:
    assert "0.1.0" in devserver("--version").stdout


def test_stage_watches_until_all_is_staged(serve: Serve, archive_directory: Path) -> None:
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/{NAME}"
    staged = devserver("stage", "--server", server.url, url)
    assert staged.returncode == 0, staged.stderr
    assert staged.stdout == f"{server.url}/static/{NAME}/\n"
    assert "full_payload" in staged.stderr and "autotest" in staged.stderr

    as_json = devserver("stage", "--json", url, environment={"DEVSERVER_SERVER": server.url})
    assert json.loads(as_json.stdout)["state"] == "staged"

    missing = devserver("stage", "--server", server.url, url + "x")
    assert missing.returncode == 1
    assert "no such build" in missing.stderr and "Traceback" not in missing.stderr
    assert missing.stdout == ""


def test_stage_tells_a_background_failure(
    serve: Serve, archive: ArchiveServer, build_url: str
) -> None:
    server = serve("--allow-archive", archive.url, "--tries", "1")
    archive.misbehave(f"/{NAME}/autotest.tar.bz2", Fault(status=500))
    ended = devserver("stage", "--server", server.url, build_url)
    assert ended.returncode == 1
    assert "autotest.tar.bz2" in ended.stderr


def test_stage_takes_just_some_files(serve: Serve, archive_directory: Path) -> None:
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/{NAME}"
    staged = devserver(
        "stage", "--server", server.url, url, "--artifacts", "stateful", "--files", "debug.tgz"
    )
    assert staged.returncode == 0, staged.stderr
    assert server.call("/list_image_dir", archive_url=url) == "debug.tgz\nstateful.tgz"


def test_status_tells_of_one_build_and_of_all(serve: Serve, archive_directory: Path) -> None:
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/{NAME}"
    server.call("/stage", archive_url=url, artifacts="stateful")
    of_all = devserver("status", "--server", server.url)
    assert NAME in of_all.stdout and "staged" in of_all.stdout
    of_one = devserver("status", "--server", server.url, NAME)
    assert "stateful" in of_one.stdout
    as_json = devserver("status", "--server", server.url, "--json")
    assert json.loads(as_json.stdout)["builds"][0]["archive_url"] == url
    assert devserver("status", "--server", server.url, "no/build").returncode == 1


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    ended = devserver("status", "--server", "http://127.0.0.1:9")
    assert ended.returncode == 1
    assert "no devserver answers" in ended.stderr and len(ended.stderr.split("\n")) == 2


def test_wrong_use_is_2() -> None:
    assert devserver("stage").returncode == 2
    assert devserver("nonsense").returncode == 2


def test_the_demo_stages_a_build_and_serves_until_ctrl_c() -> None:
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "devserver.py"), "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        lines = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], f"it ended: {process.stderr.read()}"
        urls = [word for line in lines for word in line.split() if word.startswith("http")]
        assert requests.get(urls[0], timeout=30).status_code == 200
        payload = requests.get(urls[1], timeout=60)
        assert payload.content.startswith(b"CrAU")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "full_payload" in errors and "Traceback" not in errors
        assert f"Publishing it as store://{NAME}" in errors
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def test_stage_does_not_take_what_the_build_lacks_for_staged(
    serve: Serve, archive_directory: Path
) -> None:
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/{NAME}"
    assert devserver("stage", "--server", server.url, url).returncode == 0
    for more in (("--files", "no such file"), ("--artifacts", "firmware")):
        lacking = devserver("stage", "--server", server.url, *more, url)
        assert lacking.returncode == 1
        assert more[1] in lacking.stderr and "Traceback" not in lacking.stderr
    there = devserver("stage", "--server", server.url, "--artifacts", "stateful", url)
    assert there.returncode == 0, there.stderr
