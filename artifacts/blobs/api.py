"""``/api/0/``, ``/api/0/…/chunk-upload/``: what uploaders ask first, and where chunks go."""

from __future__ import annotations

from concurrent.futures import Future

import cherrypy

from artifacts.blobs.chunk_upload import ChunkUploads
from artifacts.blobs.limits import (
    CHUNK_BYTES,
    CHUNKS_PER_REQUEST,
    CONCURRENCY,
    FILE_BYTES,
    REQUEST_BYTES,
)
from artifacts.errors import DevserverError
from artifacts.serving.answer import Answer, detail_error, json_answer
from artifacts.serving.connection import current_body
from artifacts.serving.upload_protocol import Access, UploadProtocol
from artifacts.serving.waiting import Wait
from artifacts.tokens import PUBLISH

_PATHS = (
    "chunk-upload",
    "organizations/{organization}/chunk-upload",
    # Where a path is sent by older clients, which put /api/0/ before it in any case.
    "api/0/organizations/{organization}/chunk-upload",
)
# For which a client waits for its chunks to be stored, once they are here.
_STORE_SECONDS = 120.0


class BlobsApi:
    """The calls below ``/api/0/`` that have to do with chunks alone."""

    def __init__(self, chunk_uploads: ChunkUploads, url_prefix: str | None) -> None:
        """``url_prefix``: the URL at which clients reach this server, unless they know it."""
        self._chunk_uploads = chunk_uploads
        self._url_prefix = url_prefix or ""

    def register(self, protocol: UploadProtocol) -> None:
        protocol.add("GET", "", None, self._who_asks)
        for path in _PATHS:
            protocol.add("GET", path, PUBLISH, self._limits)
            protocol.add("POST", path, PUBLISH, self._upload)

    def _who_asks(self, access: Access) -> Answer:
        return json_answer(
            {
                "version": "0",
                "auth": {"scopes": list(access.token.scopes)},
                "user": None,
                "organization": access.organization,
            }
        )

    def _limits(self, access: Access) -> Answer:
        path = f"/api/0/organizations/{access.organization}/chunk-upload/"
        return json_answer(
            {
                "url": self._url_prefix + path,
                "chunkSize": CHUNK_BYTES,
                "chunksPerRequest": CHUNKS_PER_REQUEST,
                "maxRequestSize": REQUEST_BYTES,
                "maxFileSize": FILE_BYTES,
                "concurrency": CONCURRENCY,
                "hashAlgorithm": "sha1",
                "compression": ["gzip"],
                "accept": ["debug_files", "sources"],
            }
        )

    def _upload(self, access: Access) -> Wait | Answer:
        headers = cherrypy.request.headers
        length = headers.get("Content-Length")
        if length is None and "Transfer-Encoding" not in headers:
            raise DevserverError(
                "the request must tell its Content-Length", status=411, code="length_required"
            )
        if length == "0":
            return _stored()
        stored = self._chunk_uploads.receive(
            access.organization, headers.get("Content-Type"), current_body()
        )
        return Wait(stored, _STORE_SECONDS, _answer)


def _answer(stored: Future[None]) -> Answer:
    error = stored.exception()
    return _stored() if error is None else detail_error(error)


def _stored() -> Answer:
    return Answer(b"", 200, "application/json")
