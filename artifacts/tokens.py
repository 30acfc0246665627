"""Tokens: who may publish and upload, for which organization, and what else they may do."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Row, select
from sqlalchemy.exc import IntegrityError

from artifacts.database.database import Database
from artifacts.database.tables import tokens
from artifacts.errors import BadRequest, Conflict, NotFound

ADMIN = "admin"
PUBLISH = "project:releases"
READ = "project:read"
SCOPES = (PUBLISH, READ, ADMIN)
_TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@ -]{0,98}")
# As in URLs, where it is a segment.
_ORGANIZATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Token:
    """What is known of a token; ``created_at`` in seconds since 1970."""

    name: str
    organization: str
    scopes: tuple[str, ...]
    created_at: float

    def allows(self, scope: str) -> bool:
        """Whether it may do what needs ``scope``; ``admin`` may do all, and who publishes reads."""
        return (
            scope in self.scopes
            or ADMIN in self.scopes
            or (scope == READ and PUBLISH in self.scopes)
        )


class Tokens:
    """The tokens on record. They are stored hashed: nobody can tell them again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, organization: str, scopes: Collection[str], name: str | None = None) -> str:
        """Make a token, 64 hex digits, and return it; a name is made up if none is given.

        Raises:
            BadRequest: a scope is unknown, or a name cannot be one.
            Conflict: there is a token of that name.
        """
        if not _ORGANIZATION.fullmatch(organization):
            raise BadRequest(
                "an organization is named by letters, digits, '.', '_' and '-', 64 at most, "
                f"beginning with a letter or a digit: {organization!r}"
            )
        if unknown := sorted(set(scopes) - set(SCOPES)):
            raise BadRequest(f"no such scope: {unknown[0]!r} (there are {', '.join(SCOPES)})")
        if not scopes:
            raise BadRequest("a token needs a scope")
        name = name if name is not None else f"{organization}-{secrets.token_hex(4)}"
        if not _NAME.fullmatch(name):
            raise BadRequest(f"not a token's name: {name!r}")
        token = secrets.token_hex(_TOKEN_BYTES)
        row = {
            "name": name,
            "hash": _hash(token),
            "organization": organization,
            "scopes": " ".join(scope for scope in SCOPES if scope in scopes),
            "created_at": time.time(),
        }
        try:
            with self._database.writing() as connection:
                connection.execute(tokens.insert(), row)
        except IntegrityError as error:
            raise Conflict(f"there is a token named {name!r} already; revoke it first") from error
        return token

    def find(self, token: str) -> Token | None:
        """Return what is known of a token that somebody has sent; None for one that is unknown."""
        digest = _hash(token)
        with self._database.reading() as connection:
            row = connection.execute(select(tokens).where(tokens.c.hash == digest)).first()
        # The index has compared hashes already; this is in constant time whatever it does.
        if row is None or not hmac.compare_digest(str(row.hash), digest):
            return None
        return _token_of(row)

    def list(self) -> list[Token]:
        """Return all tokens, sorted by name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(tokens).order_by(tokens.c.name)).all()
        return [_token_of(row) for row in rows]

    def revoke(self, name: str) -> None:
        """Remove a token; raise NotFound if there is none of that name."""
        with self._database.writing() as connection:
            removed = connection.execute(tokens.delete().where(tokens.c.name == name))
        if removed.rowcount == 0:
            raise NotFound(f"there is no token named {name!r}")


def _token_of(row: Row[tuple[object, ...]]) -> Token:
    return Token(row.name, row.organization, tuple(row.scopes.split()), row.created_at)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
