"""Servers that take chunks in: a devserver, and CherryPy in two ways."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from artifacts.database.database import Database
from artifacts.tokens import PUBLISH, Tokens
from bench.chunks import CHUNKS_OF_A_REQUEST, CONTENT_TYPE, multipart
from bench.moved import Moved
from bench.processes import (
    CALL_SECONDS,
    Devserver,
    cpu_seconds_of_tree,
    is_answered,
    started,
    wait_for_text,
    wait_until,
)
from bench.upload_clients import Uploaded, Uploaders, Way

ORGANIZATION = "bench"
_LOGGED_REQUEST = re.compile(rb'"((?:GET|POST) [^ "]+) HTTP/1\.[01]"')


class UploadServer(Devserver):
    """A devserver that takes uploads of one organization.

    Attributes:
        token: of that organization.
    """

    def __init__(self, directory: Path, *options: str, blob_directory: Path | None = None) -> None:
        self._blobs = blob_directory or directory / "data" / "blobs"
        # A storage that has been in use has them all.
        for number in range(256):
            (self._blobs / f"{number:02x}").mkdir(parents=True, exist_ok=True)
        super().__init__(directory, "--blob-storage", str(self._blobs), *options)
        database = Database.in_directory(directory / "data")
        try:
            self.token = Tokens(database).create(ORGANIZATION, [PUBLISH])
        finally:
            database.close()

    @property
    def chunk_path(self) -> str:
        return f"/api/0/organizations/{ORGANIZATION}/chunk-upload/"

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """Return the body of an answer that has to be 200."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type}
        answer = self.session.post(self.url + path, body, headers=headers, timeout=CALL_SECONDS)
        if answer.status_code != 200:
            raise RuntimeError(f"{path} answered {answer.status_code}: {answer.text}")
        return answer.content

    def upload(self, chunks: Sequence[bytes]) -> None:
        """Have chunks stored that are needed for what is measured."""
        for number in range(0, len(chunks), CHUNKS_OF_A_REQUEST):
            body = b"".join(multipart(chunks[number : number + CHUNKS_OF_A_REQUEST]))
            self.post(self.chunk_path, body, CONTENT_TYPE)

    def requests_since(self, logged_before: int) -> list[str]:
        """Return what the log has of requests since it had so many bytes: methods and paths."""
        with self.log.open("rb") as log:
            log.seek(logged_before)
            return [line.decode("utf-8") for line in _LOGGED_REQUEST.findall(log.read())]

    def remove_blobs(self) -> None:
        """Take the blobs off the disk, as if nobody had ever seen them."""
        for path in self._blobs.glob("??/*"):
            path.unlink()


@dataclass(frozen=True)
class ChunkServer:
    """A running server that takes chunks in.

    Attributes:
        name: for notes and JSON.
        description: with its version, and how it is set up.
        path: where chunks are posted.
        remove: takes what is stored off the disk.
    """

    name: str
    description: str
    process: psutil.Process
    port: int
    path: str
    token: str
    way: Way
    remove: Callable[[], None]

    def clients(self, clients: int, requests: int) -> Uploaders:
        return Uploaders(self.port, self.path, self.token, clients, requests, self.way)

    def take_in(self, uploaders: Uploaders) -> tuple[Moved, Uploaded]:
        """Have the clients upload; return what that took of the server, and of them."""
        cpu_before = cpu_seconds_of_tree(self.process)
        uploaded = uploaders.upload()
        cpu_seconds = cpu_seconds_of_tree(self.process) - cpu_before
        return Moved(uploaded.bytes, uploaded.seconds, cpu_seconds), uploaded


def chunk_server_of(server: UploadServer) -> ChunkServer:
    """Return a devserver as one that takes chunks in."""
    return ChunkServer(
        "devserver",
        "devserver",
        server.process,
        server.port,
        server.chunk_path,
        server.token,
        "multipart",
        server.remove_blobs,
    )


@contextmanager
def cherrypy_uploads(directory: Path) -> Iterator[list[ChunkServer]]:
    """CherryPy with its own parser of multipart, and with bodies that need none."""
    stored, portfile = directory / "stored", directory / "port"
    stored.mkdir(parents=True)

    def remove() -> None:
        for path in stored.iterdir():
            path.unlink()

    command = [sys.executable, "-m", "bench.cherrypy_upload", str(stored), str(portfile)]
    with started(command, directory / "log") as running:
        port = int(wait_for_text(portfile, running))
        wait_until(lambda: is_answered(f"http://127.0.0.1:{port}/check_health"))
        process = psutil.Process(running.pid)
        name = f"CherryPy {version('CherryPy')}"
        yield [
            ChunkServer(
                "CherryPy, multipart",
                f"{name}, its own multipart parser",
                *(process, port, "/multipart", "", "multipart", remove),
            ),
            ChunkServer(
                "CherryPy, raw body",
                f"{name}, a raw body without multipart",
                *(process, port, "/raw", "", "raw", remove),
            ),
        ]
