"""A file that is asked for while it is still being fetched."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench.follower import Follower, time_to_first_byte
from bench.measure import Goal, Row, interleave, percentile
from bench.nginx_servers import nginx_slices
from bench.objects import Object, make_object
from bench.on_demand import BUILD, FILE, on_demand, prefix_of
from bench.place import Place
from bench.programs import need, versioned
from bench.shaped_archive import ShapedArchive, shaped_archive
from bench.timeline import DiskWatch, Timeline, lags, timeline_of_ranges
from bench.web_servers import WebServer, web_server_of

_NAME = "growing"
_LINK_BYTES_PER_SECOND = 20e6
_FIRST_BYTES = 50
# The end of a file waits until the whole is verified.
_WITHHELD_BYTES = 64 << 10
_SLICES = "nginx slices"


@dataclass(frozen=True)
class _Halfway:
    """A file that was fetched to its half when others asked for it; times in seconds.

    Attributes:
        had_bytes: what the first client had got when the second asked.
        catching_up: until the second had that.
        first_bytes: how long each of some more clients waited for its first byte.
        cold_first_byte: how long the first client did, for which the fetch was begun.
        behind_disk: by how much the first was behind the disk, whenever it got something.
        behind_archive: likewise, behind what the archive had sent.
    """

    had_bytes: int
    catching_up: float
    first_bytes: list[float]
    cold_first_byte: float
    behind_disk: list[float]
    behind_archive: list[float]


def growing(place: Place) -> Iterator[Row]:
    """A file that is asked for while it is being fetched, beside nginx as a cache of slices."""
    need("nginx")
    half = 30_000_000 if place.quick else 114_000_000
    with ExitStack() as stack:
        room = stack.enter_context(place.room(_NAME))
        big = make_object(room / "objects", f"{BUILD}/{FILE}", 2 * half)
        small = make_object(room / "objects", "small/R1-1.0.0/image.bin", 1000)

        def run(measure: Callable[[Path, ShapedArchive, Object, Object], _Halfway]) -> _Halfway:
            with (
                place.room(_NAME) as directory,
                shaped_archive(
                    directory / "archive",
                    [big, small],
                    bytes_per_second=_LINK_BYTES_PER_SECOND,
                    link_bytes_per_second=_LINK_BYTES_PER_SECOND,
                ) as archive,
            ):
                return measure(directory, archive, big, small)

        subjects = {
            "devserver": partial(run, _halfway_of_devserver),
            _SLICES: partial(run, _halfway_of_slices),
        }
        runs = interleave(subjects, place.rounds, on_disk=False)
    yield from _rows_of_halfway(half, runs["devserver"], runs[_SLICES])


def _halfway_of_devserver(
    directory: Path, archive: ShapedArchive, big: Object, small: Object
) -> _Halfway:
    with on_demand(directory, archive, small) as (server, _):
        temporary = server.static_directory / ".devserver" / "tmp"
        with DiskWatch(temporary) as disk:
            return _ask_halfway(web_server_of(server, BUILD), archive, big, disk.timeline)


def _halfway_of_slices(directory: Path, archive: ShapedArchive, big: Object, _: Object) -> _Halfway:
    with nginx_slices(directory / "nginx", archive.url, prefix_of(big)) as server:
        return _ask_halfway(server, archive, big, None)


def _ask_halfway(
    server: WebServer, archive: ShapedArchive, big: Object, disk: Timeline | None
) -> _Halfway:
    [path] = server.paths([FILE])
    with Follower(server.port, path) as first:
        first.wait_for(big.size // 2)
        had_bytes = first.timeline.position
        with Follower(server.port, path) as second:
            caught_up_at = second.wait_for(had_bytes)
            first_bytes = [time_to_first_byte(server.port, path) for _ in range(_FIRST_BYTES)]
        sent = timeline_of_ranges(archive.sent(big))
        begun_at = first.wait_for(1)
    stop = big.size - _WITHHELD_BYTES
    return _Halfway(
        had_bytes=had_bytes,
        catching_up=caught_up_at - second.asked_at,
        first_bytes=first_bytes,
        cold_first_byte=begun_at - first.asked_at,
        behind_disk=lags(first.timeline, disk, stop) if disk is not None else [],
        behind_archive=lags(first.timeline, sent, stop),
    )


def _rows_of_halfway(
    half: int, ours: Sequence[_Halfway], slices: Sequence[_Halfway]
) -> Iterator[Row]:
    raw = {"devserver": [asdict(run) for run in ours], _SLICES: [asdict(run) for run in slices]}
    median = statistics.median
    what = f"a file of {2 * half / 1e6:.0f} MB that comes at 20 MB/s"
    caught_up = [run.catching_up for run in slices]
    yield Row(
        _NAME,
        f"{what}: a second client, half-way, has the {half / 1e6:.0f} MB that the first has",
        f"{versioned('nginx')} as a cache of 8 MiB slices: {median(caught_up):.2f} s "
        f"({min(caught_up):.2f} to {max(caught_up):.2f})",
        "s",
        Goal("<=", 0.3),
        [run.catching_up for run in ours],
        (),
        raw,
    )
    firsts = [median(run.first_bytes) * 1000 for run in ours]
    theirs = [median(run.first_bytes) * 1000 for run in slices]
    worst = [percentile(run.first_bytes, 99) * 1000 for run in ours]
    yield Row(
        _NAME,
        f"{what}: first byte of what is there, on a new connection (median of {_FIRST_BYTES})",
        f"{versioned('nginx')} as a cache of 8 MiB slices: {median(theirs):.1f} ms",
        "ms",
        Goal("<=", 5),
        firsts,
        [f"p99 {median(worst):.1f} ms ({min(worst):.1f} to {max(worst):.1f})"],
        raw,
    )
    disk_worst = [max(run.behind_disk) * 1000 for run in ours]
    archive_p50 = [median(run.behind_archive) * 1000 for run in ours]
    archive_p99 = [percentile(run.behind_archive, 99) * 1000 for run in ours]
    slices_p99 = [percentile(run.behind_archive, 99) * 1000 for run in slices]
    cold = [run.cold_first_byte for run in ours]
    cold_slices = [run.cold_first_byte for run in slices]
    yield Row(
        _NAME,
        f"{what}: how far the first client is behind the disk (p99 of what it takes)",
        "looking for the file's first hole every 2 ms",
        "ms",
        Goal("<=", 50),
        [percentile(run.behind_disk, 99) * 1000 for run in ours],
        [
            f"at most {median(disk_worst):.1f} ms",
            f"behind what the archive has sent without a gap: p50 {median(archive_p50):.0f} ms, "
            f"p99 {median(archive_p99):.0f} ms; of {_SLICES} p99 {median(slices_p99):.0f} ms",
            f"its first byte {median(cold):.2f} s after asking, nobody having staged the file; "
            f"of {_SLICES} {median(cold_slices):.2f} s",
        ],
        raw,
    )
