"""Catalogs: which artifacts a kind of build has, and what to do with each."""

from __future__ import annotations

import glob
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from artifacts.archive_url import BuildName, check_relative_path
from artifacts.errors import ArchiveError, BadRequest, DevserverError
from artifacts.patterns import REGEX_PREFIX, matches

_ARTIFACT_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class PlannedFile:
    """A file of the archive and the path below the build that it is published at."""

    archive_name: str
    path: str


class Artifact(BaseModel):
    """One artifact's rules, as a catalog states them.

    ``{target}`` and ``{build}`` stand for the build's own in ``files``, ``directory``,
    ``publish_as`` and ``links``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: tuple[str, ...] = Field(
        min_length=1, description="patterns of file names; the first that fits anything counts"
    )
    when: Literal["foreground", "background", "request"] = Field(
        "request", description="which call stages it: /download waits, starts, or leaves it"
    )
    required: bool = Field(False, description="whether a build without it cannot be staged")
    directory: str = Field("", description="where it goes, below the build")
    publish_as: str | None = Field(None, description="its name there, instead of its own")
    unpack: bool = Field(False, description="whether to publish what is in it instead of it")
    include: tuple[str, ...] = Field((), description="patterns of members to unpack; none: all")
    exclude: tuple[str, ...] = Field((), description="patterns of members not to unpack")
    links: Mapping[str, str] = Field({}, description="symbolic links to make: path → target path")

    @field_validator("files", "include", "exclude")
    @classmethod
    def _patterns_are_valid(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                matches(pattern, "")
            except DevserverError as error:
                raise ValueError(error.message) from error
        return patterns

    @field_validator("directory", "publish_as")
    @classmethod
    def _path_is_relative(cls, path: str | None) -> str | None:
        return path and _checked_path(path)

    @field_validator("links")
    @classmethod
    def _links_are_relative(cls, links: Mapping[str, str]) -> Mapping[str, str]:
        return {_checked_path(path): _checked_path(target) for path, target in links.items()}

    def plan(self, names: Iterable[str], build: BuildName) -> list[PlannedFile]:
        """Return the files of ``names`` that make up this artifact; none where it has none.

        Raises:
            ArchiveError: several files fit where only one can be published.
        """
        names = list(names)
        for pattern in self.files:
            expanded = _expand(pattern, build, is_pattern=True)
            fitting = [name for name in names if matches(expanded, name)]
            if not fitting:
                continue
            if self.publish_as and len(fitting) > 1:
                raise ArchiveError(f"{build} has several files for one: {', '.join(fitting)}")
            return [PlannedFile(name, self._path_of(name, build)) for name in fitting]
        return []

    def _path_of(self, name: str, build: BuildName) -> str:
        path = _expand(self.publish_as, build) if self.publish_as else name
        return f"{_expand(self.directory, build)}/{path}" if self.directory else path

    def tree_path(self, build: BuildName) -> str:
        """Where unpacked members go, below the build; "" for the build itself."""
        return _expand(self.directory, build)

    def wants_member(self, path: str) -> bool:
        included = not self.include or any(matches(pattern, path) for pattern in self.include)
        return included and not any(matches(pattern, path) for pattern in self.exclude)

    def links_of(self, build: BuildName) -> dict[str, str]:
        return {_expand(k, build): _expand(v, build) for k, v in self.links.items()}


class _CatalogFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    artifacts: dict[str, Artifact] = Field(min_length=1)

    @field_validator("artifacts")
    @classmethod
    def _names_are_valid(cls, artifacts: dict[str, Artifact]) -> dict[str, Artifact]:
        for name in artifacts:
            if not _ARTIFACT_NAME.fullmatch(name):
                raise ValueError(f"{name!r}: a name has lower-case letters, digits and underscores")
        return artifacts


class CatalogError(DevserverError):
    """A catalog that cannot be used; the message names file, key and reason."""


@dataclass(frozen=True)
class Catalog:
    """The artifacts of one kind of build, by name, in the catalog's order."""

    artifacts: Mapping[str, Artifact]

    @classmethod
    def load(cls, name_or_file: str) -> Catalog:
        """Read a catalog that ships with devserver, by name, or a TOML file.

        Raises:
            CatalogError: there is none, or it is not a valid one.
        """
        shipped = resources.files("artifacts") / "catalogs" / f"{name_or_file}.toml"
        is_name = re.fullmatch(r"[a-z]+", name_or_file) is not None
        try:
            if is_name and shipped.is_file():
                text = shipped.read_text(encoding="utf-8")
            else:
                text = Path(name_or_file).read_text(encoding="utf-8")
            parsed = _CatalogFile.model_validate(tomllib.loads(text))
        except OSError as error:
            shipped_names = sorted(path.name[:-5] for path in _shipped())
            raise CatalogError(
                f"catalog {name_or_file}: {error.strerror} "
                f"(these come with devserver: {', '.join(shipped_names)})"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CatalogError(f"catalog {name_or_file}: not TOML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            reason = first["msg"].removeprefix("Value error, ")
            raise CatalogError(f"catalog {name_or_file}: {key}: {reason}") from error
        return cls(parsed.artifacts)

    def staged_when(self, when: Literal["foreground", "background"]) -> list[str]:
        return [name for name, artifact in self.artifacts.items() if artifact.when == when]

    def check_known(self, names: Iterable[str]) -> None:
        """Raise BadRequest for a name that is not in the catalog."""
        for name in names:
            if name not in self.artifacts:
                known = ", ".join(self.artifacts)
                raise BadRequest(f"unknown artifact {name!r}; this server knows: {known}")


def _shipped() -> list[Traversable]:
    directory = resources.files("artifacts") / "catalogs"
    return [path for path in directory.iterdir() if path.name.endswith(".toml")]


def _checked_path(path: str) -> str:
    try:
        return check_relative_path(path, "path")
    except BadRequest as error:
        raise ValueError(error.message) from error


def _expand(text: str, build: BuildName, *, is_pattern: bool = False) -> str:
    for placeholder, value in (("{target}", build.target), ("{build}", build.build)):
        if is_pattern:
            value = re.escape(value) if text.startswith(REGEX_PREFIX) else glob.escape(value)
        text = text.replace(placeholder, value)
    return text
