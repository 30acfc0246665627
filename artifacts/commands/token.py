"""``devserver token``: who may upload; works on the database, beside a server that runs."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from artifacts.blobs.uploads import open_database
from artifacts.commands.options import CONTEXT_SETTINGS, given, options_for
from artifacts.commands.tables import print_table
from artifacts.config import load_config
from artifacts.disk import check_user, owner_of
from artifacts.errors import DevserverError
from artifacts.tokens import SCOPES, Tokens

_database_options = options_for("data_dir", "database_url")


@click.group("token", context_settings=CONTEXT_SETTINGS)
def token_command() -> None:
    """Make, list and revoke the tokens that publishing and uploading need.

    A server that runs need not be stopped or told.
    """


@token_command.command("create", context_settings=CONTEXT_SETTINGS)
@click.option("--org", metavar="ORG", required=True, help="organization that the token is for")
@click.option(
    "--scope",
    "scopes",
    metavar="SCOPE",
    multiple=True,
    required=True,
    help=f"what it allows: {', '.join(SCOPES)}; repeatable",
)
@click.option("--name", metavar="NAME", help="name to list and revoke it by; made up by default")
@_database_options
def create_command(
    org: str, scopes: tuple[str, ...], name: str | None, config: Path | None, **options: Any
) -> None:
    """Print a new token: alone, and only now. What is kept of it is a checksum."""
    with _tokens(config, options, may_be_new=True) as tokens:
        token = tokens.create(org, re.findall(r"[^,\s]+", " ".join(scopes)), name)
        made = tokens.find(token)
    click.echo(token)
    if made is not None:
        click.echo(f"It is named {made.name}.", err=True)


@token_command.command("list", context_settings=CONTEXT_SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@_database_options
def list_command(as_json: bool, config: Path | None, **options: Any) -> None:
    """List the tokens by name; nobody can tell the tokens themselves."""
    with _tokens(config, options) as tokens:
        found = tokens.list()
    if as_json:
        described = [
            {
                "name": token.name,
                "organization": token.organization,
                "scopes": token.scopes,
                "created": _time(token.created_at),
            }
            for token in found
        ]
        click.echo(json.dumps({"tokens": described}, indent=1))
        return
    rows = [
        (
            token.name,
            token.organization,
            " ".join(token.scopes),
            _time(token.created_at)[:19].replace("T", " "),
        )
        for token in found
    ]
    print_table(("name", "organization", "scopes", "created"), rows)


@token_command.command("revoke", context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@_database_options
def revoke_command(name: str, config: Path | None, **options: Any) -> None:
    """Have the token of this NAME refused from now on."""
    with _tokens(config, options) as tokens:
        tokens.revoke(name)


@contextlib.contextmanager
def _tokens(
    config_file: Path | None, options: dict[str, Any], *, may_be_new: bool = False
) -> Iterator[Tokens]:
    config = load_config(given(options), config_file)
    if config.database_url is None:
        if config.data_dir.is_dir():
            check_user(config.data_dir, owner_of(config.data_dir))
        elif not may_be_new:
            raise DevserverError(
                f"there is no data directory {config.data_dir}; name it with --data-dir"
            )
    with contextlib.closing(open_database(config)) as database:
        yield Tokens(database)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
