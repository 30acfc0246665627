"""``/api/0/…``: how calls of the upload protocol are found, authorized and answered.

The rooms that have such calls register them here. Errors are ``{"detail": "…"}``: clients of this
protocol look for a single key with a string.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cherrypy

from artifacts.archive_url import check_segment
from artifacts.errors import (
    DevserverError,
    MethodNotAllowed,
    NotAllowed,
    NotAuthorized,
    NotFound,
)
from artifacts.serving.answer import detail_error
from artifacts.serving.handlers import Handled, give, refuse_cross_site
from artifacts.tokens import Token, Tokens

_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Access:
    """Who asks, and the parameters that the path of the call has."""

    token: Token
    parameters: Mapping[str, str]

    @property
    def organization(self) -> str:
        return self.token.organization


Handler = Callable[[Access], Handled]


@dataclass(frozen=True)
class _Call:
    method: str
    path: re.Pattern[str]
    scope: str | None
    handler: Handler


class UploadProtocol:
    """The calls below ``/api/0/``."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._calls: list[_Call] = []

    def add(self, method: str, path: str, scope: str | None, handler: Handler) -> None:
        """Have ``handler`` answer ``method`` requests for ``path``.

        Args:
            path: below ``/api/0/``, without slashes at its ends, as in
                ``organizations/{organization}/chunk-upload``. A parameter is one segment. The
                parameter ``organization`` has to be the token's, ``project`` the name of one.
            scope: what the token has to allow; None for any token.
        """
        pattern = re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", path))
        self._calls.append(_Call(method, pattern, scope, handler))

    @cherrypy.expose
    def default(self, /, *segments: str, **_: Any) -> bytes:
        """/api/0/…: the protocol of sentry-cli: chunk upload, debug files, builds."""
        try:
            return give(self._answer("/".join(segments)))
        except DevserverError as error:
            return give(detail_error(error))

    def _answer(self, path: str) -> Handled:
        method = cherrypy.request.method
        matches = [(call, match) for call in self._calls if (match := call.path.fullmatch(path))]
        if not matches:
            raise NotFound(f"no such call: {cherrypy.request.path_info}")
        for call, match in matches:
            if call.method == method or (method == "HEAD" and call.method == "GET"):
                if call.method != "GET":
                    refuse_cross_site()
                return call.handler(self._access(call.scope, match.groupdict()))
        allowed = ", ".join(sorted({call.method for call, _ in matches}))
        cherrypy.response.headers["Allow"] = allowed
        raise MethodNotAllowed(f"{method} is not for this; use {allowed}")

    def _access(self, scope: str | None, parameters: Mapping[str, str]) -> Access:
        token = authorize(self._tokens, cherrypy.request.headers.get("Authorization"), scope)
        organization = parameters.get("organization", token.organization)
        if organization != token.organization:
            raise NotAllowed(
                f"the token is for the organization {token.organization}, not {organization!r:.80}"
            )
        if (project := parameters.get("project")) is not None:
            check_segment(project, "the name of a project")
        return Access(token, parameters)


def authorize(tokens: Tokens, header: str | None, scope: str | None) -> Token:
    """Return the token of an ``Authorization`` header, ``Bearer TOKEN`` or ``Basic`` of it.

    Raises:
        NotAuthorized: there is none, or it is unknown.
        NotAllowed: it does not allow ``scope``.
    """
    sent = sent_token(header)
    if sent is None:
        raise NotAuthorized("a token is needed: Authorization: Bearer TOKEN")
    token = tokens.find(sent)
    if token is None:
        raise NotAuthorized("the token is not known here; it may have been revoked")
    if scope is not None and not token.allows(scope):
        raise NotAllowed(f"the token {token.name} does not have the scope {scope}")
    return token


def sent_token(header: str | None) -> str | None:
    """Return the token of an ``Authorization`` header; None where it has none."""
    kind, _, value = (header or "").strip().partition(" ")
    value = value.strip()
    if kind.lower() == "basic":
        # As user, with no password, or the other way round.
        try:
            user, _, password = (
                base64.b64decode(value, validate=True).decode("utf-8").partition(":")
            )
        except ValueError:
            return None
        return user or password or None
    return value or None if kind.lower() == "bearer" else None
