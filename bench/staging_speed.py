"""How fast a build is staged: from a fast archive, and from one that is far away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import peers
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
from bench.objects import Object, make_object
from bench.peers import Peer
from bench.place import GIB, MIB, Place, Unmeasured, size_text
from bench.processes import Devserver
from bench.programs import need, versioned
from bench.shaped_archive import shaped_archive
from bench.stage import Archive, stage

_FAR_BYTES_PER_SECOND = 20e6
_GOALS_OF_FAST = {"curl": Goal(">=", 2.5), "google-cloud-storage": Goal(">=", 4)}
_Subjects = dict[str, Callable[[], Run]]


def fast_archive(place: Place) -> Iterator[Row | Gap]:
    """One large file from nginx on loopback, its page cache warm: devserver and all its peers."""
    need("nginx")
    size = GIB // 4 if place.quick else GIB
    place.need_disk(4 * size)
    what = f"stage {size_text(size)}, fast archive ({versioned('nginx')}), verified, durable"
    all_peers = (
        peers.curl(),
        peers.google_file(),
        peers.aria2c(8),
        peers.transfer_manager("thread", 8),
        peers.transfer_manager("process", 8),
    )
    present, gaps = _present(all_peers, "fast-archive", what)
    yield from gaps
    with ExitStack() as stack:
        room = stack.enter_context(place.room("fast-archive"))
        big = make_object(room / "objects", "big/R1-1.0.0/image.bin", size)
        small = make_object(room / "objects", "small/R1-1.0.0/image.bin", MIB)
        archive = stack.enter_context(nginx_archive(room / "nginx", [big, small]))
        server = stack.enter_context(Devserver(room / "devserver", storage_url=archive.url))
        stage(server, archive, small)
        subjects: _Subjects = {"devserver": lambda: stage(server, archive, big)}
        subjects |= _downloads(present, archive, [big], room)
        runs = interleave(subjects, place.rounds, warm_up_rounds=0 if place.quick else 2)
    for peer in present:
        goal = _GOALS_OF_FAST.get(peer.name)
        yield _row("fast-archive", what, peer.description, goal, "devserver", peer.name, runs)


def far_archive(place: Place) -> Iterator[Row | Gap]:
    """One file from an archive with 50 ms round trips and 20 MB/s a connection."""
    size = (40 if place.quick else 160) * MIB
    place.need_disk(8 * size)
    what = f"stage {size_text(size)}, 50 ms, 20 MB/s a connection"
    ours = {f"{count} connections": ("--connections", str(count)) for count in (8, 16)}
    ours["one connection"] = ("--connections", "1")
    all_peers = (
        peers.aria2c(8),
        peers.transfer_manager("thread", 8),
        peers.transfer_manager("process", 8),
    )
    present, gaps = _present(all_peers, "far-archive", f"{what}, 8 connections")
    yield from gaps
    with ExitStack() as stack:
        room = stack.enter_context(place.room("far-archive"))
        big = make_object(room / "objects", "big/R1-1.0.0/image.bin", size)
        runs = _run_far(stack, room, place, [big], ours, present)
    for key, goal in ("8 connections", Goal(">=", 5)), ("16 connections", Goal(">=", 8)):
        yield _row(
            "far-archive", f"{what}, {key}", "one connection", goal, key, "one connection", runs
        )
    for peer in present:
        key = "8 connections"
        yield _row("far-archive", f"{what}, {key}", peer.description, None, key, peer.name, runs)


def many_files(place: Place) -> Iterator[Row | Gap]:
    """Many small files from the far archive."""
    count = 50 if place.quick else 200
    key, one_by_one = "64 connections", "one after another"
    what = f"stage {count} x 1 MiB, 50 ms, 20 MB/s a connection, {key} in all"
    ours = {key: ("--max-connections", "64"), one_by_one: ("--max-connections", "1")}
    all_peers = (
        peers.aria2c_parallel(64),
        peers.curl_parallel(64),
        peers.transfer_manager("thread", 64),
        peers.transfer_manager("process", 8),
    )
    present, gaps = _present(all_peers, "many-files", what)
    yield from gaps
    with ExitStack() as stack:
        room = stack.enter_context(place.room("many-files"))
        files = [
            make_object(room / "objects", f"many/R1-1.0.0/{n:03}.bin", MIB) for n in range(count)
        ]
        runs = _run_far(stack, room, place, files, ours, present)
    against = f"{one_by_one} (--max-connections 1)"
    yield _row("many-files", what, against, Goal(">=", 20), key, one_by_one, runs)
    for peer in present:
        yield _row("many-files", what, peer.description, None, key, peer.name, runs)


def _run_far(
    stack: ExitStack,
    room: Path,
    place: Place,
    objects: Sequence[Object],
    ours: Mapping[str, Sequence[str]],
    present: Sequence[Peer],
) -> dict[str, list[Run]]:
    """Stage the objects, which are of one build, by servers that differ in their options."""
    small = make_object(room / "objects", "small/R1-1.0.0/image.bin", 1000)
    archive = stack.enter_context(
        shaped_archive(room / "archive", [*objects, small], bytes_per_second=_FAR_BYTES_PER_SECOND)
    )
    subjects: _Subjects = {}
    for number, (key, options) in enumerate(ours.items()):
        directory = room / f"devserver-{number}"
        server = stack.enter_context(Devserver(directory, *options, storage_url=archive.url))
        # What a server does once in its life is not what is measured.
        stage(server, archive, small)
        subjects[key] = partial(stage, server, archive, *objects)
    subjects |= _downloads(present, archive, objects, room)
    return interleave(subjects, place.rounds)


def _present(all_peers: Sequence[Peer], benchmark: str, what: str) -> tuple[list[Peer], list[Gap]]:
    """Tell peers that can be measured from rows that will be missing."""
    present, gaps = [], []
    for peer in all_peers:
        try:
            peer.need()
            present.append(peer)
        except Unmeasured as error:
            gaps.append(Gap(benchmark, f"{what}, against {peer.name}", str(error)))
    return present, gaps


def _downloads(
    present: Sequence[Peer], archive: Archive, objects: Sequence[Object], room: Path
) -> _Subjects:
    return {
        peer.name: partial(peer.download_and_remove, archive, objects, room / f"peer-{number}")
        for number, peer in enumerate(present)
    }


def _row(
    benchmark: str,
    what: str,
    against: str,
    goal: Goal | None,
    ours: str,
    theirs: str,
    runs: Mapping[str, Sequence[Run]],
) -> Row:
    pair = {name: runs[name] for name in (ours, theirs)}
    return Row(
        benchmark,
        what,
        against,
        "x",
        goal,
        times_as_fast(runs[ours], runs[theirs]),
        [describe_runs(name, of_name) for name, of_name in pair.items()],
        {"runs": runs_to_json(pair)},
    )
