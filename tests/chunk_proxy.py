"""A proxy between an uploader and its server, which notes the chunks that pass."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace

from archive_answers import Answer, Request
from archive_faults import Fault
from archive_proxy import ArchiveProxy

_CHUNK = re.compile(rb'filename="([0-9a-f]{40})"')


class ChunkProxy(ArchiveProxy):
    """Misbehaves when told to, as an `ArchiveProxy` does.

    Attributes:
        on_chunks: called with the number, from 1, of each request that brings chunks, before it is
            passed on. What it raises ends the connection.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.on_chunks: Callable[[int], None] = lambda number: None
        self._noting = threading.Lock()  # guards the three below
        self._requests_with_chunks = 0
        self._passed: list[str] = []
        self._confirmed: list[str] = []

    def lead_to(self, upstream: str) -> None:
        """Pass requests on to another server from now on."""
        self._site = replace(self._site, url=upstream)

    @property
    def passed(self) -> list[str]:
        """The checksums of the chunks that came, in order; one that came twice is there twice."""
        with self._noting:
            return list(self._passed)

    @property
    def confirmed(self) -> list[str]:
        """Those of them that the server has said to have."""
        with self._noting:
            return list(self._confirmed)

    def answer(self, request: Request, fault: Fault) -> Answer:
        if len(request.body) != int(request.headers.get("Content-Length") or 0):
            raise ConnectionAbortedError("the client went away half-way")
        chunks = [match.decode("ascii") for match in _CHUNK.findall(request.body)]
        if not chunks:
            return super().answer(request, fault)
        with self._noting:
            self._requests_with_chunks += 1
            number = self._requests_with_chunks
            self._passed += chunks
        self.on_chunks(number)
        answer = super().answer(request, fault)
        if answer.status == 200:
            with self._noting:
                self._confirmed += chunks
        return answer
