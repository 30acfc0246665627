"""Asking over HTTP: redirects that stay on the allow list, statuses and failures in words.

What the sources ``http`` and ``gs``, and in part ``s3``, have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from types import MappingProxyType
from typing import Protocol
from urllib.parse import urljoin

import requests
import urllib3

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.errors import (
    ArchiveError,
    ArchiveFileMissing,
    BadRequest,
    NotAllowed,
    TransientArchiveError,
)
from artifacts.sources.connection_errors import connection_error, host_of
from artifacts.sources.http_range import HttpRange, describe_response, let_go, opened_range
from artifacts.sources.source import ArchiveFile

MISSING = frozenset({404, 410})
TRANSIENT_STATUSES = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_MAX_RETRY_AFTER_SECONDS = 24 * 3600
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Timeouts:
    """How long an archive may take: to accept a connection, and between two bytes."""

    connect_seconds: float = 10
    stall_seconds: float = 30


class Session(Protocol):
    """What sends requests: follows no redirects, leaves bodies to be read, may raise OSError."""

    def request(
        self, method: str, url: str, headers: Mapping[str, str], timeout: tuple[float, float]
    ) -> requests.Response: ...

    def close(self) -> None: ...


class Transport:
    """GET and HEAD. ``what``, in all methods, is what messages call the thing that is asked for."""

    def __init__(self, session: Session, timeouts: Timeouts, allow_list: AllowList) -> None:
        """``allow_list`` says where redirects may lead."""
        self._session = session
        self._timeouts = (timeouts.connect_seconds, timeouts.stall_seconds)
        self._allow_list = allow_list

    def request(
        self,
        method: str,
        url: str,
        what: str,
        headers: Mapping[str, str] = _NO_HEADERS,
        accepted: Collection[int] = (200,),
    ) -> requests.Response:
        """Send a request and return the answer's head; the body waits in ``response.raw``.

        Raises:
            TransientArchiveError: no connection, a cut, a stall, or a status that may pass.
            ArchiveError: any other status that is not accepted, or too many redirects.
            NotAllowed: a redirect leads to where the allow list does not.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                response = self._session.request(method, url, headers, self._timeouts)
            except (OSError, urllib3.exceptions.HTTPError) as error:
                raise connection_error(error, what, url, self._timeouts) from error
            if response.status_code in accepted:
                return response
            let_go(response)
            if response.status_code not in _REDIRECTS:
                raise _status_error(response, what, url)
            url = self._redirected(what, url, response.headers.get("Location", ""))
        raise ArchiveError(f"{what} redirects over {_MAX_REDIRECTS} times")

    def _redirected(self, what: str, url: str, location: str) -> str:
        try:
            target = urljoin(url, _as_utf8(location))
            parsed = ArchiveUrl.parse_prefix(target.partition("?")[0].partition("#")[0])
        except (BadRequest, ValueError) as error:
            raise ArchiveError(f"{what} redirects to what is no URL: {location!r}") from error
        if parsed.scheme not in {"http", "https"} or not self._allow_list.allows(parsed):
            raise NotAllowed(
                f"{what} redirects to {parsed}, which is not allowed", code="archive_not_allowed"
            )
        return target

    def read_small(self, url: str, what: str, max_bytes: int) -> bytes | None:
        """Return the body at ``url``, or None where there is nothing.

        Raises:
            ArchiveError: it is larger than ``max_bytes``; or as ``request``.
        """
        with self.request("GET", url, what, accepted={200, *MISSING}) as response:
            if response.status_code != 200:
                let_go(response)
                return None
            file = describe_response(ArchiveFile(what), response)
            if file.size is not None and file.size > max_bytes:
                raise ArchiveError(f"{what} is larger than {max_bytes} bytes")
            blocks, total = [], 0
            with HttpRange(response, file, 0, None, self._explainer(what, response)) as body:
                while block := body.read(1 << 20):
                    total += len(block)
                    if total > max_bytes:
                        raise ArchiveError(f"{what} is larger than {max_bytes} bytes")
                    blocks.append(block)
            return b"".join(blocks)

    def open_range(
        self,
        url: str,
        what: str,
        file: ArchiveFile,
        start: int,
        stop: int | None,
        headers: Mapping[str, str],
        generation_of: Callable[[requests.Response], str | None],
    ) -> HttpRange:
        """Open bytes of ``url``; as ``Source.open``. ``generation_of`` reads it off an answer."""
        wanted = dict(headers)
        if start > 0 or stop not in {None, 0, file.size}:
            wanted["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        response = self.request("GET", url, what, wanted, accepted={200, 206, 416, *MISSING})
        try:
            if response.status_code in MISSING:
                let_go(response)
                raise ArchiveFileMissing(f"the archive has no {what}")
            explain = self._explainer(what, response)
            generation = generation_of(response)
            return opened_range(response, what, file, start, stop, generation, explain)
        except BaseException:
            response.close()
            raise

    def _explainer(
        self, what: str, response: requests.Response
    ) -> Callable[[Exception], ArchiveError]:
        return partial(connection_error, what=what, url=response.url or "", timeouts=self._timeouts)

    def close(self) -> None:
        self._session.close()


def _status_error(response: requests.Response, what: str, url: str) -> ArchiveError:
    status = response.status_code
    answered = f"{host_of(url)} answered {status} {response.reason or ''}".rstrip()
    if status in TRANSIENT_STATUSES:
        return TransientArchiveError(
            f"cannot read {what}: {answered}",
            retry_after_seconds=retry_after_seconds(response.headers),
        )
    return ArchiveError(f"cannot read {what}: {answered}")


def retry_after_seconds(headers: Mapping[str, str]) -> int | None:
    """Return after how long to ask again (RFC 9110, section 10.2.3: seconds, or a date)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:9]), _MAX_RETRY_AFTER_SECONDS)
    try:
        seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0, round(seconds)), _MAX_RETRY_AFTER_SECONDS)


def _as_utf8(header: str) -> str:
    """A header's text as it was meant, where it is not only ASCII."""
    return header.encode("latin-1").decode("utf-8")
