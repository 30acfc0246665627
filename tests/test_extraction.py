"""Extractions: members on their way to files without names, read while they grow."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from polling import wait_until

from artifacts.errors import ArchiveError, Busy, DevserverError, InsufficientStorage
from artifacts.extraction import BEGUN_BYTES, MAX_KEPT_BYTES, Extraction, ExtractionGone
from artifacts.extractions import Extractions
from artifacts.space import Space
from artifacts.timers import Timers
from artifacts.workers import Workers

MIB = 2**20
WITHHELD = 2**16
BLOCK = os.urandom(MIB)
TIMEOUT_SECONDS = 30


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers("tested", 4)
    yield workers
    assert workers.close(TIMEOUT_SECONDS)


@pytest.fixture
def extractions(tmp_path: Path) -> Iterator[Extractions]:
    timers = Timers("tested-timers", 1, 1)
    extractions = Extractions(tmp_path, Space(tmp_path), timers)
    yield extractions
    extractions.close()
    assert timers.close(TIMEOUT_SECONDS)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def extraction(tmp_path: Path) -> Iterator[Extraction]:
    extraction = Extraction(4 * MIB, tmp_path, lambda: None, lambda: None)
    yield extraction
    extraction.close()


class Filler:
    """Fills extractions; counts how often, and goes on only when it is told to."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.times = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, extraction: Extraction) -> None:
        self.times += 1
        for offset in range(0, self.size, MIB):
            extraction.write(offset, BLOCK[: self.size - offset])
            assert self.may_go_on.wait(TIMEOUT_SECONDS)


def join(
    extractions: Extractions, workers: Workers, fill: Callable[[Extraction], None], **more: object
) -> Extraction:
    arguments = {"key": "key", "what": "a of b.tar", "size": MIB, **more}
    return extractions.join(**arguments, fill=fill, workers=workers)  # type: ignore[arg-type]


def read(extraction: Extraction) -> bytes:
    extraction.begun.result(TIMEOUT_SECONDS)
    reader = extraction.open()
    try:
        data = b""
        while len(data) < extraction.size:
            changed = threading.Event()
            while (stop := reader.readable_to(len(data))) is None:
                changed.clear()
                reader.watch(len(data), changed.set)
                assert changed.wait(TIMEOUT_SECONDS)
            data += os.pread(reader.fileno(), stop - len(data), len(data))
        return data
    finally:
        reader.close()


def test_what_is_written_can_be_read_but_for_the_end(extraction: Extraction) -> None:
    reader = extraction.open()
    assert reader.readable_to(0) is None
    extraction.write(0, BLOCK)
    extraction.write(MIB, BLOCK)
    assert reader.readable_to(0) == reader.readable_to(100) == 2 * MIB
    assert reader.readable_to(2 * MIB) is None
    extraction.write(2 * MIB, BLOCK)
    extraction.write(3 * MIB, BLOCK)
    # All of it is there, but whether it is right is not known yet.
    assert reader.readable_to(0) == 4 * MIB - WITHHELD
    assert reader.readable_to(4 * MIB - WITHHELD) is None
    extraction.finish()
    assert reader.readable_to(4 * MIB - 1) == 4 * MIB
    assert os.pread(reader.fileno(), 4 * MIB, 0) == BLOCK * 4
    reader.close()


def test_what_is_left_out_is_zeros(extraction: Extraction) -> None:
    extraction.write(2 * MIB, b"middle")
    extraction.finish()
    reader = extraction.open()
    assert os.pread(reader.fileno(), 9 * MIB, 0) == bytes(2 * MIB) + b"middle" + bytes(2 * MIB - 6)
    reader.close()


def test_a_watch_is_told_once_when_there_is_more_to_read(extraction: Extraction) -> None:
    told: list[str] = []
    extraction.watch(0, lambda: told.append("start"))
    extraction.watch(MIB, lambda: told.append("further"))
    ended = extraction.watch(0, lambda: told.append("nobody"))
    ended()
    ended()
    extraction.write(0, BLOCK)
    assert told == ["start"]
    extraction.write(MIB, BLOCK)
    assert told == ["start", "further"]
    extraction.watch(0, lambda: told.append("at once"))
    assert told == ["start", "further", "at once"]


def test_a_failure_cuts_those_who_read_and_is_told_to_those_who_wait(
    extraction: Extraction,
) -> None:
    told: list[str] = []
    reader = extraction.open()
    reader.watch(0, lambda: told.append("changed"))
    extraction.fail(ArchiveError("damaged"))
    assert told == ["changed"]
    for call in (
        lambda: reader.readable_to(0),
        extraction.open,
        lambda: extraction.begun.result(0),
        lambda: extraction.write(0, b""),
        extraction.finish,
    ):
        with pytest.raises(ArchiveError, match="damaged"):
            call()
    reader.watch(0, lambda: told.append("at once"))
    assert told == ["changed", "at once"]
    reader.close()


