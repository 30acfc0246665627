"""Manifests: the record, per build, of what was asked for, what is staged and what failed.

The manifest proper is small and is rewritten whole. What an unpacked archive consists of, which
may be tens of thousands of members, is a *tree*: a file of its own beside the manifest, written
once and then named by it.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from artifacts.errors import DevserverError

_VERSION = 1


class Item(NamedTuple):
    """What can be asked of a build: an artifact by name, or files by a name or glob."""

    kind: str
    name: str

    @classmethod
    def artifact(cls, name: str) -> Item:
        return cls("artifact", name)

    @classmethod
    def files(cls, pattern: str) -> Item:
        return cls("files", pattern)

    @property
    def is_artifact(self) -> bool:
        return self.kind == "artifact"


class ItemState(enum.StrEnum):
    ASKED = "asked"
    STAGED = "staged"
    # Asked for as part of a build that does not have it, and does not have to.
    ABSENT = "absent"
    FAILED = "failed"


class StoredBytes(NamedTuple):
    """What a file amounts to as its archive stores it; ``sha256`` in base64, where it is known."""

    size: int
    crc32c: int | None
    sha256: str | None


@dataclass(frozen=True)
class StagedFile:
    """A published file, or a link to one: ``link`` is its target, relative to where it lies.

    ``archive_name`` is the file of the archive that it came from whole; None for a member.
    ``stored`` is what that file amounts to in the archive, where it was decompressed to be
    published; None where it is published as it is.
    """

    size: int
    crc32c: int | None = None
    link: str | None = None
    archive_name: str | None = None
    stored: StoredBytes | None = None


@dataclass(frozen=True)
class Failure:
    """An error, to be told to everyone who asks."""

    status: int
    code: str
    message: str

    @classmethod
    def of(cls, error: DevserverError) -> Failure:
        return cls(error.status, error.code, error.message)

    def error(self) -> DevserverError:
        return DevserverError(self.message, status=self.status, code=self.code)


@dataclass(frozen=True)
class ItemRecord:
    """What became of an item.

    Attributes:
        paths: what it published as files, below the build.
        trees: the names of its trees.
        size: bytes published, trees included.
        boot_id: of the machine when the trees were unpacked (they are not fsynced one by one).
    """

    state: ItemState
    paths: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    size: int = 0
    boot_id: str | None = None
    failure: Failure | None = None


@dataclass
class Manifest:
    archive_url: str
    items: dict[Item, ItemRecord] = field(default_factory=dict)
    files: dict[str, StagedFile] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Manifest:
        """Return one that can be changed without changing this."""
        return Manifest(self.archive_url, dict(self.items), dict(self.files), dict(self.sha256))

    def to_json(self) -> bytes:
        return _dump(
            {
                "version": _VERSION,
                "archive_url": self.archive_url,
                "items": [[*item, _record_to_json(r)] for item, r in self.items.items()],
                "files": files_to_json(self.files),
                "sha256": self.sha256,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse what ``to_json`` wrote; raise ValueError for anything else."""
        with _blaming_the_data():
            parsed = json.loads(data)
            if parsed["version"] != _VERSION:
                raise ValueError(f"manifest of version {parsed['version']}")
            return cls(
                archive_url=parsed["archive_url"],
                items={Item(kind, name): _record_from_json(r) for kind, name, r in parsed["items"]},
                files=files_from_json(parsed["files"]),
                sha256=parsed["sha256"],
            )


def tree_to_json(files: Mapping[str, StagedFile]) -> bytes:
    return _dump(files_to_json(files))


def tree_from_json(data: bytes) -> dict[str, StagedFile]:
    """Parse what ``tree_to_json`` wrote; raise ValueError for anything else."""
    with _blaming_the_data():
        return files_from_json(json.loads(data))


def files_to_json(files: Mapping[str, StagedFile]) -> dict[str, list[Any]]:
    return {
        # Few files have what comes last, and there may be very many.
        p: [f.size, f.crc32c, f.link, f.archive_name, *([f.stored] if f.stored else [])]
        for p, f in files.items()
    }


def files_from_json(parsed: Mapping[str, list[Any]]) -> dict[str, StagedFile]:
    return {
        path: StagedFile(*values[:4], *(StoredBytes(*stored) for stored in values[4:]))
        for path, values in parsed.items()
    }


def _record_to_json(record: ItemRecord) -> dict[str, Any]:
    failure = record.failure
    return {
        "state": record.state.value,
        "paths": record.paths,
        "trees": record.trees,
        "size": record.size,
        "boot_id": record.boot_id,
        "failure": failure and [failure.status, failure.code, failure.message],
    }


def _record_from_json(parsed: Mapping[str, Any]) -> ItemRecord:
    return ItemRecord(
        state=ItemState(parsed["state"]),
        paths=tuple(parsed["paths"]),
        trees=tuple(parsed["trees"]),
        size=parsed["size"],
        boot_id=parsed["boot_id"],
        failure=Failure(*parsed["failure"]) if parsed["failure"] else None,
    )


@contextmanager
def _blaming_the_data() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("utf-8")
