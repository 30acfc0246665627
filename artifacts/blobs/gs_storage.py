"""The blob storage ``gs://``: Google Cloud Storage, by its JSON API.

The library knows the credentials. The requests are our own: its uploads hold the whole blob in
memory, several times, and give it to the connection at once, with one time limit for all of it.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO
from urllib.parse import quote

import google_crc32c
import requests

from artifacts.blobs.bucket_storage import Page, StoredObject
from artifacts.errors import ArchiveFileMissing, ArchiveObjectMissing, TransientArchiveError
from artifacts.sources.google_connection import GoogleConnection
from artifacts.sources.http_range import HttpRange
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts

_FIELDS = "kind,items(name,size,updated),nextPageToken"
# Each has to be taken within the time for connecting, or that of a stall.
_BLOCK_BYTES = 64 << 10


class GoogleBucket:
    """A bucket; see `Bucket`."""

    def __init__(self, name: str, timeouts: Timeouts, max_connections: int) -> None:
        self.url = f"gs://{name}"
        self._path = f"storage/v1/b/{name}/o"
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
        stored = self._ask(
            *("POST", f"upload/{self._path}?uploadType=multipart", key, "write"),
            data=body,
            headers={"Content-Type": body.content_type},
        )
        if stored.get("crc32c") != metadata["crc32c"]:
            raise self._no_answer(key, "write")

    def open(self, key: str, start: int, stop: int | None) -> HttpRange:
        what = f"{self.url}/{key}"
        path = f"download/{self._path}/{quote(key, safe='')}?alt=media"
        try:
            with self._connection.google(what) as google:
                url = f"{google.endpoint}/{path}"
                file = ArchiveFile(what)
                return google.transport.open_range(url, what, file, start, stop, {}, lambda _: None)
        except ArchiveFileMissing:
            self._check_there(key)
            raise

    def delete(self, key: str) -> None:
        try:
            self._ask("DELETE", f"{self._path}/{quote(key, safe='')}", key, "delete")
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
        wanted = {"prefix": prefix, "fields": _FIELDS}
        if page is not None:
            wanted["pageToken"] = page
        answer = self._ask("GET", self._path, prefix, "list", params=wanted)
        if answer.get("kind") != "storage#objects":
            raise self._no_answer(prefix, "list")
        objects = [
            StoredObject(
                found["name"],
                int(found["size"]),
                datetime.fromisoformat(found["updated"]).timestamp(),
            )
            for found in answer.get("items", ())
        ]
        return Page(objects, answer.get("nextPageToken") or None)

    def _ask(
        self, method: str, path: str, key: str, doing: str, **request: Any
    ) -> Mapping[str, Any]:
        """Send a request, and return what the JSON of the answer says; nothing, if there is none.

        ``request`` is what requests takes besides.
        """
        with self._connection.google(f"{self.url}/{key}", doing) as google:
            from google.api_core.exceptions import from_http_response

            response: requests.Response = google.session.request(
                method,
                f"{google.endpoint}/{path}",
                timeout=self._connection.timeouts,
                allow_redirects=False,
                **request,
            )
            if response.status_code not in {200, 204}:
                raise from_http_response(response)
            told = response.json() if response.content else {}
        return told if isinstance(told, dict) else {}

    def _no_answer(self, key: str, doing: str) -> TransientArchiveError:
        return TransientArchiveError(
            f"cannot {doing} {self.url}/{key}: what answers is not Google Storage"
        )

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
    """An object behind its metadata, in one body (multipart/related, RFC 2387).

    Whoever sends it again gets it from its beginning.
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
