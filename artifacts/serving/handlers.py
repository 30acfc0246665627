"""What handlers have in common: their arguments, and how answers and waits become responses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

import cherrypy

from artifacts.archive_url import check_relative_path
from artifacts.errors import BadRequest, DevserverError, MethodNotAllowed, NotAllowed, NotFound
from artifacts.manifest import Item
from artifacts.patterns import REGEX_PREFIX
from artifacts.serving.answer import Answer, text_answer, text_error
from artifacts.serving.connection import current_exchange
from artifacts.serving.file_answer import FileAnswer
from artifacts.serving.waiting import Wait

_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off", ""}


class Arguments:
    """The arguments of a call, from its query and its form."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def text(self, name: str) -> str | None:
        """Return an argument, blanks around it stripped; None where it is missing or empty."""
        value = self._given.get(name)
        if isinstance(value, list):
            raise BadRequest(f"argument {name} is given {len(value)} times")
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"argument {name} must be text")
        return (value or "").strip() or None

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise BadRequest(f"missing argument: {name}")
        return value

    def words(self, name: str) -> list[str]:
        return [word.strip() for word in (self.text(name) or "").split(",") if word.strip()]

    def flag(self, name: str) -> bool:
        value = (self.text(name) or "").lower()
        if value not in _TRUE | _FALSE:
            raise BadRequest(f"argument {name} must be True or False, not {value!r}")
        return value in _TRUE

    def seconds(self, name: str) -> float | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            # float() takes other scripts' digits, and underscores.
            seconds = float(value) if value.isascii() and "_" not in value else math.nan
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            raise BadRequest(f"argument {name} must be a number of seconds, not {value!r}")
        return seconds


def items_of(artifacts: Iterable[str], files: Iterable[str]) -> list[Item]:
    """Return what is asked for by artifact names and file patterns; raise BadRequest for none."""
    items = [Item.artifact(name) for name in artifacts]
    for pattern in files:
        if pattern.startswith(REGEX_PREFIX):
            # One that never ends would hold a thread for good; catalogs are the operator's own.
            raise BadRequest(f"files must be names or globs, not {pattern!r}")
        items.append(Item.files(check_relative_path(pattern, "files")))
    if not items:
        raise BadRequest("missing argument: artifacts or files")
    return items


Handled = Answer | FileAnswer | Wait | str


def lab_rpc(
    *, changes: bool = False, methods: Iterable[str] = ("GET", "HEAD", "POST")
) -> Callable[[Callable[[Any, Arguments], Handled]], Any]:
    """Expose a method as a call that labs script against: text in, one line of text out.

    ``changes``: it changes something, and is refused to pages of other sites.
    """
    # What changes something is not for HEAD: those who try links out would stage builds.
    allowed = tuple(method for method in methods if not (changes and method == "HEAD"))

    def decorate(handler: Callable[[Any, Arguments], Handled]) -> Any:
        @wraps(handler)
        def call(self: Any, /, *segments: str, **given: Any) -> bytes:
            try:
                if segments:
                    raise NotFound(f"no such call: {cherrypy.request.path_info}")
                check_method(allowed)
                if changes:
                    refuse_cross_site()
                return give(handler(self, Arguments(given)))
            except DevserverError as error:
                return give(text_error(error))

        return cherrypy.expose(call)

    return decorate


def check_method(allowed: Iterable[str]) -> None:
    if cherrypy.request.method not in allowed:
        cherrypy.response.headers["Allow"] = ", ".join(allowed)
        raise MethodNotAllowed(
            f"{cherrypy.request.method} is not for this; use {', '.join(allowed)}"
        )


def refuse_cross_site() -> None:
    """Raise NotAllowed for a request that a page of another site makes a browser send."""
    if is_cross_site(cherrypy.request.headers):
        raise NotAllowed("this call is not for pages of other sites", code="cross_site")


def is_cross_site(headers: Mapping[str, str]) -> bool:
    """Whether a request with these headers is one that a page of another site has sent."""
    origin = headers.get("Origin")
    is_foreign = origin is not None and _host_of(origin) != headers.get("Host")
    return is_foreign or headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def give(handled: Handled) -> bytes:
    """Answer the current request: now, or when what it waits for has ended."""
    while isinstance(handled, Wait) and handled.future.done():
        handled = handled.answer(handled.future)
    if isinstance(handled, Wait | FileAnswer):
        current_exchange().outcome = handled
        return b""
    if isinstance(handled, str):
        handled = text_answer(handled)
    cherrypy.response.status = handled.status
    for name, value in handled.all_headers():
        cherrypy.response.headers[name] = value
    return handled.body


def success_or_error(future: Future[None]) -> Answer:
    error = future.exception()
    return text_answer("Success") if error is None else text_error(error)
