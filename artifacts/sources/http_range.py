"""The body of one HTTP answer: what bytes of which file it is, and reading them."""

from __future__ import annotations

import array
import fcntl
import http.client
import re
import ssl
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import requests
import urllib3

from artifacts.checksums import Checksums
from artifacts.closing import Closing
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveRangeMissing,
    TransientArchiveError,
)
from artifacts.sources.source import ArchiveFile

_CONTENT_RANGE = re.compile(
    r"bytes (?:(?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18})|\*)/(?P<size>[0-9]{1,18}|\*)"
)
_NUMBER = re.compile(r"[0-9]{1,18}")
# The rest of an answer that is worth reading, so as to keep its connection.
_SMALL_BYTES = 8 << 10
_TLS_RECORD_BYTES = 16 << 10


class HttpRange(Closing):
    """The body of an answer, read in blocks as they come."""

    def __init__(
        self,
        response: requests.Response,
        file: ArchiveFile,
        start: int,
        stop: int | None,
        explain: Callable[[Exception], ArchiveError],
    ) -> None:
        """``explain`` turns what reading may raise into what this may raise."""
        self.file = file
        self.start = start
        length = content_length(response)
        self.stop = stop if stop is not None else (None if length is None else start + length)
        self.end_is_told = _is_chunked(response)
        self._response = response
        self._explain = explain
        self._position = start

    def read(self, max_bytes: int) -> bytes:
        if self.stop is not None:
            max_bytes = min(max_bytes, self.stop - self._position)
            if max_bytes <= 0:
                return b""
        try:
            block = _read_block(self._response.raw, max_bytes)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._explain(error) from error
        if not block and self.stop is not None:
            # Not every connection notices by itself.
            raise self._explain(http.client.IncompleteRead(b"", self.stop - self._position))
        self._position += len(block)
        return block

    def close(self) -> None:
        if self._position == self.stop:
            let_go(self._response)
        else:
            self._response.close()


def _read_block(raw: Any, max_bytes: int) -> bytes:
    """Return what has come; wait only for the first byte.

    A TLS connection gives one record at a time, and blocks that small cost more than what is done
    with them. Where more has come it is read at once: so much of it, safely, as cannot be framing.
    """
    connection = raw.connection
    if connection is not None and isinstance(connection.sock, ssl.SSLSocket):
        waiting = _bytes_waiting(connection.sock) * 15 // 16 - 2 * _TLS_RECORD_BYTES
        if waiting > 2 * _TLS_RECORD_BYTES:
            block: bytes = raw.read(min(max_bytes, waiting), decode_content=False)
            return block
        max_bytes = min(max_bytes, 2 * _TLS_RECORD_BYTES)
    return raw.read1(max_bytes, decode_content=False) or b""


def _bytes_waiting(sock: ssl.SSLSocket) -> int:
    """How many bytes the system has received for a socket, which it has not been asked for."""
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0]


def opened_range(
    response: requests.Response,
    what: str,
    file: ArchiveFile,
    start: int,
    stop: int | None,
    generation: str | None,
    explain: Callable[[Exception], ArchiveError],
) -> HttpRange:
    """Return the body of an answer of status 200, 206 or 416, if it is what was asked for.

    Args:
        what: what was asked for, in words.
        file: the file, with the generation and size it has to have.
        start: offset of the first byte wanted.
        stop: offset behind the last one; None: to the end.
        generation: that of the answer; None where it does not say.
        explain: see `HttpRange`.

    Raises:
        ArchiveFileChanged: it is of another generation or size.
        ArchiveRangeMissing: the status is 416.
        TransientArchiveError: it is no answer to what was asked.
    """
    if file.generation is not None and generation not in {None, file.generation}:
        raise ArchiveFileChanged(f"{what} changed while it was fetched")
    if response.status_code == 200:
        now = describe_response(file, response, generation or file.generation)
        if file.size_is_exact and now.size is not None and now.size != file.size:
            raise ArchiveFileChanged(
                f"{what} has {now.size} bytes now, and had {file.size} when it was listed"
            )
        return HttpRange(response, now, 0, None, explain)
    told = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(told)
    size = int(match["size"]) if match and match["size"] != "*" else None
    if size is not None and file.size_is_exact and size != file.size:
        raise ArchiveFileChanged(f"{what} has {size} bytes now, and had {file.size}")
    wanted = f"bytes from {start} to {'the end' if stop is None else stop}"
    if response.status_code == 416:
        raise ArchiveRangeMissing(f"{what}: the archive has no {wanted} (416)")
    if match is None or match["first"] is None or int(match["first"]) != start:
        raise TransientArchiveError(f"{what}: asked for {wanted}, the archive answered {told!r}")
    end = int(match["last"]) + 1
    length = content_length(response)
    too_long = (stop is not None and end > stop) or (size is not None and end > size)
    if end <= start or too_long or length not in {None, end - start}:
        raise TransientArchiveError(
            f"{what}: asked for {wanted}, the archive answered {told!r} in {length} bytes"
        )
    now = replace(
        file,
        size=file.size if size is None else size,
        size_is_exact=file.size_is_exact or size is not None,
        generation=file.generation or generation,
        has_ranges=True,
    )
    return HttpRange(response, now, start, end, explain)


def describe_response(
    file: ArchiveFile, response: requests.Response, generation: str | None = None
) -> ArchiveFile:
    """Return ``file`` with what the head of an answer to HEAD, or to a whole GET, tells of it."""
    checksums = file.checksums
    if goog_hash := response.headers.get("X-Goog-Hash"):
        checksums = checksums.joined(Checksums.from_goog_hash(goog_hash))
    size = content_length(response)
    return replace(
        file,
        size=size,
        size_is_exact=size is not None,
        generation=generation,
        has_ranges="bytes" in response.headers.get("Accept-Ranges", "").lower(),
        checksums=checksums,
    )


def http_generation(response: requests.Response) -> str | None:
    """Return the answer's strong validator (RFC 9110, section 8.8), usable in If-Range.

    A modification date is strong when it lies at least a second before the answer's own date.
    """
    etag = response.headers.get("ETag", "").strip()
    if etag.startswith('"'):
        return etag
    modified = response.headers.get("Last-Modified", "").strip()
    try:
        age = parsedate_to_datetime(response.headers.get("Date", "")) - parsedate_to_datetime(
            modified
        )
    except (ValueError, TypeError, OverflowError):
        return None
    return modified if age.total_seconds() >= 1 else None


def content_length(response: requests.Response) -> int | None:
    """Return how long the body is; None where its end is known in another way, or not at all."""
    if _is_chunked(response):
        return None
    length = response.headers.get("Content-Length", "")
    return int(length) if _NUMBER.fullmatch(length) else None


def _is_chunked(response: requests.Response) -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def let_go(response: requests.Response) -> None:
    """Close an answer of which nothing more is wanted; if little is left, keep its connection."""
    length = 0 if response.request.method == "HEAD" else content_length(response)
    if length is not None and length <= _SMALL_BYTES:
        with suppress(urllib3.exceptions.HTTPError, OSError):
            response.raw.read1(_SMALL_BYTES, decode_content=False)
    response.close()
