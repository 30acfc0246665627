"""The blob storage ``gs://``: Google Cloud Storage."""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import BinaryIO
from urllib.parse import quote

import google_crc32c

from artifacts.blobs.bucket_storage import Page, StoredObject
from artifacts.errors import ArchiveFileMissing, ArchiveObjectMissing
from artifacts.sources.google_connection import GoogleConnection
from artifacts.sources.http_range import HttpRange
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts

_FIELDS = "items(name,size,updated),nextPageToken"
_BLOCK_BYTES = 256 << 10


class GoogleBucket:
    """A bucket; see `Bucket`."""

    def __init__(self, name: str, timeouts: Timeouts, max_connections: int) -> None:
        self.url = f"gs://{name}"
        self._name = name
        self._connection = GoogleConnection(timeouts, max_connections, "read_write")

    def put(self, key: str, file: BinaryIO, checksum: str) -> None:
        metadata = {
            "name": key,
            "contentType": "application/octet-stream",
            # Bytes as they are, for everybody who reads them; and from no cache: a damaged blob
            # is replaced under its name.
            "cacheControl": "no-cache, no-transform",
            # Google Storage refuses other bytes than these.
            "crc32c": base64.b64encode(_crc32c(file)).decode("ascii"),
        }
        body = _RelatedParts(metadata, file)
        with self._connection.google(f"{self.url}/{key}", "write") as google:
            from google.api_core.exceptions import from_http_response

            response = google.session.request(
                "POST",
                f"{google.endpoint}/upload/storage/v1/b/{self._name}/o?uploadType=multipart",
                data=body,
                headers={"Content-Type": body.content_type},
                timeout=self._connection.timeouts,
                allow_redirects=False,
            )
            if response.status_code != 200:
                raise from_http_response(response)

    def open(self, key: str, start: int, stop: int | None) -> HttpRange:
        what = f"{self.url}/{key}"
        path = f"/download/storage/v1/b/{self._name}/o/{quote(key, safe='')}?alt=media"
        try:
            with self._connection.google(what) as google:
                return google.transport.open_range(
                    google.endpoint + path, what, ArchiveFile(what), start, stop, {}, lambda _: None
                )
        except ArchiveFileMissing:
            self._check_there(key)
            raise

    def delete(self, key: str) -> None:
        try:
            with self._connection.google(f"{self.url}/{key}", "delete") as google:
                google.client.bucket(self._name).delete_blob(
                    key, timeout=self._connection.timeouts, retry=None
                )
        except ArchiveFileMissing:
            self._check_there(key)

    def _check_there(self, key: str) -> None:
        """Tell an object that is not there, in a bucket that is, from one in a bucket that is not.

        Raises:
            ArchiveObjectMissing: only the object is not.
            ArchiveFileMissing: the bucket is not.
        """
        self.list(key, None)
        raise ArchiveObjectMissing(f"the archive has no {self.url}/{key}")

    def list(self, prefix: str, page: str | None) -> Page:
        with self._connection.google(f"{self.url}/{prefix}", "list") as google:
            found = google.client.list_blobs(
                self._name,
                prefix=prefix,
                fields=_FIELDS,
                page_token=page,
                timeout=self._connection.timeouts,
                retry=None,
            )
            objects = [
                StoredObject(blob.name, blob.size, blob.updated.timestamp())
                for blob in next(found.pages, ())
            ]
            return Page(objects, found.next_page_token)

    def close(self) -> None:
        self._connection.close()


def _crc32c(file: BinaryIO) -> bytes:
    file.seek(0)
    checksum = google_crc32c.Checksum()
    while block := file.read(_BLOCK_BYTES):
        checksum.update(block)
    digest: bytes = checksum.digest()
    return digest


class _RelatedParts:
    """An object behind its metadata, in one request (multipart/related, RFC 2387).

    The library would hold the whole in memory, several times, and give it to the connection in one
    piece, with one time limit for all of it. Whoever sends this again gets it from the beginning.
    """

    def __init__(self, metadata: Mapping[str, str], file: BinaryIO) -> None:
        boundary = uuid.uuid4().hex
        self.content_type = f'multipart/related; boundary="{boundary}"'
        self._head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps(metadata)}\r\n"
            f"--{boundary}\r\nContent-Type: {metadata['contentType']}\r\n\r\n"
        ).encode("ascii")
        self._end = f"\r\n--{boundary}--\r\n".encode("ascii")
        self._file = file

    def __len__(self) -> int:
        size = os.fstat(self._file.fileno()).st_size
        return len(self._head) + size + len(self._end)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        self._file.seek(0)
        while block := self._file.read(_BLOCK_BYTES):
            yield block
        yield self._end
