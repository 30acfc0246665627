"""An uploader as the protocol has them, which sends chunks as a test wants them to be."""

from __future__ import annotations

import gzip
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests
from raw_client import RawClient
from sqlalchemy import Table, select

from artifacts.blobs.sha1 import new_sha1
from artifacts.database.database import Database
from artifacts.database.tables import blobs
from artifacts.tokens import PUBLISH, Tokens

ORGANIZATION = "lab"
CHUNK_UPLOAD = f"/api/0/organizations/{ORGANIZATION}/chunk-upload/"
TIMEOUT_SECONDS = 120
_BOUNDARY = b"-" * 24 + b"4bc1f0c7e9a5d3b2"


class Uploads(Protocol):
    """A server that takes uploads, with its data below ``directory``."""

    @property
    def url(self) -> str: ...

    @property
    def directory(self) -> Path: ...


def sha1_of(data: bytes) -> str:
    return new_sha1(data).hexdigest()


@contextmanager
def database_of(server: Uploads) -> Iterator[Database]:
    """Open the database of a server beside it."""
    database = Database.in_directory(server.directory / "data")
    try:
        yield database
    finally:
        database.close()


def make_token(
    server: Uploads, organization: str = ORGANIZATION, scopes: Collection[str] = (PUBLISH,)
) -> str:
    with database_of(server) as database:
        return Tokens(database).create(organization, scopes)


def rows_of(server: Uploads, table: Table) -> list[Any]:
    """Return what a server has on record in a table."""
    with database_of(server) as database, database.reading() as connection:
        return list(connection.execute(select(table)))


def blobs_on_record(server: Uploads) -> set[str]:
    return {row.checksum for row in rows_of(server, blobs)}


def stored_blobs(server: Uploads) -> dict[str, bytes]:
    """Return what the directory of blobs has, by checksum; the spool is no part of it."""
    files = blob_directory(server).glob("??/*")
    return {path.parent.name + path.name: path.read_bytes() for path in files}


def spooled_files(server: Uploads) -> list[Path]:
    return list((blob_directory(server) / ".spool").iterdir())


def blob_directory(server: Uploads) -> Path:
    return server.directory / "data" / "blobs"


@dataclass(frozen=True)
class Part:
    """A part of a body; ``filename`` is None for a plain field."""

    data: bytes
    filename: str | None
    name: str = "file"

    def framed(self) -> bytes:
        named = "" if self.filename is None else f'; filename="{self.filename}"'
        head = f'Content-Disposition: form-data; name="{self.name}"{named}\r\n\r\n'
        return head.encode("utf-8") + self.data


def chunk(data: bytes) -> Part:
    return Part(data, sha1_of(data))


def packed(data: bytes) -> Part:
    return Part(gzip.compress(data, 1), sha1_of(data), "file_gzip")


def multipart(parts: Iterable[Part], boundary: bytes = _BOUNDARY) -> bytes:
    """Put a body together."""
    body = b"".join(b"--" + boundary + b"\r\n" + part.framed() + b"\r\n" for part in parts)
    return body + b"--" + boundary + b"--\r\n"


def content_type(boundary: bytes = _BOUNDARY) -> str:
    return f"multipart/form-data; boundary={boundary.decode('latin-1')}"


class UploadClient:
    """Calls of one organization, with its token."""

    def __init__(self, server: Uploads, organization: str = ORGANIZATION) -> None:
        self.server = server
        self.organization = organization
        self.token = make_token(server, organization)
        self._url = f"{server.url}/api/0/organizations/{organization}/chunk-upload/"

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def get(self, path: str) -> requests.Response:
        return requests.get(
            self.server.url + path, headers=self.authorization, timeout=TIMEOUT_SECONDS
        )

    def send(self, *parts: Part) -> requests.Response:
        """Send parts in one request."""
        return self.send_body(multipart(parts))

    def send_body(
        self, body: bytes | Iterable[bytes], content_type: str | None = content_type()
    ) -> requests.Response:
        """Send a body as it is; one that is no bytes comes in chunks of HTTP."""
        headers = {"Content-Type": content_type} if content_type else {}
        return requests.post(
            self._url,
            data=body,
            headers={**self.authorization, **headers},
            timeout=TIMEOUT_SECONDS,
        )

    def begin(self, client: RawClient, length: int, **headers: str) -> RawClient:
        """Send the head of a request by hand; its body is to follow."""
        return client.get(
            CHUNK_UPLOAD,
            "POST",
            Authorization=f"Bearer {self.token}",
            Content_Type=content_type(),
            Content_Length=str(length),
            **headers,
        )
