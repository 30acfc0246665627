"""Where a benchmark runs: its directory, and how much of everything it is to do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 1 << 20
GIB = 1 << 30

_TMPFS = Path("/dev/shm")


class Unmeasured(Exception):
    """A benchmark cannot run here; says what it needs."""


@dataclass(frozen=True)
class Place:
    """``quick`` runs are a look, not a measurement: fewer rounds, smaller sizes."""

    directory: Path
    quick: bool = False

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 5

    @contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """A directory for one benchmark, removed in the end."""
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.directory) as directory:
            # nginx's workers may run as somebody else.
            Path(directory).chmod(0o755)
            yield Path(directory)

    @contextmanager
    def room_in_memory(self, name: str, needed_bytes: int) -> Iterator[Path]:
        """A directory on a tmpfs that can take so much; where there is none, one as others are."""
        can_take = (
            _TMPFS.is_mount()
            and shutil.disk_usage(_TMPFS).free > needed_bytes
            and psutil.virtual_memory().available > needed_bytes
        )
        with tempfile.TemporaryDirectory(
            prefix=f"devserver-bench-{name}-", dir=_TMPFS if can_take else self.directory
        ) as directory:
            yield Path(directory)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.directory).free

    def need_disk(self, needed_bytes: int) -> None:
        free = self.free_bytes()
        if free < needed_bytes:
            raise Unmeasured(
                f"needs {needed_bytes / 1e9:.0f} GB of disk, free are {free / 1e9:.0f}"
            )


def is_in_memory(directory: Path) -> bool:
    """Whether a directory of ``Place.room_in_memory`` is there."""
    return directory.is_relative_to(_TMPFS)


def size_text(size: int) -> str:
    return f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"
