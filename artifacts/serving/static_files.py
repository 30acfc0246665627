"""``/static``: what manifests list, and nothing else."""

from __future__ import annotations

import html
import io
import mimetypes
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

from artifacts.archive_url import BuildName, check_relative_path
from artifacts.build import Build
from artifacts.errors import BadRequest, NotFound
from artifacts.manifest import StagedFile
from artifacts.serving import ranges
from artifacts.serving.answer import Answer, json_answer
from artifacts.staging import Staging

_BLOCK_BYTES = 1 << 20
_ENCODED_TYPES = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
}
# What builds contain is shown, and never runs with the rights of our own page.
_SAFETY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
}


@dataclass
class FileAnswer:
    """A status, headers, and the parts of an open file to send between literal bytes.

    ``parts`` are (bytes to send before, start, stop) each; ``tail`` comes last.
    """

    status: int
    headers: dict[str, str]
    file: io.FileIO | None = None
    parts: list[tuple[bytes, int, int]] = field(default_factory=list)
    tail: bytes = b""

    @property
    def length(self) -> int:
        literal = sum(len(before) for before, _, _ in self.parts) + len(self.tail)
        return literal + sum(stop - start for _, start, stop in self.parts)

    def blocks(self) -> Iterator[bytes]:
        """Yield the body; closes the file in the end."""
        assert self.file is not None
        with self.file:
            for before, start, stop in self.parts:
                if before:
                    yield before
                self.file.seek(start)
                while start < stop and (block := self.file.read(min(_BLOCK_BYTES, stop - start))):
                    start += len(block)
                    yield block
            if self.tail:
                yield self.tail


@dataclass(frozen=True)
class _Entry:
    name: str
    is_directory: bool
    size: int = 0


class StaticFiles:
    """Answers GET and HEAD below ``/static``."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    def answer(self, segments: list[str], headers: Mapping[str, str]) -> FileAnswer | Answer:
        """Answer for the path of ``segments``.

        Raises:
            NotFound: no manifest lists such a file or directory.
        """
        path = "/".join(segments)
        try:
            if path:
                check_relative_path(path, "path")
        except BadRequest:
            raise _not_found(path) from None
        if any(segment.startswith(".") for segment in segments):
            raise _not_found(path)
        if len(segments) < 2:
            return self._index(segments, self._top_entries(segments), headers)
        try:
            build = self._staging.build(BuildName.checked(segments[0], segments[1]))
        except BadRequest:
            raise _not_found(path) from None
        if build.asked is None:
            raise _not_found(path)
        build.touch()
        inner = "/".join(segments[2:])
        found = build.resolve(inner) if inner else None
        if found is not None:
            return _file_answer(build.directory / found[0], inner, found[1], headers)
        return self._index(segments, _entries_below(build, inner), headers)

    def _top_entries(self, segments: list[str]) -> list[_Entry]:
        if segments:
            names = [name.build for name in self._staging.builds_of(segments[0])]
        else:
            names = self._staging.targets()
        return [_Entry(name, is_directory=True) for name in names]

    def _index(
        self, segments: list[str], entries: list[_Entry], headers: Mapping[str, str]
    ) -> Answer:
        if segments and not entries:
            raise _not_found("/".join(segments))
        if "application/json" in headers.get("Accept", ""):
            return json_answer([_entry_to_json(entry) for entry in entries])
        page = _index_page("/".join(["", "static", *segments, ""]), entries)
        return Answer(page.encode("utf-8", "backslashreplace"), 200, "text/html; charset=utf-8")


def _entries_below(build: Build, directory: str) -> list[_Entry]:
    prefix = f"{directory}/" if directory else ""
    entries: dict[str, _Entry] = {}
    for path, file in build.files().items():
        if path.startswith(prefix):
            name, slash, _ = path.removeprefix(prefix).partition("/")
            if not name.startswith("."):
                entries[name] = _Entry(name, bool(slash), 0 if slash else file.size)
    return sorted(entries.values(), key=lambda entry: (not entry.is_directory, entry.name))


def _file_answer(
    path: Path, name: str, staged: StagedFile, request: Mapping[str, str]
) -> FileAnswer:
    try:
        file = io.FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError:
        raise _not_found(name) from None
    try:
        return _conditional_answer(file, name, staged, request)
    except BaseException:
        file.close()
        raise


def _conditional_answer(
    file: io.FileIO, name: str, staged: StagedFile, request: Mapping[str, str]
) -> FileAnswer:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise _not_found(name)
    size, modified_at = status.st_size, status.st_mtime
    etag = None if staged.crc32c is None else f'"{staged.size:x}-{staged.crc32c:08x}"'
    headers = {
        **_SAFETY,
        "Accept-Ranges": "bytes",
        "Last-Modified": formatdate(int(modified_at), usegmt=True),
        "Content-Type": content_type(name),
    }
    if etag is not None:
        headers["ETag"] = etag
    if ranges.precondition_fails(request, etag, modified_at):
        return _without_body(file, 412, headers)
    if ranges.is_unchanged(request, etag, modified_at):
        return _without_body(file, 304, headers)
    wanted = None
    if ranges.may_answer_range(request, etag, modified_at):
        wanted = ranges.parse_ranges(request.get("Range"), size)
    if wanted is None:
        return FileAnswer(200, headers, file, [(b"", 0, size)])
    if not wanted:
        return _without_body(file, 416, {**headers, "Content-Range": f"bytes */{size}"})
    if len(wanted) == 1:
        start, stop = wanted[0]
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return FileAnswer(206, headers, file, [(b"", start, stop)])
    return _multipart(file, headers, wanted, size)


def _without_body(file: io.FileIO, status: int, headers: dict[str, str]) -> FileAnswer:
    file.close()
    if status == 304:
        headers.pop("Content-Type")
    return FileAnswer(status, headers)


def _multipart(
    file: io.FileIO, headers: dict[str, str], wanted: list[tuple[int, int]], size: int
) -> FileAnswer:
    boundary = secrets.token_hex(16)
    kind = headers["Content-Type"]
    parts = []
    for start, stop in wanted:
        before = (
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n"
        )
        parts.append((before.encode("ascii"), start, stop))
    headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    return FileAnswer(206, headers, file, parts, f"\r\n--{boundary}--\r\n".encode("ascii"))


def content_type(name: str) -> str:
    kind, encoding = mimetypes.guess_type(name)
    if encoding is not None:
        return _ENCODED_TYPES.get(encoding, "application/octet-stream")
    kind = kind or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _not_found(path: str) -> NotFound:
    return NotFound(f"nothing staged at {path!r}")


def _entry_to_json(entry: _Entry) -> dict[str, Any]:
    """Describe an entry as nginx's autoindex does, so that a devserver can be an archive, too."""
    if entry.is_directory:
        return {"name": entry.name, "type": "directory"}
    return {"name": entry.name, "type": "file", "size": entry.size}


def _index_page(path: str, entries: list[_Entry]) -> str:
    rows = ['<a href="../">../</a>'] if path != "/static/" else []
    for entry in entries:
        slash = "/" if entry.is_directory else ""
        size = "-" if entry.is_directory else str(entry.size)
        href = quote(f"{path}{entry.name}{slash}")
        rows.append(f'<a href="{href}">{html.escape(entry.name)}{slash}</a>  {size}')
    title = html.escape(f"Index of {path}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"</head><body><h1>{title}</h1><hr><pre>\n"
        + "\n".join(rows)
        + "\n</pre><hr></body></html>\n"
    )
