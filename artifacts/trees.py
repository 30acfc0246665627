"""Trees: what unpacked archives consist of, each in a file of its own beside the manifest."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import google_crc32c

from artifacts.disk import write_durably
from artifacts.manifest import StagedFile, tree_from_json, tree_to_json

# A member takes some 300 bytes of memory.
_MAX_MEMBERS_IN_MEMORY = 200_000
_BLOCK_BYTES = 1 << 20

Tree = Mapping[str, StagedFile]


class TreeCache:
    """The trees of all builds, those used last in memory; for any number of threads."""

    def __init__(self, max_members: int = _MAX_MEMBERS_IN_MEMORY) -> None:
        self._max_members = max_members
        self._lock = threading.Lock()  # guards the dictionary and the count; not held during I/O
        self._trees: OrderedDict[Path, Tree] = OrderedDict()
        self._members = 0
        self._recorded = 0

    @property
    def recorded(self) -> int:
        """How often trees have become part of a build, in this process."""
        with self._lock:
            return self._recorded

    def note_recorded(self) -> None:
        """Note that trees have become part of a build: its manifest names them."""
        with self._lock:
            self._recorded += 1

    def load(self, path: Path) -> Tree:
        """Return the tree kept at ``path``; raise OSError or ValueError where that fails."""
        with self._lock:
            if (tree := self._trees.get(path)) is not None:
                self._trees.move_to_end(path)
                return tree
        tree = tree_from_json(path.read_bytes())
        self._keep(path, tree)
        return tree

    def write(self, path: Path, tree: Tree) -> None:
        """Keep a tree at ``path``, durably."""
        write_durably(path, tree_to_json(tree))
        self._keep(path, dict(tree))

    def forget(self, directory: Path) -> None:
        """Forget the trees kept in a directory that is going away."""
        with self._lock:
            for path in [path for path in self._trees if path.parent == directory]:
                self._members -= len(self._trees.pop(path))

    def _keep(self, path: Path, tree: Tree) -> None:
        with self._lock:
            self._members += len(tree) - len(self._trees.pop(path, ()))
            self._trees[path] = tree
            while self._members > self._max_members and len(self._trees) > 1:
                _, oldest = self._trees.popitem(last=False)
                self._members -= len(oldest)


def tree_survived(tree: Tree, directory: Path) -> bool:
    """Whether all members of a tree are below ``directory`` as they were unpacked."""
    try:
        return all(_member_survived(directory / path, file) for path, file in tree.items())
    except OSError:
        return False


def _member_survived(path: Path, file: StagedFile) -> bool:
    if file.link is not None:
        return os.readlink(path) == file.link
    crc32c, size = 0, 0
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            crc32c, size = google_crc32c.extend(crc32c, block), size + len(block)
    return (size, crc32c) == (file.size, file.crc32c)
