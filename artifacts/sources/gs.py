"""The source ``gs``: Google Cloud Storage.

The library for credentials, listing and metadata; the bytes are read by ourselves, in blocks
(``download_to_filename`` reads 8 KiB at a time).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.checksums import Checksums
from artifacts.content_encoding import content_encoding
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    BuildNotFound,
    TransientArchiveError,
)
from artifacts.sources.bare_session import REQUEST_HEADERS
from artifacts.sources.connection_errors import connection_error
from artifacts.sources.http_range import HttpRange
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts, Transport, retry_after_seconds

if TYPE_CHECKING:
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud import storage

_FIELDS = "items(name,size,generation,crc32c,md5Hash,contentEncoding),nextPageToken"
_MAX_FILES = 1_000_000
_ENDPOINT = "https://storage.googleapis.com"


@dataclass(frozen=True)
class _Connection:
    client: storage.Client
    transport: Transport
    endpoint: str


class GoogleStorageSource:
    """Reads builds from buckets, each file pinned to one generation.

    Uses application default credentials, else none; honours ``STORAGE_EMULATOR_HOST``. The library
    is imported, and the credentials are looked for, when the first build is asked for.
    """

    def __init__(self, timeouts: Timeouts, max_connections: int) -> None:
        self._timeouts = timeouts
        self._max_connections = max_connections
        self._lock = threading.Lock()  # guards making the one connection
        self._made: _Connection | None = None

    def _connection(self) -> _Connection:
        with self._lock:
            if self._made is None:
                self._made = _connect(self._timeouts, self._max_connections)
            return self._made

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        prefix = f"{archive_url.path}/"
        with self._errors_in_words(str(archive_url)) as connection:
            blobs = connection.client.list_blobs(
                archive_url.authority,
                prefix=prefix,
                fields=_FIELDS,
                max_results=_MAX_FILES,
                timeout=self._library_timeout,
                retry=None,
            )
            try:
                named = [(blob.name.removeprefix(prefix), blob) for blob in blobs]
            except _not_found():
                named = []
        files = [_describe(name, blob) for name, blob in named if name and name[-1] != "/"]
        if not files:
            raise BuildNotFound(f"no such build: {archive_url}")
        return files

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        with self._errors_in_words(f"{archive_url}/{name}") as connection:
            bucket = connection.client.bucket(archive_url.authority)
            path = f"{archive_url.path}/{name}"
            blob = bucket.get_blob(path, timeout=self._library_timeout, retry=None)
        if blob is None:
            raise ArchiveFileMissing(f"{archive_url} has no file {name}")
        return _describe(name, blob)

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> HttpRange:
        what = f"{archive_url}/{file.name}"
        path = quote(f"{archive_url.path}/{file.name}", safe="")
        query = "alt=media" + (f"&generation={file.generation}" if file.generation else "")
        # Google decompresses what it keeps as gzip for whoever does not say this, and then knows
        # neither ranges nor lengths (https://cloud.google.com/storage/docs/transcoding).
        headers = {"Accept-Encoding": "gzip"} if file.content_encoding else {}
        with self._errors_in_words(what) as connection:
            url = (
                f"{connection.endpoint}/download/storage/v1/b/{archive_url.authority}/o/{path}"
                f"?{query}"
            )
            try:
                return connection.transport.open_range(
                    url, what, file, start, stop, headers, _generation
                )
            except ArchiveFileMissing as error:
                raise ArchiveFileChanged(
                    f"{what} was replaced or removed while it was fetched"
                ) from error

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.transport.close()

    @property
    def _library_timeout(self) -> tuple[float, float]:
        return self._timeouts.connect_seconds, self._timeouts.stall_seconds

    @contextmanager
    def _errors_in_words(self, what: str) -> Iterator[_Connection]:
        """Lend the connection; raise what the library fails with as our own errors."""
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError, TransportError

        endpoint = _ENDPOINT
        try:
            connection = self._connection()
            endpoint = connection.endpoint
            yield connection
        except (exceptions.TooManyRequests, exceptions.ServerError) as error:
            headers = getattr(error.response, "headers", {})
            raise TransientArchiveError(
                f"cannot read {what}: {error}", retry_after_seconds=retry_after_seconds(headers)
            ) from error
        except (requests.RequestException, OSError, TransportError) as error:
            raise connection_error(error, what, endpoint, self._library_timeout) from error
        except (exceptions.GoogleAPIError, GoogleAuthError, ValueError) as error:
            kind = TransientArchiveError if getattr(error, "retryable", False) else ArchiveError
            raise kind(f"cannot read {what}: {error}") from error


def _not_found() -> type[Exception]:
    from google.api_core.exceptions import NotFound

    return NotFound


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


def _connect(timeouts: Timeouts, max_connections: int) -> _Connection:
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud import storage

    credentials: Any
    project: str | None
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        credentials, project = AnonymousCredentials(), "emulated"
    else:
        try:
            credentials, project = google.auth.default(
                scopes=["https://www.googleapis.com/auth/devstorage.read_only"]
            )
        except google.auth.exceptions.DefaultCredentialsError:
            credentials, project = AnonymousCredentials(), None
    session = AuthorizedSession(credentials)
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=max_connections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers.update(REQUEST_HEADERS)
    client = storage.Client(project=project or "none", credentials=credentials, _http=session)
    endpoint = client.api_endpoint.rstrip("/")
    # The credentials are for Google, and for no host that it might redirect to.
    transport = Transport(_GoogleSession(session), timeouts, AllowList([endpoint]))
    return _Connection(client, transport, endpoint)


def _describe(name: str, blob: storage.Blob) -> ArchiveFile:
    return ArchiveFile(
        name=name,
        size=blob.size,
        size_is_exact=blob.size is not None,
        generation=None if blob.generation is None else str(blob.generation),
        has_ranges=True,
        checksums=Checksums.from_base64(crc32c=blob.crc32c, md5=blob.md5_hash),
        content_encoding=content_encoding(blob.content_encoding),
    )


def _generation(response: requests.Response) -> str | None:
    return response.headers.get("X-Goog-Generation")
