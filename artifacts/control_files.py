"""Autotest control files of a build, and which suites they belong to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from artifacts.archive_url import check_relative_path
from artifacts.build import Build
from artifacts.errors import ArchiveError, BadRequest, NotFound

_TOP = "autotest/"
_SUITE_MAP = "autotest/test_suites/suite_to_control_file_map"
_MAX_CONTROL_FILE_BYTES = 4 << 20
_MAX_SUITE_BYTES = 16 << 20  # as JSON, it may take six times as much
_MAX_SUITE_MAP_BYTES = 1 << 20  # parsed, it takes some hundred times as much memory
# Blanks of one line only: "\s*" behind "^" takes quadratic time over empty lines.
_ATTRIBUTES = re.compile(r"^[ \t]*ATTRIBUTES[ \t]*=[ \t]*(['\"])(?P<value>.*?)\1", re.MULTILINE)
_SUITES = re.compile(r"^[ \t]*SUITE[ \t]*=[ \t]*(['\"])(?P<value>.*?)\1", re.MULTILINE)


def read_control_file(build: Build, path: str) -> bytes:
    """Return the bytes of a file below ``autotest/``.

    Raises:
        BadRequest: the path leaves the directory, or what is there is too large to be one.
        NotFound: it is not staged.
    """
    path = check_relative_path(path.lstrip("/"), "control_path")
    found = build.resolve(_TOP + path)
    if found is None:
        raise NotFound(f"{build.name} has no control file {path!r} staged")
    if found[1].size > _MAX_CONTROL_FILE_BYTES:
        raise BadRequest(
            f"{path!r} has {found[1].size:,} bytes, too many for a control file; "
            f"it is at /static/{build.name}/{_TOP}{path}"
        )
    return _read(build, found[0])


def list_control_files(build: Build, suite: str | None = None) -> list[str]:
    """Return the control files below ``autotest/`` (of one suite), sorted, relative to it."""
    paths = sorted(
        path.removeprefix(_TOP)
        for path in build.files()
        if path.startswith(_TOP) and _is_control_name(path.rpartition("/")[2])
    )
    if not suite:
        return paths
    mapped = _read_suite_map(build)
    if mapped is not None:
        return sorted(set(_staged_of(build, mapped.get(suite, []))))
    return [path for path in paths if suite in _suites_of(_read(build, _TOP + path))]


def read_suite_controls(build: Build, suite: str) -> dict[str, str]:
    """Return the texts of a suite's control files by path, as ``list_control_files`` gives them.

    What is not UTF-8 becomes U+FFFD.

    Raises:
        BadRequest: one of them, or all together, are too large for one answer.
        NotFound: one is staged no longer.
    """
    paths = list_control_files(build, suite)
    staged = [build.resolve(_TOP + path) for path in paths]
    total = sum(found[1].size for found in staged if found is not None)
    if total > _MAX_SUITE_BYTES:
        raise BadRequest(
            f"the {len(paths):,} control files of suite {suite!r} have {total:,} bytes, over "
            f"{_MAX_SUITE_BYTES:,}; list them with /controlfiles and read them one by one"
        )
    return {path: read_control_file(build, path).decode("utf-8", "replace") for path in paths}


def _is_control_name(name: str) -> bool:
    return name == "control" or name.startswith("control.")


def _staged_of(build: Build, mapped: list[str]) -> Iterator[str]:
    """Yield those paths of a suite map that are staged, relative to ``autotest/``."""
    for path in mapped:
        path = path.lstrip("/")
        # A map should be relative to autotest/, too; some begin one directory above.
        for spelling in (path, path.removeprefix(_TOP)):
            # Only a path that is listed as it stands can be followed: "..", say, is not.
            if build.find(_TOP + spelling) is not None and build.resolve(_TOP + spelling):
                yield spelling
                break


def _read(build: Build, path: str) -> bytes:
    found = build.resolve(path)
    if found is None:
        return b""
    try:
        with (build.directory / found[0]).open("rb") as file:
            return file.read(_MAX_CONTROL_FILE_BYTES)
    except OSError as error:
        # Dropped a moment ago, or removed by hand.
        raise NotFound(f"cannot read {path} of {build.name}: {error.strerror}") from error


def _read_suite_map(build: Build) -> dict[str, list[str]] | None:
    """Parse the map, a literal dict, without running it; None if the build has none."""
    if build.find(_SUITE_MAP) is None:
        return None
    literal = _read(build, _SUITE_MAP)
    if len(literal) > _MAX_SUITE_MAP_BYTES:
        raise ArchiveError(f"{_SUITE_MAP} of {build.name} has over {_MAX_SUITE_MAP_BYTES:,} bytes")
    try:
        parsed = ast.literal_eval(literal.decode("utf-8"))
        if any(isinstance(paths, str) for paths in parsed.values()):
            raise TypeError("paths are no list")
        return {str(suite): [str(path) for path in paths] for suite, paths in parsed.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError):
        raise ArchiveError(f"{_SUITE_MAP} of {build.name} is not a literal dict") from None


def _suites_of(control_file: bytes) -> set[str]:
    text = control_file.decode("utf-8", "replace")
    suites: set[str] = set()
    for match in _ATTRIBUTES.finditer(text):
        names = (name.strip() for name in match["value"].split(","))
        suites.update(name.removeprefix("suite:") for name in names if name.startswith("suite:"))
    for match in _SUITES.finditer(text):
        suites.update(name.strip() for name in match["value"].split(","))
    return suites
