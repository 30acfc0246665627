"""The upload protocol, from a client's side: what the server takes, assembling, sending chunks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from artifacts.archive_url import BuildName
from artifacts.commands.client import Client, NoAnswer
from artifacts.commands.form_body import FormBody, FormFile
from artifacts.commands.local_files import HashedFile, Interrupted, LocalChunk
from artifacts.errors import DevserverError
from artifacts.retries import RetryLimits

# Of what is given to the socket at a time: there is a time limit for each.
_PIECE_BYTES = 1 << 20
_PASSING = {502, 503, 504, 507}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class UploadLimits:
    """What a server takes, as it says itself: sizes in bytes, ``concurrency`` in requests."""

    url: str
    chunk_bytes: int
    chunks_per_request: int
    request_bytes: int
    concurrency: int


@dataclass(frozen=True)
class Standing:
    """Where a file stands: ``state`` is not_found, assembling, ok or error."""

    state: str
    missing_chunks: Sequence[str]
    detail: str | None


class UploadClient:
    """Publishes a build's files to a server; threads may share it.

    What fails in passing is tried again, after pauses, as often as the limits say; also when nobody
    answers, which may be a server that is just started anew.
    """

    def __init__(
        self,
        client: Client,
        project: str,
        build: BuildName,
        retries: RetryLimits,
        stopped: threading.Event,
    ) -> None:
        """Ask the server who we are and what it takes; ``stopped``, when set, ends everything.

        Raises:
            DevserverError: the server refuses, or is none.
        """
        self._client = client
        self._retries = retries
        self._stopped = stopped
        organization = self._organization()
        self.limits = self._read_limits(organization)
        path = [*("projects", organization, project, "builds"), *str(build).split("/")]
        self._assemble_path = f"/api/0/{'/'.join(quote(part, safe='') for part in path)}/assemble/"

    def _organization(self) -> str:
        answer = self._retrying(lambda: self._client.get_json("/api/0/"), is_first=True)
        try:
            return str(answer["organization"])
        except (KeyError, TypeError) as error:
            raise self._strange_answer() from error

    def _read_limits(self, organization: str) -> UploadLimits:
        path = f"/api/0/organizations/{quote(organization, safe='')}/chunk-upload/"
        answer = self._retrying(lambda: self._client.get_json(path))
        try:
            if answer["hashAlgorithm"] != "sha1":
                raise DevserverError(
                    f"{self._client.server} names chunks by {answer['hashAlgorithm']!r}, "
                    "which this command does not know; use one of the server's version"
                )
            return UploadLimits(
                url=str(answer["url"]),
                chunk_bytes=max(1, int(answer["chunkSize"])),
                chunks_per_request=max(1, int(answer["chunksPerRequest"])),
                request_bytes=max(1, int(answer["maxRequestSize"])),
                concurrency=max(1, int(answer["concurrency"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange_answer() from error

    def assemble(self, files: Mapping[str, HashedFile]) -> dict[str, Standing]:
        """Ask for files, by their checksums, to be assembled; return where they stand."""
        offers = {
            checksum: {
                "name": file.file.name,
                "chunks": [chunk.checksum for chunk in file.chunks],
            }
            for checksum, file in files.items()
        }
        answer = self._retrying(lambda: self._client.post_json(self._assemble_path, offers))
        try:
            return {checksum: _standing(answer[checksum]) for checksum in files}
        except (KeyError, TypeError) as error:
            raise self._strange_answer() from error

    def send(self, chunks: Sequence[LocalChunk], advance: Callable[[int], None]) -> None:
        """Send chunks with one request.

        ``advance`` is called with each number of bytes that is sent; with a negative one, when they
        have to be sent again.

        Raises:
            DevserverError: the server refuses them, or a file has changed.
        """

        def send() -> None:
            sending = _Sending(self._stopped, advance)
            body = FormBody(
                [
                    FormFile("file", chunk.checksum, chunk.size, sending.pieces(chunk))
                    for chunk in chunks
                ]
            )
            try:
                self._client.post_body(self.limits.url, body, body.content_type)
            except BaseException:
                advance(-sending.bytes_sent)
                raise

        self._retrying(send)

    def _retrying(self, call: Callable[[], _Result], *, is_first: bool = False) -> _Result:
        failed_tries = 0
        while True:
            if self._stopped.is_set():
                raise Interrupted
            try:
                return call()
            except DevserverError as error:
                failed_tries += 1
                may_pass = error.status in _PASSING or (
                    isinstance(error, NoAnswer) and not is_first
                )
                if not may_pass or failed_tries >= self._retries.tries:
                    raise
                self._stopped.wait(self._retries.pause_seconds(failed_tries, error))

    def _strange_answer(self) -> DevserverError:
        return DevserverError(
            f"what answers at {self._client.server} does not take uploads as a devserver does"
        )


def _standing(answer: Mapping[str, Any]) -> Standing:
    detail = answer.get("detail")
    missing = [str(checksum) for checksum in answer["missingChunks"]]
    return Standing(str(answer["state"]), missing, None if detail is None else str(detail))


class _Sending:
    """Chunks of one request on their way, of which one at a time is in memory."""

    def __init__(self, stopped: threading.Event, advance: Callable[[int], None]) -> None:
        self.bytes_sent = 0
        self._stopped = stopped
        self._advance = advance

    def pieces(self, chunk: LocalChunk) -> Iterator[memoryview]:
        data = memoryview(chunk.read())
        for start in range(0, len(data), _PIECE_BYTES):
            if self._stopped.is_set():
                raise Interrupted
            piece = data[start : start + _PIECE_BYTES]
            yield piece
            self.bytes_sent += len(piece)
            self._advance(len(piece))
