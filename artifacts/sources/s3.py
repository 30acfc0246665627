"""The source ``s3``: Amazon S3, and other stores that speak its protocol.

The library sends the requests: it knows credentials, regions and endpoints. It does not try them
again, which is done here, and its bodies are read like those of other web servers, in blocks.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from artifacts.archive_url import ArchiveUrl
from artifacts.checksums import Checksums
from artifacts.content_encoding import content_encoding
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    BuildNotFound,
    TransientArchiveError,
)
from artifacts.sources.connection_errors import connection_error, host_of
from artifacts.sources.http_range import HttpRange, opened_range
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import TRANSIENT_STATUSES, Timeouts, retry_after_seconds

_MAX_FILES = 1_000_000
# What S3 says with a status that others use for what does not pass.
_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling"})
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class _Connection:
    client: Any
    endpoint: str


class S3Source:
    """Reads builds from buckets, each file pinned to one ETag.

    Configured as boto3 always is; without credentials, it asks anonymously. The library is
    imported, and the credentials are looked for, when the first build is asked for.
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
        files = []
        try:
            with self._errors_in_words(str(archive_url)) as connection:
                for file in _listed(connection, archive_url):
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
        with self._errors_in_words(what) as connection:
            answer = connection.client.head_object(
                Bucket=archive_url.authority,
                Key=f"{archive_url.path}/{name}",
                ChecksumMode="ENABLED",
            )
            headers = _headers(answer)
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
        with self._errors_in_words(what) as connection:
            answer = connection.client.get_object(
                Bucket=archive_url.authority, Key=f"{archive_url.path}/{file.name}", **wanted
            )
            response = _as_response(answer)
            try:
                headers = response.headers
                return opened_range(
                    response,
                    what,
                    _described(file, headers, is_whole=response.status_code == 200),
                    start,
                    stop,
                    _generation(headers.get("ETag")),
                    lambda error: self._connection_error(error, what, connection.endpoint),
                )
            except BaseException:
                response.close()
                raise

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.client.close()

    @contextmanager
    def _errors_in_words(self, what: str) -> Iterator[_Connection]:
        """Lend the connection; raise what the library fails with as our own errors."""
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        endpoint = ""
        try:
            connection = self._connection()
            endpoint = connection.endpoint
            yield connection
        except exceptions.ClientError as error:
            raise _refusal(error.response, what, endpoint) from error
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            behind = error.kwargs.get("error") or error
            raise self._connection_error(behind, what, endpoint) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._connection_error(error, what, endpoint) from error
        except ResponseParserError as error:
            # A listing that was cut is no XML any more; nor is what a proxy may say instead.
            raise TransientArchiveError(
                f"cannot read {what}: {host_of(endpoint)} did not answer as S3 does"
            ) from error
        except (exceptions.BotoCoreError, ValueError) as error:
            raise ArchiveError(f"cannot read {what}: {error}") from error

    def _connection_error(self, error: Exception, what: str, endpoint: str) -> ArchiveError:
        timeouts = (self._timeouts.connect_seconds, self._timeouts.stall_seconds)
        return connection_error(error, what, endpoint, timeouts)


def _connect(timeouts: Timeouts, max_connections: int) -> _Connection:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.session.Session()
    config = Config(
        connect_timeout=timeouts.connect_seconds,
        read_timeout=timeouts.stall_seconds,
        max_pool_connections=max_connections,
        retries={"mode": "standard", "total_max_attempts": 1},
        user_agent_extra="devserver",
    )
    if session.get_credentials() is None:
        config = config.merge(Config(signature_version=UNSIGNED))
    client = session.client("s3", config=config)
    client.meta.events.register("before-call.s3.HeadBucket", _ask_where_once)
    return _Connection(client, client.meta.endpoint_url)


def _ask_where_once(context: dict[str, Any], **_: object) -> None:
    """Have the library not follow a redirect of its own question where a bucket is, endlessly."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _refusal(answer: Mapping[str, Any], what: str, endpoint: str) -> ArchiveError:
    """Return an answer that says no, as our own error."""
    status = answer["ResponseMetadata"].get("HTTPStatusCode")
    code = str(answer["Error"].get("Code", ""))
    if status == 404:
        return ArchiveFileMissing(f"the archive has no {what}")
    if status == 412:
        return ArchiveFileChanged(f"{what} changed while it was fetched")
    # The answers to HEAD have no body: there, the library makes the code up, of the status.
    told = [code, str(answer["Error"].get("Message", ""))] if code != str(status) else []
    words = ": ".join(part for part in (f"{host_of(endpoint)} answered {status}", *told) if part)
    message = f"cannot read {what}: {words}"
    if status == 416:
        return TransientArchiveError(message)
    if status in TRANSIENT_STATUSES or code in _TRANSIENT_CODES:
        after = retry_after_seconds(_headers(answer))
        return TransientArchiveError(message, retry_after_seconds=after)
    return ArchiveError(message)


def _headers(answer: Mapping[str, Any]) -> CaseInsensitiveDict[str]:
    return CaseInsensitiveDict(answer["ResponseMetadata"].get("HTTPHeaders", {}))


def _as_response(answer: Mapping[str, Any]) -> requests.Response:
    """Return the answer to a GET in the form in which bodies are read here."""
    response = requests.Response()
    response.request = requests.PreparedRequest()
    response.request.method = "GET"
    response.status_code = answer["ResponseMetadata"]["HTTPStatusCode"]
    response.headers = _headers(answer)
    # The connection's own stream: the library's waits until a block is full.
    response.raw = answer["Body"].__enter__()
    return response


def _listed(connection: _Connection, archive_url: ArchiveUrl) -> Iterator[ArchiveFile]:
    prefix = f"{archive_url.path}/"
    pages = connection.client.get_paginator("list_objects_v2").paginate(
        Bucket=archive_url.authority, Prefix=prefix
    )
    for page in pages:
        if "IsTruncated" not in page:
            # What is cut before its first byte is an empty answer to the library.
            raise TransientArchiveError(
                f"cannot read {archive_url}: {host_of(connection.endpoint)} sent no listing"
            )
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
