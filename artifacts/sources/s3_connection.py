"""Speaking to S3 through boto3, which knows credentials, regions and endpoints.

The library sends the requests. It does not try them again, which is done here; its bodies are read
like those of other web servers, in blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    ArchiveObjectMissing,
    ArchiveRangeMissing,
    DevserverError,
    InsufficientStorage,
    TransientArchiveError,
)
from artifacts.sources.connection_errors import connection_error, host_of
from artifacts.sources.transport import TRANSIENT_STATUSES, Timeouts, retry_after_seconds

# What S3 says with a status that others use for what does not pass.
_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling"})


class S3Connection:
    """A client of boto3, for any number of threads; its failures in words.

    Configured as boto3 always is; without credentials, it asks anonymously. The library is
    imported, and the credentials are looked for, when something is first asked for.
    """

    def __init__(self, timeouts: Timeouts, max_connections: int) -> None:
        self._timeouts = timeouts
        self._max_connections = max_connections
        self._lock = threading.Lock()  # guards making the one client
        self._made: Any = None

    @contextmanager
    def client(self, what: str, doing: str = "read") -> Iterator[Any]:
        """Lend the client; raise what the library fails with as our own errors.

        Args:
            what: what messages call the thing that is asked for.
            doing: what is done with it.

        Raises:
            ArchiveObjectMissing: the bucket does not have it.
            ArchiveFileMissing: 404 for another reason, or for none that is told.
            InsufficientStorage: the store is full.
            TransientArchiveError: no connection, a cut, a stall, or a refusal that may pass.
            ArchiveError: any other refusal; the library's configuration is none.
        """
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        try:
            yield self._client()
        except exceptions.ClientError as error:
            raise _refusal(error.response, what, doing, self.host) from error
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            raise self.explain(error.kwargs.get("error") or error, what, doing) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self.explain(error, what, doing) from error
        except ResponseParserError as error:
            # A listing that was cut is no XML any more; nor is what a proxy may say instead.
            raise TransientArchiveError(
                f"cannot {doing} {what}: {self.host} did not answer as S3 does"
            ) from error
        except (exceptions.BotoCoreError, ValueError) as error:
            raise ArchiveError(f"cannot {doing} {what}: {error}") from error

    def explain(self, error: Exception, what: str, doing: str = "read") -> ArchiveError:
        """Return what a body that is read may fail with as our own error."""
        timeouts = (self._timeouts.connect_seconds, self._timeouts.stall_seconds)
        return connection_error(error, what, self._endpoint, timeouts, doing=doing)

    @property
    def host(self) -> str:
        """Who is asked, for messages; empty before anybody is."""
        return host_of(self._endpoint)

    @property
    def _endpoint(self) -> str:
        return "" if self._made is None else str(self._made.meta.endpoint_url)

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = _connect(self._timeouts, self._max_connections)
            return self._made

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()


def _connect(timeouts: Timeouts, max_connections: int) -> Any:
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
    return client


def _ask_where_once(context: dict[str, Any], **_: object) -> None:
    """Have the library not follow a redirect of its own question where a bucket is, endlessly."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _refusal(answer: Mapping[str, Any], what: str, doing: str, host: str) -> DevserverError:
    """Return an answer that says no, as our own error."""
    status = answer["ResponseMetadata"].get("HTTPStatusCode")
    code = str(answer["Error"].get("Code", ""))
    if status == 404:
        kind = ArchiveObjectMissing if code == "NoSuchKey" else ArchiveFileMissing
        return kind(f"the archive has no {what}")
    if status == 412:
        return ArchiveFileChanged(f"{what} changed while it was fetched")
    # The answers to HEAD have no body: there, the library makes the code up, of the status.
    told = [code, str(answer["Error"].get("Message", ""))] if code != str(status) else []
    words = ": ".join(part for part in (f"{host} answered {status}", *told) if part)
    message = f"cannot {doing} {what}: {words}"
    if status == 416:
        return ArchiveRangeMissing(message)
    if status == 507 and doing == "write":
        return InsufficientStorage(message)
    if status in TRANSIENT_STATUSES or code in _TRANSIENT_CODES:
        after = retry_after_seconds(headers_of(answer))
        return TransientArchiveError(message, retry_after_seconds=after)
    return ArchiveError(message)


def headers_of(answer: Mapping[str, Any]) -> CaseInsensitiveDict[str]:
    return CaseInsensitiveDict(answer["ResponseMetadata"].get("HTTPHeaders", {}))


def as_response(answer: Mapping[str, Any]) -> requests.Response:
    """Return the answer to a GET in the form in which bodies are read here."""
    response = requests.Response()
    response.request = requests.PreparedRequest()
    response.request.method = "GET"
    response.status_code = answer["ResponseMetadata"]["HTTPStatusCode"]
    response.headers = headers_of(answer)
    # The connection's own stream: the library's waits until a block is full.
    response.raw = answer["Body"].__enter__()
    return response
