"""The source ``gs``: Google Cloud Storage.

The library for credentials, listing and metadata; the bytes are read by ourselves, in blocks
(``download_to_filename`` reads 8 KiB at a time).
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests

from artifacts.archive_url import ArchiveUrl
from artifacts.checksums import Checksums
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    BuildNotFound,
    TransientArchiveError,
)
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import HttpRange, Timeouts, Transport, prepare_session

if TYPE_CHECKING:
    from google.cloud import storage

_FIELDS = "items(name,size,generation,crc32c,md5Hash),nextPageToken"
_MAX_FILES = 1_000_000


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
        files = []
        blobs = self._call(
            lambda client: list(
                client.list_blobs(
                    archive_url.authority,
                    prefix=prefix,
                    fields=_FIELDS,
                    max_results=_MAX_FILES,
                    timeout=self._library_timeout,
                    retry=None,
                )
            ),
            archive_url,
        )
        for blob in blobs or []:
            name = blob.name.removeprefix(prefix)
            if name and not name.endswith("/"):
                files.append(_describe(name, blob))
        if not files:
            raise BuildNotFound(f"no such build: {archive_url}")
        return files

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        path = f"{archive_url.path}/{name}"
        blob = self._call(
            lambda client: client.bucket(archive_url.authority).get_blob(
                path, timeout=self._library_timeout, retry=None
            ),
            archive_url,
        )
        if blob is None:
            raise ArchiveFileMissing(f"{archive_url} has no file {name}")
        return _describe(name, blob)

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> HttpRange:
        connection = self._connection()
        path = quote(f"{archive_url.path}/{file.name}", safe="")
        url = (
            f"{connection.endpoint}/download/storage/v1/b/{archive_url.authority}/o/{path}"
            f"?alt=media&generation={file.generation}"
        )
        try:
            return connection.transport.open_range(url, file, start, stop, {}, _generation)
        except ArchiveFileMissing as error:
            raise ArchiveFileChanged(
                f"{archive_url}/{file.name} was replaced or removed while it was fetched"
            ) from error

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.transport.close()

    @property
    def _library_timeout(self) -> tuple[float, float]:
        return self._timeouts.connect_seconds, self._timeouts.stall_seconds

    def _call(self, call: Any, archive_url: ArchiveUrl) -> Any:
        """Call the library; None where it finds nothing."""
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError

        try:
            return call(self._connection().client)
        except exceptions.NotFound:
            return None
        except (exceptions.TooManyRequests, exceptions.ServerError) as error:
            raise TransientArchiveError(f"cannot read {archive_url}: {error}") from error
        except (exceptions.GoogleAPIError, GoogleAuthError, ValueError) as error:
            raise ArchiveError(f"cannot read {archive_url}: {error}") from error
        except (requests.RequestException, OSError) as error:
            raise TransientArchiveError(f"cannot read {archive_url}: {error}") from error


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
    prepare_session(session, max_connections)
    client = storage.Client(project=project or "none", credentials=credentials, _http=session)
    # Google redirects to hosts of its own only, and those are not archives of the allow list.
    return _Connection(client, Transport(session, timeouts, None), client.api_endpoint.rstrip("/"))


def _describe(name: str, blob: storage.Blob) -> ArchiveFile:
    return ArchiveFile(
        name=name,
        size=blob.size,
        size_is_exact=blob.size is not None,
        generation=str(blob.generation),
        has_ranges=True,
        checksums=Checksums.from_base64(crc32c=blob.crc32c, md5=blob.md5_hash),
    )


def _generation(response: requests.Response) -> str | None:
    return response.headers.get("X-Goog-Generation")
