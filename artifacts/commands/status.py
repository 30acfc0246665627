"""``devserver status``: what is staged, and what is under way."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from artifacts.archive_url import BuildName
from artifacts.commands.client import Client, server_options
from artifacts.commands.options import CONTEXT_SETTINGS
from artifacts.commands.tables import print_table


@click.command("status", context_settings=CONTEXT_SETTINGS)
@click.argument("build", required=False, metavar="[TARGET/BUILD]")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@server_options
def status_command(build: str | None, as_json: bool, server: str, token: str | None) -> None:
    """Tell what is staged and what is under way, of one build or of all."""
    with Client(server, token) as client:
        if build is None:
            described = client.get_json("/api/v1/builds")
        else:
            name = BuildName.parse(build)
            described = client.get_json(f"/api/v1/builds/{quote(str(name))}")
    if as_json:
        click.echo(json.dumps(described, indent=1))
    elif build is None:
        _print_builds(described["builds"])
    else:
        _print_artifacts(described)


def _print_builds(builds: list[dict[str, Any]]) -> None:
    rows = [
        (
            f"{build['target']}/{build['build']}",
            build["state"],
            _megabytes(build["bytes"]),
            (build["last_used"] or "")[:19].replace("T", " "),
            build["archive_url"],
        )
        for build in builds
    ]
    print_table(("build", "state", "size", "last used", "archive"), rows)


def _print_artifacts(build: dict[str, Any]) -> None:
    rows = [
        (
            artifact["name"],
            artifact["state"],
            _megabytes(artifact["bytes_done"]),
            _megabytes(artifact["bytes_total"]),
            str(len(artifact["files"])),
            artifact["error"] or "",
        )
        for artifact in build["artifacts"]
    ]
    print_table(("artifact", "state", "done", "of", "files", "error"), rows)


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:,.1f} MB"
