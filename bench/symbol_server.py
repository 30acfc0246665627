"""A devserver that has debug files."""

from __future__ import annotations

from pathlib import Path

from bench.assembled import assemble
from bench.chunks import checksum_of, cut
from bench.moved import Moved
from bench.upload_servers import ORGANIZATION, UploadServer

DEBUG_FILES_PATH = f"/api/0/projects/{ORGANIZATION}/devices/files/difs/assemble/"


class SymbolServer(UploadServer):
    """A server that debug files are uploaded to.

    Attributes:
        data_directory: its own.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory, *options)
        self.data_directory = directory / "data"

    def take_in(self, debug_file: bytes) -> Moved:
        """Have it uploaded, and then assembled: what counts is from asking for that until it is."""
        return assemble(self, DEBUG_FILES_PATH, cut(debug_file))

    def symcache_of(self, debug_file: bytes) -> Path:
        """Return where the symcache is of a debug file that has been taken in."""
        checksum = checksum_of([debug_file])
        directory = self.data_directory / "symcaches" / checksum[:2]
        [path] = directory.glob(f"{checksum[2:]}-0-v*")
        return path
