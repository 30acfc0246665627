"""The source ``gs``: Google Cloud Storage."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import requests

from artifacts.archive_url import ArchiveUrl
from artifacts.checksums import Checksums
from artifacts.content_encoding import content_encoding
from artifacts.errors import ArchiveFileChanged, ArchiveFileMissing, BuildNotFound
from artifacts.sources.google_connection import GoogleConnection
from artifacts.sources.http_range import HttpRange
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts

if TYPE_CHECKING:
    from google.cloud import storage

_FIELDS = "items(name,size,generation,crc32c,md5Hash,contentEncoding),nextPageToken"
_MAX_FILES = 1_000_000


class GoogleStorageSource:
    """Reads builds from buckets, each file pinned to one generation."""

    def __init__(self, timeouts: Timeouts, max_connections: int) -> None:
        self._connection = GoogleConnection(timeouts, max_connections)

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        prefix = f"{archive_url.path}/"
        try:
            with self._connection.google(str(archive_url)) as google:
                blobs = google.client.list_blobs(
                    archive_url.authority,
                    prefix=prefix,
                    fields=_FIELDS,
                    max_results=_MAX_FILES,
                    timeout=self._connection.timeouts,
                    retry=None,
                )
                named = [(blob.name.removeprefix(prefix), blob) for blob in blobs]
        except ArchiveFileMissing:
            named = []  # there is no such bucket
        files = [_describe(name, blob) for name, blob in named if name and name[-1] != "/"]
        if not files:
            raise BuildNotFound(f"no such build: {archive_url}")
        return files

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        with self._connection.google(f"{archive_url}/{name}") as google:
            bucket = google.client.bucket(archive_url.authority)
            path = f"{archive_url.path}/{name}"
            blob = bucket.get_blob(path, timeout=self._connection.timeouts, retry=None)
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
        with self._connection.google(what) as google:
            url = (
                f"{google.endpoint}/download/storage/v1/b/{archive_url.authority}/o/{path}?{query}"
            )
            try:
                return google.transport.open_range(
                    url, what, file, start, stop, headers, _generation
                )
            except ArchiveFileMissing as error:
                raise ArchiveFileChanged(
                    f"{what} was replaced or removed while it was fetched"
                ) from error

    def close(self) -> None:
        self._connection.close()


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
