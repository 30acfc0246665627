"""Talking to a running devserver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click
import requests
import urllib3

from artifacts.config import ENVIRONMENT_PREFIX
from artifacts.errors import DevserverError
from artifacts.sources.transport import retry_after_seconds

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 60
# For which a busy server may take nothing of a body, and for which it may store what has come.
_STALL_SECONDS = 60
_STORE_SECONDS = 180


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


class _Bearer(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class NoAnswer(DevserverError):
    """Nobody answers where the server should be, or the connection was cut."""


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
            # Not as a header: what .netrc says of the server would go over it.
            self._session.auth = _Bearer(token)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get_json(self, path: str) -> Any:
        return self._parsed(self._ask("GET", path))

    def post_json(self, path: str, value: object, timeout_seconds: float = _ANSWER_SECONDS) -> Any:
        return self._parsed(self._ask("POST", path, timeout_seconds, json=value))

    def post_body(self, path: str, body: Iterable[ReadableBuffer], content_type: str) -> None:
        """Send a body, piece by piece, each of some mebibyte at most.

        ``len`` tells its bytes; one that has no ``len`` is sent in chunks of HTTP.

        Args:
            path: on this server, or a whole URL.
        """
        self._send(path, body, content_type, _STORE_SECONDS)

    def post_body_for_json(
        self,
        path: str,
        body: Iterable[ReadableBuffer],
        content_type: str,
        timeout_seconds: float,
        **query: str,
    ) -> Any:
        """Send a body as `post_body` does, and return the answer to it.

        Args:
            timeout_seconds: for the answer, once all is sent.
        """
        return self._parsed(self._send(path, body, content_type, timeout_seconds, query))

    def _send(
        self,
        path: str,
        body: Iterable[ReadableBuffer],
        content_type: str,
        timeout_seconds: float,
        query: Mapping[str, str] | None = None,
    ) -> requests.Response:
        headers = {"Content-Type": content_type}
        return self._ask(
            *("POST", path, timeout_seconds, _STALL_SECONDS),
            data=body,
            headers=headers,
            params=query,
        )

    def _parsed(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise DevserverError(f"what answers at {self.server} is no devserver") from error

    def get_text(self, path: str, timeout_seconds: float = _ANSWER_SECONDS, **query: str) -> str:
        return self._ask("GET", path, params=query, timeout_seconds=timeout_seconds).text

    def _ask(
        self,
        method: str,
        path: str,
        timeout_seconds: float = _ANSWER_SECONDS,
        send_seconds: float = _CONNECT_SECONDS,
        **more: Any,
    ) -> requests.Response:
        """Send a request; raise DevserverError with the server's words where it refuses."""
        url = path if path.startswith(("http://", "https://")) else self.server + path
        try:
            response = self._session.request(
                method, url, timeout=(send_seconds, timeout_seconds), **more
            )
        except requests.RequestException as error:
            raise NoAnswer(
                f"no devserver answers at {self.server} ({type(error).__name__}); "
                "start one, or name another with --server"
            ) from error
        if response.status_code >= 400:
            raise DevserverError(
                _words_of(response),
                status=response.status_code,
                retry_after_seconds=retry_after_seconds(response.headers),
            )
        return response


def _words_of(response: requests.Response) -> str:
    try:
        answer = response.json()
        return str(answer["detail"] if "detail" in answer else answer["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text or f"the server answered {response.status_code}"
