"""``projects/{organization}/{project}/builds/{target}/{build}/assemble``: publishing builds."""

from __future__ import annotations

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

    def assemble(self, access: Access) -> Answer:
        """Answer, for each file that is offered for a build, where it stands."""
        named = access.parameters
        build = BuildName.checked(named["target"], named["build"])
        purpose = BuildFiles(
            self._database, self._files, access.organization, named["project"], build
        )
        return assemble_offered(self._assembler, purpose)
