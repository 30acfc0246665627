"""What an `ArchiveServer` answers, as nginx would: files, ranges of them, and directory indexes.

How an answer then gets to the client, or does not, is the server's affair.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field, replace
from email.message import Message
from email.utils import formatdate
from http.client import responses
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import quote

from archive_faults import Fault

_SINGLE_RANGE = re.compile(r"bytes=(?:([0-9]+)-([0-9]*)|-([0-9]+))")
_INDEX_NAME_CHARACTERS = 50  # Longer names are cut in the text of a link, never in its href.


@dataclass(frozen=True)
class Request:
    """A request: its path percent-decoded and without query; headers are found in any case.

    ``target`` is path and query as they came, ``body`` what was sent along.
    """

    method: str
    path: str
    range_header: str | None
    headers: Message
    target: str
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: BinaryIO
    length: int  # bytes of the body to send
    claimed_length: int  # what Content-Length says
    start: int = 0  # offset in the body of the first byte to send


@dataclass(frozen=True)
class Site:
    """The files, and what is told about them; see `ArchiveServer` for the fields."""

    root: Path
    listing: Literal["html", "json"] | None
    ranges: bool
    validators: bool
    head: bool
    goog_hash: bool
    _goog_hashes: dict[tuple[Path, str], str] = field(default_factory=dict)

    def wanted_bytes(self, request: Request) -> range:
        """Which bytes of the present file a request asks for, if it is granted its range."""
        size = self._size_at(request.path)
        return _requested_range(request.range_header, size) or range(size)

    def answer(self, request: Request, fault: Fault, override: Answer | None = None) -> Answer:
        """The answer, as the fault wants it.

        Args:
            override: what to answer instead of what is on disk, unless the fault is a refusal.
        """
        answer = self._refuse(request, fault) or override or self._find(request, fault)
        if fault.claim_length is not None and answer.status == 200:
            answer = replace(answer, claimed_length=fault.claim_length)
        if fault.truncate_to is not None:
            length = min(answer.length, fault.truncate_to)
            answer = replace(answer, length=length, claimed_length=fault.truncate_to)
        return answer

    def _file_at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _size_at(self, path: str) -> int:
        file = self._file_at(path)
        return file.stat().st_size if os.path.isfile(file) else 0

    def _refuse(self, request: Request, fault: Fault) -> Answer | None:
        if request.method == "HEAD" and not self.head:
            return _refusal(405, Allow="GET")
        if ".." in request.path.split("/"):
            return _refusal(400)
        if fault.redirect is not None:
            return _refusal(fault.status or 302, Location=fault.redirect)
        if fault.status is None:
            return None
        headers = {}
        if fault.retry_after is not None:
            headers["Retry-After"] = str(fault.retry_after)
        if fault.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="archive"'
        if fault.status == 416:
            headers["Content-Range"] = f"bytes */{self._size_at(request.path)}"
        return _refusal(fault.status, **headers)

    def _find(self, request: Request, fault: Fault) -> Answer:
        if request.method not in {"GET", "HEAD"}:
            return _refusal(405, Allow="GET, HEAD")
        file = self._file_at(request.path)
        if fault.replace_with is not None:
            _replace(file, fault.replace_with)
        if os.path.isfile(file) and not request.path.endswith("/"):
            return self._file(file, request, fault)
        if fault.swap is not None:
            return whole(fault.swap)
        if not os.path.isdir(file):
            return _refusal(404)
        if not request.path.endswith("/"):
            return _refusal(301, Location=f"{quote(request.path)}/")
        if self.listing == "html":
            return whole(_html_index(file, request.path), "text/html")
        return whole(_json_index(file), "application/json") if self.listing else _refusal(403)

    def _file(self, file: Path, request: Request, fault: Fault) -> Answer:
        source: BinaryIO = file.open("rb")
        stat = os.fstat(source.fileno())
        size = stat.st_size
        etag = f'"{stat.st_mtime_ns:x}-{size:x}"'
        headers = {"Content-Type": "application/octet-stream"}
        if self.goog_hash:
            headers["X-Goog-Hash"] = self._goog_hash(file, etag, source)
        if self.validators:
            headers["ETag"] = etag
            headers["Last-Modified"] = formatdate(stat.st_mtime, usegmt=True)
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
        if_range = request.headers.get("If-Range")
        may_be_partial = (
            request.method == "GET"
            and self.ranges
            and not fault.ignore_range
            and (
                if_range is None
                or fault.ignore_if_range
                or if_range in {headers.get("ETag"), headers.get("Last-Modified")}
            )
        )
        if fault.lie_etag is not None:
            headers["ETag"] = fault.lie_etag
        if fault.swap is not None:
            source.close()
            source, size = io.BytesIO(fault.swap), len(fault.swap)
        claimed_size = size if fault.claim_length is None else fault.claim_length
        wanted = _requested_range(request.range_header, claimed_size) if may_be_partial else None
        if wanted is None:
            return Answer(200, headers, source, size, size)
        if not wanted:
            source.close()
            return _refusal(416, **{"Content-Range": f"bytes */{claimed_size}"})
        headers["Content-Range"] = (
            fault.content_range or f"bytes {wanted.start}-{wanted.stop - 1}/{claimed_size}"
        )
        length = max(0, min(size, wanted.stop) - wanted.start)
        return Answer(206, headers, source, length, len(wanted), wanted.start)

    def _goog_hash(self, file: Path, etag: str, source: BinaryIO) -> str:
        if (file, etag) not in self._goog_hashes:
            from google_crc32c import Checksum  # Only those who ask for hashes need have it.

            checksum = Checksum()
            while piece := source.read(1024 * 1024):
                checksum.update(piece)
            encoded = base64.b64encode(checksum.digest()).decode()
            self._goog_hashes[file, etag] = f"crc32c={encoded}"
        return self._goog_hashes[file, etag]


def whole(body: bytes, content_type: str = "application/octet-stream") -> Answer:
    """A 200 answer that knows neither ranges nor validators."""
    return Answer(200, {"Content-Type": content_type}, io.BytesIO(body), len(body), len(body))


def _refusal(status: int, **headers: str) -> Answer:
    title = f"{status} {responses.get(status, '')}"
    body = f"<html>\r\n<head><title>{title}</title></head>\r\n</html>\r\n"
    answer = whole(body.encode(), "text/html")
    return replace(answer, status=status, headers=answer.headers | headers)


def _requested_range(range_header: str | None, size: int) -> range | None:
    """The single byte range that is asked for.

    Returns:
        None if the whole is to be sent, also for what is no single range of bytes; an empty range
        if it cannot be satisfied. As in nginx, ``bytes=0-`` of an empty file is the whole file.
    """
    match = _SINGLE_RANGE.fullmatch(range_header or "")
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        wanted = range(max(0, size - int(suffix)), size)
    else:
        wanted = range(int(first), min(size, int(last) + 1) if last else size)
    return None if not wanted and wanted.start == 0 else wanted


def _replace(file: Path, content: bytes) -> None:
    """Swap the file on disk in one step, for one that is at least a second younger."""
    old_mtime_ns = file.stat().st_mtime_ns if file.exists() else 0
    mtime_ns = max(time.time_ns(), old_mtime_ns + 10**9)
    fresh = file.with_name(f".{file.name}.{threading.get_ident()}")
    fresh.write_bytes(content)
    os.utime(fresh, ns=(mtime_ns, mtime_ns))
    fresh.replace(file)


def _html_index(directory: Path, path: str) -> bytes:
    title = f"Index of {html.escape(path)}"
    rows = "".join(_html_row(entry) for entry in _entries(directory))
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<h1>{title}</h1><hr>"
        f'<pre><a href="../">../</a>\r\n{rows}</pre><hr></body>\r\n</html>\r\n'
    ).encode()


def _html_row(entry: Path) -> str:
    slash = "/" if entry.is_dir() else ""
    text = entry.name + slash
    if len(entry.name) > _INDEX_NAME_CHARACTERS:
        text = entry.name[: _INDEX_NAME_CHARACTERS - 3] + "..>"
    padding = " " * max(1, _INDEX_NAME_CHARACTERS - len(text) + 1)
    mtime = time.strftime("%d-%b-%Y %H:%M", time.gmtime(entry.stat().st_mtime))
    size = "-" if entry.is_dir() else str(entry.stat().st_size)
    href = quote(entry.name, safe="") + slash
    return f'<a href="{href}">{html.escape(text)}</a>{padding}{mtime} {size:>19}\r\n'


def _json_index(directory: Path) -> bytes:
    rows: list[str] = []
    for entry in _entries(directory):
        row: dict[str, str | int] = {
            "name": entry.name,
            "type": "directory" if entry.is_dir() else "file",
            "mtime": formatdate(entry.stat().st_mtime, usegmt=True),
        }
        if not entry.is_dir():
            row["size"] = entry.stat().st_size
        rows.append(json.dumps(row, ensure_ascii=False))
    return ("[\r\n" + ",\r\n".join(rows) + "\r\n]").encode()


def _entries(directory: Path) -> list[Path]:
    visible = (entry for entry in directory.iterdir() if not entry.name.startswith("."))
    return sorted(visible, key=lambda entry: (not entry.is_dir(), entry.name.encode()))
