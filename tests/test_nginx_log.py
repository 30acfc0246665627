"""What nginx says on the socket of ``--nginx-log``, and what is made of it."""

from __future__ import annotations

import queue
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.archive_url import BuildName
from artifacts.errors import DevserverError
from artifacts.serving.nginx_log import NginxLog

NAME = BuildName("lamp-release", "R1-1.0.0")
LINE = f"<190>Nov 20 19:09:38 devserver_reads: {NAME}".encode()


@pytest.fixture
def path() -> Iterator[Path]:
    # Sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="nginx-") as directory:
        yield Path(directory) / "log"


@pytest.fixture
def used() -> queue.Queue[BuildName]:
    return queue.Queue()


@pytest.fixture
def nginx_log(path: Path, used: queue.Queue[BuildName]) -> Iterator[NginxLog]:
    log = NginxLog(path, used.put)
    yield log
    log.close()


def say(path: Path, *lines: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nginx:
        nginx.connect(str(path))
        for line in lines:
            nginx.send(line)


@pytest.mark.usefixtures("nginx_log")
def test_a_read_is_told(path: Path, used: queue.Queue[BuildName]) -> None:
    say(path, LINE)
    assert used.get(timeout=10) == NAME


@pytest.mark.usefixtures("nginx_log")
def test_a_read_is_told_whatever_the_host_is_called(
    path: Path, used: queue.Queue[BuildName]
) -> None:
    say(path, f"<190>Nov 20 19:09:38 devserver devserver_reads: {NAME}".encode())
    assert used.get(timeout=10) == NAME


@pytest.mark.usefixtures("nginx_log")
@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x00",
        str(NAME).encode(),
        b"<190>Nov 20 19:09:38 devserver_reads: ",
        b"<190>Nov 20 19:09:38 devserver_reads: lamp-release",
        b"<190>Nov 20 19:09:38 devserver_reads: ../..",
        b"<190>Nov 20 19:09:38 devserver_reads: .devserver/builds",
        b"<190>Nov 20 19:09:38 devserver_reads: a/b/c",
        b"<190>Nov 20 19:09:38 devserver_reads: a/\xff",
        b"<190>Nov 20 19:09:38 devserver_reads: a/" + b"b" * 20_000,
    ],
)
def test_what_names_no_build_is_passed_over(
    line: bytes, path: Path, used: queue.Queue[BuildName]
) -> None:
    say(path, line, LINE)
    assert used.get(timeout=10) == NAME
    assert used.empty()


def test_a_read_that_cannot_be_noted_does_not_end_it(path: Path) -> None:
    told: queue.Queue[BuildName] = queue.Queue()

    def fail_first(name: BuildName) -> None:
        told.put(name)
        if told.qsize() == 1:
            raise OSError("the disk is gone")

    log = NginxLog(path, fail_first)
    say(path, LINE, LINE)
    assert [told.get(timeout=10), told.get(timeout=10)] == [NAME, NAME]
    log.close()


def test_every_user_may_write_to_the_socket(path: Path, nginx_log: NginxLog) -> None:
    assert path.stat().st_mode & 0o777 == 0o666


def test_the_socket_goes_with_the_server(path: Path) -> None:
    NginxLog(path, lambda name: None).close()
    assert not path.exists()


def test_what_a_crash_left_is_replaced(path: Path, used: queue.Queue[BuildName]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))
    log = NginxLog(path, used.put)
    say(path, LINE)
    assert used.get(timeout=10) == NAME
    log.close()


def test_the_socket_of_another_server_is_left_to_it(
    path: Path, nginx_log: NginxLog, used: queue.Queue[BuildName]
) -> None:
    with pytest.raises(DevserverError, match=r"cannot make the socket .*--nginx-log.* in use"):
        NginxLog(path, lambda name: None)
    say(path, LINE)
    assert used.get(timeout=10) == NAME


def test_a_file_is_left_alone(path: Path) -> None:
    path.write_text("somebody's")
    with pytest.raises(DevserverError, match="in use"):
        NginxLog(path, lambda name: None)
    assert path.read_text() == "somebody's"


def test_a_path_that_is_no_place_for_a_socket_is_told(path: Path) -> None:
    with pytest.raises(DevserverError, match="No such file or directory"):
        NginxLog(path / "below" / "nothing", lambda name: None)
    with pytest.raises(DevserverError, match="too long"):
        NginxLog(path.with_name("x" * 200), lambda name: None)
