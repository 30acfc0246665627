"""Chunk upload: requests bring chunks, which are stored while more of them come."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.incoming_chunk import IncomingChunk, ReceivedChunk
from artifacts.blobs.limits import CHUNKS_PER_REQUEST, CONCURRENCY, REQUEST_BYTES
from artifacts.blobs.sha1 import check_checksum
from artifacts.blobs.spool import Spool
from artifacts.errors import BadRequest, Busy, TooLarge
from artifacts.futures import first_failure
from artifacts.serving.multipart import MultipartReader, PartHead
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_PLAIN, _PACKED = "file", "file_gzip"
# Fields that are no chunks are passed over.
_MAX_OTHER_PARTS = 16
# Of all chunks when decompressed; clients that keep to the limit have some room.
_MAX_CHUNK_BYTES = REQUEST_BYTES + REQUEST_BYTES // 4


class Body(Protocol):
    """A request's body as it comes."""

    def read_some(self, max_bytes: int) -> bytes: ...


class ChunkUploads:
    """Takes chunks in, for all requests, and has threads of its own store them."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._spool = Spool(blobs.storage.spool_directory)
        self._workers = Workers("blob-store", CONCURRENCY)

    def receive(self, organization: str, content_type: str | None, body: Body) -> Future[None]:
        """Read the chunks of a request; good ones are stored, whatever becomes of the others.

        Args:
            organization: whose they are.
            content_type: of the body, which has to be ``multipart/form-data``.
            body: read to its end.

        Returns:
            What ends once all of them are stored; its errors are those of `BlobStore.keep`.

        Raises:
            BadRequest: the body, or a chunk, is not as it should be.
            TooLarge: the chunks are too large together.
            Busy, StorageError, InsufficientStorage: a chunk cannot be written aside.
        """
        chunks = _Chunks(organization, self._blobs, self._spool, self._workers)
        max_parts = CHUNKS_PER_REQUEST + _MAX_OTHER_PARTS
        try:
            reader = MultipartReader(content_type, chunks, max_parts)
            while block := body.read_some(_BLOCK_BYTES):
                reader.feed(block)
            reader.end()
        except BaseException as error:
            _log.info("an upload of %s has ended early: %s", organization, error)
            raise
        finally:
            chunks.close()
        return first_failure(chunks.kept)

    def close(self) -> None:
        """Store nothing more; what has not been stored yet is answered with Busy."""
        self._workers.close(timeout_seconds=5)


class _Chunks:
    """The chunks of one request: each is handed on to be stored as soon as it is there.

    Attributes:
        kept: for each, what ends when it is stored.
    """

    def __init__(self, organization: str, blobs: BlobStore, spool: Spool, workers: Workers) -> None:
        self._organization = organization
        self._blobs = blobs
        self._spool = spool
        self._workers = workers
        self._chunk: IncomingChunk | None = None
        self._bytes = 0
        self.kept: list[Future[None]] = []

    def begin_part(self, head: PartHead) -> None:
        if head.name not in {_PLAIN, _PACKED}:
            if head.filename is not None:
                raise BadRequest(f"chunks are called {_PLAIN} or {_PACKED}, not {head.name!r:.100}")
            return
        if len(self.kept) == CHUNKS_PER_REQUEST:
            raise BadRequest(f"there are more than {CHUNKS_PER_REQUEST} chunks in the request")
        checksum = check_checksum(head.filename, "the file name of a chunk")
        spooled = None if self._blobs.has(checksum) else self._spool.open()
        self._chunk = IncomingChunk(checksum, spooled, is_packed=head.name == _PACKED)

    def take(self, data: memoryview) -> None:
        if self._chunk is not None:
            self._chunk.take(data)

    def end_part(self) -> None:
        if self._chunk is None:
            return
        received = self._chunk.finish()
        self._bytes += received.size
        if self._bytes > _MAX_CHUNK_BYTES:
            raise TooLarge(f"the chunks of the request are over {REQUEST_BYTES:,} bytes together")
        future = self._workers.call(self._keep, received)
        self._chunk = None
        if received.spooled is not None:
            # Also if the workers end before they get to it.
            future.add_done_callback(partial(_remove, received))
        self.kept.append(future)

    def close(self) -> None:
        """Drop what is not complete."""
        if self._chunk is not None:
            self._chunk.drop()
            self._chunk = None

    def _keep(self, chunk: ReceivedChunk) -> None:
        """On a worker's thread."""
        path = chunk.spooled.path if chunk.spooled is not None else None
        if not self._blobs.keep(self._organization, chunk.checksum, chunk.size, path):
            raise Busy(f"chunk {chunk.checksum} has just been removed; send it again")


def _remove(chunk: ReceivedChunk, _: Future[None]) -> None:
    assert chunk.spooled is not None
    chunk.spooled.remove()
