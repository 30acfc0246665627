"""Trees: kept durably, those used last in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.manifest import StagedFile
from artifacts.trees import TreeCache


def tree(members: int) -> dict[str, StagedFile]:
    return {f"member-{number}": StagedFile(number, number) for number in range(members)}


def test_a_tree_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.tree.json"
    TreeCache().write(path, {**tree(3), "link": StagedFile(0, link="member-1")})
    read = TreeCache().load(path)
    assert read == {**tree(3), "link": StagedFile(0, link="member-1")}


def test_memory_holds_the_trees_used_last(tmp_path: Path) -> None:
    cache = TreeCache(max_members=25)
    for name in "abc":
        cache.write(tmp_path / name, tree(10))
    for name in "abc":
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError):
        cache.load(tmp_path / "a")
    assert cache.load(tmp_path / "b") == cache.load(tmp_path / "c") == tree(10)


def test_a_tree_larger_than_all_that_may_be_kept_is_still_there_at_once(tmp_path: Path) -> None:
    cache = TreeCache(max_members=5)
    cache.write(tmp_path / "a", tree(10))
    assert len(cache.load(tmp_path / "a")) == 10


def test_trees_of_a_dropped_build_are_forgotten(tmp_path: Path) -> None:
    cache = TreeCache()
    cache.write(tmp_path / "a", tree(1))
    (tmp_path / "a").unlink()
    cache.forget(tmp_path)
    with pytest.raises(FileNotFoundError):
        cache.load(tmp_path / "a")
