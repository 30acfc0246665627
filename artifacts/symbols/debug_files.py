"""Debug files: recording those that are uploaded, and listing them."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, or_, select

from artifacts.blobs.assembly import Assembly, Record
from artifacts.blobs.files import Files
from artifacts.blobs.limits import FILE_BYTES
from artifacts.blobs.offers import Offer
from artifacts.database.batches import batches
from artifacts.database.database import Database
from artifacts.database.tables import debug_files, debug_objects, files
from artifacts.errors import BadRequest
from artifacts.symbols.inspection import DebugObject, Inspector

_MAX_LISTED = 500
_DEBUG_ID = re.compile(
    r"([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})"
    r"(?:-?([0-9a-f]{1,8}))?"
)
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


class DebugFiles:
    """The debug files on record: a row for each file of a project, and one for each object in it.

    The key of a file is its checksum: several files may have the same debug id.
    """

    def __init__(self, database: Database, files: Files) -> None:
        self._database = database
        self._files = files

    def find(
        self, connection: Connection, organization: str, project: str, checksums: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """Return what those of the project's files are that are whole, by checksum.

        A fat file is told of as its first object.
        """
        found: dict[str, dict[str, Any]] = {}
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
            found.update(
                (row.checksum, _dif_of(row)) for row in rows if row.file_id not in incomplete
            )
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
    ) -> None:
        """Record a debug file, within a transaction; keep what is on record of it, if anything."""
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


class ProjectDebugFiles:
    """The purpose of what is uploaded as debug files of a project; see `Purpose`."""

    kind = "debug files"
    needs_file = True
    max_file_bytes = FILE_BYTES

    def __init__(
        self, debug_files: DebugFiles, inspector: Inspector, organization: str, project: str
    ) -> None:
        self.organization = organization
        self.key = f"debug files of {project}"
        self.place: Mapping[str, str] = {"project": project}
        self._debug_files = debug_files
        self._inspector = inspector
        self._project = project

    def find(self, connection: Connection, offers: Collection[Offer]) -> dict[str, Assembly]:
        checksums = [offer.checksum for offer in offers]
        found = self._debug_files.find(connection, self.organization, self._project, checksums)
        return {checksum: Assembly("ok", dif=dif) for checksum, dif in found.items()}

    def examine(self, offer: Offer, path: Path | None) -> Record:
        assert path is not None
        return partial(self._record, offer, self._inspector.inspect(path))

    def _record(
        self, offer: Offer, objects: tuple[DebugObject, ...], connection: Connection, file_id: int
    ) -> None:
        self._debug_files.add(
            connection, self.organization, self._project, offer.name, file_id, objects
        )


def parse_debug_id(text: str) -> str:
    """Return a debug id as it is recorded, of one in that form, or in Breakpad's.

    Raises:
        BadRequest: it is none.
    """
    match = _DEBUG_ID.fullmatch(text.strip().lower())
    if match is None:
        raise BadRequest(f"not a debug id: {text!r:.100}")
    age = (match[6] or "").lstrip("0")
    return "-".join([*match.group(1, 2, 3, 4, 5), *([age] if age else [])])


def _select_objects(organization: str, project: str) -> Select[Any]:
    return (
        select(
            debug_objects,
            debug_files.c.file_id,
            debug_files.c.name,
            debug_files.c.created_at,
            files.c.checksum,
            files.c.size,
        )
        .join(debug_files, debug_files.c.id == debug_objects.c.debug_file_id)
        .join(files, files.c.id == debug_files.c.file_id)
        .where(debug_files.c.organization == organization, debug_files.c.project == project)
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
