"""Failures: what could not be assembled, and why, until those who asked have been told."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import select

from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.tables import assemblies

_FAILED, _FAILED_FOR_NOW = "failed", "failed_for_now"
_IS_FAILURE = assemblies.c.state.in_([_FAILED, _FAILED_FOR_NOW])
# For which a failure waits for somebody who asks, and for which it is told to others after him.
_UNTOLD_SECONDS = 3600.0
_TOLD_SECONDS = 60.0


class Failures:
    """The failures on record, by the digest of the precise offer; servers may share them.

    One that may pass is told once, so that the same file, offered again, is tried again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember(self, offer: str, detail: str, *, may_pass: bool) -> None:
        row = {
            "offer": offer,
            "state": _FAILED_FOR_NOW if may_pass else _FAILED,
            "detail": detail,
            "expires_at": time.time() + _UNTOLD_SECONDS,
        }
        insert = self._database.insert(assemblies)
        latest = {name: insert.excluded[name] for name in ("state", "detail", "expires_at")}
        with self._database.writing() as connection:
            connection.execute(
                insert.on_conflict_do_update(index_elements=["offer"], set_=latest), row
            )

    def has(self, offer: str) -> bool:
        """Whether there is a failure that somebody is still to be told."""
        with self._database.reading() as connection:
            query = select(assemblies.c.offer).where(
                assemblies.c.offer == offer, _IS_FAILURE, assemblies.c.expires_at > time.time()
            )
            return connection.execute(query).first() is not None

    def tell(self, offers: Sequence[str]) -> dict[str, str]:
        """Return the details of those offers that have failed; the caller passes them on."""
        now = time.time()
        details: dict[str, str] = {}
        with self._database.reading() as connection:
            for some in batches(offers):
                query = select(assemblies).where(
                    assemblies.c.offer.in_(some), _IS_FAILURE, assemblies.c.expires_at > now
                )
                details.update((row.offer, row.detail) for row in connection.execute(query))
        if details:
            self._note_told(list(details), now + _TOLD_SECONDS)
        return details

    def _note_told(self, offers: Sequence[str], expires_at: float) -> None:
        with self._database.writing() as connection:
            for some in batches(offers):
                told = assemblies.c.offer.in_(some)
                connection.execute(
                    assemblies.delete().where(told, assemblies.c.state == _FAILED_FOR_NOW)
                )
                connection.execute(
                    assemblies.update()
                    .where(told, assemblies.c.expires_at > expires_at)
                    .values(expires_at=expires_at)
                )
