"""Ranges and conditions of requests, as RFC 9110 has them."""

from __future__ import annotations

import time
from email.utils import formatdate
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.serving.ranges import (
    is_unchanged,
    may_answer_range,
    parse_ranges,
    precondition_fails,
)

SIZE = 10_000
ETAG = '"2710-0badcafe"'
MODIFIED_AT = 784111777.5  # of the RFC's own example, and half a second
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SAME_DATES = [DATE, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
NO_DATES = ["", "yesterday", "0", ETAG, "Sun, 99 Nov 1994 08:49:37 GMT", "1" * 5000, "\0"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # Section 14.1.2's examples, of a file of 10,000 bytes.
        ("bytes=0-499", [(0, 500)]),
        ("bytes=500-999", [(500, 1000)]),
        ("bytes=-500", [(9500, 10000)]),
        ("bytes=9500-", [(9500, 10000)]),
        ("bytes=0-0,-1", [(0, 1), (9999, 10000)]),
        ("bytes= 0-0, -2", [(0, 1), (9998, 10000)]),
        ("bytes= 0-999, 4500-5499, -1000", [(0, 1000), (4500, 5500), (9000, 10000)]),
        ("bytes=500-600,601-999", [(500, 1000)]),
        ("bytes=500-700,601-999", [(500, 1000)]),
        # The unit's case does not matter, nor do blanks around, nor empty elements of a list.
        ("BYTES=0-1", [(0, 2)]),
        (" bytes=0-1\t", [(0, 2)]),
        ("bytes=,0-1,, ,4-5,", [(0, 2), (4, 6)]),
        # What is beyond the end is cut, what is there is answered.
        ("bytes=9999-", [(9999, 10000)]),
        ("bytes=0-10000", [(0, 10000)]),
        ("bytes=-20000", [(0, 10000)]),
        ("bytes=0-0,20000-", [(0, 1)]),
        ("bytes=00-007", [(0, 8)]),
        # Others may come in any order; where they overlap or touch, they are one.
        ("bytes=-1,0-0", [(9999, 10000), (0, 1)]),
        ("bytes=0-10,5-20,21-30,100-110", [(0, 31), (100, 111)]),
        ("bytes=20-30,0-10,5-25", [(0, 31)]),
        ("bytes=0-,0-,0-", [(0, 10000)]),
    ],
)
def test_a_range_is_read(header: str, expected: list[tuple[int, int]]) -> None:
    assert parse_ranges(header, SIZE) == expected


@pytest.mark.parametrize("header", ["bytes=10000-", "bytes=10000-10001", "bytes=-0", "bytes=-00"])
def test_a_range_of_what_is_not_there_cannot_be_satisfied(header: str) -> None:
    assert parse_ranges(header, SIZE) == []


def test_an_empty_file_has_no_ranges() -> None:
    assert parse_ranges("bytes=0-", 0) == []
    assert parse_ranges("bytes=-1", 0) == []


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=1",
        "bytes=a-b",
        "bytes=0x0-0xf",
        "bytes=1-0",
        "bytes=0-1,1-0",
        "bytes=0-1,nonsense",
        "bytes=--1",
        "bytes=-1-2",
        "bytes=1-2-3",
        "bytes=1 - 2",
        "bytes=+1-2",
        "bytes=1.0-2",
        "bytes=\u0661-\u0662",
        "bytes=1_0-2_0",
        "bytes:0-1",
        "0-1",
        "lines=0-1",
        "bytes 0-1/10",
        "bytes=0-1;4-5",
    ],
)
def test_a_malformed_range_is_passed_over(header: str | None) -> None:
    assert parse_ranges(header, SIZE) is None


def test_more_ranges_than_anybody_needs_are_passed_over() -> None:
    assert parse_ranges("bytes=" + ",".join(["0-0"] * 1000), SIZE) is None
    assert parse_ranges("bytes=" + ",".join(f"{2 * n}-{2 * n}" for n in range(32)), SIZE)


