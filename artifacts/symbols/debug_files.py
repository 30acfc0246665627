"""Debug files: recording those that are uploaded, and listing them."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select

from artifacts.blobs.assembly import Assembly, Record
from artifacts.blobs.files import Files
from artifacts.blobs.limits import FILE_BYTES
from artifacts.blobs.offers import Offer
from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.tables import debug_files, debug_objects, files
from artifacts.symbols.debug_ids import parse_debug_id
from artifacts.symbols.inspection import DebugObject, Inspector
from artifacts.symbols.symcache_records import BuiltSymcache, SymcacheRecords
from artifacts.symbols.symcaches import Symcaches

_MAX_LISTED = 500
_MAX_OF_ONE_ID = 100
_MAX_REMEMBERED = 10_000
_CONTENT_TYPES = {
    "breakpad": "text/x-breakpad",
    "elf": "application/x-elf-binary",
    "macho": "application/x-mach-binary",
    "pdb": "application/x-ms-pdb",
    "pe": "application/x-dosexec",
    "portablepdb": "application/x-ms-pdb",
    "sourcebundle": "application/x-sentry-bundle+zip",
    "wasm": "application/wasm",
}


@dataclass(frozen=True)
class StoredObject:
    """What a debug file that was uploaded has for one architecture.

    Attributes:
        number: of the object, in its file.
        organization, checksum: of the file.
        size: of the file, in bytes.
        features: out of symtab, debug, unwind and sources.
    """

    debug_file_id: int
    number: int
    organization: str
    checksum: str
    size: int
    debug_id: str
    format: str
    architecture: str
    features: frozenset[str]


class DebugFiles:
    """The debug files on record: a row for each file of a project, and one for each object in it.

    The key of a file is its checksum: several files may have the same debug id.
    """

    def __init__(self, database: Database, files: Files, symcaches: SymcacheRecords) -> None:
        self._database = database
        self._files = files
        self._symcaches = symcaches
        self._lock = threading.Lock()  # guards both below; not held while the database is asked
        # By debug id, as of so many commits.
        self._newest: dict[str, int | None] = {}
        self._newest_as_of: int | None = None

    def find(
        self, connection: Connection, organization: str, project: str, checksums: Collection[str]
    ) -> dict[str, Assembly]:
        """Return where those of the project's files stand that are whole, by checksum.

        A fat file is told of as its first object. One of which no symcache can be made is an error.
        """
        found: dict[str, Assembly] = {}
        for some in batches(checksums):
            # Their ids first: in one statement, all files of the project may be looked through.
            file_ids = connection.execute(
                select(files.c.id).where(
                    files.c.organization == organization, files.c.checksum.in_(some)
                )
            ).scalars()
            rows = connection.execute(
                _select_objects(organization, project).where(
                    debug_files.c.file_id.in_(file_ids.all()), debug_objects.c.number == 0
                )
            ).all()
            incomplete = self._files.incomplete(connection, [row.file_id for row in rows])
            errors = self._symcaches.errors(connection, [row.debug_file_id for row in rows])
            for row in rows:
                if (error := errors.get(row.debug_file_id)) is not None:
                    # One that is old is left out, and tried again.
                    if not error.is_old:
                        detail = f"no symcache can be made of it: {error.detail}"
                        found[row.checksum] = Assembly.error(detail)
                elif row.file_id not in incomplete:
                    found[row.checksum] = Assembly("ok", dif=_dif_of(row))
        return found

    def newest_with(self, debug_id: str) -> int | None:
        """Return the id of the debug file with a debug id that came last, whole or not.

        Where nobody else writes to the database, it is asked only after something was written.
        """
        commits = None if self._database.is_shared else self._database.commits
        with self._lock:
            if commits != self._newest_as_of or len(self._newest) > _MAX_REMEMBERED:
                self._newest.clear()
                self._newest_as_of = commits
            if commits is not None and debug_id in self._newest:
                return self._newest[debug_id]
        query = select(func.max(debug_objects.c.debug_file_id)).where(
            debug_objects.c.debug_id == debug_id
        )
        with self._database.reading() as connection:
            newest: int | None = connection.execute(query).scalar()
        with self._lock:
            if commits is not None and commits == self._newest_as_of:
                self._newest[debug_id] = newest
        return newest

    def with_debug_ids(self, debug_ids: Collection[str]) -> dict[str, list[StoredObject]]:
        """Return what there is of each debug id, whoever has uploaded it, the newest first.

        Only of files that are whole; of each debug id, some hundred at most.
        """
        found: dict[str, list[StoredObject]] = {}
        with self._database.reading() as connection:
            # Of most modules of a crash there is nothing.
            for debug_id in _known(connection, debug_ids):
                rows = connection.execute(
                    _with_files(debug_objects.c.debug_id == debug_id)
                    .order_by(debug_files.c.created_at.desc(), debug_files.c.id.desc())
                    .limit(_MAX_OF_ONE_ID)
                ).all()
                incomplete = self._files.incomplete(connection, [row.file_id for row in rows])
                if whole := [_stored(row) for row in rows if row.file_id not in incomplete]:
                    found[debug_id] = whole
        return found

    def list(
        self, organization: str, project: str, debug_id: str | None, query: str | None
    ) -> list[dict[str, Any]]:
        """List objects of a project, the newest first, and no more than some hundred.

        Args:
            debug_id: only those that have it.
            query: words, all of which have to be part of what is known of an object.

        Raises:
            BadRequest: it is no debug id.
        """
        statement = _select_objects(organization, project)
        if debug_id is not None:
            statement = statement.where(debug_objects.c.debug_id == parse_debug_id(debug_id))
        for word in (query or "").split():
            columns = (
                debug_files.c.name,
                debug_objects.c.debug_id,
                debug_objects.c.code_id,
                debug_objects.c.format,
                debug_objects.c.kind,
                debug_objects.c.architecture,
                debug_objects.c.features,
                files.c.checksum,
            )
            statement = statement.where(
                or_(*(column.icontains(word, autoescape=True) for column in columns))
            )
        newest_first = statement.order_by(
            debug_files.c.created_at.desc(), debug_files.c.id.desc(), debug_objects.c.number
        ).limit(_MAX_LISTED)
        with self._database.reading() as connection:
            return [_dif_of(row) for row in connection.execute(newest_first)]

    def add(
        self,
        connection: Connection,
        organization: str,
        project: str,
        name: str,
        file_id: int,
        objects: Collection[DebugObject],
        built: Collection[BuiltSymcache],
    ) -> None:
        """Record a debug file, within a transaction, and the symcaches that were built of it.

        What is on record of the file already is kept.
        """
        row = {
            "organization": organization,
            "project": project,
            "file_id": file_id,
            "name": name,
            "created_at": time.time(),
        }
        insert = self._database.insert(debug_files).on_conflict_do_nothing()
        added = connection.execute(insert.returning(debug_files.c.id), row).first()
        if added is not None:
            rows = [
                {
                    "debug_file_id": added.id,
                    "number": number,
                    "debug_id": found.debug_id,
                    "code_id": found.code_id,
                    "format": found.format,
                    "kind": found.kind,
                    "architecture": found.architecture,
                    "features": " ".join(found.features),
                }
                for number, found in enumerate(objects)
            ]
            connection.execute(debug_objects.insert(), rows)
        else:
            added = connection.execute(
                select(debug_files.c.id).where(
                    debug_files.c.organization == organization,
                    debug_files.c.project == project,
                    debug_files.c.file_id == file_id,
                )
            ).one()
        self._symcaches.add(connection, added.id, built)


class ProjectDebugFiles:
    """The purpose of what is uploaded as debug files of a project; see `Purpose`."""

    kind = "debug files"
    needs_file = True
    max_file_bytes = FILE_BYTES

    def __init__(
        self,
        debug_files: DebugFiles,
        inspector: Inspector,
        symcaches: Symcaches,
        organization: str,
        project: str,
    ) -> None:
        self.organization = organization
        self.key = f"debug files of {project}"
        self.place: Mapping[str, str] = {"project": project}
        self._debug_files = debug_files
        self._inspector = inspector
        self._symcaches = symcaches
        self._project = project

    def find(self, connection: Connection, offers: Collection[Offer]) -> dict[str, Assembly]:
        checksums = [offer.checksum for offer in offers]
        return self._debug_files.find(connection, self.organization, self._project, checksums)

    def examine(self, offer: Offer, path: Path | None) -> Record:
        assert path is not None
        objects = self._inspector.inspect(path)
        built = self._symcaches.build(offer.checksum, path, dict(enumerate(objects)))
        return partial(self._record, offer, objects, built)

    def _record(
        self,
        offer: Offer,
        objects: Collection[DebugObject],
        built: Collection[BuiltSymcache],
        connection: Connection,
        file_id: int,
    ) -> None:
        self._debug_files.add(
            connection, self.organization, self._project, offer.name, file_id, objects, built
        )


def _known(connection: Connection, debug_ids: Collection[str]) -> Iterator[str]:
    """Yield those of the debug ids that any debug file has."""
    for some in batches(debug_ids):
        having = select(debug_objects.c.debug_id).where(debug_objects.c.debug_id.in_(some))
        yield from connection.execute(having.distinct()).scalars()


def _select_objects(organization: str, project: str) -> Select[Any]:
    return _with_files(
        and_(debug_files.c.organization == organization, debug_files.c.project == project)
    )


def _with_files(condition: ColumnElement[bool]) -> Select[Any]:
    return (
        select(
            debug_objects,
            debug_files.c.file_id,
            debug_files.c.organization,
            debug_files.c.name,
            debug_files.c.created_at,
            files.c.checksum,
            files.c.size,
        )
        .join(debug_files, debug_files.c.id == debug_objects.c.debug_file_id)
        .join(files, files.c.id == debug_files.c.file_id)
        .where(condition)
    )


def _stored(row: Row[Any]) -> StoredObject:
    return StoredObject(
        row.debug_file_id,
        row.number,
        row.organization,
        row.checksum,
        row.size,
        row.debug_id,
        row.format,
        row.architecture,
        frozenset(row.features.split()),
    )


def _dif_of(row: Row[Any]) -> dict[str, Any]:
    """Return an object in the words of the upload protocol."""
    created = datetime.fromtimestamp(row.created_at, UTC)
    return {
        "id": f"{row.debug_file_id}-{row.number}",
        "uuid": row.debug_id[:36],
        "debugId": row.debug_id,
        "codeId": row.code_id,
        "objectName": row.name,
        "cpuName": row.architecture,
        "symbolType": row.format,
        "sha1": row.checksum,
        "size": row.size,
        "headers": {
            "Content-Type": _CONTENT_TYPES.get(row.format, "application/octet-stream"),
        },
        "dateCreated": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {"type": row.kind, "features": row.features.split()},
    }
