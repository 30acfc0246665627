"""Catalog files: what is valid TOML for a catalog, and saying in words what is not."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from artifacts.artifact import Artifact
from artifacts.catalog_checks import first_mistake
from artifacts.errors import DevserverError

_NAME_PATTERN = "^[a-z][a-z0-9_]{0,99}$"
_MAX_SHOWN_CHARACTERS = 60


class _CatalogFile(BaseModel):
    """What builds of one kind consist of; devserver's docs/catalogs.md explains it."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="devserver catalog")

    artifacts: dict[Annotated[str, StringConstraints(pattern=_NAME_PATTERN)], Artifact] = Field(
        min_length=1,
        description="the artifacts by name: lower-case letters, digits, underscores",
        json_schema_extra={"additionalProperties": False},
    )


class CatalogError(DevserverError):
    """A catalog that cannot be used; the message names file, key and reason."""


def catalog_schema() -> dict[str, Any]:
    """Return the JSON schema of a catalog, for editors and other programs that check one."""
    schema = _CatalogFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def parse_catalog(text: str) -> dict[str, Artifact]:
    """Return the artifacts of a catalog, by name, in its order.

    Raises:
        CatalogError: it is not a valid one; the message is ``key: reason``.
    """
    try:
        tables = tomllib.loads(text)
    except RecursionError as error:
        raise CatalogError("is nested too deeply") from error
    except ValueError as error:
        raise CatalogError(_toml_mistake(str(error), text)) from error
    try:
        artifacts = _CatalogFile.model_validate(tables).artifacts
    except ValidationError as error:
        # A key that is misspelled is told before the one that is missing in its place.
        errors = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        raise CatalogError(_in_words(errors[0])) from error
    if mistake := first_mistake(artifacts):
        key = _key(["artifacts", mistake.artifact, mistake.key])
        raise CatalogError(f"{key}: {mistake.reason}")
    return artifacts


def _toml_mistake(problem: str, text: str) -> str:
    """Say what tomllib found; of a name that is given twice, which name it is."""
    if "twice" not in problem and "overwrite" not in problem:
        return f"is not TOML: {problem}"
    lines = text.rstrip().split("\n")
    line = re.search(r"at line (\d+)", problem)
    number = int(line[1]) if line else len(lines)
    return f"line {number}: a name is given twice: {lines[number - 1].strip()}"


def _in_words(error: ErrorDetails) -> str:
    """Say what pydantic found, as ``key: reason``."""
    where, kind, value = list(error["loc"]), error["type"], error["input"]
    context = error.get("ctx", {})
    is_of_artifact = len(where) > 2
    if kind == "extra_forbidden":
        known = ", ".join(Artifact.model_fields) if is_of_artifact else "artifacts"
        return f"{_key(where)}: there is no such key (there are: {known})"
    if kind == "missing":
        return f"{_key(where)}: is missing"
    if kind == "too_short":
        return f"{_key(where)}: is empty"
    if kind == "string_pattern_mismatch":
        name = _key(where[:-1])
        return f"{name}: a name has up to 100 lower-case letters, digits and _, a letter first"
    if kind == "value_error":
        return f"{_key(where)}: {context['error']}"
    wanted = {
        "bool_type": "true or false",
        "literal_error": context.get("expected"),
        "string_type": "a text in quotes",
        "tuple_type": "a list",
    }.get(kind, "a table")
    shown = json.dumps(value, default=str, ensure_ascii=False)
    if len(shown) > _MAX_SHOWN_CHARACTERS:
        shown = f"{shown[:_MAX_SHOWN_CHARACTERS]}…"
    return f"{_key(where)}: has to be {wanted}, and is {shown}"


def _key(where: Sequence[int | str]) -> str:
    """Spell a key as TOML does; which element of a list it is, the value says."""
    parts = [part for part in where if isinstance(part, str) and part != "[key]"]
    return ".".join(p if re.fullmatch(r"[\w-]+", p) else json.dumps(p) for p in parts)
