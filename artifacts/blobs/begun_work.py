"""Work that has begun: the files that clients were told are being assembled, until they are.

Not every client asks again, so a server that ends meanwhile takes them up when it starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from artifacts.blobs.blob_store import LEASE_SECONDS
from artifacts.blobs.offers import Offer
from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.tables import assemblies

_BEGUN = "begun"


@dataclass(frozen=True)
class BegunOffer:
    """An offer, and what it is for, as a `Purpose` says it."""

    organization: str
    kind: str
    place: Mapping[str, str]
    offer: Offer


class BegunWork:
    """What is being assembled, on record by the digest of the precise offer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, begun: Mapping[str, BegunOffer]) -> None:
        """Record work, by digest, in place of the failures of an earlier try."""
        expires_at = time.time() + LEASE_SECONDS
        insert = self._database.insert(assemblies)
        latest = {name: insert.excluded[name] for name in ("state", "detail", "expires_at")}
        rows = [
            {"offer": digest, "state": _BEGUN, "detail": _packed(work), "expires_at": expires_at}
            for digest, work in begun.items()
        ]
        with self._database.writing() as connection:
            connection.execute(
                insert.on_conflict_do_update(index_elements=["offer"], set_=latest), rows
            )

    def end(self, connection: Connection, digest: str) -> None:
        """Forget work that is done, or is not to be done, within a transaction."""
        connection.execute(
            assemblies.delete().where(assemblies.c.offer == digest, assemblies.c.state == _BEGUN)
        )

    def all(self) -> Iterator[tuple[str, BegunOffer]]:
        """Yield all that is on record, each with its digest."""
        begun = assemblies.c.state == _BEGUN
        with self._database.reading() as connection:
            digests = connection.execute(select(assemblies.c.offer).where(begun)).scalars().all()
        for some in batches(digests):
            query = select(assemblies).where(begun, assemblies.c.offer.in_(some))
            with self._database.reading() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                yield row.offer, _unpacked(row.detail)


def _packed(work: BegunOffer) -> str:
    offer = work.offer
    return json.dumps(
        [work.organization, work.kind, dict(work.place), offer.checksum, offer.name, offer.chunks]
    )


def _unpacked(detail: str) -> BegunOffer:
    organization, kind, place, checksum, name, chunks = json.loads(detail)
    return BegunOffer(organization, kind, place, Offer(checksum, name, tuple(chunks)))
