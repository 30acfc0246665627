"""A WSGI application that serves files, as many are deployed: WhiteNoise, for gunicorn to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from whitenoise import WhiteNoise  # type: ignore[import-untyped]

_StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def application(files: str) -> WhiteNoise:
    """Return an application that serves the files that are in a directory now."""
    return WhiteNoise(_not_found, root=files)


def _not_found(environ: dict[str, Any], start_response: _StartResponse) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return []
