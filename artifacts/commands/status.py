"""``devserver status``: what is staged, and what is under way."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table

from artifacts.archive_url import BuildName
from artifacts.commands.client import Client, server_options
from artifacts.commands.options import CONTEXT_SETTINGS

_PIPED_WIDTH = 200


@click.command("status", context_settings=CONTEXT_SETTINGS)
@click.argument("build", required=False, metavar="[TARGET/BUILD]")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@server_options
def status_command(build: str | None, as_json: bool, server: str, token: str | None) -> None:
    """Tell what is staged and what is under way, of one build or of all."""
    with Client(server, token) as client:
        if build is None:
            described = client.get_json("/api/v1/builds")
            table = _table_of_builds(described["builds"])
        else:
            name = BuildName.parse(build)
            described = client.get_json(f"/api/v1/builds/{quote(str(name))}")
            table = _table_of_artifacts(described)
    if as_json:
        click.echo(json.dumps(described, indent=1))
    else:
        width = None if sys.stdout.isatty() else _PIPED_WIDTH
        Console(file=sys.stdout, width=width).print(table)


def _table_of_builds(builds: list[dict[str, Any]]) -> Table:
    table = Table("build", "state", "size", "last used", "archive", box=None)
    for build in builds:
        table.add_row(
            f"{build['target']}/{build['build']}",
            build["state"],
            _megabytes(build["bytes"]),
            (build["last_used"] or "")[:19].replace("T", " "),
            build["archive_url"],
        )
    return table


def _table_of_artifacts(build: dict[str, Any]) -> Table:
    table = Table("artifact", "state", "done", "of", "files", "error", box=None)
    for artifact in build["artifacts"]:
        table.add_row(
            artifact["name"],
            artifact["state"],
            _megabytes(artifact["bytes_done"]),
            _megabytes(artifact["bytes_total"]),
            str(len(artifact["files"])),
            artifact["error"] or "",
        )
    return table


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:,.1f} MB"
