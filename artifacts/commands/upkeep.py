"""``devserver gc`` and ``devserver fsck``: upkeep of what is uploaded.

A server that runs on the data directory is asked to do it. Where none does, the command takes the
lock of the directory, and does it by itself.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from artifacts.blobs.check import BlobCheck
from artifacts.blobs.garbage import GarbageCollector
from artifacts.blobs.uploads import Uploads
from artifacts.commands.client import Client
from artifacts.commands.options import CONTEXT_SETTINGS, given, options_for
from artifacts.config import Config, load_config
from artifacts.disk import LOCK_NAME, DirectoryInUse, DirectoryLock, check_user, owner_of
from artifacts.errors import DevserverError
from artifacts.local_server import find_local_server

_LOOKS_EVERY_SECONDS = 0.25
_WAIT_SECONDS = 7 * 24 * 3600.0
_END_SECONDS = 60.0
_PATH = "/api/v1/upkeep"

_directories = options_for("data_dir", "static_dir", "database_url", "blob_storage")
_as_json = click.option("--json", "as_json", is_flag=True, help="print JSON")


@click.command("gc", context_settings=CONTEXT_SETTINGS)
@_as_json
@_directories
def gc_command(as_json: bool, config: Path | None, **options: Any) -> None:
    """Remove what nobody needs of uploads.

    That are blobs that no file uses and no client was told of within a day, files without a name,
    what has expired, and temporary files that were left behind. A running server does this every
    hour.
    """
    with _upkeep_of(load_config(given(options), config)) as upkeep:
        collected = upkeep.collect_garbage()
    if as_json:
        click.echo(json.dumps(collected, indent=1))
    else:
        removed = collected["blobs"] + collected["unrecorded_blobs"]
        click.echo(
            f"removed {removed} blobs, {collected['files']} files and "
            f"{collected['temporary_files']} temporary files: {_megabytes(collected['bytes'])}"
        )
    if left := collected["unrecorded_blobs_left"]:
        click.echo(
            f"devserver: the blob storage has {left} blobs that the database has no record of, "
            "more than others: they are left; is it the right database?",
            err=True,
        )


@click.command("fsck", context_settings=CONTEXT_SETTINGS)
@click.option(
    "--repair",
    is_flag=True,
    help="forget what is damaged, missing or unreadable, so that it is asked for",
)
@_as_json
@_directories
@click.pass_context
def fsck_command(
    context: click.Context, /, repair: bool, as_json: bool, config: Path | None, **options: Any
) -> None:
    """Check all that is kept of uploads against its checksums.

    Ends with status 1 if something is damaged, missing or unreadable, repaired or not: it has to be
    uploaded again.
    """
    with _upkeep_of(load_config(given(options), config)) as upkeep:
        report = _watch(upkeep, repair)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _print_report(report)
    if report["is_doubtful"]:
        click.echo(
            "devserver: more blobs are missing than there, or unreadable than whole, so nothing "
            "was dropped; is it the right blob storage, and its disk mounted?",
            err=True,
        )
    bad = report["damaged"] + report["missing"] + report["unreadable"]
    if repair and not report["is_doubtful"] and (left := bad - len(report["findings"])):
        click.echo(
            f"devserver: {left} more are left, which is too many at once: run this again", err=True
        )
    if any(report[what] for what in ("damaged", "missing", "unreadable", "incomplete")):
        context.exit(1)


class _Upkeep(Protocol):
    """Whoever does the upkeep of a data directory; outcomes are as the API's."""

    def collect_garbage(self) -> dict[str, Any]: ...

    def check(self, repair: bool) -> dict[str, Any]: ...

    def progress(self) -> dict[str, int] | None:
        """Tell how far the check is; None before it has begun."""

    def end(self, checked: Future[Any]) -> None:
        """End a check that may be under way, if nobody else waits for it."""


