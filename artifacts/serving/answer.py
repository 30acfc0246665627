"""Answers, and errors as answers: the one place where a failure becomes a status and a body."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from artifacts.errors import DevserverError, busy_if_out_of_files

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A small answer, complete in memory."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status_line(self) -> str:
        return f"{self.status} {HTTPStatus(self.status).phrase}"

    def all_headers(self) -> list[tuple[str, str]]:
        return [
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            ("X-Content-Type-Options", "nosniff"),
            *self.headers.items(),
        ]


def text_answer(text: str, status: int = 200) -> Answer:
    return Answer(text.encode("utf-8", "backslashreplace"), status)


def json_answer(value: object, status: int = 200) -> Answer:
    return Answer(json.dumps(value, indent=1).encode("utf-8"), status, "application/json")


def text_error(error: BaseException) -> Answer:
    """One line for a person: what lab RPCs answer."""
    known = _as_known(error)
    return Answer(
        known.message.encode("utf-8", "backslashreplace"), known.status, headers=_headers_of(known)
    )


def json_error(error: BaseException) -> Answer:
    """What ``/api/…`` answers."""
    known = _as_known(error)
    body = {"error": {"code": known.code, "message": known.message}}
    return Answer(
        json.dumps(body).encode("utf-8"),
        known.status,
        "application/json",
        _headers_of(known),
    )


def detail_error(error: BaseException) -> Answer:
    """What ``/api/0/…`` answers: the upload protocol knows one key, with a text."""
    known = _as_known(error)
    body = json.dumps({"detail": known.message}).encode("utf-8")
    return Answer(body, known.status, "application/json", _headers_of(known))


def error_at(path: str, error: BaseException) -> Answer:
    """Answer an error in the form that clients of ``path`` expect."""
    if path.startswith("/api/0/"):
        return detail_error(error)
    return (json_error if path.startswith("/api/") else text_error)(error)


def _as_known(error: BaseException) -> DevserverError:
    if isinstance(error, DevserverError):
        return error
    if isinstance(error, OSError) and (busy := busy_if_out_of_files(error)):
        return busy
    _log.error("an error that nobody expected", exc_info=error)
    return DevserverError("internal error; the server's log says more")


def _headers_of(error: DevserverError) -> dict[str, str]:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