NINES = "9" * 60_000  # int() takes 4,300 digits, and quadratic time


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"bytes=0-{NINES}", [(0, SIZE)]),
        (f"bytes=-{NINES}", [(0, SIZE)]),
        (f"bytes={NINES}-", []),
        (f"bytes={NINES}-{NINES}", []),
        (f"bytes={NINES}-0", None),
        (f"bytes={'0' * 60_000}1-2", [(1, 3)]),
        (f"bytes=0-1{' ' * 60_000}x", None),
        (f"bytes=0-{' ' * 60_000}x", None),
        (f"bytes={' ' * 60_000}0-1{' ' * 60_000},", [(0, 2)]),
        (f"bytes{' ' * 60_000}x", None),
        ("," * 60_000, None),
        (f"bytes={',' * 60_000}", None),
    ],
)
def test_hostile_headers_take_no_time(header: str, expected: list[tuple[int, int]] | None) -> None:
    begun_at = time.process_time()
    assert parse_ranges(header, SIZE) == expected
    assert time.process_time() - begun_at < 0.5


@given(size=st.integers(0, 100), data=st.data())
def test_ranges_are_the_bytes_that_were_asked_for(size: int, data: st.DataObject) -> None:
    offsets = st.integers(0, 120)
    specs, asked = [], set()
    for first, length in data.draw(st.lists(st.tuples(offsets, offsets), min_size=1, max_size=8)):
        form = data.draw(st.sampled_from(["first-last", "first-", "-length"]))
        if form == "first-last":
            specs.append(f"{first}-{first + length}")
            asked.update(range(first, first + length + 1))
        elif form == "first-":
            specs.append(f"{first}-")
            asked.update(range(first, size))
        else:
            specs.append(f"-{length}")
            asked.update(range(max(0, size - length), size))
    ranges = parse_ranges("bytes=" + ", ".join(specs), size)
    assert ranges is not None
    answered = [offset for start, stop in ranges for offset in range(start, stop)]
    assert sorted(answered) == sorted(asked & set(range(size)))
    assert all(start < stop for start, stop in ranges)
    ordered = sorted(ranges)
    assert all(one[1] < other[0] for one, other in pairwise(ordered))


@given(header=st.text(alphabet="bytes= 0123456789-,\t") | st.text(), size=st.integers(0, 2**60))
def test_no_header_leads_out_of_the_file(header: str, size: int) -> None:
    for start, stop in parse_ranges(header, size) or []:
        assert 0 <= start < stop <= size


@pytest.mark.parametrize("header", [ETAG, f" {ETAG} ", *SAME_DATES])
def test_a_range_of_the_same_file_is_answered(header: str) -> None:
    assert may_answer_range({"If-Range": header}, ETAG, MODIFIED_AT)


def test_a_range_without_a_condition_is_answered() -> None:
    assert may_answer_range({}, ETAG, MODIFIED_AT)


@pytest.mark.parametrize(
    "header", ['"other"', f"W/{ETAG}", ETAG[1:-1], EARLIER, LATER, *NO_DATES[:4]]
)
def test_a_range_of_another_file_is_not(header: str) -> None:
    assert not may_answer_range({"If-Range": header}, '"this-one"', MODIFIED_AT)


def test_a_weak_tag_or_none_vouches_for_no_range() -> None:
    assert not may_answer_range({"If-Range": f"W/{ETAG}"}, ETAG, MODIFIED_AT)
    assert not may_answer_range({"If-Range": ETAG}, None, MODIFIED_AT)


@pytest.mark.parametrize("header", ["*", ETAG, f"W/{ETAG}", f'"other", {ETAG}', f'"a,b",W/{ETAG}'])
def test_a_client_that_has_the_file_is_not_sent_it(header: str) -> None:
    assert is_unchanged({"If-None-Match": header}, ETAG, MODIFIED_AT)


