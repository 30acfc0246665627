"""The source ``http`` and ``https``: any web server with an ``UPLOADED`` file or an index."""

from __future__ import annotations

from urllib.parse import quote

from artifacts.archive_url import ArchiveUrl, check_relative_path
from artifacts.errors import ArchiveError, ArchiveFileMissing, BadRequest, BuildNotFound
from artifacts.sources.http_index import MAX_ENTRIES, parse_index
from artifacts.sources.http_range import HttpRange, describe_response, http_generation, let_go
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import MISSING, Transport
from artifacts.sources.uploaded import UPLOADED, parse_uploaded

_MAX_LISTING_BYTES = 64 << 20
_MAX_DIRECTORIES = 10_000
_MAX_DEPTH = 8
_HEAD_IS_UNKNOWN = frozenset({405, 501})


class HttpSource:
    """Reads builds from web servers, by range where they can."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        """List what ``UPLOADED`` names (one name a line); without it, what nginx's index shows."""
        url = f"{archive_url}/{UPLOADED}"
        uploaded = self._transport.read_small(url, url, _MAX_LISTING_BYTES)
        if uploaded is not None:
            return [ArchiveFile(name) for name in parse_uploaded(uploaded, url)]
        files = _list_index(self._transport, f"{archive_url}/")
        if files is None:
            raise BuildNotFound(f"no such build: {archive_url}")
        return files

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        url = _file_url(archive_url, name)
        accepted = {200, *MISSING, *_HEAD_IS_UNKNOWN}
        response = self._transport.request("HEAD", url, url, accepted=accepted)
        let_go(response)
        if response.status_code in MISSING:
            raise ArchiveFileMissing(f"the archive has no {url}")
        if response.status_code in _HEAD_IS_UNKNOWN:
            return ArchiveFile(name)
        return describe_response(ArchiveFile(name), response, http_generation(response))

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> HttpRange:
        headers = {"If-Range": file.generation} if file.generation and start else {}
        url = _file_url(archive_url, file.name)
        return self._transport.open_range(url, url, file, start, stop, headers, http_generation)

    def close(self) -> None:
        self._transport.close()


def _list_index(transport: Transport, base: str) -> list[ArchiveFile] | None:
    """Walk the index pages below ``base``; None if there is none."""
    files: list[ArchiveFile] = []
    directories = [""]
    for directory in directories:  # grows meanwhile
        url = base + quote(directory)
        page = transport.read_small(url, url, _MAX_LISTING_BYTES)
        if page is None:
            if not directory:
                return None
            continue
        for entry in parse_index(page, url):
            name = directory + entry.name
            if not entry.is_directory:
                files.append(ArchiveFile(name, entry.size))
            elif name.count("/") < _MAX_DEPTH:
                directories.append(f"{name}/")
        if len(files) > MAX_ENTRIES or len(directories) > _MAX_DIRECTORIES:
            raise ArchiveError(
                f"{base} lists over {MAX_ENTRIES} files or {_MAX_DIRECTORIES} directories"
            )
    return files


def _file_url(archive_url: ArchiveUrl, name: str) -> str:
    try:
        check_relative_path(name, "file name")
    except BadRequest as error:
        raise ArchiveFileMissing(f"{archive_url} cannot have it: {error.message}") from error
    return f"{archive_url}/{quote(name)}"
