"""The blob storage ``s3://``: Amazon S3, and other stores that speak its protocol."""

from __future__ import annotations

import base64
from functools import partial
from typing import BinaryIO

from artifacts.blobs.bucket_storage import Page, StoredObject
from artifacts.errors import TransientArchiveError
from artifacts.sources.http_range import HttpRange, opened_range
from artifacts.sources.s3_connection import S3Connection, as_response
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts


class S3Bucket:
    """A bucket; see `Bucket`."""

    def __init__(self, name: str, timeouts: Timeouts, max_connections: int) -> None:
        self.url = f"s3://{name}"
        self._name = name
        self._connection = S3Connection(timeouts, max_connections)

    def put(self, key: str, file: BinaryIO, checksum: str) -> None:
        what = f"{self.url}/{key}"
        file.seek(0)
        with self._connection.client(what, "write") as client:
            answer = client.put_object(
                Bucket=self._name,
                Key=key,
                Body=file,
                # S3 refuses other bytes than these, and hashing once more is spared.
                ChecksumSHA1=base64.b64encode(bytes.fromhex(checksum)).decode("ascii"),
            )
        if not answer.get("ETag"):
            # Anybody on the way may say 200.
            raise TransientArchiveError(
                f"cannot write {what}: {self._connection.host} did not answer as S3 does"
            )

    def open(self, key: str, start: int, stop: int | None) -> HttpRange:
        what = f"{self.url}/{key}"
        wanted = {}
        if start > 0 or stop is not None:
            wanted["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        with self._connection.client(what) as client:
            response = as_response(client.get_object(Bucket=self._name, Key=key, **wanted))
            try:
                explain = partial(self._connection.explain, what=what)
                return opened_range(response, what, ArchiveFile(what), start, stop, None, explain)
            except BaseException:
                response.close()
                raise

    def delete(self, key: str) -> None:
        with self._connection.client(f"{self.url}/{key}", "delete") as client:
            client.delete_object(Bucket=self._name, Key=key)

    def list(self, prefix: str, page: str | None) -> Page:
        what = f"{self.url}/{prefix}"
        wanted = {} if page is None else {"ContinuationToken": page}
        with self._connection.client(what, "list") as client:
            answer = client.list_objects_v2(Bucket=self._name, Prefix=prefix, **wanted)
        if "IsTruncated" not in answer:
            # What is cut before its first byte is an empty answer to the library.
            raise TransientArchiveError(
                f"cannot list {what}: {self._connection.host} sent no listing"
            )
        objects = [
            StoredObject(found["Key"], found["Size"], found["LastModified"].timestamp())
            for found in answer.get("Contents", ())
        ]
        return Page(objects, answer.get("NextContinuationToken") or None)

    def close(self) -> None:
        self._connection.close()