def test_an_answer_begins_when_much_is_there_or_all(tmp_path: Path) -> None:
    small = Extraction(BEGUN_BYTES, tmp_path, lambda: None, lambda: None)
    small.write(0, BLOCK)
    assert not small.begun.done()
    small.finish()
    assert small.begun.done()
    large = Extraction(BEGUN_BYTES + 1, tmp_path, lambda: None, lambda: None)
    large.write(0, BLOCK)
    assert large.begun.done()
    small.close()
    large.close()


def test_all_who_ask_for_the_same_member_share_its_extraction(
    extractions: Extractions, workers: Workers
) -> None:
    fill = Filler(3 * MIB)
    fill.may_go_on.clear()
    made = {join(extractions, workers, fill, size=3 * MIB) for _ in range(50)}
    fill.may_go_on.set()
    assert len(made) == 1
    assert read(made.pop()) == BLOCK * 3
    # And so does the next one, though nobody reads it any more.
    assert read(join(extractions, workers, fill, size=3 * MIB)) == BLOCK * 3
    assert fill.times == 1
    other = join(extractions, workers, fill, key="other", size=3 * MIB)
    assert read(other) == BLOCK * 3
    assert fill.times == 2


def test_of_those_that_nobody_reads_a_number_is_kept(
    extractions: Extractions, workers: Workers
) -> None:
    fill = Filler(1000)
    before = psutil.Process().num_fds()
    made = [join(extractions, workers, fill, key=n, size=1000) for n in range(200)]
    for each in made:
        each.begun.result(TIMEOUT_SECONDS)
    wait_until(lambda: psutil.Process().num_fds() <= before + 64)
    kept = [each for each in made if not is_gone(each)]
    assert 0 < len(kept) <= 64


def is_gone(extraction: Extraction) -> bool:
    try:
        extraction.open().close()
    except ExtractionGone:
        return True
    return False


def test_a_large_one_is_given_up_when_nobody_reads_it_any_more(
    extractions: Extractions, workers: Workers
) -> None:
    size = MAX_KEPT_BYTES + 2 * MIB
    fill = Filler(size)
    fill.may_go_on.clear()
    given_up = join(extractions, workers, fill, size=size)
    given_up.begun.result(TIMEOUT_SECONDS)
    first, second = given_up.open(), given_up.open()
    first.close()
    assert not given_up.has_failed
    second.close()
    assert given_up.has_failed
    # The next one who asks gets another.
    again = join(extractions, workers, fill, size=size)
    assert again is not given_up
    again.fail(Busy("the test is over"))
    fill.may_go_on.set()


def test_a_failed_one_is_tried_again_by_the_next_who_asks(
    extractions: Extractions, workers: Workers
) -> None:
    def fail(_: Extraction) -> None:
        raise ArchiveError("damaged")

    failed = join(extractions, workers, fail)
    with pytest.raises(ArchiveError, match="damaged"):
        failed.begun.result(TIMEOUT_SECONDS)
    assert read(join(extractions, workers, Filler(MIB))) == BLOCK


def test_a_mistake_of_ours_is_told_without_its_details(
    extractions: Extractions, workers: Workers
) -> None:
    def fail(_: Extraction) -> None:
        raise KeyError("secret")

    with pytest.raises(DevserverError, match="extracting failed: KeyError") as told:
        join(extractions, workers, fail).begun.result(TIMEOUT_SECONDS)
    assert told.value.status == 500


def test_room_is_looked_for_first_and_promised(extractions: Extractions, workers: Workers) -> None:
    fill = Filler(MIB)
    with pytest.raises(InsufficientStorage, match=r"not enough disk for a of b\.tar"):
        join(extractions, workers, fill, size=2**62)
    assert fill.times == 0
    assert read(join(extractions, workers, fill)) == BLOCK


def open_below(directory: Path) -> int:
    """How many files without a name, made below a directory, this process has open."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum(link.startswith(f"{directory}/") for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="NOT tested where there is no /proc")
def test_at_the_end_of_the_server_those_who_read_are_cut(tmp_path: Path, workers: Workers) -> None:
    timers = Timers("tested-timers", 1, 1)
    extractions = Extractions(tmp_path, Space(tmp_path), timers)
    fill = Filler(3 * MIB)
    fill.may_go_on.clear()
    cut = join(extractions, workers, fill, size=3 * MIB)
    cut.begun.result(TIMEOUT_SECONDS)
    reader = cut.open()
    extractions.close()
    with pytest.raises(Busy, match="shutting down"):
        reader.readable_to(MIB)
    with pytest.raises(Busy, match="shutting down"):
        join(extractions, workers, fill)
    reader.close()
    assert open_below(tmp_path) == 1
    fill.may_go_on.set()
    wait_until(lambda: open_below(tmp_path) == 0)
    assert timers.close(TIMEOUT_SECONDS)
