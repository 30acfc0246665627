"""Clients that upload as fast as they can: a process whose bodies are made before anything counts.

``python -m bench.upload_clients PORT PATH TOKEN CLIENTS REQUESTS WAY`` is that process, and
``Uploaders`` runs it. The bodies are files in memory (memfd), and are sent from there without being
copied. As sentry-cli does, each client makes a connection for each request, and sends the next one
when the last is answered.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import BinaryIO, Literal

from bench.chunks import CHUNKS_OF_A_REQUEST, CONTENT_TYPE, checksum_of, make_chunks, multipart
from bench.processes import CALL_SECONDS, END_SECONDS, REPOSITORY

# How chunks travel: in parts of multipart/form-data, or one behind the other, named by a header.
Way = Literal["multipart", "raw"]
CHUNKS_HEADER = "X-Chunks"


@dataclass(frozen=True)
class Uploaded:
    """What clients uploaded, all together.

    Attributes:
        bytes: of chunks.
        seconds: from the first request until the last is answered.
        cpu_seconds: of the clients.
    """

    bytes: int
    seconds: float
    cpu_seconds: float


class Uploaders:
    """Clients, each with requests of four new chunks; a context manager."""

    def __init__(
        self, port: int, path: str, token: str, clients: int, requests: int, way: Way = "multipart"
    ) -> None:
        """``requests``: how many each of the clients makes."""
        command = [sys.executable, "-m", "bench.upload_clients", str(port), path, token]
        self._process = subprocess.Popen(
            [*command, str(clients), str(requests), way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._reports = self._process.stdin, self._process.stdout

    def upload(self) -> Uploaded:
        """Have all clients upload all that they have; another time, the same again.

        Raises:
            RuntimeError: a request was not answered by 200.
        """
        self._orders.write("go\n")
        self._orders.flush()
        report = self._reports.readline()
        if not report:
            raise RuntimeError("the uploading clients failed")
        return Uploaded(**json.loads(report))

    def __enter__(self) -> Uploaders:
        """Return when the clients have all that they are going to send."""
        if self._reports.readline() != "ready\n":
            self.__exit__()
            raise RuntimeError("the uploading clients could not be started")
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        try:
            self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reports.close()


@dataclass(frozen=True)
class _Request:
    body: BinaryIO
    headers: dict[str, str]
    chunk_bytes: int


def _make_request(token: str, *, is_multipart: bool) -> _Request:
    chunks = make_chunks(CHUNKS_OF_A_REQUEST)
    headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
    if is_multipart:
        pieces = multipart(chunks)
        headers["Content-Type"] = CONTENT_TYPE
    else:
        pieces = chunks
        headers["Content-Type"] = "application/octet-stream"
        headers[CHUNKS_HEADER] = ",".join(checksum_of([chunk]) for chunk in chunks)
    body = os.fdopen(os.memfd_create("body"), "w+b", buffering=0)
    for piece in pieces:
        body.write(piece)
    headers["Content-Length"] = str(body.tell())
    return _Request(body, headers, sum(map(len, chunks)))


def _send(port: int, path: str, requests: Sequence[_Request]) -> None:
    for request in requests:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_SECONDS)
        try:
            connection.putrequest("POST", path)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            request.body.seek(0)
            connection.sock.sendfile(request.body)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"an upload was answered {answer.status}: {text[:200]!r}")
        finally:
            connection.close()


def main() -> None:
    port, path, token, clients, count, way = sys.argv[1:]
    of_clients = [
        [_make_request(token, is_multipart=way == "multipart") for _ in range(int(count))]
        for _ in range(int(clients))
    ]
    with ThreadPoolExecutor(len(of_clients)) as pool:
        print("ready", flush=True)
        for _ in sys.stdin:
            before, begun_at = os.times(), time.monotonic()
            list(pool.map(lambda requests: _send(int(port), path, requests), of_clients))
            seconds, after = time.monotonic() - begun_at, os.times()
            uploaded = Uploaded(
                sum(request.chunk_bytes for requests in of_clients for request in requests),
                seconds,
                after.user + after.system - before.user - before.system,
            )
            print(json.dumps(asdict(uploaded)), flush=True)


if __name__ == "__main__":
    main()
