"""Processes that are measured: a devserver, and programs that run once."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil
import requests

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 60
END_SECONDS = 60
CALL_SECONDS = 300
_SAMPLING_SECONDS = 0.02
_LOOKING_SECONDS = 0.002


class Devserver:
    """A devserver in a process of its own, with directories below ``directory``.

    Attributes:
        log: the file that it logs to, requests included.
        start_seconds: from starting the process until it answered.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        storage_url: str | None = None,
        catalog: str | Path = "everything",
        static_directory: Path | None = None,
    ) -> None:
        """``storage_url``: of what stands in as Google Storage."""
        self.static_directory = static_directory or directory / "data" / "static"
        directory.mkdir(parents=True, exist_ok=True)
        portfile = directory / "port"
        portfile.unlink(missing_ok=True)
        self.log = directory / "log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DEVSERVER_")}
        if storage_url is not None:
            environment["STORAGE_EMULATOR_HOST"] = storage_url
        begun_at = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, str(REPOSITORY / "devserver.py"), "--catalog", str(catalog)),
                    *("--host", "127.0.0.1", "--port", "0", "--portfile", str(portfile)),
                    *("--data-dir", str(directory / "data"), "--shutdown-timeout", "0"),
                    *("--static-dir", str(self.static_directory)),
                    *options,
                ],
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.process = psutil.Process(self._process.pid)
        self.session = requests.Session()
        try:
            self.port = int(wait_for_text(portfile, self._process))
            self.url = f"http://127.0.0.1:{self.port}"
            self.call("/health")
        except BaseException:
            self._process.kill()
            self._process.wait()
            print(self.log.read_text(encoding="utf-8", errors="replace")[-2000:], file=sys.stderr)
            raise
        self.start_seconds = time.monotonic() - begun_at

    def call(self, path: str, **query: str) -> str:
        """Return the body of an answer that has to be 200."""
        response = self.session.get(self.url + path, params=query, timeout=CALL_SECONDS)
        if response.status_code != 200:
            raise RuntimeError(f"{path} answered {response.status_code}: {response.text}")
        return response.text

    def drop(self, name: str) -> None:
        """Take the build ``TARGET/BUILD`` off the disk; return when its bytes are gone."""
        response = self.session.delete(f"{self.url}/api/v1/builds/{name}")
        response.raise_for_status()
        wait_until(lambda: not any((self.static_directory / ".devserver/trash").iterdir()))

    def cpu_seconds(self) -> float:
        return cpu_seconds_of_tree(self.process)

    def rss_bytes(self) -> int:
        return rss_of_tree(self.process)

    def process_count(self) -> int:
        return 1 + len(self.process.children(recursive=True))

    def stop(self) -> None:
        self.session.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class PeakMemory:
    """The most memory that a process tree was seen to have, looked at every 20 ms."""

    def __init__(self, process: psutil.Process) -> None:
        self.bytes = rss_of_tree(process)
        self._process = process
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="peak-memory")

    def _look(self) -> None:
        while not self._stopped.wait(_SAMPLING_SECONDS):
            self.bytes = max(self.bytes, rss_of_tree(self._process))

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def run_once(command: Sequence[str]) -> tuple[float, float]:
    """Run a program; return its wall time and its CPU seconds, and those of what it started."""
    seconds, cpu_seconds, _ = _run_once(command, subprocess.DEVNULL)
    return seconds, cpu_seconds


def run_for_output(command: Sequence[str]) -> tuple[float, float, bytes]:
    """Run a program as `run_once` does; return what it prints, too; it may complain freely."""
    return _run_once(command, subprocess.PIPE, subprocess.DEVNULL)


def _run_once(
    command: Sequence[str], output: int, complaints: int | None = None
) -> tuple[float, float, bytes]:
    before, begun_at = os.times(), time.monotonic()
    ended = subprocess.run(
        command, check=True, stdout=output, stderr=complaints, timeout=CALL_SECONDS
    )
    seconds, after = time.monotonic() - begun_at, os.times()
    cpu_before = before.children_user + before.children_system
    cpu_seconds = after.children_user + after.children_system - cpu_before
    return seconds, cpu_seconds, ended.stdout


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block is left."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on, for those who cannot pick one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def is_answered(url: str) -> bool:
    """Whether a server that is starting answers HEAD of ``url`` by now."""
    try:
        return requests.head(url, timeout=1).status_code == 200
    except requests.RequestException:
        return False


def allow_open_files(wanted: int) -> None:
    """Have so many files open at once, here and in what is started from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def wait_for_text(path: Path, process: subprocess.Popen[bytes]) -> str:
    """Return what a process that is starting writes to ``path``."""

    def is_written() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the process ended with {process.returncode}; see its log")
        return path.exists() and bool(path.read_text(encoding="ascii"))

    wait_until(is_written)
    return path.read_text(encoding="ascii")


def wait_until(is_so: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Look again and again: what happens in another process gives no other sign."""
    looked, deadline = threading.Event(), time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds} s")
        looked.wait(_LOOKING_SECONDS)


def cpu_seconds_of_tree(process: psutil.Process) -> float:
    """Return what a process has taken, with those that it has started and those that have ended."""
    total = 0.0
    for each in _tree(process):
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def bytes_written_by_tree(process: psutil.Process) -> int:
    """Return what a process has written, with those that it has started and those that have ended.

    It is what went to files and pipes by ``write`` and its like, sockets not included. Only Linux
    counts it.
    """
    total = 0
    for each in _tree(process):
        with suppress(psutil.NoSuchProcess):
            total += each.io_counters().write_chars
    return total


def rss_of_tree(process: psutil.Process) -> int:
    total = 0
    for each in _tree(process):
        with suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
