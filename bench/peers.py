"""What else downloads objects, each called as those who know it would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench.measure import Run
from bench.objects import Object
from bench.processes import CALL_SECONDS, REPOSITORY, run_once
from bench.programs import need, versioned
from bench.stage import Archive, bytes_sent_since

_Download = Callable[[str, Sequence[Object], Path], tuple[float, float]]


@dataclass(frozen=True)
class Peer:
    """One way to download objects. None of them syncs what it has written.

    Attributes:
        name: for notes and JSON.
        program: what it runs; None for Google's library.
        how: what the table says of its options, and whether it verifies.
    """

    name: str
    program: str | None
    how: str
    _download: _Download

    @property
    def description(self) -> str:
        if self.program is not None:
            return f"{versioned(self.program)} {self.how}"
        return f"google-cloud-storage {version('google-cloud-storage')} {self.how}"

    def need(self) -> None:
        """Raise Unmeasured unless its program is there."""
        if self.program is not None:
            need(self.program)

    def download(self, archive: Archive, objects: Sequence[Object], directory: Path) -> Run:
        """Download objects to ``directory``, under the last part of their names."""
        directory.mkdir(exist_ok=True)
        sent_before = archive.bytes_sent()
        seconds, cpu_seconds = self._download(archive.url, objects, directory)
        for each in objects:
            size = (directory / Path(each.name).name).stat().st_size
            if size != each.size:
                raise RuntimeError(f"{self.name} left {size} bytes of {each.name}")
        expected = sum(each.size for each in objects)
        return Run(seconds, cpu_seconds, bytes_sent_since(archive, sent_before, expected))

    def download_and_remove(
        self, archive: Archive, objects: Sequence[Object], directory: Path
    ) -> Run:
        run = self.download(archive, objects, directory)
        for each in objects:
            (directory / Path(each.name).name).unlink()
        return run


def curl() -> Peer:
    def download(url: str, objects: Sequence[Object], directory: Path) -> tuple[float, float]:
        [each] = objects
        path = directory / Path(each.name).name
        return run_once(["curl", "--silent", "--fail", "-o", str(path), each.media_url(url)])

    return Peer("curl", "curl", "-o: not verified, not synced", download)


def curl_parallel(files_at_once: int) -> Peer:
    def download(url: str, objects: Sequence[Object], directory: Path) -> tuple[float, float]:
        wishes = directory.with_suffix(".curl")
        wishes.write_text(
            "".join(
                f'url = "{each.media_url(url)}"\noutput = "{directory / Path(each.name).name}"\n'
                for each in objects
            ),
            encoding="utf-8",
        )
        # It is told not to wait for whether connections can be shared: here, they cannot.
        options = ["--parallel", "--parallel-immediate", "--parallel-max", str(files_at_once)]
        return run_once(
            ["curl", "--no-progress-meter", "--fail", *options, "--config", str(wishes)]
        )

    how = f"--parallel --parallel-max {files_at_once}: not verified, not synced"
    return Peer("curl --parallel", "curl", how, download)


def aria2c(connections: int) -> Peer:
    """One file over several connections."""
    options = (f"-x{connections}", f"-s{connections}")
    how = f"{' '.join(options)}: not verified, not synced"
    # Of its own accord it would not split what is smaller than 40 MB.
    return Peer("aria2c", "aria2c", how, _aria2c(*options, "--min-split-size=1M"))


def aria2c_parallel(files_at_once: int) -> Peer:
    """Several files, each over one connection."""
    option = f"-j{files_at_once}"
    how = f"-i LIST {option}: not verified, not synced"
    return Peer("aria2c", "aria2c", how, _aria2c(option, "-x1", "-s1"))


def google_file() -> Peer:
    how = "download_to_filename: verified, not synced"
    return Peer("google-cloud-storage", None, how, _google("file", 1))


def transfer_manager(worker_type: str, workers: int) -> Peer:
    """``worker_type``: ``thread`` or ``process``."""
    workers_text = f"{workers} {worker_type}{'es' if worker_type == 'process' else 's'}"
    how = f"transfer_manager, {workers_text}: verified, not synced"
    return Peer(f"transfer_manager, {workers_text}", None, how, _google(worker_type, workers))


def _aria2c(*options: str) -> _Download:
    def download(url: str, objects: Sequence[Object], directory: Path) -> tuple[float, float]:
        wishes = directory.with_suffix(".aria2c")
        wishes.write_text(
            "".join(f"{each.media_url(url)}\n out={Path(each.name).name}\n" for each in objects),
            encoding="utf-8",
        )
        return run_once(
            [
                *("aria2c", "--no-conf", "--quiet", *options),
                # What its manual says is best on file systems that can.
                *("--file-allocation=falloc", f"--dir={directory}", f"--input-file={wishes}"),
            ]
        )

    return download


def _google(way: str, workers: int) -> _Download:
    def download(url: str, objects: Sequence[Object], directory: Path) -> tuple[float, float]:
        names = [each.name for each in objects]
        command = [sys.executable, "-m", "bench.google_download", way, str(workers), url]
        result = subprocess.run(
            [*command, str(directory), *names],
            stdout=subprocess.PIPE,
            check=True,
            timeout=CALL_SECONDS,
            cwd=REPOSITORY,
        )
        measured = json.loads(result.stdout)
        return measured["seconds"], measured["cpu_seconds"]

    return download
