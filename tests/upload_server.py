"""A server for uploads in the test's own process, whose blob storage can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cherrypy
from faulty_storage import FailingStorage

from artifacts.blobs.api import BlobsApi
from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.chunk_upload import ChunkUploads
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from artifacts.serving.application import mount
from artifacts.serving.front import ClientLimits
from artifacts.serving.http_server import HttpServer
from artifacts.serving.upload_protocol import UploadProtocol
from artifacts.tokens import Tokens


@dataclass(frozen=True)
class UploadServer:
    """A server for chunks alone; ``directory`` is laid out as that of a `RunningServer`."""

    directory: Path
    port: int
    storage: FailingStorage
    blobs: BlobStore
    chunk_uploads: ChunkUploads

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def upload_server(directory: Path, limits: ClientLimits | None = None) -> Iterator[UploadServer]:
    """Serve on a free port of 127.0.0.1, with directories below ``directory``."""
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    cherrypy.config.update({"log.screen": False})
    with ExitStack() as undo:
        database = Database.in_directory(data)
        undo.callback(database.close)
        storage = FailingStorage(DirectoryStorage(data / "blobs"))
        blobs = BlobStore(database, storage, ProcessLocks())
        chunk_uploads = ChunkUploads(blobs)
        undo.callback(chunk_uploads.close)
        # Nobody is to wait for storage that a test holds.
        undo.callback(storage.behave)
        protocol = UploadProtocol(Tokens(database))
        BlobsApi(chunk_uploads, None).register(protocol)
        root = _Namespace(api=_Namespace(**{"0": protocol}))
        server = HttpServer(
            ("127.0.0.1", 0), mount(root), threads=8, limits=limits or ClientLimits()
        )
        server.start()
        undo.callback(server.stop, timeout_seconds=2)
        port = int(server.bind_addr[1])
        yield UploadServer(directory, port, storage, blobs, chunk_uploads)


class _Namespace:
    def __init__(self, **parts: object) -> None:
        self.__dict__.update(parts)
