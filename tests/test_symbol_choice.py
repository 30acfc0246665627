"""Of several debug files of one id, the one that serves best is taken; ids have two spellings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_dumps import DEBUG_ID, IDENTIFIER

from artifacts.errors import BadRequest
from artifacts.symbols.choice import WalkChoice, for_lines, for_walking
from artifacts.symbols.debug_files import StoredObject
from artifacts.symbols.debug_ids import parse_debug_id

BOTH = frozenset({"breakpad", "elf"})
FEATURES = ("symtab", "debug", "unwind", "sources")


def stored(name: str, features: str, file_format: str = "elf") -> StoredObject:
    has = frozenset(features.split())
    return StoredObject(1, 0, "lab", name, 1000, DEBUG_ID, file_format, "x86_64", has)


SYM = stored("sym", "symtab debug unwind", "breakpad")
WHOLE = stored("whole", "symtab debug unwind")
DEBUG = stored("debug", "symtab debug")
STRIPPED = stored("stripped", "unwind")
TABLE = stored("table", "symtab unwind")
BARE_TABLE = stored("bare-table", "symtab")
SOURCES = stored("sources", "sources", "sourcebundle")


def chosen(*stored: StoredObject, formats: frozenset[str] = BOTH) -> tuple[str, str] | None:
    choice = for_walking(stored, formats)
    return None if choice is None else (choice.named.checksum, choice.unwound.checksum)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], []),
        ([STRIPPED, SOURCES], []),
        ([TABLE, DEBUG], [DEBUG, TABLE]),
        ([STRIPPED, TABLE, WHOLE, DEBUG], [WHOLE, DEBUG, TABLE]),
        ([DEBUG, WHOLE], [DEBUG, WHOLE]),
        ([SYM, BARE_TABLE, WHOLE], [WHOLE, SYM, BARE_TABLE]),
    ],
)
def test_lines_are_looked_up_where_there_are_lines(
    there: list[StoredObject], expected: list[StoredObject]
) -> None:
    assert for_lines(there) == expected


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([WHOLE], ("whole", "whole")),
        ([WHOLE, SYM], ("sym", "sym")),
        ([STRIPPED, DEBUG], ("debug", "stripped")),
        ([DEBUG, STRIPPED], ("debug", "stripped")),
        ([DEBUG, STRIPPED, WHOLE], ("whole", "whole")),
        ([DEBUG, TABLE], ("debug", "table")),
        ([DEBUG], ("debug", "debug")),
        ([STRIPPED], ("stripped", "stripped")),
        ([TABLE, STRIPPED], ("table", "table")),
        ([STRIPPED, TABLE], ("table", "table")),
        ([BARE_TABLE, STRIPPED], ("bare-table", "stripped")),
        ([SOURCES, DEBUG], ("debug", "debug")),
    ],
)
def test_a_stack_is_walked_with_what_has_most(
    there: list[StoredObject], expected: tuple[str, str]
) -> None:
    assert chosen(*there) == expected


def test_among_equals_the_first_counts() -> None:
    older = stored("older", "symtab debug unwind")
    assert chosen(WHOLE, older) == ("whole", "whole")
    assert chosen(older, WHOLE) == ("older", "older")


def test_what_cannot_be_made_use_of_is_passed_over() -> None:
    only = frozenset({"breakpad"})
    assert chosen(WHOLE, SYM, formats=only) == ("sym", "sym")
    assert chosen(WHOLE, STRIPPED, formats=only) is None
    assert chosen(SOURCES) is None
    assert chosen() is None


def test_symbols_of_breakpad_without_frames_are_put_together_with_what_has_them() -> None:
    bare = stored("bare", "symtab debug", "breakpad")
    assert chosen(bare, STRIPPED) == ("bare", "stripped")
    assert chosen(bare, WHOLE) == ("whole", "whole")


def test_a_choice_is_one_or_two() -> None:
    assert WalkChoice(WHOLE, WHOLE).is_one
    assert not WalkChoice(DEBUG, STRIPPED).is_one


OBJECTS = st.lists(
    st.builds(
        stored,
        st.sampled_from("abcdefgh"),
        st.sets(st.sampled_from(FEATURES)).map(" ".join),
        st.sampled_from(["breakpad", "elf", "macho"]),
    ),
    max_size=6,
)


@given(there=OBJECTS)
def test_nothing_is_lost_by_a_choice(there: list[StoredObject]) -> None:
    usable = [one for one in there if one.format in BOTH]
    choice = for_walking(there, BOTH)
    assert (choice is None) is (not usable)
    if choice is not None:
        named = next((f for f in ("debug", "symtab") if any(f in u.features for u in usable)), None)
        assert named is None or named in choice.named.features
        unwinds = any("unwind" in one.features for one in usable)
        assert ("unwind" in choice.unwound.features) is unwinds


# --- debug ids


@pytest.mark.parametrize(
    ("text", "debug_id"),
    [
        (IDENTIFIER, DEBUG_ID),
        (DEBUG_ID, DEBUG_ID),
        (IDENTIFIER.lower(), DEBUG_ID),
        (f" {DEBUG_ID.upper()}\n", DEBUG_ID),
        (IDENTIFIER[:-1], DEBUG_ID),
        (IDENTIFIER[:-1] + "2A", f"{DEBUG_ID}-2a"),
        (IDENTIFIER[:-1] + "0002a", f"{DEBUG_ID}-2a"),
        (f"{DEBUG_ID}-0", DEBUG_ID),
        (f"{DEBUG_ID}-ffffffff", f"{DEBUG_ID}-ffffffff"),
    ],
)
def test_a_debug_id_is_read_in_each_of_its_spellings(text: str, debug_id: str) -> None:
    assert parse_debug_id(text) == debug_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        IDENTIFIER[:-2],
        IDENTIFIER + "f" * 8,
        f"{DEBUG_ID}-",
        f"{DEBUG_ID}-g",
        "../" + DEBUG_ID,
    ],
)
def test_what_is_no_debug_id_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="not a debug id"):
        parse_debug_id(text)


@given(identity=st.uuids(), age=st.integers(0, 2**32 - 1))
def test_a_debug_id_comes_back_from_the_spelling_of_breakpad(identity: object, age: int) -> None:
    debug_id = f"{identity}-{age:x}" if age else str(identity)
    spelled = f"{identity}".replace("-", "").upper() + f"{age:x}"
    assert parse_debug_id(spelled) == parse_debug_id(debug_id) == debug_id


@given(text=st.text())
def test_any_other_text_is_refused(text: str) -> None:
    try:
        debug_id = parse_debug_id(text)
    except BadRequest:
        return
    assert parse_debug_id(debug_id) == debug_id
