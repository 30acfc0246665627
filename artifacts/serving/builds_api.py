"""``/api/v1/builds`` and ``/api/fileinfo``: builds as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Protocol

import cherrypy

from artifacts.archive_url import ArchiveUrl, BuildName, check_relative_path
from artifacts.build import Build
from artifacts.errors import BadRequest, BuildNotFound, DevserverError, NotFound
from artifacts.manifest import Item, ItemRecord, ItemState, StagedFile
from artifacts.serving.answer import Answer, json_answer, json_error
from artifacts.serving.handlers import (
    Handled,
    check_method,
    give,
    items_of,
    refuse_cross_site,
)
from artifacts.serving.waiting import Wait
from artifacts.shared_calls import SharedCalls
from artifacts.staging import Staging
from artifacts.workers import Workers

_log = logging.getLogger(__name__)
_TASK_STATES = {
    ItemState.ASKED: "waiting",
    ItemState.STAGED: "staged",
    ItemState.FAILED: "failed",
}


class LiveDownloader(Protocol):
    """A build being staged, as far as this page needs it."""

    archive_url: ArchiveUrl

    def progress(self) -> dict[Item, dict[str, Any]]: ...


class Downloads(Protocol):
    """The downloader cache, as far as this page needs it."""

    def download(self, archive_url: ArchiveUrl, wait_seconds: float) -> Future[None]: ...

    def stage(
        self, archive_url: ArchiveUrl, items: Iterable[Item], wait_seconds: float
    ) -> Future[None]: ...

    def drop(self, name: BuildName) -> None: ...

    def live_downloader(self, name: BuildName) -> LiveDownloader | None: ...

    def live_builds(self) -> set[BuildName]: ...


def json_call(handler: Callable[..., Handled]) -> Any:
    """Expose a method that answers JSON, also when it fails."""

    @wraps(handler)
    def call(self: Any, /, *segments: str, **_: Any) -> bytes:
        try:
            return give(handler(self, *segments))
        except DevserverError as error:
            return give(json_error(error))

    return cherrypy.expose(call)


class BuildsApi:
    """``/api/v1/builds…``"""

    def __init__(
        self,
        staging: Staging,
        downloads: Downloads,
        parse_archive_url: Callable[[str], ArchiveUrl],
        max_wait_seconds: float,
    ) -> None:
        """``max_wait_seconds``: the longest that a builder is waited for."""
        self._max_wait_seconds = max_wait_seconds
        self._staging = staging
        self._downloads = downloads
        self._parse_archive_url = parse_archive_url

    @json_call
    def index(self) -> Answer:
        """/api/v1/builds: the builds that are staged, or being staged, as JSON."""
        check_method(("GET", "HEAD"))
        names = set(self._staging.all_builds()) | self._downloads.live_builds()
        builds = [
            self._describe(name)
            for name in sorted(names, key=lambda name: (name.target, name.build))
        ]
        return json_answer({"builds": [build for build in builds if build is not None]})

    @json_call
    def default(self, *segments: str) -> Answer:
        """/api/v1/builds/TARGET/BUILD: describe, stage (POST) or drop (DELETE) one build.

        POST takes JSON: archive_url, artifacts, files and wait (seconds), each of which may be left
        out; it answers at once.
        """
        check_method(("GET", "HEAD", "POST", "DELETE"))
        if len(segments) != 2:
            raise NotFound(f"no such call: {cherrypy.request.path_info}")
        name = BuildName.checked(*segments)
        if cherrypy.request.method == "POST":
            refuse_cross_site()
            self._stage(name)
            return json_answer(self._describe(name, in_full=True), 202)
        if cherrypy.request.method == "DELETE":
            refuse_cross_site()
            self._downloads.drop(name)
            return Answer(b"", 204)
        described = self._describe(name, in_full=True)
        if described is None:
            raise BuildNotFound(f"no such build: {name}")
        return json_answer(described)

    def _stage(self, name: BuildName) -> None:
        wanted = read_json_object()
        archive_url = self._parse_archive_url(_text(wanted, "archive_url") or str(name))
        if archive_url.name != name:
            raise BadRequest(f"archive_url is of {archive_url.name}, not of {name}")
        artifacts, files = _words(wanted, "artifacts"), _words(wanted, "files")
        wait_seconds = min(_seconds(wanted, "wait"), self._max_wait_seconds)
        if artifacts or files:
            self._downloads.stage(archive_url, items_of(artifacts, files), wait_seconds)
        else:
            self._downloads.download(archive_url, wait_seconds)

    def _describe(self, name: BuildName, *, in_full: bool = False) -> dict[str, Any] | None:
        """Describe a build; None where there is nothing to describe."""
        build = self._staging.build(name)
        asked, live = build.asked, self._downloads.live_downloader(name)
        if asked is None and live is None:
            return None
        records = dict(asked.items) if asked else {}
        progress = live.progress() if live else {}
        artifacts = []
        for item in {**records, **progress}:
            record = records.get(item)
            if record is not None and record.state is ItemState.ABSENT:
                continue
            artifacts.append(_describe_item(item, record, progress.get(item), in_full))
        if in_full:
            _add_files(build, records, artifacts)
        state = "staged" if asked and asked.is_staged else "failed"
        last_used = build.last_used
        return {
            "target": name.target,
            "build": name.build,
            "archive_url": asked.archive_url if asked else str(live and live.archive_url),
            "state": "staging" if live else state,
            "bytes": build.size,
            "last_used": last_used and datetime.fromtimestamp(last_used, UTC).isoformat(),
            "held": False,
            "artifacts": artifacts,
        }


class FileInfo:
    """``/api/fileinfo/TARGET/BUILD/PATH``"""

    def __init__(self, staging: Staging, threads: Workers, timeout_seconds: float) -> None:
        self._staging = staging
        self._threads = threads
        self._timeout_seconds = timeout_seconds
        self._computing: SharedCalls[tuple[BuildName, str], str] = SharedCalls()

    @json_call
    def default(self, *segments: str) -> Handled:
        """/api/fileinfo/TARGET/BUILD/PATH: size and SHA-256, in base64, of a staged file."""
        check_method(("GET", "HEAD"))
        if len(segments) < 3:
            raise NotFound(f"no such call: {cherrypy.request.path_info}")
        build = self._staging.known_build(BuildName.checked(*segments[:2]))
        path = check_relative_path("/".join(segments[2:]), "path")
        found = build.resolve(path)
        if found is None:
            raise NotFound(f"{build.name} has no file {path!r} staged")
        build.touch()
        path, file = found
        if (digest := build.sha256_of(path)) is not None:
            return json_answer({"size": file.size, "sha256": digest})
        future = self._computing.join(
            (build.name, path), lambda: _compute_sha256(build, path), self._threads, urgent=False
        )
        return Wait(future, self._timeout_seconds, lambda done: _file_info(file, done))


def _file_info(file: StagedFile, done: Future[str]) -> Answer:
    error = done.exception()
    if error is not None:
        return json_error(error)
    return json_answer({"size": file.size, "sha256": done.result()})


def _compute_sha256(build: Build, path: str) -> str:
    try:
        with (build.directory / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from error
    encoded = base64.b64encode(digest).decode("ascii")
    try:
        build.record_sha256(path, encoded)
    except OSError:
        # On a full disk: it will be computed again.
        _log.exception("recording the SHA-256 of %s/%s", build.name, path)
    return encoded


def _describe_item(
    item: Item, record: ItemRecord | None, progress: dict[str, Any] | None, in_full: bool
) -> dict[str, Any]:
    described: dict[str, Any] = {"name": item.name, "kind": item.kind}
    state = progress["state"] if progress else record and _TASK_STATES[record.state]
    described["state"] = state
    if in_full:
        size = record.size if record else 0
        described["bytes_done"] = progress["bytes_done"] if progress else size
        described["bytes_total"] = progress["bytes_total"] if progress else size
        described["bytes_per_second"] = progress["bytes_per_second"] if progress else 0
        # While it is tried again, the record may still be that of the last time.
        failure = record.failure if record and state == "failed" else None
        described["error"] = failure.message if failure else None
    return described


def _add_files(
    build: Build, records: dict[Item, ItemRecord], artifacts: list[dict[str, Any]]
) -> None:
    for artifact in artifacts:
        item = Item(artifact["kind"], artifact["name"])
        files = build.files_of(item) if item in records else {}
        artifact["files"] = [
            {
                "path": path,
                "size": file.size,
                "crc32c": None if file.crc32c is None else f"{file.crc32c:08x}",
                **({"link": file.link} if file.link is not None else {}),
            }
            for path, file in sorted(files.items())
        ]


def read_json_object() -> dict[str, Any]:
    """Return the JSON object that the current request brings, empty where it brings nothing.

    Raises:
        BadRequest: it brings something else.
    """
    kind = cherrypy.request.headers.get("Content-Type", "application/json")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise BadRequest(f"the body must be of type application/json, not {kind}")
    try:
        parsed = json.loads(cherrypy.request.body.read() or b"{}")
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise BadRequest("the body must be a JSON object")
    return parsed


def _text(wanted: dict[str, Any], key: str) -> str | None:
    value = wanted.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{key} must be text")
    return value


def _seconds(wanted: dict[str, Any], key: str) -> float:
    value = wanted.get(key, 0)
    # JSON's true is Python's 1, and its parser lets Infinity and NaN through.
    if type(value) not in {int, float} or not 0 <= value < math.inf:
        raise BadRequest(f"{key} must be a number of seconds")
    return float(value)


def _words(wanted: dict[str, Any], key: str) -> list[str]:
    value = wanted.get(key) or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise BadRequest(f"{key} must be a list of names")
    return value
