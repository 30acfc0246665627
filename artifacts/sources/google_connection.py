"""Speaking to Google Storage: the library's client, and its session for the bodies of files.

The library for credentials, listing and metadata; the bytes are read and written by ourselves, in
blocks (``download_to_filename`` reads 8 KiB at a time).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import requests

from artifacts.archive_url import AllowList
from artifacts.errors import ArchiveError, ArchiveFileMissing, TransientArchiveError
from artifacts.sources.bare_session import REQUEST_HEADERS
from artifacts.sources.connection_errors import connection_error, host_of
from artifacts.sources.transport import (
    TRANSIENT_STATUSES,
    Timeouts,
    Transport,
    retry_after_seconds,
)

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud import storage

_ENDPOINT = "https://storage.googleapis.com"
_SCOPES = "https://www.googleapis.com/auth/devstorage"
# Without it the library asks for the bucket as well, on threads of its own and for a right that
# reading and writing objects does not want (googleapis/google-cloud-python, issue 17650).
_NO_QUESTIONS_OF_ITS_OWN = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"


@dataclass(frozen=True)
class Google:
    """What can be asked through; ``endpoint`` without a slash at its end."""

    client: storage.Client
    session: AuthorizedSession
    transport: Transport
    endpoint: str


class GoogleConnection:
    """A client of Google Storage, for any number of threads; its failures in words.

    Uses application default credentials, else none; honours ``STORAGE_EMULATOR_HOST``. The library
    is imported, and the credentials are looked for, when something is first asked for.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        max_connections: int,
        scope: Literal["read_only", "read_write"] = "read_only",
    ) -> None:
        self._timeouts = timeouts
        self._max_connections = max_connections
        self._scope = scope
        self._lock = threading.Lock()  # guards making the one client
        self._made: Google | None = None

    @contextmanager
    def google(self, what: str, doing: str = "read") -> Iterator[Google]:
        """Lend the client; raise what the library fails with as our own errors.

        Args:
            what: what messages call the thing that is asked for.
            doing: what is done with it.

        Raises:
            ArchiveFileMissing: 404: bucket or object are not there.
            TransientArchiveError: no connection, a cut, a stall, or a refusal that may pass.
            ArchiveError: any other refusal; the credentials are none.
        """
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError, InvalidOperation, TransportError

        endpoint = _ENDPOINT
        try:
            google = self._google()
            endpoint = google.endpoint
            yield google
        except exceptions.NotFound as error:
            raise ArchiveFileMissing(f"the archive has no {what}") from error
        except exceptions.GoogleAPICallError as error:
            message = f"cannot {doing} {what}: {host_of(endpoint)} {_answer_in_words(error)}"
            if error.code not in TRANSIENT_STATUSES:
                raise ArchiveError(message) from error
            after = retry_after_seconds(getattr(error.response, "headers", {}))
            raise TransientArchiveError(message, retry_after_seconds=after) from error
        except requests.exceptions.JSONDecodeError as error:
            raise TransientArchiveError(
                f"cannot {doing} {what}: {host_of(endpoint)} did not answer as Google Storage does"
            ) from error
        except (requests.RequestException, OSError, TransportError) as error:
            raise connection_error(error, what, endpoint, self.timeouts, doing=doing) from error
        except InvalidOperation as error:
            # What the library says when it is to renew credentials that there are none of.
            raise ArchiveError(
                f"cannot {doing} {what}: {host_of(endpoint)} wants credentials, and this server "
                "has none"
            ) from error
        except (exceptions.GoogleAPIError, GoogleAuthError, ValueError) as error:
            kind = TransientArchiveError if getattr(error, "retryable", False) else ArchiveError
            raise kind(f"cannot {doing} {what}: {error}") from error

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds to connect, and between two bytes, as the library wants them."""
        return self._timeouts.connect_seconds, self._timeouts.stall_seconds

    def _google(self) -> Google:
        with self._lock:
            if self._made is None:
                self._made = _connect(self._timeouts, self._max_connections, self._scope)
            return self._made

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.transport.close()


def _answer_in_words(error: GoogleAPICallError) -> str:
    told = [one["message"] for one in error.errors if isinstance(one, dict) and "message" in one]
    return ": ".join([f"answered {error.code:d}", *told[:1]])


class _GoogleSession:
    """Google's session, which knows the credentials, as a `Session` of the transport."""

    def __init__(self, session: AuthorizedSession) -> None:
        self._session = session

    def request(
        self, method: str, url: str, headers: Mapping[str, str], timeout: tuple[float, float]
    ) -> requests.Response:
        response: requests.Response = self._session.request(
            method, url, headers=dict(headers), stream=True, allow_redirects=False, timeout=timeout
        )
        return response

    def close(self) -> None:
        self._session.close()


def _connect(timeouts: Timeouts, max_connections: int, scope: str) -> Google:
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud import storage

    os.environ.setdefault(_NO_QUESTIONS_OF_ITS_OWN, "true")
    credentials: Any
    project: str | None
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        credentials, project = AnonymousCredentials(), "emulated"
    else:
        try:
            credentials, project = google.auth.default(scopes=[f"{_SCOPES}.{scope}"])
        except google.auth.exceptions.DefaultCredentialsError:
            credentials, project = AnonymousCredentials(), None
    # The library's own limit, for the question for a new access token, is two minutes.
    session = AuthorizedSession(credentials, refresh_timeout=timeouts.stall_seconds)
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=max_connections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers.update(REQUEST_HEADERS)
    client = storage.Client(project=project or "none", credentials=credentials, _http=session)
    endpoint = client.api_endpoint.rstrip("/")
    # The credentials are for Google, and for no host that it might redirect to.
    transport = Transport(_GoogleSession(session), timeouts, AllowList([endpoint]))
    return Google(client, session, transport, endpoint)
