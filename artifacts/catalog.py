"""Catalogs: which artifacts a kind of build has, and what to do with each."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from artifacts.artifact import Artifact
from artifacts.catalog_file import CatalogError, parse_catalog
from artifacts.errors import BadRequest

_MAX_BYTES = 1 << 20


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
        try:
            return cls(parse_catalog(_read(name_or_file)))
        except CatalogError as error:
            raise CatalogError(f"catalog {name_or_file}: {error.message}") from error

    def staged_when(self, when: Literal["foreground", "background"]) -> list[str]:
        return [name for name, artifact in self.artifacts.items() if artifact.when == when]

    def parts_of(self, name: str) -> list[Artifact]:
        """Return what an artifact is made of: other artifacts, or just itself."""
        artifact = self.artifacts[name]
        return [self.artifacts[part] for part in artifact.parts] or [artifact]

    def brought_by(self, names: Iterable[str]) -> list[str]:
        """Return the artifacts that come along with those of ``names``, which are not among them.

        What is brought brings others in turn.
        """
        bringing = list(names)
        asked = set(bringing)
        brought: dict[str, None] = {}
        for name in bringing:  # it grows meanwhile
            for other in self.artifacts[name].brings:
                if other not in asked and other not in brought:
                    brought[other] = None
                    bringing.append(other)
        return list(brought)

    def check_known(self, names: Iterable[str]) -> None:
        """Raise BadRequest for a name that is not in the catalog."""
        for name in names:
            if name not in self.artifacts:
                known = ", ".join(self.artifacts)
                raise BadRequest(f"unknown artifact {name!r}; this server knows: {known}")


def shipped_catalogs() -> list[str]:
    """Return the names of the catalogs that come with devserver, sorted."""
    names = [path.name for path in _shipped_directory().iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _shipped_directory() -> Traversable:
    return resources.files("artifacts") / "catalogs"


def _read(name_or_file: str) -> str:
    if name_or_file in shipped_catalogs():
        return (_shipped_directory() / f"{name_or_file}.toml").read_text(encoding="utf-8")
    path = Path(name_or_file)
    try:
        # Looked at before it is opened: opening a pipe would wait for its other end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CatalogError("is a directory" if path.is_dir() else "is not a file")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no file name"
        shipped = ", ".join(shipped_catalogs())
        raise CatalogError(f"{reason} (these come with devserver: {shipped})") from error
    if len(data) > _MAX_BYTES:
        raise CatalogError(f"is larger than {_MAX_BYTES:,} bytes, as no catalog is")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CatalogError(f"is not TOML: {error}") from error
