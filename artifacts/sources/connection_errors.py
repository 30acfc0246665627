"""What went wrong on a connection, in words for the person who has to do something about it."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3

from artifacts.errors import ArchiveError, TransientArchiveError


def connection_error(
    error: Exception,
    what: str,
    url: str,
    timeouts: tuple[float, float],
    *,
    doing: str = "read",
) -> ArchiveError:
    """Say what it was that requests, urllib3 or the system refused.

    Args:
        what: what could not be read.
        url: what was asked for.
        timeouts: seconds to connect, and between two bytes.
        doing: what could not be done with it, where that is not reading.

    Returns:
        a TransientArchiveError, but for what another try would not change.
    """
    causes = list(_causes(error))
    who = host_of(url)
    if any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in causes):
        who = f"the proxy for {who}"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ArchiveError(
                f"cannot {doing} {what}: the certificate of {who} is not trusted: "
                f"{cause.verify_message}"
            )
        if isinstance(cause, _UNUSABLE):
            return ArchiveError(f"cannot {doing} {what}: not a usable address: {cause}")
    happened = next(filter(None, (_in_words(cause, timeouts) for cause in causes)), None)
    return TransientArchiveError(
        f"cannot {doing} {what}: {who} {happened or f'failed ({type(causes[0]).__name__})'}"
    )


def host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


_UNUSABLE = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidProxyURL,
    requests.exceptions.MissingSchema,
)


def _in_words(cause: BaseException, timeouts: tuple[float, float]) -> str | None:
    connect_seconds, stall_seconds = timeouts
    match cause:
        case socket.gaierror():
            return f"cannot be found: {cause.strerror}"
        case ConnectionRefusedError():
            return "refused the connection"
        case http.client.RemoteDisconnected():
            return "closed the connection without an answer"
        case ConnectionResetError() | ConnectionAbortedError() | BrokenPipeError():
            return "reset the connection"
        case urllib3.exceptions.NewConnectionError():
            return None  # a kind of timeout to urllib3; what it was comes behind it
        case urllib3.exceptions.ConnectTimeoutError():
            return f"did not accept a connection for {connect_seconds:g} seconds"
        case TimeoutError() | urllib3.exceptions.ReadTimeoutError():
            return f"sent nothing for {stall_seconds:g} seconds"
        case ssl.SSLError():
            return f"failed to speak TLS: {cause.reason or cause.strerror}"
        case urllib3.exceptions.IncompleteRead() | http.client.IncompleteRead():
            return "cut the connection"
        case http.client.HTTPException():
            return f"did not answer in HTTP ({type(cause).__name__})"
        case OSError() if cause.strerror:
            return f"cannot be reached: {cause.strerror}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what is behind it; requests and urllib3 keep that in various places."""
    waiting, seen = [error], set()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        behind = (getattr(cause, "reason", None), *cause.args, cause.__cause__)
        waiting.extend(one for one in behind if isinstance(one, BaseException))
