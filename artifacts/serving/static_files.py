"""``/static``: what manifests list, and what is on its way there."""

from __future__ import annotations

import html
import os
import stat
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from artifacts.archive_url import BuildName, check_relative_path
from artifacts.build import Build
from artifacts.errors import (
    BadRequest,
    DevserverError,
    NotAllowed,
    NotFound,
    busy_if_out_of_files,
)
from artifacts.growing_file import FollowedFile
from artifacts.live_files import Look, Pending, Published, Unstaged
from artifacts.manifest import StagedFile
from artifacts.serving.accel import accel_answer
from artifacts.serving.answer import Answer, json_answer
from artifacts.serving.file_answer import FileAnswer, Origin, Served, WholeFile, file_answer
from artifacts.serving.handlers import is_cross_site
from artifacts.serving.waiting import Reply, Wait
from artifacts.staging import Staging


class Downloads(Protocol):
    """The downloader cache, as far as files need it."""

    def look(self, name: BuildName, path: str) -> Look: ...


class OnDemand(Protocol):
    """What looks for files in an archive, as far as files need it."""

    def look(self, name: BuildName, path: str, *, may_stage: bool) -> Look: ...


@dataclass(frozen=True)
class _Wanted:
    """A file that is asked for: of a build, at a path; ``deadline`` of ``time.monotonic()``."""

    build: BuildName
    path: str
    is_head: bool
    headers: Mapping[str, str]
    deadline: float


@dataclass(frozen=True)
class _Entry:
    name: str
    is_directory: bool
    size: int = 0


class StaticFiles:
    """Answers GET and HEAD below ``/static``."""

    def __init__(
        self,
        staging: Staging,
        downloads: Downloads,
        on_demand: OnDemand | None,
        timeout_seconds: float,
        accel_prefix: str | None = None,
    ) -> None:
        """``on_demand`` finds what is not staged, if that is to be staged by asking for it.

        ``timeout_seconds``: how long a file that is to come is waited for. ``accel_prefix``: where
        nginx, which sends the bodies then, has the static directory.
        """
        self._staging = staging
        self._downloads = downloads
        self._on_demand = on_demand
        self._timeout_seconds = timeout_seconds
        self._accel_prefix = accel_prefix

    def answer(self, method: str, segments: list[str], headers: Mapping[str, str]) -> Reply | Wait:
        """Answer for the path of ``segments``; wait for what is not quite there.

        Raises:
            NotFound: no manifest lists such a file or directory, and none is on its way.
            DevserverError: what the staging of the file has failed with.
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
            name = BuildName.checked(segments[0], segments[1])
        except BadRequest:
            raise _not_found(path) from None
        inner = "/".join(segments[2:])
        deadline = time.monotonic() + self._timeout_seconds
        wanted = _Wanted(name, inner, method == "HEAD", headers, deadline)
        if found := self._staged_file(wanted):
            return found
        looked = self._under_way(wanted) if inner else None
        # Directories are there as far as they are staged; nobody waits for more of them.
        is_file = isinstance(looked, FollowedFile | Published)
        if not is_file and (entries := _entries_below(self._staging.build(name), inner)):
            return self._index(segments, entries, headers)
        return self._give(wanted, self._or_on_demand(wanted, looked) if inner else None)

    def _staged_file(self, wanted: _Wanted) -> Reply | None:
        """Answer with what the manifest lists, if it does."""
        build = self._staging.build(wanted.build)
        build.touch()
        found = build.resolve(wanted.path) if wanted.path else None
        if found is None:
            return None
        return self._send(wanted, *found)

    def _send(self, wanted: _Wanted, path: str, file: StagedFile) -> Reply:
        """Send what is at ``path`` below the build, or have it sent."""
        if self._accel_prefix is not None:
            return accel_answer(self._accel_prefix, f"{wanted.build}/{path}", wanted.path)
        directory = self._staging.build(wanted.build).directory
        return _open_file(directory / path, wanted.path, file, wanted.headers)

    def _under_way(self, wanted: _Wanted) -> Look:
        try:
            return self._downloads.look(wanted.build, wanted.path)
        except DevserverError:
            if self._on_demand is None:
                raise
            return None  # it may be tried again

    def _or_on_demand(self, wanted: _Wanted, looked: Look) -> Look:
        """Return what is under way, else what there is in the archive."""
        if self._on_demand is None:
            return looked
        if isinstance(looked, Pending):
            look_again = looked.look_again
            return Pending(looked.news, lambda: self._or_on_demand(wanted, look_again()))
        if looked is not None:
            return looked
        # Staging changes something, which is not for HEAD, nor for pages of other sites.
        may_stage = not wanted.is_head and not is_cross_site(wanted.headers)
        return self._on_demand.look(wanted.build, wanted.path, may_stage=may_stage)

    def _give(self, wanted: _Wanted, looked: Look) -> Reply | Wait:
        """Answer with what was found beside the manifest."""
        if isinstance(looked, FollowedFile):
            # What its bytes amount to, and when it is published, is not known yet.
            served = Served(wanted.path, looked.size, etag=None, modified_at=None)
            return file_answer(looked, served, wanted.headers)
        if isinstance(looked, Published):
            return self._send(wanted, looked.path, looked.file)
        if isinstance(looked, Unstaged):
            return _describe(looked, wanted)
        if isinstance(looked, Pending):
            seconds = max(0.0, wanted.deadline - time.monotonic())
            return Wait(looked.news, seconds, partial(self._look_again, wanted, looked))
        # It may have been finished between the first look and the other one.
        if found := self._staged_file(wanted):
            return found
        raise _not_found(f"{wanted.build}/{wanted.path}".rstrip("/"))

    def _look_again(self, wanted: _Wanted, pending: Pending, news: Future[None]) -> Reply | Wait:
        if error := news.exception():
            raise error  # there is no more time, or the server ends
        return self._staged_file(wanted) or self._give(wanted, pending.look_again())

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


class _LengthUnknown(FileAnswer):
    """The answer to a HEAD that cannot tell how long the body would be."""

    def all_headers(self) -> list[tuple[str, str]]:
        return list(self.headers.items())


def _describe(unstaged: Unstaged, wanted: _Wanted) -> FileAnswer:
    """Answer a HEAD of a file that is in the archive only; refuse what would have to stage it."""
    if not wanted.is_head:
        raise NotAllowed(
            f"{wanted.build}/{wanted.path} is not staged, and not to be by pages of other sites",
            code="cross_site",
        )
    # Of its bytes, of which there are none here, nothing is sent.
    nothing = WholeFile(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    served = Served(wanted.path, unstaged.size or 0, etag=None, modified_at=None)
    answer = file_answer(nothing, served, wanted.headers)
    if unstaged.size is not None:
        return answer
    answer.close()
    return _LengthUnknown(200, answer.headers)


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
    except OSError as error:
        raise busy_if_out_of_files(error) or _not_found(name) from None
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
