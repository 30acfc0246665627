"""CherryPy as it comes, taking chunks in: ``python -m bench.cherrypy_upload DIRECTORY PORTFILE``.

``/multipart`` takes the parts that CherryPy's own parser has put into temporary files, ``/raw`` a
body of chunks one behind the other, each as large as can be. Both store what comes as a blob
storage has to: under its SHA-1, which is checked, written aside, synced, and renamed.
"""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any, Protocol

import cherrypy

from artifacts.blobs.limits import CHUNK_BYTES
from artifacts.blobs.sha1 import new_sha1
from bench.upload_clients import CHUNKS_HEADER

_BLOCK_BYTES = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Root:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @cherrypy.expose
    def check_health(self) -> str:
        return "{}"

    @cherrypy.expose
    def multipart(self, file: Any) -> str:
        for part in file if isinstance(file, list) else [file]:
            self._store(part.filename, part.file)
        return ""

    @cherrypy.expose
    @cherrypy.config(**{"request.process_request_body": False})
    def raw(self) -> str:
        for checksum in cherrypy.request.headers[CHUNKS_HEADER].split(","):
            self._store(checksum, cherrypy.request.rfile)
        return ""

    def _store(self, checksum: str, chunk: _Readable) -> None:
        sha1 = new_sha1()
        path = self._directory / uuid.uuid4().hex
        left = CHUNK_BYTES
        with path.open("xb", buffering=0) as file:
            while left and (block := chunk.read(min(_BLOCK_BYTES, left))):
                sha1.update(block)
                file.write(block)
                left -= len(block)
            os.fsync(file.fileno())
        if sha1.hexdigest() != checksum:
            path.unlink()
            raise cherrypy.HTTPError(400, "wrong checksum")
        path.rename(self._directory / checksum)


def main() -> None:
    directory, portfile = map(Path, sys.argv[1:])
    cherrypy.config.update(
        {
            "engine.autoreload.on": False,
            "server.socket_host": "127.0.0.1",
            "server.socket_port": 0,
            "server.max_request_body_size": 0,
        }
    )
    cherrypy.tree.mount(_Root(directory), "/")
    cherrypy.engine.signals.subscribe()
    cherrypy.engine.start()
    portfile.write_text(str(cherrypy.server.bound_addr[1]), encoding="ascii")
    cherrypy.engine.block()


if __name__ == "__main__":
    main()
