"""A proxy before a real archive, which passes requests on, and misbehaves when told to.

    with ArchiveProxy(storage.url) as proxy:
        proxy.misbehave("/bucket/target/build/image.zip", Fault(cut_after=1000), times=2)

It is an `ArchiveServer` whose files are another server's, who is also sent what is written.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from archive_answers import Answer, Request, Site
from archive_faults import Fault
from archive_server import ArchiveServer

_TIMEOUT_SECONDS = 30
_OF_THE_CONNECTION = {"connection", "content-length", "date", "server", "transfer-encoding"}
# What the connection is asked that is there already.
_ANSWERED = {"Expect", "Connection"}
_DOWNLOAD = "/download"


class ArchiveProxy(ArchiveServer):
    """Stands before the server at ``upstream``, on a free port of 127.0.0.1.

    Args:
        transcodes: whether objects of an emulated Google Storage that are kept as gzip come
            decompressed and whole, as from the real one, unless the request accepts gzip.
    """

    def __init__(self, upstream: str, *, transcodes: bool = False) -> None:
        super().__init__(Path(os.devnull))
        self._site = _Upstream(**vars(self._site), url=upstream, transcodes=transcodes)


@dataclass(frozen=True)
class _Upstream(Site):
    url: str = ""
    transcodes: bool = False

    def _find(self, request: Request, fault: Fault) -> Answer:
        headers = {k: v for k, v in request.headers.items() if k not in _ANSWERED}
        if fault.ignore_range:
            headers.pop("Range", None)
        accepts_gzip = "gzip" in headers.get("Accept-Encoding", "")
        is_gzip = self.transcodes and self._is_kept_as_gzip(request)
        if is_gzip and not accepts_gzip:
            headers.pop("Range", None)
            answer = self._ask(request.method, request.target, headers)
            plain = gzip.decompress(answer.body.read())
            return replace(
                answer, body=io.BytesIO(plain), length=len(plain), claimed_length=len(plain)
            )
        answer = self._ask(request.method, request.target, headers, request.body)
        if is_gzip:
            answer.headers["content-encoding"] = "gzip"
        if fault.content_range is not None:
            answer.headers["content-range"] = fault.content_range
        if fault.lie_etag is not None:
            answer.headers["etag"] = fault.lie_etag
        if fault.swap is not None:
            length = len(fault.swap)
            answer = replace(
                answer, body=io.BytesIO(fault.swap), length=length, claimed_length=length
            )
        return answer

    def _is_kept_as_gzip(self, request: Request) -> bool:
        if not request.target.startswith(f"{_DOWNLOAD}/"):
            return False
        about = request.target.removeprefix(_DOWNLOAD).partition("?")[0]
        described = self._ask("GET", about, {})
        return (
            described.status == 200 and json.load(described.body).get("contentEncoding") == "gzip"
        )

    def _ask(self, method: str, target: str, headers: dict[str, str], sent: bytes = b"") -> Answer:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, target, body=sent or None, headers=headers)
            response = connection.getresponse()
            body = response.read()
            told = {
                name.lower(): value
                for name, value in response.getheaders()
                if name.lower() not in _OF_THE_CONNECTION
            }
            length = int(response.headers.get("Content-Length", len(body)))
            return Answer(response.status, told, io.BytesIO(body), len(body), length)
        finally:
            connection.close()
