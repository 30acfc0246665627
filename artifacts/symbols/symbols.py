"""Symbols in a running server: debug files, and the calls for them."""

from __future__ import annotations

from artifacts.blobs.upload_service import UploadService
from artifacts.symbols.api import DebugFilesApi
from artifacts.symbols.debug_files import DebugFiles
from artifacts.symbols.inspection import Inspector
from artifacts.timers import Timers


class Symbols:
    """Opened with the server, and closed with it."""

    def __init__(self, upload_service: UploadService, timers: Timers) -> None:
        uploads = upload_service.uploads
        self._inspector = Inspector(timers)
        debug_files = DebugFiles(uploads.database, uploads.files)
        api = DebugFilesApi(debug_files, self._inspector, upload_service.assembler)
        api.register(upload_service.protocol)

    def close(self) -> None:
        self._inspector.close()
