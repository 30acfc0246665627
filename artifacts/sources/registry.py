"""Which source reads which archive URL."""

from __future__ import annotations

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.errors import BadRequest
from artifacts.sources.bare_session import BareSession
from artifacts.sources.file import FileSource
from artifacts.sources.gs import GoogleStorageSource
from artifacts.sources.http import HttpSource
from artifacts.sources.s3 import S3Source
from artifacts.sources.source import Source
from artifacts.sources.transport import Timeouts, Transport


class Sources:
    """The sources of a running server; they share its limits and end with it."""

    def __init__(
        self,
        allow_list: AllowList,
        timeouts: Timeouts,
        max_connections: int,
        store: Source | None = None,
    ) -> None:
        """Make them; ``store`` is what reads ``store://``, where builds are published."""
        http = HttpSource(Transport(BareSession(max_connections), timeouts, allow_list))
        self._sources: dict[str, Source] = {
            "file": FileSource(allow_list),
            "gs": GoogleStorageSource(timeouts, max_connections),
            "http": http,
            "https": http,
            "s3": S3Source(timeouts, max_connections),
        }
        if store is not None:
            self._sources["store"] = store

    def source_of(self, archive_url: ArchiveUrl) -> Source:
        """Return the source that reads ``archive_url``, or raise BadRequest where none does."""
        try:
            return self._sources[archive_url.scheme]
        except KeyError:
            raise BadRequest(f"this server cannot read {archive_url.scheme}:// archives") from None

    def close(self) -> None:
        for source in self._sources.values():
            source.close()
