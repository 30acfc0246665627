"""Patterns for names of archive files: what fits, what does not, and what is no pattern."""

from __future__ import annotations

import glob
import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from artifacts.errors import BadRequest
from artifacts.patterns import is_glob, matches

PLAIN_SEGMENTS = st.text(alphabet="ab.-_é{ ", min_size=1, max_size=4)
PLAIN_NAMES = st.lists(PLAIN_SEGMENTS, min_size=1, max_size=4).map("/".join)
SEGMENTS = st.text(alphabet="ab", min_size=1, max_size=2)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join)
PATTERNS = st.lists(
    st.just("**") | st.text(alphabet="ab*?", min_size=1, max_size=3), min_size=1, max_size=5
).map("/".join)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("stateful.tgz", "stateful.tgz"),
        ("*.tgz", "stateful.tgz"),
        ("*_full_*", "chromeos_R17-1208.0.0_x86-generic_full_dev.bin"),
        ("image.?", "image.1"),
        ("image.[0-9]", "image.7"),
        ("image.[!0-9]", "image.x"),
        ("*", ""),
        ("autotest/*/control", "autotest/sleep/control"),
        ("**", "a"),
        ("**", "a/b/c"),
        ("**/control", "control"),
        ("**/control", "a/b/control"),
        ("a/**", "a/b/c"),
        ("a/**", "a"),
        ("a/**/c", "a/c"),
        ("a/**/c", "a/b/b/c"),
        ("**/b/**", "a/b/c"),
        ("**/**", "a"),
        ("[[]x]", "[x]"),
    ],
)
def test_a_name_fits_a_glob(pattern: str, name: str) -> None:
    assert matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("stateful.tgz", "Stateful.tgz"),
        ("stateful.tgz", "deep/stateful.tgz"),
        ("*.tgz", "deep/stateful.tgz"),
        ("*", "a/b"),
        ("a?b", "a/b"),
        ("a[/]b", "a/b"),
        ("a/*", "a"),
        ("a/*", "a/b/c"),
        ("a/**/c", "a/b"),
        ("**/control", "control.txt"),
        ("a**", "a/b"),
        ("image.[0-9]", "image.10"),
        ("", "a"),
    ],
)
def test_a_name_does_not_fit_a_glob(pattern: str, name: str) -> None:
    assert not matches(pattern, name)


@given(name=PLAIN_NAMES, other=PLAIN_NAMES)
def test_a_pattern_without_wildcards_fits_itself_alone(name: str, other: str) -> None:
    assert not is_glob(name)
    assert matches(name, other) == (name == other)


@given(name=st.lists(st.text(alphabet="ab*?[]!", min_size=1), min_size=1).map("/".join))
def test_an_escaped_name_fits_itself(name: str) -> None:
    assert matches(glob.escape(name), name)


@given(name=NAMES, data=st.data())
def test_segments_may_be_left_to_two_stars(name: str, data: st.DataObject) -> None:
    segments = name.split("/")
    start = data.draw(st.integers(0, len(segments)))
    stop = data.draw(st.integers(start, len(segments)))
    assert matches("/".join([*segments[:start], "**", *segments[stop:]]), name)


def fits(pattern: list[str], name: list[str]) -> bool:
    """What a glob means, said simply and slowly."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(fits(pattern[1:], name[skipped:]) for skipped in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and fits(pattern[1:], name[1:])


@given(pattern=PATTERNS, name=NAMES)
@example(pattern="**/a/**/a", name="a/a")
@example(pattern="b/**", name="a")
def test_two_stars_stand_for_any_number_of_segments(pattern: str, name: str) -> None:
    assert matches(pattern, name) == fits(pattern.split("/"), name.split("/"))


def test_many_wildcards_take_no_time() -> None:
    assert not matches("/".join(["**", "a"] * 40), "/".join(["a"] * 100 + ["b"]))
    assert not matches("*a" * 40 + "b", "a" * 2000)


def test_a_regular_expression_is_for_the_whole_name() -> None:
    pattern = r"regex:(?P<version>R\d+)_(?P=version)\.bin"
    assert matches(pattern, "R17_R17.bin")
    assert not matches(pattern, "R17_R18.bin")
    assert not matches(pattern, "xR17_R17.bin")
    assert not matches(pattern, "R17_R17.bin.json")
    assert matches("regex:a.*c", "a/b/c")


@given(name=st.text())
def test_an_escaped_regular_expression_fits_itself(name: str) -> None:
    assert matches("regex:" + re.escape(name), name)


@pytest.mark.parametrize(
    "expression", ["(", "*a", "[a", "a{2,1}", "(?P<n>a)(?P<n>b)", "(" * 5000, "a{99999999999}"]
)
def test_what_is_no_regular_expression_is_refused_in_words(expression: str) -> None:
    with pytest.raises(BadRequest, match="not a regular expression") as refusal:
        matches(f"regex:{expression}", "name")
    assert repr(expression)[:100] in refusal.value.message


@pytest.mark.parametrize("pattern", ["*", "a/*.bin", "image.?", "[ab]", "**"])
def test_a_glob_is_told_by_its_wildcards(pattern: str) -> None:
    assert is_glob(pattern)
