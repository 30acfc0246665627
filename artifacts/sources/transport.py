"""Reading over HTTP: one session, our own redirects, block reads, errors in words.

What the sources ``http`` and ``gs`` have in common.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

import requests
import urllib3

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.checksums import Checksums
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    BadRequest,
    NotAllowed,
    TransientArchiveError,
)
from artifacts.sources.source import ArchiveFile

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-(?P<last>\d+)|\*)/(?P<size>\d+|\*)")
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 5
_USER_AGENT = "devserver"


@dataclass(frozen=True)
class Timeouts:
    """How long an archive may take: to accept a connection, and between two bytes."""

    connect_seconds: float = 10
    stall_seconds: float = 30


def new_session(max_connections: int) -> requests.Session:
    """Return a session that keeps up to ``max_connections`` connections to a host for reuse."""
    session = requests.Session()
    prepare_session(session, max_connections)
    return session


def prepare_session(session: requests.Session, max_connections: int) -> None:
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=max_connections, max_retries=0)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers["User-Agent"] = _USER_AGENT
    # What is fetched is kept as it is stored: nothing may recode it on the way.
    session.headers["Accept-Encoding"] = "identity"


class Transport:
    """GET and HEAD, with redirects that stay on the allow list."""

    def __init__(
        self, session: requests.Session, timeouts: Timeouts, allow_list: AllowList | None
    ) -> None:
        self._session = session
        self._timeouts = timeouts
        self._allow_list = allow_list

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        """Send a request and return the answer's head; the body waits in ``response.raw``.

        Raises:
            TransientArchiveError: no connection, a cut, a stall, or a status that may pass.
            ArchiveError: any other status than 200, 206, 404 and 416, or too many redirects.
            NotAllowed: a redirect leads to where the allow list does not.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                response = self._session.request(
                    method,
                    url,
                    headers=headers,
                    stream=True,
                    allow_redirects=False,
                    timeout=(self._timeouts.connect_seconds, self._timeouts.stall_seconds),
                )
            except requests.RequestException as error:
                raise _connection_error(url, error) from error
            if response.status_code not in _REDIRECTS:
                return _checked(response, url)
            response.close()
            url = self._redirected(url, response.headers.get("Location", ""))
        raise ArchiveError(f"{url} redirects over {_MAX_REDIRECTS} times")

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        try:
            parsed = ArchiveUrl.parse_prefix(target.partition("?")[0].partition("#")[0])
        except BadRequest as error:
            raise ArchiveError(f"{url} redirects to what is no URL: {location!r}") from error
        if parsed.scheme not in {"http", "https"}:
            raise NotAllowed(f"{url} redirects to {parsed.scheme}", code="archive_not_allowed")
        if self._allow_list is not None and not self._allow_list.allows(parsed):
            raise NotAllowed(
                f"{url} redirects to {parsed}, which is not allowed", code="archive_not_allowed"
            )
        return target

    def read_small(self, url: str, max_bytes: int) -> bytes | None:
        """Return the body at ``url``, or None where there is nothing (404).

        Raises:
            ArchiveError: it is larger than ``max_bytes``; or as ``request``.
        """
        with self.request("GET", url) as response:
            if response.status_code != 200:
                return None
            body = HttpRange(response, describe_response(ArchiveFile(url), response), 0, None)
            blocks, total = [], 0
            while block := body.read(1 << 20):
                total += len(block)
                if total > max_bytes:
                    raise ArchiveError(f"{url} is larger than {max_bytes} bytes")
                blocks.append(block)
            if body.stop is not None and total != body.stop:
                raise TransientArchiveError(f"{url} was cut after {total} bytes")
            return b"".join(blocks)

    def open_range(
        self,
        url: str,
        file: ArchiveFile,
        start: int,
        stop: int | None,
        headers: Mapping[str, str],
        generation_of: Callable[[requests.Response], str | None],
    ) -> HttpRange:
        """Open bytes of ``url``; as ``Source.open``. ``generation_of`` reads it off an answer."""
        whole = start == 0 and (stop is None or stop == file.size)
        wanted = dict(headers)
        if not whole:
            wanted["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        response = self.request("GET", url, wanted)
        try:
            return _opened_range(response, url, file, start, stop, generation_of(response))
        except BaseException:
            response.close()
            raise

    def close(self) -> None:
        self._session.close()


class HttpRange:
    """The body of an answer, read in blocks as they come."""

    def __init__(
        self, response: requests.Response, file: ArchiveFile, start: int, stop: int | None
    ) -> None:
        self.file = file
        self.start = start
        length = _content_length(response)
        self.stop = stop if stop is not None else (None if length is None else start + length)
        self.end_is_told = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        self._response = response
        self._position = start

    def read(self, max_bytes: int) -> bytes:
        if self.stop is not None:
            max_bytes = min(max_bytes, self.stop - self._position)
            if max_bytes <= 0:
                return b""
        try:
            block: bytes = self._response.raw.read1(max_bytes, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _connection_error(self.file.name, error) from error
        self._position += len(block)
        if self.stop is not None and self._position >= self.stop:
            self._release()
        return block

    def _release(self) -> None:
        """Give the connection back for the next request; nothing of this answer is left on it."""
        if _content_length(self._response) is None:
            return
        try:
            self._response.raw.drain_conn()
            self._response.raw.release_conn()
        except (urllib3.exceptions.HTTPError, OSError):
            self._response.close()

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> HttpRange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
    except (ValueError, TypeError):
        return None
    return modified if age.total_seconds() >= 1 else None


def describe_response(
    file: ArchiveFile, response: requests.Response, generation: str | None = None
) -> ArchiveFile:
    """Return ``file`` with what the head of an answer to HEAD, or to a whole GET, tells of it."""
    checksums = file.checksums
    if goog_hash := response.headers.get("X-Goog-Hash"):
        checksums = checksums.joined(Checksums.from_goog_hash(goog_hash))
    size = _content_length(response)
    return replace(
        file,
        size=size,
        size_is_exact=size is not None,
        generation=generation,
        has_ranges="bytes" in response.headers.get("Accept-Ranges", "").lower(),
        checksums=checksums,
    )


def _opened_range(
    response: requests.Response,
    url: str,
    file: ArchiveFile,
    start: int,
    stop: int | None,
    generation: str | None,
) -> HttpRange:
    if response.status_code == 404:
        raise ArchiveFileMissing(f"the archive has no {url}")
    if file.generation is not None and generation not in {None, file.generation}:
        raise ArchiveFileChanged(f"{url} changed while it was fetched")
    if response.status_code == 200:
        now = describe_response(file, response, generation or file.generation)
        if file.size_is_exact and now.size is not None and now.size != file.size:
            raise ArchiveFileChanged(
                f"{url} has {now.size} bytes now, and had {file.size} when it was listed"
            )
        return HttpRange(response, now, 0, None)
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    size = int(match["size"]) if match and match["size"].isdigit() else None
    if size is not None and file.size_is_exact and size != file.size:
        raise ArchiveFileChanged(f"{url} has {size} bytes now, and had {file.size}")
    if response.status_code == 416:
        raise TransientArchiveError(f"{url} refused the range from {start} to {stop} (416)")
    if match is None or match["first"] is None or int(match["first"]) != start:
        raise TransientArchiveError(
            f"{url} answered the range {response.headers.get('Content-Range')!r} "
            f"when asked for bytes from {start}"
        )
    end = int(match["last"]) + 1
    length = _content_length(response)
    if end <= start or (stop is not None and end > stop) or length not in {None, end - start}:
        raise TransientArchiveError(
            f"{url} answered {length} bytes as {match[0]!r} when asked for {start} to {stop}"
        )
    return HttpRange(response, replace(file, size=size or file.size), start, end)


def _content_length(response: requests.Response) -> int | None:
    if "chunked" in response.headers.get("Transfer-Encoding", "").lower():
        return None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _checked(response: requests.Response, url: str) -> requests.Response:
    status = response.status_code
    if status in {200, 206, 404, 416}:
        return response
    retry_after = response.headers.get("Retry-After", "")
    response.close()
    what = f"{url} answered {status} {response.reason or ''}".rstrip()
    if status in _TRANSIENT_STATUSES:
        raise TransientArchiveError(
            what, retry_after_seconds=int(retry_after) if retry_after.isdigit() else None
        )
    raise ArchiveError(what)


def _connection_error(what: str, error: Exception) -> TransientArchiveError:
    reason: object = error
    while isinstance(reason, Exception) and reason.args:
        inner = getattr(reason, "reason", None) or reason.__cause__ or reason.__context__
        if inner is None or inner is reason:
            break
        reason = inner
    return TransientArchiveError(f"cannot read {what}: {type(reason).__name__}: {reason}")