@contextlib.contextmanager
def _upkeep_of(config: Config) -> Iterator[_Upkeep]:
    """Find out who does the upkeep: the server that runs, or this process."""
    directory = config.data_dir.absolute()
    if not directory.is_dir():
        raise DevserverError(f"there is no data directory {directory}; name it with --data-dir")
    # Taking the lock may make it.
    owner = owner_of(directory)
    try:
        lock = DirectoryLock(directory, directory / LOCK_NAME)
    except DirectoryInUse as error:
        server = find_local_server(directory, error.process)
        with Client(server.url, server.secret, is_this_machine=True) as client:
            yield _ByServer(client)
    else:
        with contextlib.ExitStack() as undo:
            undo.callback(lock.release)
            check_user(directory, owner)
            uploads = Uploads(config)
            undo.callback(uploads.close)
            yield _ByThisProcess(uploads)


class _ByServer:
    def __init__(self, client: Client) -> None:
        self._client = client

    def collect_garbage(self) -> dict[str, Any]:
        collected: dict[str, Any] = self._client.post_json(f"{_PATH}/gc", {}, _WAIT_SECONDS)
        return collected

    def check(self, repair: bool) -> dict[str, Any]:
        wanted = {"repair": repair}
        report: dict[str, Any] = self._client.post_json(f"{_PATH}/fsck", wanted, _WAIT_SECONDS)
        return report

    def progress(self) -> dict[str, int] | None:
        progress: dict[str, int] | None = self._client.get_json(f"{_PATH}/fsck")["progress"]
        return progress

    def end(self, checked: Future[Any]) -> None:
        pass


class _ByThisProcess:
    def __init__(self, uploads: Uploads) -> None:
        self._stopped = threading.Event()
        self._collector = GarbageCollector(
            uploads.database, uploads.blobs, uploads.files, self._stopped
        )
        self._check = BlobCheck(uploads.database, uploads.blobs, self._stopped)

    def collect_garbage(self) -> dict[str, Any]:
        return asdict(self._collector.collect())

    def check(self, repair: bool) -> dict[str, Any]:
        return asdict(self._check.run(repair=repair))

    def progress(self) -> dict[str, int]:
        return asdict(self._check.progress)

    def end(self, checked: Future[Any]) -> None:
        self._stopped.set()
        wait_for([checked], timeout=_END_SECONDS)


def _watch(upkeep: _Upkeep, repair: bool) -> dict[str, Any]:
    """Have all blobs checked, with a bar on standard error; return the report."""
    checked = _on_a_thread(lambda: upkeep.check(repair))
    try:
        with _bar() as bar:
            task = bar.add_task("blobs", blobs="", total=None)
            while not wait_for([checked], timeout=_LOOKS_EVERY_SECONDS).done:
                if (progress := upkeep.progress()) is not None:
                    of, total = progress["blobs_total"], progress["bytes_total"]
                    blobs = f"{progress['blobs_done']}/{of}"
                    bar.update(task, completed=progress["bytes_done"], total=total, blobs=blobs)
            report = checked.result()
            size = report["bytes"]
            bar.update(task, completed=size, total=size, blobs=str(report["blobs"]))
            return report
    finally:
        # After Ctrl-C: the database and the storage are closed next.
        upkeep.end(checked)


def _on_a_thread(call: Callable[[], dict[str, Any]]) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="check", daemon=True).start()
    return future


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[blobs]}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(file=sys.stderr),
    )


def _print_report(report: dict[str, Any]) -> None:
    for finding in report["findings"]:
        click.echo(f"{_state(finding)} {finding['checksum']}: {finding['words']}")
    for file in report["incomplete"]:
        owner = file["build"] or f"debug files of {file['organization']}/{file['project']}"
        click.echo(f"incomplete {owner}: {file['name']}")
    click.echo(
        f"{report['blobs']} blobs, {_megabytes(report['bytes'])}: {report['damaged']} damaged, "
        f"{report['missing']} missing, {report['unreadable']} unreadable, "
        f"{report['unrecorded']} not on record; "
        f"{report['dropped']} dropped"
    )


def _state(finding: dict[str, Any]) -> str:
    if finding["is_missing"]:
        return "missing"
    return "unreadable" if finding["is_unreadable"] else "damaged"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
