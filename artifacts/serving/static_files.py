"""``/static``: what manifests list, and nothing else."""

from __future__ import annotations

import html
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from artifacts.archive_url import BuildName, check_relative_path
from artifacts.build import Build
from artifacts.errors import BadRequest, NotFound
from artifacts.manifest import StagedFile
from artifacts.serving.answer import Answer, json_answer
from artifacts.serving.file_answer import FileAnswer, Origin, Served, WholeFile, file_answer
from artifacts.staging import Staging


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
            return _open_file(build.directory / found[0], inner, found[1], headers)
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


def _open_file(path: Path, name: str, staged: StagedFile, request: Mapping[str, str]) -> FileAnswer:
    try:
        file = WholeFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError:
        raise _not_found(name) from None
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise _not_found(name)
    etag = None if staged.crc32c is None else f'"{staged.size:x}-{staged.crc32c:08x}"'
    served = Served(name, status.st_size, etag, status.st_mtime)
    answer = file_answer(file, served, request)
    answer.origin = Origin(str(path), served)
    return answer


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
