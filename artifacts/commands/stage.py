"""``devserver stage``: ask a running server to stage a build, and watch it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any
from urllib.parse import quote

import click
from rich.progress import Progress, TaskID

from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.commands.client import Client, server_options
from artifacts.commands.options import CONTEXT_SETTINGS, wait_option
from artifacts.commands.progress import progress_bars, rate
from artifacts.errors import DevserverError

_LOOKS_EVERY_SECONDS = 0.25
_WAIT_SECONDS = 24 * 3600.0


@click.command("stage", context_settings=CONTEXT_SETTINGS)
@click.argument("archive_url")
@click.option("--artifacts", default="", help="artifacts to stage, separated by commas")
@click.option("--files", default="", help="files or globs of the archive to stage, likewise")
@wait_option
@click.option("--json", "as_json", is_flag=True, help="print what is staged as JSON")
@server_options
def stage_command(
    archive_url: str,
    artifacts: str,
    files: str,
    wait_seconds: int,
    as_json: bool,
    server: str,
    token: str | None,
) -> None:
    """Stage a build: all that the catalog wants of it, or just some ARTIFACTS or FILES.

    ARCHIVE_URL is where the build lives, like gs://bucket/target/build.
    """
    wanted: dict[str, Any] = {
        "archive_url": archive_url,
        "artifacts": [name for name in artifacts.split(",") if name],
        "files": [name for name in files.split(",") if name],
        "wait": wait_seconds,
    }
    name = build_name_of(archive_url)
    with Client(server, token) as client:
        build = watch_staging(client, name, wanted)
    if as_json:
        click.echo(json.dumps(build, indent=1))
    else:
        click.echo(f"{client.server}/static/{quote(str(name))}/")


def watch_staging(client: Client, name: BuildName, wanted: dict[str, Any]) -> dict[str, Any]:
    """Have a build staged, with a bar for each artifact on standard error; return its description.

    ``wanted`` is as POST /api/v1/builds takes it, with ``artifacts`` and ``files``.

    Raises:
        DevserverError: staging failed, in the server's words.
    """
    path = f"/api/v1/builds/{quote(str(name))}"
    client.post_json(path, wanted)
    settled: Future[str] = Future()

    def wait() -> None:
        while not settled.done():
            try:
                settled.set_result(
                    client.get_text(
                        "/wait_for_status", _WAIT_SECONDS, archive_url=wanted["archive_url"]
                    )
                )
            except DevserverError as error:
                # 504: the server's own limit of one call is over, the staging is not.
                if error.status != 504:
                    settled.set_exception(error)

    threading.Thread(target=wait, name="wait-for-status", daemon=True).start()
    with progress_bars() as progress:
        bars: dict[str, TaskID] = {}
        while True:
            is_settled = bool(wait_for([settled], timeout=_LOOKS_EVERY_SECONDS).done)
            build = _look(client, path)
            _show(progress, bars, build)
            if is_settled:
                if wanted["artifacts"] or wanted["files"]:
                    _check_staged(client, wanted)
                else:
                    settled.result()
                return build


def _check_staged(client: Client, wanted: dict[str, Any]) -> None:
    """Raise DevserverError unless what was asked for is there, whatever else the build has."""
    artifacts, files = ",".join(wanted["artifacts"]), ",".join(wanted["files"])
    url = wanted["archive_url"]
    if client.get_text("/is_staged", archive_url=url, artifacts=artifacts, files=files) != "True":
        lacking = ", ".join(filter(None, (artifacts, files)))
        raise DevserverError(f"not all is staged of {lacking}; the server's log says why")


def _look(client: Client, path: str) -> dict[str, Any]:
    """Describe the build; nothing for one that could not even be planned."""
    try:
        described: dict[str, Any] = client.get_json(path)
        return described
    except DevserverError as error:
        if error.status == 404:
            return {"artifacts": []}
        raise


def _show(progress: Progress, bars: dict[str, TaskID], build: dict[str, Any]) -> None:
    for artifact in build["artifacts"]:
        name, state = artifact["name"], artifact["state"]
        if name not in bars:
            bars[name] = progress.add_task(name, state=state, rate="")
        progress.update(
            bars[name],
            completed=artifact["bytes_done"],
            total=artifact["bytes_total"],
            state=artifact["error"] or state,
            rate=rate(artifact["bytes_per_second"]),
        )


def build_name_of(archive_url: str) -> BuildName:
    """Return the name of a build that is given by its archive URL, or by just that.

    Raises:
        BadRequest: it is neither.
    """
    if ":" in archive_url:
        return ArchiveUrl.parse(archive_url).name
    return BuildName.parse(archive_url)
