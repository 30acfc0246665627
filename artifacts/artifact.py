"""Artifact: the rules by which files of an archive become a named part of a build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator
from pydantic.config import JsonDict

from artifacts.archive_url import BuildName, check_relative_path
from artifacts.errors import ArchiveError, BadRequest, DevserverError
from artifacts.patterns import REGEX_PREFIX, is_glob, matches
from artifacts.placeholders import expand, expand_pattern, unknown_placeholder


@dataclass(frozen=True)
class PlannedFile:
    """A file of the archive and the path below the build that it is published at."""

    archive_name: str
    path: str


@dataclass(frozen=True)
class Members:
    """Which members of an archive file are wanted: those that fit one of ``include``, or all if
    there are none, without those that fit one of ``exclude``.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def wants(self, path: str) -> bool:
        included = not self.include or any(matches(pattern, path) for pattern in self.include)
        return included and not any(matches(pattern, path) for pattern in self.exclude)


def _tidy(schema: JsonDict) -> None:
    """Add to the JSON schema what pydantic cannot know, and leave out what says nothing."""
    schema["oneOf"] = [{"required": ["files"]}, {"required": ["parts"]}]
    for key in cast(dict[str, JsonDict], schema["properties"]).values():
        del key["title"]
        if key["default"] in ([], {}, ""):
            del key["default"]


_Words = Annotated[tuple[str, ...], Field(min_length=1, json_schema_extra={"uniqueItems": True})]


class Artifact(BaseModel):
    """One artifact's rules, as a catalog states them; docs/catalogs.md explains the keys.

    It has either files of its own or parts, which are other artifacts of the catalog.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_tidy)

    files: _Words = Field(
        (), description="patterns of file names in the archive; the first that fits any counts"
    )
    parts: _Words = Field(
        (), description="other artifacts that together are this one, instead of files of its own"
    )
    when: Literal["foreground", "background", "request"] = Field(
        "request", description="whether /download waits for it, starts it, or leaves it to /stage"
    )
    required: StrictBool = Field(False, description="whether a build without it is refused")
    directory: str = Field("", description="where it goes, below the build")
    publish_as: str = Field("", description="its name there, instead of its own")
    unpack: StrictBool = Field(False, description="whether to publish what is in it instead of it")
    include: _Words = Field((), description="patterns of members to unpack; without: all")
    exclude: _Words = Field((), description="patterns of members not to unpack")
    links: Annotated[Mapping[str, str], Field(min_length=1)] = Field(
        {}, description="symbolic links to make: path below the build = path that it leads to"
    )
    brings: _Words = Field(
        (), description="artifacts that are staged in the background when this one is asked for"
    )

    @field_validator("files", "parts", "include", "exclude", "brings")
    @classmethod
    def _nothing_is_there_twice(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for index, word in enumerate(words):
            if word in words[:index]:
                raise ValueError(f"{word!r} is there twice")
        return words

    @field_validator("files", "include", "exclude")
    @classmethod
    def _patterns_can_fit(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _check_placeholders(pattern)
            try:
                matches(pattern, "")
                if not pattern.startswith(REGEX_PREFIX):
                    check_relative_path(pattern, "a pattern")
            except DevserverError as error:
                raise ValueError(error.message) from error
        return patterns

    @field_validator("directory", "publish_as")
    @classmethod
    def _place_is_in_the_build(cls, path: str) -> str:
        _check_place(path)
        return path

    @field_validator("links")
    @classmethod
    def _links_are_in_the_build(cls, links: Mapping[str, str]) -> Mapping[str, str]:
        for path, target in links.items():
            _check_place(path)
            _check_place(target)
            if path == target:
                raise ValueError(f"{path!r} leads to itself")
        return links

    @property
    def may_have_several_files(self) -> bool:
        """Whether more files may turn out to be its own when a build is complete."""
        is_open = any(is_glob(file) or file.startswith(REGEX_PREFIX) for file in self.files)
        return bool(self.parts) or (is_open and not self.publish_as)

    def plan(self, names: Iterable[str], build: BuildName) -> list[PlannedFile]:
        """Return the files of ``names`` that make up this artifact; none where it has none.

        Raises:
            ArchiveError: several files fit where only one can be published.
        """
        names = list(names)
        for pattern in self.files:
            expanded = expand_pattern(pattern, build)
            fitting = [name for name in names if matches(expanded, name)]
            if not fitting:
                continue
            if self.publish_as and len(fitting) > 1:
                raise ArchiveError(f"{build} has several files for one: {', '.join(fitting)}")
            return [PlannedFile(name, self._path_of(name, build)) for name in fitting]
        return []

    def _path_of(self, name: str, build: BuildName) -> str:
        path = expand(self.publish_as, build) if self.publish_as else name
        return f"{expand(self.directory, build)}/{path}" if self.directory else path

    def tree_path(self, build: BuildName) -> str:
        """Where unpacked members go, below the build; "" for the build itself."""
        return expand(self.directory, build)

    def members(self, build: BuildName) -> Members:
        """Return which members of its files are unpacked."""
        include, exclude = (
            tuple(expand_pattern(pattern, build) for pattern in patterns)
            for patterns in (self.include, self.exclude)
        )
        return Members(include, exclude)

    def links_of(self, build: BuildName) -> dict[str, str]:
        return {expand(path, build): expand(to, build) for path, to in self.links.items()}


def _check_placeholders(text: str) -> None:
    if unknown := unknown_placeholder(text):
        raise ValueError(
            f"there is no placeholder {unknown}; there are {{target}}, {{build}} and {{board}}"
        )


def _check_place(path: str) -> None:
    _check_placeholders(path)
    try:
        check_relative_path(path, "a path")
    except BadRequest as error:
        raise ValueError(error.message) from error
    if any(segment.startswith(".") for segment in path.split("/")):
        raise ValueError(f"names that begin with a dot are not served: {path!r}")
