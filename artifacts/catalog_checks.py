"""What can be wrong with a catalog although each of its keys, by itself, is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from artifacts.artifact import Artifact
from artifacts.patterns import REGEX_PREFIX, is_glob

_Artifacts = Mapping[str, Artifact]
_WITH_PARTS = {"parts", "when", "required", "brings"}


@dataclass(frozen=True)
class Mistake:
    """Which key of which artifact is wrong, and why, in words that follow a colon."""

    artifact: str
    key: str
    reason: str


def first_mistake(artifacts: _Artifacts) -> Mistake | None:
    """Return what is wrong with the artifacts of a catalog, the first of it; None if nothing is."""
    checks: tuple[Callable[[_Artifacts], Iterator[Mistake]], ...] = (
        _keys_without_effect,
        _names_of_no_artifact,
        _parts_that_cannot_be,
        _circles,
        _shared_places,
    )
    return next((mistake for check in checks for mistake in check(artifacts)), None)


def _keys_without_effect(artifacts: _Artifacts) -> Iterator[Mistake]:
    for name, artifact in artifacts.items():
        given = artifact.model_fields_set
        if not artifact.files and not artifact.parts:
            yield Mistake(name, "files", "is missing")
        if artifact.parts:
            for key in sorted(given - _WITH_PARTS):
                yield Mistake(name, key, "has no effect on an artifact that is made of parts")
        if artifact.unpack and "publish_as" in given:
            yield Mistake(name, "publish_as", "has no effect with unpack = true")
        for key in ("include", "exclude"):
            if key in given and not artifact.unpack:
                yield Mistake(name, key, "has no effect without unpack = true")


def _names_of_no_artifact(artifacts: _Artifacts) -> Iterator[Mistake]:
    for name, artifact in artifacts.items():
        for key, others in (("parts", artifact.parts), ("brings", artifact.brings)):
            for other in others:
                if other not in artifacts:
                    yield Mistake(name, key, f"there is no artifact {other!r} in this catalog")


def _parts_that_cannot_be(artifacts: _Artifacts) -> Iterator[Mistake]:
    for name, artifact in artifacts.items():
        for other in artifact.parts:
            if artifacts[other].parts:
                yield Mistake(name, "parts", f"{other!r} has parts itself")
            if artifacts[other].unpack:
                yield Mistake(name, "parts", f"{other!r} is unpacked, and no part can be")


def _circles(artifacts: _Artifacts) -> Iterator[Mistake]:
    brings = {name: artifact.brings for name, artifact in artifacts.items()}
    try:
        TopologicalSorter(brings).prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        yield Mistake(circle[0], "brings", f"goes in a circle: {' brings '.join(circle)}")


@dataclass(frozen=True)
class _Place:
    """A path below the build that an artifact surely, or in some builds, takes.

    ``holds`` says what may be there: patterns of files of the archive, or where a link leads. It
    is None for a directory, which artifacts may share.
    """

    artifact: str
    key: str
    path: str
    holds: frozenset[str] | None


def _shared_places(artifacts: _Artifacts) -> Iterator[Mistake]:
    """Find what two artifacts put at one path, as far as it is known without a build.

    Placeholders are compared as they are spelled. The same file at the same path is no mistake.
    """
    taken: dict[str, _Place] = {}
    directories: dict[str, _Place] = {}
    for place in _places(artifacts):
        if place.holds is None:
            directories.setdefault(place.path, place)
        else:
            other = taken.setdefault(place.path, place)
            if other.holds is not None and not other.holds & place.holds:
                yield _clash(place, place.path, "is taken", other)
        for above in _directories_above(place.path):
            directories.setdefault(above, place)
    for path, other in taken.items():
        if path in directories:
            yield _clash(directories[path], path, "has to be a directory", other)


def _clash(place: _Place, path: str, problem: str, other: _Place) -> Mistake:
    holder = f"artifacts.{other.artifact}.{other.key}"
    return Mistake(place.artifact, place.key, f"{path!r} {problem}; {holder} puts something there")


def _places(artifacts: _Artifacts) -> Iterator[_Place]:
    for name, artifact in artifacts.items():
        top = f"{artifact.directory}/" if artifact.directory else ""
        if artifact.directory:
            yield _Place(name, "directory", artifact.directory, None)
        if artifact.publish_as:
            holds = frozenset(artifact.files)
            yield _Place(name, "publish_as", top + artifact.publish_as, holds)
        elif not artifact.unpack:
            for file in artifact.files:
                if not is_glob(file) and not file.startswith(REGEX_PREFIX):
                    yield _Place(name, "files", top + file, frozenset({file}))
        for path, target in artifact.links.items():
            yield _Place(name, "links", path, frozenset({f"link to {target}"}))


def _directories_above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path
