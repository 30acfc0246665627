"""``devserver catalog``: check a catalog, see what it would stage, print the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
from rich import filesize

from artifacts.archive_url import ArchiveUrl
from artifacts.artifact import Artifact
from artifacts.catalog import Catalog
from artifacts.catalog_file import CatalogError, catalog_schema
from artifacts.commands.catalog_preview import Preview, preview
from artifacts.commands.options import CONTEXT_SETTINGS
from artifacts.commands.tables import print_table
from artifacts.errors import DevserverError

_Row = tuple[str, ...]


@click.group("catalog", context_settings=CONTEXT_SETTINGS)
def catalog_command() -> None:
    """Check catalogs: which artifacts builds have."""


@catalog_command.command("schema", context_settings=CONTEXT_SETTINGS)
def schema_command() -> None:
    """Print the JSON schema of catalogs, for editors."""
    click.echo(json.dumps(catalog_schema(), indent=1))


@catalog_command.command("check", context_settings=CONTEXT_SETTINGS)
@click.argument("file")
@click.argument("archive_url", required=False)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def check_command(file: str, archive_url: str | None, as_json: bool) -> None:
    """Check a catalog; with ARCHIVE_URL, show what it would stage of that build.

    FILE is a TOML file, or the name of a catalog that comes with devserver. ARCHIVE_URL is where a
    build lives, like gs://bucket/target/build; it is listed from here, no server is asked.
    """
    url = ArchiveUrl.parse(archive_url) if archive_url is not None else None
    try:
        catalog = Catalog.load(file)
    except CatalogError as error:
        if as_json:
            _print_json(file, problems=[error.message])
        # Wrong is what was checked, and not how it was asked for.
        raise DevserverError(error.message) from error
    if url is None:
        _show_catalog(file, catalog, as_json)
        return
    seen = preview(catalog, url)
    _show_preview(file, catalog, url, seen, as_json)
    if seen.problems:
        raise DevserverError("; ".join(seen.problems))


def _show_catalog(file: str, catalog: Catalog, as_json: bool) -> None:
    if as_json:
        artifacts = [
            {"name": name, **artifact.model_dump(mode="json", exclude_unset=True)}
            for name, artifact in catalog.artifacts.items()
        ]
        _print_json(file, artifacts=artifacts, problems=[])
        return
    count = len(catalog.artifacts)
    click.echo(f"{file} is valid: {count} artifact{'s' if count > 1 else ''}")
    rows = [
        (name, _when(artifact), " or ".join(artifact.files) or _parts(artifact), _place(artifact))
        for name, artifact in catalog.artifacts.items()
    ]
    print_table(("artifact", "when", "files", "goes to"), rows)


def _show_preview(
    file: str, catalog: Catalog, url: ArchiveUrl, seen: Preview, as_json: bool
) -> None:
    if as_json:
        artifacts = [
            _artifact_json(name, artifact, seen) for name, artifact in catalog.artifacts.items()
        ]
        others = [{"name": other.name, "size": other.size} for other in seen.others]
        _print_json(
            file,
            archive_url=str(url),
            artifacts=artifacts,
            other_files=others,
            problems=list(seen.problems),
        )
        return
    click.echo(f"{file} would stage of {url}:")
    rows = [
        row for name, artifact in catalog.artifacts.items() for row in _rows(name, artifact, seen)
    ]
    rows += [("", "", other.name, _size(other.size), "in no artifact") for other in seen.others]
    print_table(("artifact", "when", "file", "size", "goes to"), rows)


def _rows(name: str, artifact: Artifact, seen: Preview) -> Iterator[_Row]:
    """Yield a row for each file and each link of an artifact; only the first has its name."""
    head: _Row = (name, _when(artifact))
    planned = seen.planned.get(name)
    if planned is None:
        problem = "cannot be staged" if name in seen.unclear else "not in this build"
        yield (*head, problem, "", "")
        return
    for file in planned.files:
        place = _place(artifact) if planned.is_unpacked else file.path
        yield (*head, file.archive_name, _size(seen.files[file.archive_name].size), place)
        head = ("", "")
    for path, target in planned.links.items():
        yield (*head, f"link to {target}", "", path)


def _artifact_json(name: str, artifact: Artifact, seen: Preview) -> dict[str, Any]:
    planned = seen.planned.get(name)
    files = planned.files if planned else ()
    return {
        "name": name,
        "when": artifact.when,
        "required": artifact.required,
        "brings": artifact.brings,
        "unpack": artifact.unpack,
        "files": [
            {
                "name": file.archive_name,
                "size": seen.files[file.archive_name].size,
                "path": artifact.directory if artifact.unpack else file.path,
            }
            for file in files
        ],
        "links": planned.links if planned else {},
    }


def _print_json(file: str, **more: Any) -> None:
    click.echo(json.dumps({"catalog": file, **more}, indent=1))


def _when(artifact: Artifact) -> str:
    return f"{artifact.when}, required" if artifact.required else artifact.when


def _parts(artifact: Artifact) -> str:
    return f"those of {' and '.join(artifact.parts)}"


def _place(artifact: Artifact) -> str:
    if artifact.unpack:
        return f"{artifact.directory or '.'}/, unpacked"
    if artifact.parts:
        return "where they put them"
    top = f"{artifact.directory}/" if artifact.directory else ""
    return top + (artifact.publish_as or "its name")


def _size(count: int | None) -> str:
    return "?" if count is None else filesize.decimal(count)
