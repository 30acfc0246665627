"""A tree of many files, as a build's tests are: packed as tar, the same bytes every time.

Its files are words, of which few are frequent and many are rare: four in five of one vocabulary, as
sources are, the others of another one, as programs are. Packed they take about a third, as a real
tree does, and no compression gains by looking far back, as it would if parts were repeated.
"""

from __future__ import annotations

import array
import io
import itertools
import random
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MODIFIED_AT = 1_600_000_000
_DIRECTORIES = 400
_PROGRAM_EVERY = 5
_CHOICES = 2**16  # so many that two bytes of noise choose one
_SOURCE_LETTERS = b"etaoinsrhldcumfpgwybvkxjqz_0123456789"
_SOURCE_ENDS = (b" ", b" ", b" ", b".", b"(", b", ", b" = ", b")\n    ", b":\n        ", b'"')


@dataclass(frozen=True)
class TreeSize:
    """How many regular files a tree has, and how many bytes they have together."""

    files: int
    bytes: int


def pack_tree(path: Path, size: TreeSize) -> None:
    """Write a tree of ``size`` to ``path``, as a plain tar file."""
    chance = random.Random(size.files)
    sources, programs = _source_words(chance), _program_words(chance)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        _add_directory(tar, "autotest")
        for number in range(_DIRECTORIES):
            if number < _DIRECTORIES // 10:
                _add_directory(tar, f"autotest/site_{number}")
            _add_directory(tar, _directory_of(number))
        for number, length in enumerate(_lengths(chance, size)):
            is_program = number % _PROGRAM_EVERY == 0
            content = _content(chance, programs if is_program else sources, length)
            name = "program" if is_program else "source.py"
            member = tarfile.TarInfo(f"{_directory_of(number)}/{number}_{name}")
            member.mode = 0o755 if is_program else 0o644
            member.mtime = _MODIFIED_AT + number
            member.size = length
            tar.addfile(member, io.BytesIO(content))


def zip_tree(tar_path: Path, path: Path) -> None:
    """Write what is in a tar file to ``path``, as a zip file."""
    with (
        tarfile.open(tar_path) as tar,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                entry = zipfile.ZipInfo(member.name)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o100000 | member.mode) << 16
                packed.writestr(entry, file.read())


def pack_zeros(path: Path, bytes_of_file: int, packer: Sequence[str]) -> None:
    """Write a file of zeros as a tar file that ``packer`` packs from its input to its output."""
    member = tarfile.TarInfo("autotest/image.bin")
    member.size = bytes_of_file
    with (
        path.open("wb") as output,
        tempfile.TemporaryFile(dir=path.parent) as zeros,
        subprocess.Popen(packer, stdin=subprocess.PIPE, stdout=output) as process,
    ):
        zeros.truncate(bytes_of_file)
        with tarfile.open(fileobj=process.stdin, mode="w|", bufsize=2**20) as tar:
            tar.addfile(member, zeros)
    if process.returncode != 0:
        raise RuntimeError(f"{packer[0]} ended with status {process.returncode}")


def size_of_tree(directory: Path) -> TreeSize:
    """Look at all files below ``directory``."""
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return TreeSize(len(sizes), sum(sizes))


def _directory_of(number: int) -> str:
    number %= _DIRECTORIES
    return f"autotest/site_{number % (_DIRECTORIES // 10)}/test_{number}"


def _add_directory(tar: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, _MODIFIED_AT
    tar.addfile(member)


def _lengths(chance: random.Random, size: TreeSize) -> list[int]:
    """Return the files' lengths: many small ones, a few of some MB."""
    weights = [chance.lognormvariate(0, 1.5) for _ in range(size.files)]
    bytes_per_weight = size.bytes / sum(weights)
    ends = [int(weight * bytes_per_weight) for weight in itertools.accumulate(weights)]
    ends[-1] = size.bytes
    return [end - begin for begin, end in itertools.pairwise([0, *ends])]


def _source_words(chance: random.Random) -> list[bytes]:
    weights = [1 / (place + 3) for place in range(len(_SOURCE_LETTERS))]

    def word() -> bytes:
        letters = chance.choices(_SOURCE_LETTERS, weights, k=chance.randint(2, 9))
        return bytes(letters) + chance.choice(_SOURCE_ENDS)

    return _by_frequency(chance, [word() for _ in range(3_000)])


def _program_words(chance: random.Random) -> list[bytes]:
    words = [chance.randbytes(chance.randint(2, 8)) for _ in range(1_500)]
    return _by_frequency(chance, [bytes(16), b"\x48\x8b", b"\x00\x00\x00", b"\xe8", *words])


def _by_frequency(chance: random.Random, words: Sequence[bytes]) -> list[bytes]:
    """Return words, each the more often the earlier it is in ``words``."""
    weights = [1 / (place + 5) for place in range(len(words))]
    return chance.choices(words, weights, k=_CHOICES)


def _content(chance: random.Random, words: Sequence[bytes], length: int) -> bytes:
    content = bytearray()
    while (missing := length - len(content)) > 0:
        chosen = array.array("H", chance.randbytes(2 * (missing // 4 + 1)))
        content += b"".join(map(words.__getitem__, chosen))
    return bytes(content[:length])
