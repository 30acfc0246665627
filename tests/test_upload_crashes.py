"""A server that dies within an upload: what it confirmed is there, and the rest can be sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests
from conftest import Serve
from polling import wait_until
from running_server import REPOSITORY, RunningServer
from upload_client import TIMEOUT_SECONDS, UploadClient, chunk, sha1_of, spooled_files

DYING_SERVER = REPOSITORY / "tests" / "dying_server.py"
# There are fewer steps in an upload than there are tries.
MAX_TRIES = 150
MIN_STEPS = 20


class Upload:
    """One file in three chunks, two of them the same, sent as often as it takes."""

    def __init__(self, number: int) -> None:
        one, two = (os.urandom(20_000) for _ in range(2))
        sections = [one, two, one]
        self._chunks = {sha1_of(data): data for data in sections}
        self._checksum = sha1_of(b"".join(sections))
        listed = [sha1_of(data) for data in sections]
        self._offer = {self._checksum: {"name": "image.bin", "chunks": listed}}
        self._path = f"/api/0/projects/lab/builds/builds/lamp/R{number}/assemble/"
        self._confirmed: set[str] = set()

    def send(self, server: RunningServer) -> None:
        """Send what is missing, and wait for the file.

        Raises:
            requests.ConnectionError: the server has died.
        """
        client = UploadClient(server)
        missing = set(self._ask(client)["missingChunks"])
        assert not missing & self._confirmed
        if missing:
            answer = client.send(*(chunk(self._chunks[checksum]) for checksum in missing))
            assert answer.status_code == 200, answer.text
            self._confirmed |= missing
        wait_until(lambda: self._ask(client)["state"] == "ok")

    def _ask(self, client: UploadClient) -> dict[str, Any]:
        answer = requests.post(
            client.server.url + self._path,
            json=self._offer,
            headers=client.authorization,
            timeout=TIMEOUT_SECONDS,
        )
        assert answer.status_code == 200, answer.text
        state: dict[str, Any] = answer.json()[self._checksum]
        assert state["state"] != "error", state
        return state


def test_whatever_step_it_dies_before_nothing_confirmed_is_lost(
    serve: Serve, tmp_path: Path
) -> None:
    armed = tmp_path / "armed"
    cut_off: Upload | None = None
    deaths = 0
    for step in range(1, MAX_TRIES):
        armed.unlink(missing_ok=True)
        environment = {"DYING_ARMED": str(armed), "DYING_STEP": str(step)}
        server = serve(program=DYING_SERVER, environment=environment)
        assert spooled_files(server) == []
        assert list((server.directory / "data" / "assembling").glob("*")) == []
        if cut_off is not None:
            cut_off.send(server)
        cut_off = Upload(step)
        armed.touch()
        try:
            cut_off.send(server)
        except requests.ConnectionError:
            server.process.wait(timeout=60)
            deaths += 1
        else:
            break
    # The last upload took fewer steps than it was to die before.
    assert MIN_STEPS <= deaths < MAX_TRIES - 1
    server.stop()
    assert fsck(server).returncode == 0


def fsck(server: RunningServer) -> subprocess.CompletedProcess[str]:
    directories = ("--data-dir", str(server.directory / "data"))
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "devserver.py"), "fsck", *directories],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
