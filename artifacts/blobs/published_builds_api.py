"""``projects/{organization}/{project}/builds/{target}/{build}/assemble``: publishing builds."""

from __future__ import annotations

from collections.abc import Mapping

from artifacts.archive_url import BuildName
from artifacts.blobs.assemble_call import assemble_offered
from artifacts.blobs.assembly import Assembler
from artifacts.blobs.files import Files
from artifacts.blobs.published_builds import BuildFiles
from artifacts.database.database import Database
from artifacts.serving.answer import Answer
from artifacts.serving.upload_protocol import Access, UploadProtocol
from artifacts.tokens import PUBLISH


class PublishedBuildsApi:
    """The calls that publish builds."""

    def __init__(self, database: Database, files: Files, assembler: Assembler) -> None:
        self._database = database
        self._files = files
        self._assembler = assembler

    def register(self, protocol: UploadProtocol) -> None:
        path = "projects/{organization}/{project}/builds/{target}/{build}/assemble"
        protocol.add("POST", path, PUBLISH, self.assemble)
        self._assembler.knows(BuildFiles.kind, self._purpose)

    def assemble(self, access: Access) -> Answer:
        """Answer, for each file that is offered for a build, where it stands."""
        purpose = self._purpose(access.organization, access.parameters)
        return assemble_offered(self._assembler, purpose)

    def _purpose(self, organization: str, place: Mapping[str, str]) -> BuildFiles:
        build = BuildName.checked(place["target"], place["build"])
        return BuildFiles(self._database, self._files, organization, place["project"], build)
