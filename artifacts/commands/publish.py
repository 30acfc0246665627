"""``devserver publish``: upload a build in chunks, and have the server assemble it."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import click
from rich.progress import Progress, TaskID

from artifacts.archive_url import BuildName
from artifacts.commands.client import Client, server_options
from artifacts.commands.local_files import (
    HashedFile,
    Hashing,
    LocalChunk,
    LocalFile,
    find_files,
)
from artifacts.commands.options import CONTEXT_SETTINGS
from artifacts.commands.progress import progress_bars
from artifacts.commands.upload_client import UploadClient
from artifacts.errors import DevserverError
from artifacts.retries import RetryLimits
from artifacts.tokens import PUBLISH

_TRIES = 10
_FIRST_PAUSE_SECONDS = 0.5
# Between looks at what the server is assembling.
_FIRST_LOOK_SECONDS = 0.05
_LOOKS_GROW = 1.5
_MAX_LOOK_SECONDS = 2.0
# Without any file getting done.
_MAX_ASSEMBLING_SECONDS = 3600.0
# A server that has been sent a chunk so often, and says that it is not there, will say so again.
_MAX_SENDS = 3
# Of JSON in one request to assemble, unless a single file takes more; the server takes 16 MiB.
_OFFER_BYTES = 4 << 20


@dataclass(frozen=True)
class Published:
    """What has been published, and how many bytes of it had to be sent."""

    files: tuple[HashedFile, ...]
    bytes_sent: int


@click.command("publish", context_settings=CONTEXT_SETTINGS)
@click.argument("build", metavar="TARGET/BUILD")
@click.argument(
    "paths",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, path_type=Path),
)
@click.option("--project", default="builds", show_default=True, help="project that it belongs to")
@click.option(
    "--tries",
    type=click.IntRange(min=1),
    default=_TRIES,
    show_default=True,
    help="how often in a row a request may fail in passing, with growing pauses in between",
)
@click.option("--json", "as_json", is_flag=True, help="print what is published as JSON")
@server_options
def publish_command(
    build: str,
    paths: tuple[Path, ...],
    project: str,
    tries: int,
    as_json: bool,
    server: str,
    token: str | None,
) -> None:
    """Publish a build: upload FILEs, and print the archive URL that the build can be staged from.

    A FILE is called by its own name in the build. If it is a directory, what is below it is
    published, under names relative to it; names that begin with a dot are passed over.

    Only what the server does not have is sent. After an interruption, the same command goes on
    where it was. A name of a build is set once: it cannot be published again with other bytes.
    """
    name = BuildName.parse(build)
    if not token:
        raise click.UsageError(
            f"publishing needs a token with the scope {PUBLISH}: --token, or DEVSERVER_TOKEN"
        )
    files = find_files(paths)
    with Client(server, token) as client:
        published = publish(client, name, files, project=project, tries=tries)
    archive_url = f"store://{name}"
    if as_json:
        click.echo(json.dumps(_described(archive_url, published), indent=1))
    else:
        click.echo(archive_url)


def publish(
    client: Client,
    build: BuildName,
    files: Sequence[LocalFile],
    *,
    project: str = "builds",
    tries: int = _TRIES,
) -> Published:
    """Publish files as a build, with bars on standard error.

    Raises:
        DevserverError: the server refuses, fails for too long, or a file changes meanwhile.
    """
    stopped = threading.Event()
    retries = RetryLimits(tries, _FIRST_PAUSE_SECONDS)
    uploader = UploadClient(client, project, build, retries, stopped)
    total_bytes = sum(file.size for file in files)
    with progress_bars() as progress:
        hashed_bar = _add_bar(progress, "checksums", total_bytes)
        hashing = Hashing(
            uploader.limits.chunk_bytes, lambda count: progress.advance(hashed_bar, count)
        )
        with hashing:
            hashed = hashing.hash(files)
        sent_bar = _add_bar(progress, "sent", 0)
        published_bar = _add_bar(progress, "published", total_bytes)
        publishing = _Publishing(uploader, hashed, stopped, progress, sent_bar, published_bar)
        with publishing:
            return Published(tuple(hashed), publishing.run())


def _add_bar(progress: Progress, what: str, total_bytes: int) -> TaskID:
    return progress.add_task(what, total=total_bytes, state="", rate="")


def _described(archive_url: str, published: Published) -> dict[str, object]:
    return {
        "archive_url": archive_url,
        "bytes": sum(hashed.file.size for hashed in published.files),
        "bytes_sent": published.bytes_sent,
        "files": [
            {"name": hashed.file.name, "size": hashed.file.size, "sha1": hashed.checksum}
            for hashed in published.files
        ],
    }


class _Publishing:
    """Asks for files to be assembled, and sends what is missing, until all of them are there.

    A context manager, which ends its threads.
    """

    def __init__(
        self,
        uploader: UploadClient,
        files: Sequence[HashedFile],
        stopped: threading.Event,
        progress: Progress,
        sent_bar: TaskID,
        published_bar: TaskID,
    ) -> None:
        self._uploader = uploader
        self._files = files
        self._stopped = stopped
        self._progress = progress
        self._sent_bar = sent_bar
        self._published_bar = published_bar
        self._chunks = {chunk.checksum: chunk for file in files for chunk in file.chunks}
        self._sends: Counter[str] = Counter()
        self._bytes_sent = 0
        self._senders = ThreadPoolExecutor(uploader.limits.concurrency, "send-chunks")

    def __enter__(self) -> _Publishing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._senders.shutdown(cancel_futures=True)

    def run(self) -> int:
        """Return how many bytes were sent, once all files are there."""
        for files in _requests_of(self._files):
            self._publish(files)
        return self._bytes_sent

    def _publish(self, left: dict[str, HashedFile]) -> None:
        pause = _FIRST_LOOK_SECONDS
        give_up_at = monotonic() + _MAX_ASSEMBLING_SECONDS
        while True:
            left_before = len(left)
            missing = self._ask(left)
            if not left:
                return
            if missing:
                self._send(missing)
            if missing or len(left) < left_before:
                pause = _FIRST_LOOK_SECONDS
                give_up_at = monotonic() + _MAX_ASSEMBLING_SECONDS
            elif monotonic() > give_up_at:
                name = next(iter(left.values())).file.name
                raise DevserverError(
                    f"the server is still assembling {name}; its log may say "
                    "why. What was sent stays there for a day: publish again to go on"
                )
            if not missing:
                self._stopped.wait(pause)
                pause = min(pause * _LOOKS_GROW, _MAX_LOOK_SECONDS)

    def _ask(self, left: dict[str, HashedFile]) -> list[LocalChunk]:
        """Ask where files stand, and take out those that are done; return the missing chunks."""
        for hashed in left.values():
            hashed.file.check_unchanged()
        missing: dict[str, LocalChunk] = {}
        for checksum, standing in self._uploader.assemble(left).items():
            file = left[checksum].file
            if standing.state == "error":
                raise DevserverError(f"{file.name}: {standing.detail or 'it is refused'}")
            if standing.state == "ok":
                del left[checksum]
                self._progress.advance(self._published_bar, file.size)
            for chunk in standing.missing_chunks:
                missing[chunk] = self._chunk(chunk)
        return list(missing.values())

    def _chunk(self, checksum: str) -> LocalChunk:
        if checksum not in self._chunks:
            raise DevserverError(f"the server asks for a chunk that no file has: {checksum!r:.80}")
        return self._chunks[checksum]

    def _send(self, chunks: list[LocalChunk]) -> None:
        for chunk in chunks:
            self._sends[chunk.checksum] += 1
            if self._sends[chunk.checksum] > _MAX_SENDS:
                raise DevserverError(
                    f"the server has been sent chunk {chunk.checksum} of {chunk.file.name} "
                    f"{_MAX_SENDS} times, and still does not have it; its log may say why"
                )
        total_bytes = sum(chunk.size for chunk in chunks)
        self._bytes_sent += total_bytes
        self._progress.update(self._sent_bar, total=self._bytes_sent)
        groups = list(self._grouped(chunks, total_bytes))
        for _ in self._senders.map(self._send_group, groups):
            pass

    def _send_group(self, chunks: Sequence[LocalChunk]) -> None:
        self._uploader.send(chunks, lambda count: self._progress.advance(self._sent_bar, count))

    def _grouped(
        self, chunks: Sequence[LocalChunk], total_bytes: int
    ) -> Iterator[Sequence[LocalChunk]]:
        """Divide chunks into what is sent with one request: as even as the server's limits let."""
        limits = self._uploader.limits
        max_bytes = min(limits.request_bytes, -(-total_bytes // limits.concurrency))
        group: list[LocalChunk] = []
        group_bytes = 0
        for chunk in chunks:
            is_full = (
                len(group) == limits.chunks_per_request or group_bytes + chunk.size > max_bytes
            )
            if group and is_full:
                yield group
                group, group_bytes = [], 0
            group.append(chunk)
            group_bytes += chunk.size
        yield group


def _requests_of(files: Sequence[HashedFile]) -> Iterator[dict[str, HashedFile]]:
    """Divide files into what is asked with one request, where each checksum can be there once."""
    copies: Counter[str] = Counter()
    layers: defaultdict[int, list[HashedFile]] = defaultdict(list)
    for file in files:
        layers[copies[file.checksum]].append(file)
        copies[file.checksum] += 1
    for layer in layers.values():
        request: dict[str, HashedFile] = {}
        room = _OFFER_BYTES
        for file in layer:
            room -= _offer_bytes(file)
            if request and room < 0:
                yield request
                request, room = {}, _OFFER_BYTES - _offer_bytes(file)
            request[file.checksum] = file
        yield request


def _offer_bytes(file: HashedFile) -> int:
    return 100 + len(file.chunks) * len(f'"{file.checksum}", ') + len(json.dumps(file.file.name))
