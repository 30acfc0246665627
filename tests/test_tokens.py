"""Tokens: made, found by what was sent, listed and revoked; kept as checksums only."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from artifacts.database import tables
from artifacts.database.database import Database
from artifacts.errors import BadRequest, Conflict, NotFound
from artifacts.tokens import ADMIN, PUBLISH, READ, Tokens

TIMEOUT_SECONDS = 30


@pytest.fixture
def tokens(database: Database) -> Tokens:
    return Tokens(database)


def test_a_token_is_found_by_what_was_sent_with_all_that_is_known_of_it(tokens: Tokens) -> None:
    before = time.time()
    token = tokens.create("lab", [READ, PUBLISH], "ci of the lab")
    found = tokens.find(token)
    assert found is not None
    assert (found.name, found.organization) == ("ci of the lab", "lab")
    assert set(found.scopes) == {PUBLISH, READ}
    assert before <= found.created_at <= time.time()


def test_a_token_is_64_hex_digits_and_another_one_each_time(tokens: Tokens) -> None:
    made = {tokens.create("lab", [READ]) for _ in range(10)}
    assert len(made) == 10
    assert all(re.fullmatch(r"[0-9a-f]{64}", token) for token in made)


def test_what_was_never_made_is_not_found(tokens: Tokens) -> None:
    token = tokens.create("lab", [READ], "ci")
    stored = hashlib.sha256(token.encode()).hexdigest()
    for sent in ("", "ci", token[:-1], f"{token} ", token.upper(), stored, "\udcff", "ä", "\0"):
        if sent != token:
            assert tokens.find(sent) is None, sent


def test_the_database_has_a_checksum_of_the_token_and_not_the_token(
    tokens: Tokens, database: Database
) -> None:
    token = tokens.create("lab", [READ])
    with database.reading() as connection:
        row = connection.execute(select(tables.tokens)).one()
    assert row.hash == hashlib.sha256(token.encode()).hexdigest()
    assert token not in str(row)


def test_tokens_are_listed_by_name_until_they_are_revoked(tokens: Tokens) -> None:
    for name in ("b", "a", "c"):
        tokens.create("lab", [READ], name)
    tokens.revoke("b")
    assert [token.name for token in tokens.list()] == ["a", "c"]
    with pytest.raises(NotFound, match="no token named 'b'"):
        tokens.revoke("b")


def test_a_revoked_token_is_found_no_more_and_its_name_is_free(tokens: Tokens) -> None:
    token = tokens.create("lab", [READ], "ci")
    tokens.revoke("ci")
    assert tokens.find(token) is None
    assert tokens.find(tokens.create("lab", [READ], "ci")) is not None


def test_of_several_that_make_a_token_of_one_name_at_once_one_does(tokens: Tokens) -> None:
    together = threading.Barrier(8)

    def create(_: int) -> bool:
        together.wait(TIMEOUT_SECONDS)
        try:
            tokens.create("lab", [READ], "ci")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8), timeout=TIMEOUT_SECONDS)) == 1
    assert len(tokens.list()) == 1


def test_a_token_allows_its_scopes_and_admin_allows_all(tokens: Tokens) -> None:
    reader = tokens.find(tokens.create("lab", [READ]))
    admin = tokens.find(tokens.create("lab", [ADMIN]))
    assert reader is not None and admin is not None
    assert [reader.allows(scope) for scope in (READ, PUBLISH, ADMIN)] == [True, False, False]
    assert all(admin.allows(scope) for scope in (READ, PUBLISH, ADMIN))


@pytest.mark.parametrize(
    ("organization", "scopes", "name", "words"),
    [
        ("", [READ], None, "organization"),
        ("a/b", [READ], None, "organization"),
        ("..", [READ], None, "organization"),
        ("läb", [READ], None, "organization"),
        ("x" * 65, [READ], None, "organization"),
        ("lab", [], None, "scope"),
        ("lab", ["project:write"], None, "no such scope: 'project:write'"),
        ("lab", [READ], "", "name"),
        ("lab", [READ], "a\nb", "name"),
        ("lab", [READ], "x" * 100, "name"),
    ],
)
def test_what_cannot_be_a_token_is_refused_in_words(
    organization: str, scopes: list[str], name: str | None, words: str, tokens: Tokens
) -> None:
    with pytest.raises(BadRequest, match=words):
        tokens.create(organization, scopes, name)
    assert tokens.list() == []
