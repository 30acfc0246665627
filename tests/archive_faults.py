"""What an `ArchiveServer` can be told to do wrong, and for which requests."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How one request is to be answered wrongly; fields combine wherever that makes sense.

    Counts and offsets are bytes. Those that end in ``_after`` count the body bytes of the one
    answer, so that they mean the same for a whole file and for a range of it.
    """

    head_too: bool = False  # HEAD requests meet the fault as well, and use up its times

    # Instead of the file.
    status: int | None = None  # refuse with this status
    retry_after: int | str | None = None  # with ``status``: seconds, or a date
    redirect: str | None = None  # 302, or ``status``, to this URL
    reset: bool = False  # RST before any answer (with ``hold``: once that is over)

    # Another file.
    swap: bytes | None = None  # these bytes, under the validators and hash of the file on disk
    replace_with: bytes | None = None  # the file on disk becomes this first: new ETag and date
    flip_at: int | None = None  # invert this byte of the file; answers without it do not count

    # A body that does not come, or not all of it.
    cut_after: int | None = None  # promise everything, send this much, close
    rst: bool = False  # with ``cut_after``: close with RST; the client may then lose its last bytes
    stall_after: int | None = None  # send this much, go on after ``behave()``; 120 s at most
    trickle: int | None = None  # bytes per second
    hold: threading.Event | None = None  # send the first byte after this; 60 s at most

    # A request whose body is not taken, or taken for another; by an `ArchiveProxy`.
    take_only: int | None = None  # read this much of it, then RST (with ``hold``: after that)
    flip_sent_at: int | None = None  # invert this byte of what is passed on

    # Lengths that lie.
    truncate_to: int | None = None  # Content-Length and body are (at most) this long
    extra: int = 0  # so many ``#`` after the end; the connection stays open
    claim_length: int | None = None  # headers as if the file had this size, real bytes, then close
    no_length: bool = False  # no Content-Length: the body ends with the connection
    chunked: bool = False  # no Content-Length, but chunks; cut, they lack the last one

    # Ranges and validators that lie.
    content_range: str | None = None  # this instead of the true Content-Range of a 206
    ignore_range: bool = False  # the whole file, 200
    ignore_if_range: bool = False  # 206 of the present file, whatever If-Range says
    lie_etag: str | None = None  # this ETag header; If-Range is still compared with the true one


@dataclass
class _Entry:
    pattern: str
    fault: Fault
    times: float


class FaultBook:
    """Which faults the next requests meet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below; nothing waits while holding it
        self._entries: list[_Entry] = []
        self._amnesty = threading.Event()

    def add(self, pattern: str, fault: Fault, times: int | None) -> None:
        with self._lock:
            self._entries.append(_Entry(pattern, fault, math.inf if times is None else times))

    def take(self, method: str, path: str, wanted: range) -> tuple[Fault, threading.Event]:
        """Use up one time of the fault that is next for this request.

        Returns:
            the fault, without any effect if there is none, and the event that ends its waiting.
        """
        with self._lock:
            for entry in sorted(self._entries, key=lambda entry: entry.pattern != path):
                fault = entry.fault
                if (
                    entry.times > 0
                    and path_matches(path, entry.pattern)
                    and (method != "HEAD" or fault.head_too)
                    and (fault.flip_at is None or fault.flip_at in wanted)
                ):
                    entry.times -= 1
                    return fault, self._amnesty
            return Fault(), self._amnesty

    def forget(self) -> None:
        """Drop all faults, and let those go on that wait because of one."""
        with self._lock:
            self._entries.clear()
            self._amnesty.set()
            self._amnesty = threading.Event()


def path_matches(path: str, pattern: str) -> bool:
    """Whether the path is the pattern, or fits it as a glob, in which ``*`` matches slashes too."""
    return path == pattern or fnmatchcase(path, pattern)
