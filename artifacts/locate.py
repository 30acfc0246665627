"""Finding a staged file of a build by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from artifacts.archive_url import check_relative_path
from artifacts.build import Build
from artifacts.errors import NotFound
from artifacts.manifest import Item, StagedFile


def locate(build: Build, file_name: str, artifacts: Collection[str] = ()) -> str:
    """Return the path, below the build, of the staged file that is called ``file_name``.

    ``file_name`` is the last segment of a path, or several; where more than one path ends so, the
    one nearest to the top counts, and of these the first in order. ``artifacts`` limits the search
    to what these have published.

    Raises:
        BadRequest: ``file_name`` is not a relative path.
        NotFound: no staged file is called so.
    """
    check_relative_path(file_name, "file_name")
    fitting = [
        path
        for path in _published(build, artifacts)
        if f"/{path}".endswith(f"/{file_name}") and _is_served(build, path)
    ]
    if not fitting:
        among = f" among {', '.join(artifacts)}" if artifacts else ""
        raise NotFound(f"{build.name} has no file {file_name!r} staged{among}")
    return min(fitting, key=lambda path: (path.count("/"), path))


def _published(build: Build, artifacts: Collection[str]) -> Mapping[str, StagedFile]:
    if not artifacts:
        return build.files()
    files: dict[str, StagedFile] = {}
    for name in artifacts:
        files.update(build.files_of(Item.artifact(name)))
    return files


def _is_served(build: Build, path: str) -> bool:
    """Whether it can be read below /static: no name with a leading dot, no link to nowhere."""
    return "/." not in f"/{path}" and build.resolve(path) is not None
