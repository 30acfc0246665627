"""How fast an archive file is staged and unpacked, while it comes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import peers
from bench.autotest_tree import TreeSize, pack_tree, size_of_tree, zip_tree
from bench.measure import (
    Gap,
    Goal,
    Row,
    Run,
    describe_runs,
    interleave,
    runs_to_json,
    times_as_fast,
)
from bench.nginx_archive import nginx_archive
from bench.objects import Object, object_of_file
from bench.place import Place, Unmeasured, is_in_memory
from bench.processes import CALL_SECONDS, Devserver, run_once
from bench.programs import need, versioned
from bench.shaped_archive import shaped_archive
from bench.stage import UNPACKING_CATALOG, Archive, stage_unpacked

_TREE = TreeSize(files=12_400, bytes=357_000_000)
_QUICK_TREE = TreeSize(files=1_550, bytes=44_000_000)
_SMALL_TREE = TreeSize(files=10, bytes=10_000)
_LINK_BYTES_PER_SECOND = 60e6
_LINK_ROUND_TRIP_SECONDS = 0.01
_TAR = ("tar", "--no-same-owner")  # devserver keeps no owners either


@dataclass(frozen=True)
class _Format:
    """One way to pack a tree, and the fastest program that unpacks it again.

    Attributes:
        pack: what packs a tar file on standard output; none for tar itself, and for zip.
        unpack: what unpacks a file, whose path comes next, to a directory, whose path comes last.
        program: what tar is piped from, or runs instead; None for plain tar.
        link_is_slow: whether it is measured over the slow link, too.
    """

    suffix: str
    pack: Sequence[str]
    unpack: Sequence[str]
    program: str | None
    goal: Goal | None
    link_is_slow: bool

    @property
    def peer(self) -> str:
        if self.program is None:
            return versioned("tar")
        return f"{versioned(self.program)}{' | tar' if self.unpack[0] == 'tar' else ''}"

    @property
    def object_name(self) -> str:
        return f"tree-{self.suffix.replace('.', '-')}/R1-1.0.0/autotest.{self.suffix}"


_FORMATS = (
    _Format(
        "tar.bz2",
        ("lbzip2", "--stdout"),
        (*_TAR, "--use-compress-program=lbzip2", "-xf"),
        "lbzip2",
        Goal("<=", 1.5),
        True,
    ),
    _Format(
        "tar.gz",
        ("pigz", "--stdout"),
        (*_TAR, "--use-compress-program=pigz", "-xf"),
        "pigz",
        Goal("<=", 1.5),
        True,
    ),
    _Format(
        "tar.zst",
        ("zstd", "--quiet", "--stdout", "-T0"),
        (*_TAR, "--zstd", "-xf"),
        "zstd",
        Goal("<=", 2.5),
        True,
    ),
    _Format(
        "tar.xz",
        ("xz", "--stdout", "-T0", "-1"),
        (*_TAR, "--use-compress-program=xz -T0", "-xf"),
        "xz",
        None,
        False,
    ),
    _Format("tar", (), (*_TAR, "-xf"), None, None, False),
    _Format("zip", (), ("unzip", "-q"), "unzip", None, False),
)


def unpacking(place: Place) -> Iterator[Row | Gap]:
    """Many files in one archive file, in every format, staged and unpacked while it comes."""
    need("nginx", "curl", "tar")
    size = _QUICK_TREE if place.quick else _TREE
    place.need_disk(5 * size.bytes)
    with ExitStack() as stack:
        room = stack.enter_context(place.room("unpacking"))
        memory = stack.enter_context(place.room_in_memory("unpacking", 4 * size.bytes))
        formats, gaps = _present()
        yield from gaps
        small = _pack_small(room / "small.tar")
        packed = _pack(room / "objects", size, formats)
        fast = stack.enter_context(nginx_archive(room / "nginx", [*packed.values(), small]))
        bench = _Bench(place, room / "fast", memory, size)
        for each, runs in bench.run(fast, small, packed, warm_up_rounds=0 if place.quick else 1):
            yield from (
                [runs] if isinstance(runs, Gap) else _rows_of_fast(bench, each, packed[each], runs)
            )
        slow = stack.enter_context(
            shaped_archive(
                room / "link",
                [*packed.values(), small],
                bytes_per_second=_LINK_BYTES_PER_SECOND,
                link_bytes_per_second=_LINK_BYTES_PER_SECOND,
                round_trip_seconds=_LINK_ROUND_TRIP_SECONDS,
            )
        )
        over_link = {each: packed[each] for each in formats if each.link_is_slow}
        bench = _Bench(place, room / "slow", memory, size)
        for each, runs in bench.run(slow, small, over_link):
            yield (runs if isinstance(runs, Gap) else _row_of_slow(bench, each, packed[each], runs))


def _present() -> tuple[list[_Format], list[Gap]]:
    formats, gaps = [], []
    for each in _FORMATS:
        try:
            if each.program is not None:
                need(each.program)
            formats.append(each)
        except Unmeasured as error:
            gaps.append(Gap("unpacking", f"stage and unpack {each.suffix}", str(error)))
    return formats, gaps


def _pack(directory: Path, size: TreeSize, formats: Sequence[_Format]) -> dict[_Format, Object]:
    tar = directory / "tree.tar"
    directory.mkdir()
    pack_tree(tar, size)
    packed = {}
    for each in formats:
        path = directory / f"tree.{each.suffix}"
        if each.suffix == "zip":
            zip_tree(tar, path)
        elif each.pack:
            with path.open("wb") as output:
                command = [*each.pack, str(tar)]
                subprocess.run(command, check=True, stdout=output, timeout=CALL_SECONDS)
        packed[each] = object_of_file(path, each.object_name)
    return packed


def _pack_small(path: Path) -> Object:
    pack_tree(path, _SMALL_TREE)
    return object_of_file(path, "small/R1-1.0.0/autotest.tar")


class _Bench:
    """Devserver and its peers, which unpack to one and the same file system."""

    def __init__(self, place: Place, room: Path, memory: Path, size: TreeSize) -> None:
        self._place = place
        self._room = room
        self._memory = memory
        self.size = size

    def what(self, each: _Format, packed: Object, archive: str) -> str:
        medium = "tmpfs" if is_in_memory(self._memory) else "disk: no tmpfs has room"
        return (
            f"stage and unpack {self.size.bytes / 1e6:.0f} MB in {self.size.files:,} files, "
            f"{each.suffix} ({packed.size / 1e6:.0f} MB), {archive}, on {medium}"
        )

    def run(
        self,
        archive: Archive,
        small: Object,
        packed: Mapping[_Format, Object],
        warm_up_rounds: int = 0,
    ) -> Iterator[tuple[_Format, dict[str, list[Run]] | Gap]]:
        """Measure format by format: ``devserver``, ``download`` and ``unpack``.

        One that fails does not end the others.
        """
        with Devserver(
            self._room,
            storage_url=archive.url,
            catalog=UNPACKING_CATALOG,
            static_directory=self._memory / self._room.name,
        ) as server:
            # What a server does once in its life is not what is measured.
            stage_unpacked(server, archive, small, _SMALL_TREE)
            for each, file in packed.items():
                downloads = self._memory / "downloads"
                downloaded = downloads / Path(file.name).name
                subjects: dict[str, Callable[[], Run]] = {
                    "devserver": partial(stage_unpacked, server, archive, file, self.size),
                    "download": partial(peers.curl().download, archive, [file], downloads),
                    "unpack": partial(self._unpack, each, downloaded),
                }
                runs: dict[str, list[Run]] | Gap
                try:
                    runs = interleave(
                        subjects,
                        self._place.rounds,
                        warm_up_rounds=warm_up_rounds,
                        on_disk=not is_in_memory(self._memory),
                    )
                except RuntimeError as error:
                    what = f"stage and unpack {each.suffix}"
                    runs = Gap("unpacking", what, str(error), is_failure=True)
                yield each, runs

    def _unpack(self, each: _Format, path: Path) -> Run:
        """Unpack as one does without devserver, and remove everything."""
        with tempfile.TemporaryDirectory(dir=self._memory) as directory:
            target = ("-d" if each.suffix == "zip" else "-C", directory)
            seconds, cpu_seconds = run_once([*each.unpack, str(path), *target])
            if size_of_tree(Path(directory)) != self.size:
                raise RuntimeError(f"{each.unpack[0]} did not unpack all of {path.name}")
        path.unlink()
        return Run(seconds, cpu_seconds, 0)


def _rows_of_fast(
    bench: _Bench, each: _Format, packed: Object, runs: Mapping[str, Sequence[Run]]
) -> Iterator[Row]:
    what = bench.what(each, packed, f"fast archive ({versioned('nginx')})")
    longer = [
        max(download.seconds, unpack.seconds)
        for download, unpack in zip(runs["download"], runs["unpack"], strict=True)
    ]
    yield Row(
        "unpacking",
        f"{what}: time",
        f"the longer of {versioned('curl')} and {each.peer}",
        "x",
        each.goal,
        [ours.seconds / theirs for ours, theirs in zip(runs["devserver"], longer, strict=True)],
        _notes(runs),
        {"runs": runs_to_json(runs), "packed_bytes": packed.size},
    )
    yield _against_both(what, each, packed, runs)


def _row_of_slow(
    bench: _Bench, each: _Format, packed: Object, runs: Mapping[str, Sequence[Run]]
) -> Row:
    link = f"link of {_LINK_BYTES_PER_SECOND / 1e6:.0f} MB/s"
    return _against_both(bench.what(each, packed, link), each, packed, runs)


def _against_both(
    what: str, each: _Format, packed: Object, runs: Mapping[str, Sequence[Run]]
) -> Row:
    both = [
        Run(
            download.seconds + unpack.seconds,
            download.cpu_seconds + unpack.cpu_seconds,
            download.archive_bytes,
        )
        for download, unpack in zip(runs["download"], runs["unpack"], strict=True)
    ]
    return Row(
        "unpacking",
        what,
        f"{versioned('curl')}, then {each.peer}",
        "x",
        None,
        times_as_fast(runs["devserver"], both),
        _notes(runs),
        {"runs": runs_to_json(runs), "packed_bytes": packed.size},
    )


def _notes(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    return [describe_runs(name, of_name) for name, of_name in runs.items()]
