"""The source ``http`` and ``https``: any web server with an ``UPLOADED`` file or an index."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urljoin, urlsplit

from artifacts.archive_url import ArchiveUrl
from artifacts.errors import ArchiveError, ArchiveFileMissing, BuildNotFound
from artifacts.sources.source import ArchiveFile
from artifacts.sources.transport import HttpRange, Transport, describe_response, http_generation

_MAX_LISTING_BYTES = 64 << 20
_MAX_FILES = 1_000_000
_MAX_DEPTH = 8
_EXACT_SIZE = re.compile(r"\s(\d+)\s*$")


class HttpSource:
    """Reads builds from web servers, by range where they can."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, archive_url: ArchiveUrl) -> list[ArchiveFile]:
        """List what ``UPLOADED`` names (one name a line); without it, what nginx's index shows."""
        base = f"{archive_url}/"
        uploaded = self._transport.read_small(f"{base}UPLOADED", _MAX_LISTING_BYTES)
        if uploaded is not None:
            names = uploaded.decode("utf-8", "replace").splitlines()
            return [ArchiveFile(name) for name in dict.fromkeys(n.strip() for n in names) if name]
        files: dict[str, ArchiveFile] = {}
        if not self._list_index(base, "", files, _MAX_DEPTH):
            raise BuildNotFound(f"no such build: {archive_url}")
        return list(files.values())

    def _list_index(
        self, base: str, directory: str, files: dict[str, ArchiveFile], depth: int
    ) -> bool:
        url = base + quote(directory)
        body = self._transport.read_small(url, _MAX_LISTING_BYTES)
        if body is None:
            return False
        for name, size, is_directory in _parse_index(body.decode("utf-8", "replace"), url):
            if is_directory:
                if depth > 0:
                    self._list_index(base, f"{directory}{name}/", files, depth - 1)
            else:
                files[directory + name] = ArchiveFile(directory + name, size)
            if len(files) > _MAX_FILES:
                raise ArchiveError(f"{base} lists over {_MAX_FILES} files")
        return True

    def stat(self, archive_url: ArchiveUrl, name: str) -> ArchiveFile:
        url = _file_url(archive_url, name)
        try:
            response = self._transport.request("HEAD", url)
        except ArchiveError as error:
            if "answered 405" in error.message or "answered 501" in error.message:
                return ArchiveFile(name)
            raise
        with response:
            if response.status_code != 200:
                raise ArchiveFileMissing(f"the archive has no {url}")
            return describe_response(ArchiveFile(name), response, http_generation(response))

    def open(
        self, archive_url: ArchiveUrl, file: ArchiveFile, start: int = 0, stop: int | None = None
    ) -> HttpRange:
        headers = {"If-Range": file.generation} if file.generation and start else {}
        url = _file_url(archive_url, file.name)
        return self._transport.open_range(url, file, start, stop, headers, http_generation)

    def close(self) -> None:
        self._transport.close()


def _file_url(archive_url: ArchiveUrl, name: str) -> str:
    return f"{archive_url}/{quote(name)}"


def _parse_index(text: str, url: str) -> list[tuple[str, int | None, bool]]:
    """Return (name, size, whether it is a directory) of each entry of an index page.

    Sizes are for planning; what a file's own answer says is what counts.
    """
    if text.lstrip().startswith("["):
        try:
            return [
                (str(entry["name"]), entry.get("size"), entry.get("type") == "directory")
                for entry in json.loads(text)
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArchiveError(f"the JSON index at {url} is malformed: {error}") from error
    parser = _IndexParser(url)
    parser.feed(text)
    parser.close()
    if not parser.is_html:
        raise ArchiveError(f"{url} is neither an index page nor is there a file UPLOADED")
    return list(parser.entries.values())


class _IndexParser(HTMLParser):
    """Collects the links of an index page that lead to something right below it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.entries: dict[str, tuple[str, int | None, bool]] = {}
        self.is_html = False
        self._url = url
        self._directory = unquote(urlsplit(url).path)
        self._last_name: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_html = True
        if tag != "a":
            return
        self._last_name = None
        href = dict(attrs).get("href")
        if not href or href.startswith(("?", "#")):
            return
        here, there = urlsplit(self._url), urlsplit(urljoin(self._url, href))
        path = unquote(there.path)
        if (there.scheme, there.netloc) != (here.scheme, here.netloc):
            return
        name = path.removeprefix(self._directory)
        if path == name or not name.rstrip("/") or "/" in name.rstrip("/"):
            return
        self._last_name = name.rstrip("/")
        self.entries[self._last_name] = (self._last_name, None, name.endswith("/"))

    def handle_data(self, data: str) -> None:
        if self._last_name is not None and (match := _EXACT_SIZE.search(data.rstrip("\r\n"))):
            name, _, is_directory = self.entries[self._last_name]
            self.entries[self._last_name] = (name, int(match[1]), is_directory)
            self._last_name = None
