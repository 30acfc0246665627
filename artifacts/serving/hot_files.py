"""Hot files: answers to what has been asked for a moment ago, without a worker.

When a lab installs a build, many machines ask for the same files within seconds. Whoever is first
goes the whole way; from then on, for a few seconds, the very same request is answered by opening
the file again. That it is the same file is told by its identity on the disk: published files are
replaced, never changed, and those of dropped builds are moved away.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass

from artifacts.disk import file_identity
from artifacts.serving.file_answer import FileAnswer, Origin, WholeFile, file_answer

# Reading counts as use of the build, and it is the long way that counts it.
_LIFETIME_SECONDS = 5.0
_MAX_FILES = 16384
# A file's path is no longer; what clients put behind it is not to fill the memory.
_MAX_KEY_BYTES = 2048
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_HEADER = re.compile(rb"([\w!#$%&'*+.^`|~-]+):[ \t]*([\x20-\x7e]*)")
_CONDITIONS = {
    name.lower().encode("ascii"): name
    for name in (
        *("Range", "If-Range", "If-Match", "If-None-Match"),
        *("If-Modified-Since", "If-Unmodified-Since"),
    )
}
# What calls for more than a file, and what CherryPy checks.
_OUT_OF_THE_WAY = {b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"cookie"}


@dataclass(frozen=True)
class SimpleRequest:
    """A request for a file, as far as it can be answered on the spot."""

    is_head: bool
    target: bytes
    host: bytes
    conditions: dict[str, str]
    is_kept: bool


@dataclass(frozen=True)
class _HotFile:
    origin: Origin
    identity: tuple[int, int, int, int]
    valid_until: float


class HotFiles:
    """The files that were answered lately, by request target and host."""

    def __init__(self) -> None:
        # Workers add, under the lock; the front looks up without, by single operations.
        self._adding = threading.Lock()
        self._files: dict[tuple[bytes, bytes], _HotFile] = {}

    def remember(self, target: bytes, host: bytes, answer: FileAnswer) -> None:
        """Note with which file a GET or HEAD of ``target`` has been answered, its file open."""
        if answer.origin is None or answer.file is None:
            return
        if len(target) + len(host) > _MAX_KEY_BYTES:
            return
        valid_until = time.monotonic() + _LIFETIME_SECONDS
        hot = _HotFile(answer.origin, file_identity(answer.file.fileno()), valid_until)
        with self._adding:
            # Last, as the newest: the first are the oldest, and go first.
            self._files.pop((target, host), None)
            while len(self._files) >= _MAX_FILES:
                del self._files[next(iter(self._files))]
            self._files[target, host] = hot

    def answer(self, request: SimpleRequest) -> FileAnswer | None:
        """Answer a request again; None: it has to go the whole way."""
        key = request.target, request.host
        hot = self._files.get(key)
        if hot is None or hot.valid_until < time.monotonic():
            return None
        try:
            file = WholeFile(os.open(hot.origin.path, _FLAGS))
        except OSError:
            return None
        if file_identity(file.fileno()) != hot.identity:
            file.close()
            return None
        return file_answer(file, hot.origin.served, request.conditions)


def parse_simple(head: bytes) -> SimpleRequest | None:
    """Parse the head of a plain GET or HEAD; None for whatever is not quite as usual."""
    if not head.endswith(b"\r\n\r\n"):
        return None
    request_line, *lines = head[:-4].split(b"\r\n")
    method, _, rest = request_line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if method not in {b"GET", b"HEAD"} or version != b"HTTP/1.1":
        return None
    headers: dict[bytes, bytes] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            return None
        name = match[1].lower()
        is_encoded = b"=?" in match[2]
        if name in headers or name in _OUT_OF_THE_WAY or is_encoded:
            return None
        headers[name] = match[2].rstrip()
    connection = headers.get(b"connection", b"keep-alive")
    host = headers.get(b"host")
    if host is None or not (connection == b"close" or connection.lower() == b"keep-alive"):
        return None
    conditions = {
        canonical: headers[name].decode("ascii")
        for name, canonical in _CONDITIONS.items()
        if name in headers
    }
    return SimpleRequest(method == b"HEAD", target, host, conditions, connection != b"close")
