"""Answers whose body is a file, or parts of one; the file may still be growing."""

from __future__ import annotations

import mimetypes
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from artifacts.serving import ranges

_ENCODED_TYPES = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
}
# What builds contain is shown, and never runs with the rights of our own page.
SAFETY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
}


class ServedFile(Protocol):
    """A file while it is being sent. Whoever was given it closes it."""

    def fileno(self) -> int: ...

    def readable_to(self, position: int) -> int | None:
        """Return up to where bytes from ``position`` on may be sent by now; None: wait for more.

        Never blocks.

        Raises:
            DevserverError: there will be no more bytes, and what was sent is void.
        """

    def watch(self, position: int, changed: Callable[[], None]) -> Callable[[], None]:
        """Have ``changed`` called, once, when ``readable_to(position)`` may have another answer.

        It is called on any thread, and at once if there is no need to wait; it must neither block
        nor fail. Returned is what ends the watch; it may be called more than once.
        """

    def close(self) -> None: ...


class WholeFile:
    """A file that is all there."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open file."""
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def readable_to(self, position: int) -> int | None:
        return os.fstat(self._descriptor).st_size

    def watch(self, position: int, changed: Callable[[], None]) -> Callable[[], None]:
        changed()
        return lambda: None

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class Part:
    """Bytes to send before a range of the file, and that range."""

    before: bytes
    start: int
    stop: int


@dataclass(frozen=True)
class Served:
    """What a client is to know of a file.

    Attributes:
        name: its name or path, which tells its type.
        size: in bytes; of a growing file, the final one.
        etag: with its quotes; None while there is none.
        modified_at: in seconds since the epoch; None while it is growing.
        offset: where it begins within the file that is sent.
    """

    name: str
    size: int
    etag: str | None
    modified_at: float | None
    offset: int = 0


@dataclass(frozen=True)
class Origin:
    """A file that is all there: its absolute path, and what clients are to know of it."""

    path: str
    served: Served


@dataclass
class FileAnswer:
    """A status, headers, and the parts of a file to send; ``tail`` comes last.

    Without a file there is no body. Whoever takes it closes the file. ``origin`` tells where the
    same request can be answered from once more.
    """

    status: int
    headers: dict[str, str]
    file: ServedFile | None = None
    parts: list[Part] = field(default_factory=list)
    tail: bytes = b""
    origin: Origin | None = None

    @property
    def length(self) -> int:
        """The length of the body, in bytes."""
        literal = sum(len(part.before) for part in self.parts) + len(self.tail)
        return literal + sum(part.stop - part.start for part in self.parts)

    @property
    def status_line(self) -> str:
        return f"{self.status} {HTTPStatus(self.status).phrase}"

    def all_headers(self) -> list[tuple[str, str]]:
        """Return the headers with the body's length; of 304, which has none, without."""
        length = [] if self.status == 304 else [("Content-Length", str(self.length))]
        return [*self.headers.items(), *length]

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def file_answer(file: ServedFile, served: Served, request: Mapping[str, str]) -> FileAnswer:
    """Answer a GET or HEAD of a file by the conditions and ranges that the request's headers name.

    ``file`` is closed at once where no body is needed, and where this fails.
    """
    try:
        answer = _conditional_answer(file, served, request)
    except BaseException:
        file.close()
        raise
    if answer.file is None:
        file.close()
    return answer


def _conditional_answer(file: ServedFile, served: Served, request: Mapping[str, str]) -> FileAnswer:
    size, etag, modified_at = served.size, served.etag, served.modified_at
    headers = {**SAFETY, "Accept-Ranges": "bytes", "Content-Type": content_type(served.name)}
    if modified_at is not None:
        headers["Last-Modified"] = formatdate(int(modified_at), usegmt=True)
    if etag is not None:
        headers["ETag"] = etag
    if ranges.precondition_fails(request, etag, modified_at):
        return FileAnswer(412, headers)
    if ranges.is_unchanged(request, etag, modified_at):
        del headers["Content-Type"]
        return FileAnswer(304, headers)
    wanted = None
    if ranges.may_answer_range(request, etag, modified_at):
        wanted = ranges.parse_ranges(request.get("Range"), size)
    if wanted is None:
        return FileAnswer(200, headers, file, [_part(served, b"", 0, size)])
    if not wanted:
        return FileAnswer(416, {**headers, "Content-Range": f"bytes */{size}"})
    if len(wanted) == 1:
        start, stop = wanted[0]
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return FileAnswer(206, headers, file, [_part(served, b"", start, stop)])
    return _multipart(file, headers, wanted, served)


def _multipart(
    file: ServedFile, headers: dict[str, str], wanted: list[tuple[int, int]], served: Served
) -> FileAnswer:
    boundary = secrets.token_hex(16)
    kind = headers["Content-Type"]
    parts = []
    for start, stop in wanted:
        before = (
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{served.size}\r\n\r\n"
        )
        parts.append(_part(served, before.encode("ascii"), start, stop))
    headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    return FileAnswer(206, headers, file, parts, f"\r\n--{boundary}--\r\n".encode("ascii"))


def _part(served: Served, before: bytes, start: int, stop: int) -> Part:
    return Part(before, served.offset + start, served.offset + stop)


def content_type(name: str) -> str:
    kind, encoding = mimetypes.guess_type(name)
    if encoding is not None:
        return _ENCODED_TYPES.get(encoding, "application/octet-stream")
    kind = kind or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
