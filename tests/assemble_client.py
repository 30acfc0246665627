"""An uploader that has what it sent assembled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import requests
from polling import wait_until
from upload_client import TIMEOUT_SECONDS, UploadClient, chunk, sha1_of

CRASH_LAB = Path(__file__).resolve().parent / "data" / "crash_lab"
# Of `crash_lab`, and of the files that were made from it.
DEBUG_ID = "8fd7dd32-7311-a6f8-bad5-0bd4bd2d4843"
CODE_ID = "32ddd78f1173f8a6bad50bd4bd2d48435d5c7d7f"
_CHUNK_BYTES = 8 << 20

Answer = dict[str, Any]


class AssembleClient(UploadClient):
    """Uploads debug files to the project ``devices``, and builds."""

    project = "devices"

    @property
    def difs(self) -> str:
        return f"/api/0/projects/{self.organization}/{self.project}/files/difs/assemble/"

    def build(self, name: str) -> str:
        return f"/api/0/projects/{self.organization}/builds/builds/{name}/assemble/"

    def post(self, path: str, body: bytes) -> requests.Response:
        return requests.post(
            self.server.url + path, data=body, headers=self.authorization, timeout=TIMEOUT_SECONDS
        )

    def ask(self, path: str, offers: object) -> Any:
        """Return the answer to offers, which has to be 200."""
        response = self.post(path, json.dumps(offers).encode("utf-8"))
        assert response.status_code == 200, f"{response.status_code}: {response.text}"
        assert response.headers["Content-Type"] == "application/json"
        return response.json()

    def settle(self, path: str, content: bytes, name: str = "thing") -> Answer:
        """Send a file's chunks, and have it assembled; return the final answer."""
        pieces = [
            content[start : start + _CHUNK_BYTES] for start in range(0, len(content), _CHUNK_BYTES)
        ] or [b""]
        for piece in pieces:
            assert self.send(chunk(piece)).status_code == 200
        offers = {sha1_of(content): {"name": name, "chunks": [sha1_of(p) for p in pieces]}}
        answers: list[Answer] = []

        def is_settled() -> bool:
            answers.append(self.ask(path, offers)[sha1_of(content)])
            return bool(answers[-1]["state"] != "assembling")

        wait_until(is_settled)
        return answers[-1]

    def upload(self, content: bytes, name: str = "thing") -> Answer:
        """Upload a debug file that is one; return what it is said to be."""
        answer = self.settle(self.difs, content, name)
        assert answer["state"] == "ok", answer
        dif: Answer = answer["dif"]
        return dif

    def list(self, **query: str) -> Any:
        """List debug files of the project."""
        path = f"/api/0/projects/{self.organization}/{self.project}/files/dsyms/"
        response = requests.get(
            self.server.url + path,
            params=query,
            headers=self.authorization,
            timeout=TIMEOUT_SECONDS,
        )
        assert response.status_code == 200, f"{response.status_code}: {response.text}"
        return response.json()


def crash_lab(name: str) -> bytes:
    return (CRASH_LAB / name).read_bytes()
