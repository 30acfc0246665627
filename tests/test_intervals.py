"""Intervals are a set of offsets, whatever the order in which they are added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from artifacts.intervals import Intervals

OFFSETS = st.integers(0, 60)
RANGES = st.lists(st.tuples(OFFSETS, OFFSETS))


def intervals_of(ranges: list[tuple[int, int]]) -> Intervals:
    intervals = Intervals()
    for start, stop in ranges:
        intervals.add(start, stop)
    return intervals


def offsets_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {offset for start, stop in ranges for offset in range(start, stop)}


def test_nothing_is_in_no_intervals() -> None:
    assert Intervals().total == 0
    assert Intervals().end_from(7) == 7


def test_ranges_that_touch_are_one() -> None:
    intervals = intervals_of([(0, 4), (8, 12), (4, 8)])
    assert intervals.end_from(0) == 12
    assert intervals.total == 12


def test_an_empty_range_adds_nothing() -> None:
    intervals = intervals_of([(5, 5), (9, 3)])
    assert intervals.total == 0
    assert intervals.end_from(5) == 5


def test_sizes_of_disks_are_no_matter() -> None:
    intervals = intervals_of([(2**50, 2**51), (0, 2**50)])
    assert intervals.end_from(1) == intervals.total == 2**51


@given(ranges=RANGES)
def test_the_total_counts_each_offset_once(ranges: list[tuple[int, int]]) -> None:
    assert intervals_of(ranges).total == len(offsets_of(ranges))


@given(ranges=RANGES, offset=OFFSETS)
def test_the_end_is_that_of_the_offsets_there_without_a_gap(
    ranges: list[tuple[int, int]], offset: int
) -> None:
    there, end = offsets_of(ranges), offset
    while end in there:
        end += 1
    assert intervals_of(ranges).end_from(offset) == end


@given(ranges=RANGES, offset=OFFSETS, size=OFFSETS)
def test_a_gap_is_the_first_run_of_offsets_that_are_not_there(
    ranges: list[tuple[int, int]], offset: int, size: int
) -> None:
    there, stop = offsets_of(ranges), offset + size
    start = next((o for o in range(offset, stop) if o not in there), stop)
    end = next((o for o in range(start, stop) if o in there), stop)
    assert intervals_of(ranges).gap_from(offset, stop) == (start, end)


@given(ranges=RANGES, data=st.data())
def test_the_order_does_not_matter(ranges: list[tuple[int, int]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(ranges))
    one, other = intervals_of(ranges), intervals_of(shuffled)
    assert one.total == other.total
    assert all(one.end_from(offset) == other.end_from(offset) for offset in range(62))