@pytest.mark.parametrize("header", ['"other"', "", ETAG[1:-1], '"', "W/"])
def test_a_client_that_has_another_file_is_sent_this_one(header: str) -> None:
    assert not is_unchanged({"If-None-Match": header}, ETAG, MODIFIED_AT)


def test_a_file_without_a_tag_matches_any_tag_only_by_a_star() -> None:
    assert not is_unchanged({"If-None-Match": ETAG}, None, MODIFIED_AT)
    assert is_unchanged({"If-None-Match": "*"}, None, MODIFIED_AT)
    assert precondition_fails({"If-Match": ETAG}, None, MODIFIED_AT)
    assert not precondition_fails({"If-Match": "*"}, None, MODIFIED_AT)


@pytest.mark.parametrize("date", [*SAME_DATES, LATER])
def test_a_file_not_modified_since_is_not_sent(date: str) -> None:
    assert is_unchanged({"If-Modified-Since": date}, ETAG, MODIFIED_AT)
    assert not precondition_fails({"If-Unmodified-Since": date}, ETAG, MODIFIED_AT)


def test_a_file_modified_since_is_sent() -> None:
    assert not is_unchanged({"If-Modified-Since": EARLIER}, ETAG, MODIFIED_AT)
    assert precondition_fails({"If-Unmodified-Since": EARLIER}, ETAG, MODIFIED_AT)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_dates_are_those_of_greenwich_wherever_the_server_is(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for date in SAME_DATES:
            assert may_answer_range({"If-Range": date}, None, MODIFIED_AT)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("date", NO_DATES)
def test_what_is_no_date_is_no_condition(date: str) -> None:
    assert not is_unchanged({"If-Modified-Since": date}, ETAG, MODIFIED_AT)
    assert not precondition_fails({"If-Unmodified-Since": date}, ETAG, MODIFIED_AT)


def test_without_conditions_the_file_is_sent() -> None:
    assert not is_unchanged({}, ETAG, MODIFIED_AT)
    assert not precondition_fails({}, ETAG, MODIFIED_AT)


def test_tags_count_more_than_dates() -> None:
    other_tag = {"If-None-Match": '"other"', "If-Modified-Since": LATER}
    assert not is_unchanged(other_tag, ETAG, MODIFIED_AT)
    same_tag = {"If-Match": ETAG, "If-Unmodified-Since": EARLIER}
    assert not precondition_fails(same_tag, ETAG, MODIFIED_AT)


@pytest.mark.parametrize("header", ["*", ETAG, f'"other", {ETAG}'])
def test_a_precondition_that_holds_does_not_fail(header: str) -> None:
    assert not precondition_fails({"If-Match": header}, ETAG, MODIFIED_AT)


@pytest.mark.parametrize("header", ['"other"', f"W/{ETAG}", "", "nonsense"])
def test_a_precondition_fails_for_another_or_a_weak_tag(header: str) -> None:
    assert precondition_fails({"If-Match": header}, ETAG, MODIFIED_AT)


@given(modified_at=st.floats(0, 4e9))
def test_the_date_that_was_sent_with_a_file_is_the_files(modified_at: float) -> None:
    date = formatdate(int(modified_at), usegmt=True)
    assert is_unchanged({"If-Modified-Since": date}, None, modified_at)
    assert may_answer_range({"If-Range": date}, None, modified_at)


@given(header=st.text() | st.text(alphabet='W/"*, 0123456789:-SunNovGMT'))
def test_no_condition_is_too_odd_to_be_judged(header: str) -> None:
    for judge in (is_unchanged, precondition_fails, may_answer_range):
        for name in ("If-Range", "If-Match", "If-None-Match"):
            assert judge({name: header}, ETAG, MODIFIED_AT) in {True, False}
        for name in ("If-Modified-Since", "If-Unmodified-Since"):
            assert judge({name: header}, ETAG, MODIFIED_AT) in {True, False}
