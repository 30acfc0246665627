"""The calls of the upload protocol that are about debug files."""

from __future__ import annotations

from collections.abc import Mapping

import cherrypy

from artifacts.archive_url import has_control_characters
from artifacts.blobs.assemble_call import assemble_offered
from artifacts.blobs.assembly import Assembler
from artifacts.errors import BadRequest
from artifacts.serving.answer import Answer, json_answer
from artifacts.serving.handlers import Arguments
from artifacts.serving.upload_protocol import Access, UploadProtocol
from artifacts.symbols.debug_files import DebugFiles, ProjectDebugFiles
from artifacts.symbols.inspection import Inspector
from artifacts.symbols.symcaches import Symcaches
from artifacts.tokens import PUBLISH, READ


class DebugFilesApi:
    """Uploading and listing debug files."""

    def __init__(
        self,
        debug_files: DebugFiles,
        inspector: Inspector,
        symcaches: Symcaches,
        assembler: Assembler,
    ) -> None:
        self._debug_files = debug_files
        self._inspector = inspector
        self._symcaches = symcaches
        self._assembler = assembler

    def register(self, protocol: UploadProtocol) -> None:
        files = "projects/{organization}/{project}/files"
        protocol.add("POST", f"{files}/difs/assemble", PUBLISH, self.assemble)
        protocol.add("GET", f"{files}/dsyms", READ, self.list)
        self._assembler.knows(ProjectDebugFiles.kind, self._purpose)

    def assemble(self, access: Access) -> Answer:
        """Answer, for each debug file that is offered, where it stands."""
        purpose = self._purpose(access.organization, access.parameters)
        return assemble_offered(self._assembler, purpose)

    def _purpose(self, organization: str, place: Mapping[str, str]) -> ProjectDebugFiles:
        return ProjectDebugFiles(
            self._debug_files, self._inspector, self._symcaches, organization, place["project"]
        )

    def list(self, access: Access) -> Answer:
        """Answer a list of what is in the project's debug files."""
        arguments = Arguments(cherrypy.request.params)
        query = arguments.text("query")
        if query is not None and has_control_characters(query):
            raise BadRequest("argument query must not have control characters")
        found = self._debug_files.list(
            access.organization,
            access.parameters["project"],
            arguments.text("debug_id"),
            query,
        )
        return json_answer(found)
