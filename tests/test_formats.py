"""What holds for every format: cut off anywhere, it is refused, and nothing stays behind."""

from __future__ import annotations

import io
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import missing_tool
from unpacking import (
    COMPRESSIONS,
    directory,
    member,
    tar_of,
    unpack_into,
    unpacked,
)
from zip_files import Zipped, zip_of

from artifacts.errors import ArchiveError

KIB = 2**10
CONTENTS = {"a": os.urandom(20 * KIB), "b/c": os.urandom(9 * KIB), "b/d": b"line\n" * 9000}
MEMBERS = [unpacked(path, data) for path, data in CONTENTS.items()]


@dataclass(frozen=True)
class Format:
    name: str
    archive: bytes
    program: str | None = None  # that decompresses it


def tar() -> bytes:
    """A tar archive that ends with its end marker, without padding."""
    whole = tar_of(directory("b"), *(member(path, data) for path, data in CONTENTS.items()))
    padded_bytes = [-(-len(data) // 512) * 512 for data in CONTENTS.values()]
    return whole[: 512 + sum(512 + size for size in padded_bytes) + 1024]


FORMATS = [
    *(Format(f"tar-{name}", compress(tar())) for name, compress in COMPRESSIONS.items()),
    Format("tar-bz2 by lbzip2", COMPRESSIONS["bz2"](tar()), "lbzip2"),
    *(
        Format(
            f"zip-{method}",
            zip_of(
                Zipped(name="b/"),
                *(Zipped(name=path, data=data, method=method) for path, data in CONTENTS.items()),
            ),
        )
        for method in (0, 8)
    ),
]


@pytest.fixture(params=FORMATS, ids=lambda format: format.name)
def format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Format:
    """Each format, unpacked with the program that is named, or with none."""
    format: Format = request.param
    if format.program is None:
        monkeypatch.setenv("PATH", "")
    elif shutil.which(format.program) is None:
        missing_tool(format.program)
    return format


def threads_processes_and_descriptors() -> tuple[int, int, int]:
    this = psutil.Process()
    return threading.active_count(), len(this.children(recursive=True)), this.num_fds()


def test_every_format_is_unpacked_and_leaves_nothing_running_or_open(
    tree: Path, format: Format
) -> None:
    before = threads_processes_and_descriptors()
    assert unpack_into(tree, io.BytesIO(format.archive)) == MEMBERS
    assert threads_processes_and_descriptors() == before


def test_every_format_cut_at_any_kilobyte_is_refused_and_leaves_nothing_running_or_open(
    tree: Path, format: Format
) -> None:
    before = threads_processes_and_descriptors()
    for length in range(0, len(format.archive), KIB):
        into = tree / f"{length}"
        into.mkdir()
        with pytest.raises(ArchiveError) as refusal:
            unpack_into(into, io.BytesIO(format.archive[:length]))
        assert "\n" not in str(refusal.value)
        shutil.rmtree(into)
    assert threads_processes_and_descriptors() == before
    assert list(tree.parent.iterdir()) == [tree]
    assert list(tree.iterdir()) == []


def test_every_format_that_is_given_up_half_way_leaves_nothing_running_or_open(
    tree: Path, format: Format
) -> None:
    before = threads_processes_and_descriptors()
    with pytest.raises(ArchiveError, match="over 20,480 bytes"):
        unpack_into(tree, io.BytesIO(format.archive), max_bytes=20 * KIB)
    assert threads_processes_and_descriptors() == before
