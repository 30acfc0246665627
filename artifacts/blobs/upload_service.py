"""Uploads in a running server: what is kept of them, what works on them, and the calls for it."""

from __future__ import annotations

import contextlib

from artifacts.blobs.api import BlobsApi
from artifacts.blobs.assembly import Assembler
from artifacts.blobs.chunk_upload import ChunkUploads
from artifacts.blobs.published_builds_api import PublishedBuildsApi
from artifacts.blobs.store_source import StoreSource
from artifacts.blobs.upkeep import Upkeep
from artifacts.blobs.upkeep_api import UpkeepApi
from artifacts.blobs.uploads import Uploads
from artifacts.config import Config
from artifacts.serving.upload_protocol import UploadProtocol
from artifacts.timers import Timers

_END_SECONDS = 5


class UploadService:
    """Opened with the server, started with it, and closed after the last request.

    Attributes:
        uploads: what is kept.
        source: reads published builds, as an archive.
        assembler: makes files of chunks; also for the rooms that know what is in them.
        protocol: the calls below ``/api/0/``; other rooms add theirs.
        upkeep_api: those below ``/api/v1/upkeep``.
    """

    def __init__(self, config: Config, timers: Timers, secret: str) -> None:
        """``secret``: with it, commands of the server's own user do upkeep.

        Raises as `Uploads` does.
        """
        with contextlib.ExitStack() as undo:
            self.uploads = uploads = Uploads(config)
            undo.callback(uploads.close)
            self.source = StoreSource(uploads.database, uploads.blobs)
            chunk_uploads = ChunkUploads(uploads.blobs)
            undo.callback(chunk_uploads.close)
            self.assembler = Assembler(
                uploads.database,
                uploads.blobs,
                uploads.files,
                uploads.locks,
                config.data_dir.absolute() / "assembling",
            )
            undo.callback(lambda: self.assembler.close(_END_SECONDS))
            self._upkeep = Upkeep(uploads, timers)
            undo.callback(lambda: self._upkeep.close(_END_SECONDS))
            self.protocol = UploadProtocol(uploads.tokens)
            BlobsApi(chunk_uploads, config.upload_url_prefix).register(self.protocol)
            builds = PublishedBuildsApi(uploads.database, uploads.files, self.assembler)
            builds.register(self.protocol)
            self.upkeep_api = UpkeepApi(self._upkeep, uploads.tokens, secret)
            self._undo = undo.pop_all()

    def start(self) -> None:
        """Begin; all rooms that have purposes of their own have told the assembler."""
        self.assembler.take_up()
        self._upkeep.start()

    def stop(self) -> None:
        """End what nobody waits for."""
        self._upkeep.stop()

    def close(self) -> None:
        self._undo.close()
