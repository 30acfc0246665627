"""The options of ``serve``, made from the configuration's fields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from artifacts.config import ENVIRONMENT_PREFIX, Config

# "--static_dir" is "--static-dir".
CONTEXT_SETTINGS = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
}

wait_option = click.option(
    "--wait",
    "wait_seconds",
    type=click.IntRange(min=0),
    default=0,
    metavar="SECONDS",
    help="how long the builder may take to upload what is not there yet",
)

_METAVARS = {
    "allow_archive": "PREFIX",
    "archive_root": "URL",
    "max_unpacked": "SIZE",
    "blob_storage": "DIR or URL",
    "upload_url_prefix": "URL",
    "minidump_stackwalk": "PATH",
    "dump_syms": "PATH",
    "accel_redirect": "PREFIX",
    "nginx_log": "SOCKET",
}


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of Config, and ``--config``; what is not given comes as None."""
    return options_for(*Config.model_fields)(command)


def options_for(*keys: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds options for some fields of Config, and ``--config``."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for key in reversed(keys):
            command = _option_for(key)(command)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
            help="TOML file with any of these options as keys",
        )(command)

    return add


def _option_for(key: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    field = Config.model_fields[key]
    return click.option(
        f"--{key.replace('_', '-')}",
        key,
        multiple=key == "allow_archive",
        default=None,
        metavar=_metavar(key),
        help=_help(key, field.description or "", field.get_default()),
    )


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {key: value for key, value in options.items() if value not in (None, ())}


def _metavar(key: str) -> str:
    if key.endswith("timeout"):
        return "SECONDS"
    if key.endswith("_dir"):
        return "DIR"
    if key.endswith("file"):
        return "FILE"
    return _METAVARS.get(key, key.rpartition("_")[2].upper())


def _help(key: str, description: str, default: object) -> str:
    if default in (None, "") or repr(default) == "PydanticUndefined" or key == "max_unpacked":
        return description
    shown = ", ".join(default) if isinstance(default, tuple) else default
    return f"{description}  [default: {shown}]"
