"""How CherryPy is set up: our words for what it refuses by itself, and none of its habits."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import cherrypy

from artifacts.errors import DevserverError
from artifacts.serving.answer import error_at


def mount(root: object) -> Any:
    """Mount ``root`` as the application at ``/``, and return it as a WSGI application."""
    # To a bare root, CherryPy would add its own icon as a call.
    application = cherrypy.tree.mount(
        cherrypy.Application(root, ""),
        "",
        {"/": _SETTINGS, "/api/0": _UPLOAD_SETTINGS, "/symbolicate_dump": _UPLOAD_SETTINGS},
    )
    # Requests are logged when they are answered, by the server.
    application.log.access_log.disabled = True
    application.request_class = _Request
    application.log.error_log.setLevel(logging.WARNING)
    return application


def _error_page(**about: Any) -> bytes:
    """Say in one line what CherryPy refuses by itself."""
    status, message = int(str(about["status"]).split(" ")[0]), str(about["message"])
    if "query string" in message:
        # CherryPy calls that 404.
        status, message = 400, "the query is not UTF-8 when decoded"
    elif status == 404:
        message = f"no such call: {cherrypy.request.path_info}"
    elif status == 500:
        message = "internal error; the server's log says more"
    retry_after_seconds = 5 if status == 503 else None
    error = DevserverError(
        message,
        status=status,
        code=f"http_{status}",
        retry_after_seconds=retry_after_seconds,
    )
    answer = error_at(cherrypy.request.path_info, error)
    cherrypy.response.headers.update(answer.headers)
    cherrypy.response.status = answer.status
    cherrypy.response.headers["Content-Type"] = answer.content_type
    return answer.body


class _Request(cherrypy._cprequest.Request):
    """A request whose headers may be malformed; the settings come only after they are read."""

    show_tracebacks = False
    error_page: ClassVar[dict[str, Any]] = {"default": _error_page}

    def process_headers(self) -> None:
        try:
            super().process_headers()
        # TypeError: of one that is encoded in part (RFC 2047).
        except (LookupError, TypeError, ValueError) as error:
            raise cherrypy.HTTPError(400, "a header is malformed") from error


def _strip_padding() -> None:
    """Undo what CherryPy does to error pages for a browser of long ago: blanks up to 512 bytes."""
    response = cherrypy.serving.response
    if not response.stream and int(str(response.status or 200).split(" ")[0]) >= 400:
        response.body = [response.collapse_body().rstrip(b" ")]
        response.headers["Content-Length"] = str(len(response.body[0]))


cherrypy.tools.stripped_padding = cherrypy.Tool("before_finalize", _strip_padding)
cherrypy.tools.stripped_padding_of_500 = cherrypy.Tool("after_error_response", _strip_padding)

_SETTINGS = {
    "error_page.default": _error_page,
    "request.show_tracebacks": False,
    "request.show_mismatched_params": False,
    "tools.stripped_padding.on": True,
    "tools.stripped_padding_of_500.on": True,
    "tools.trailing_slash.on": False,
    "tools.encode.on": False,
    "response.headers.Server": "devserver",
}
# Bodies are read by those who know how large they may be, and never line by line.
_UPLOAD_SETTINGS = {"request.process_request_body": False}
