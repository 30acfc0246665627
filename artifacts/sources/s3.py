"""The source ``s3``: Amazon S3, and other stores that speak its protocol."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from artifacts.archive_url import ArchiveUrl
from artifacts.checksums import Checksums
from artifacts.content_encoding import content_encoding
from artifacts.errors import (
    ArchiveError,
    ArchiveFileMissing,
    BuildNotFound,
    TransientArchiveError,
)
from artifacts.sources.http_range import HttpRange, opened_range
from artifacts.sources.s3_connection import S3Connection, as_response, headers_of
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import Timeouts

_MAX_FILES = 1_000_000
_MD5 = re.compile(r"[0-9a-f]{32}")


class S3Source:
    """Reads builds from buckets, each file pinned to one ETag."""

    def __init__(self, timeouts: Timeouts, max_connections: int) -> None:
        self._connection = S3Connection(timeouts, max_connections)

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        files = []
        try:
            with self._connection.client(str(archive_url)) as client:
                for file in _listed(client, self._connection.host, archive_url):
                    files.append(file)
                    if len(files) > _MAX_FILES:
                        raise ArchiveError(f"{archive_url} has over {_MAX_FILES} files")
        except ArchiveFileMissing:
            pass  # there is no such bucket
        if not files:
            raise BuildNotFound(f"no such build: {archive_url}")
        return files

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        what = f"{archive_url}/{name}"
        with self._connection.client(what) as client:
            answer = client.head_object(
                Bucket=archive_url.authority,
                Key=f"{archive_url.path}/{name}",
                ChecksumMode="ENABLED",
            )
            headers = headers_of(answer)
            file = _described(ArchiveFile(name), headers, is_whole=True)
            return _sized(file, answer.get("ContentLength"), headers.get("ETag"))

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> HttpRange:
        what = f"{archive_url}/{file.name}"
        wanted = {"ChecksumMode": "ENABLED"}
        if start > 0 or stop not in {None, 0, file.size}:
            wanted["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if file.generation is not None:
            wanted["IfMatch"] = f'"{file.generation}"'
        with self._connection.client(what) as client:
            answer = client.get_object(
                Bucket=archive_url.authority, Key=f"{archive_url.path}/{file.name}", **wanted
            )
            response = as_response(answer)
            try:
                headers = response.headers
                return opened_range(
                    response,
                    what,
                    _described(file, headers, is_whole=response.status_code == 200),
                    start,
                    stop,
                    _generation(headers.get("ETag")),
                    lambda error: self._connection.explain(error, what),
                )
            except BaseException:
                response.close()
                raise

    def close(self) -> None:
        self._connection.close()


def _listed(client: Any, host: str, archive_url: ArchiveUrl) -> Iterator[ArchiveFile]:
    prefix = f"{archive_url.path}/"
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=archive_url.authority, Prefix=prefix
    )
    for page in pages:
        if "IsTruncated" not in page:
            # What is cut before its first byte is an empty answer to the library.
            raise TransientArchiveError(f"cannot read {archive_url}: {host} sent no listing")
        for entry in page.get("Contents", ()):
            name = entry.get("Key", "").removeprefix(prefix)
            if name and name[-1] != "/":
                file = ArchiveFile(name, stat_tells_more=True)
                yield _sized(file, entry.get("Size"), entry.get("ETag"))


def _sized(file: ArchiveFile, size: int | None, etag: str | None) -> ArchiveFile:
    return replace(
        file,
        size=size,
        size_is_exact=size is not None,
        generation=_generation(etag),
        has_ranges=True,
    )


def _described(file: ArchiveFile, headers: Mapping[str, str], *, is_whole: bool) -> ArchiveFile:
    """Return ``file`` with what only the heads of answers tell: checksums and encoding."""
    return replace(
        file,
        checksums=file.checksums.joined(told_checksums(headers, is_whole=is_whole)),
        content_encoding=content_encoding(headers.get("Content-Encoding")),
    )


def told_checksums(headers: Mapping[str, str], *, is_whole: bool) -> Checksums:
    """Read the checksums of a file off an answer's head; ``is_whole``: not that of a range.

    A CRC32C may be that of the parts' checksums, or of the part that a range consists of. An ETag
    is an MD5 only of what was uploaded in one part, and is neither encrypted with a key of the
    customer's nor in a directory bucket
    (https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html, ETag).
    """
    crc32c = headers.get("x-amz-checksum-crc32c")
    is_composite = headers.get("x-amz-checksum-type") == "COMPOSITE" or "-" in (crc32c or "")
    etag = _generation(headers.get("ETag")) or ""
    is_md5 = (
        _MD5.fullmatch(etag)
        and headers.get("x-amz-server-side-encryption", "AES256") == "AES256"
        and "x-amz-server-side-encryption-customer-algorithm" not in headers
        and headers.get("x-amz-storage-class") != "EXPRESS_ONEZONE"
    )
    told = Checksums.from_base64(crc32c=crc32c if is_whole and not is_composite else None)
    return replace(told, md5=bytes.fromhex(etag)) if is_md5 else told


def _generation(etag: str | None) -> str | None:
    """Return a strong ETag without its quotes, with which some stores do not send it."""
    return etag.strip('"') if etag and not etag.startswith("W/") else None
