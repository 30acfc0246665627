"""Talking to a running devserver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import requests
import urllib3

from artifacts.config import ENVIRONMENT_PREFIX
from artifacts.errors import DevserverError

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 60


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--server`` and ``--token``."""
    command = click.option(
        "--token", envvar=f"{ENVIRONMENT_PREFIX}TOKEN", help="token, where the server wants one"
    )(command)
    return click.option(
        "--server",
        envvar=f"{ENVIRONMENT_PREFIX}SERVER",
        default="http://localhost:8080",
        show_default=True,
        help="URL of the devserver",
    )(command)


class Client:
    """A devserver, asked over HTTP; a context manager."""

    def __init__(
        self, server: str, token: str | None = None, *, is_this_machine: bool = False
    ) -> None:
        """``is_this_machine``: no proxy leads to it, and no certificate has its name."""
        self.server = (server if "://" in server else f"http://{server}").rstrip("/")
        self._session = requests.Session()
        if is_this_machine:
            self._session.trust_env = False
            self._session.verify = False
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get_json(self, path: str) -> Any:
        return self._parsed(self._ask("GET", path))

    def post_json(self, path: str, value: object, timeout_seconds: float = _ANSWER_SECONDS) -> Any:
        return self._parsed(self._ask("POST", path, timeout_seconds, json=value))

    def _parsed(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise DevserverError(f"what answers at {self.server} is no devserver") from error

    def get_text(self, path: str, timeout_seconds: float = _ANSWER_SECONDS, **query: str) -> str:
        return self._ask("GET", path, params=query, timeout_seconds=timeout_seconds).text

    def _ask(
        self, method: str, path: str, timeout_seconds: float = _ANSWER_SECONDS, **more: Any
    ) -> requests.Response:
        """Send a request; raise DevserverError with the server's words where it refuses."""
        try:
            response = self._session.request(
                method, self.server + path, timeout=(_CONNECT_SECONDS, timeout_seconds), **more
            )
        except requests.RequestException as error:
            raise DevserverError(
                f"no devserver answers at {self.server} ({type(error).__name__}); "
                "start one, or name another with --server"
            ) from error
        if response.status_code >= 400:
            raise DevserverError(_words_of(response), status=response.status_code)
        return response


def _words_of(response: requests.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text or f"the server answered {response.status_code}"
