"""Survey: what an archive has of a build, before anything of it is fetched."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from artifacts.archive_url import ArchiveUrl
from artifacts.checksums import Checksums, parse_sha256_lines
from artifacts.content_encoding import decoded_bytes
from artifacts.errors import ArchiveError
from artifacts.plan import usable_files
from artifacts.retries import RetryLimits, retrying
from artifacts.sources.source import ArchiveFile, Source
from artifacts.sources.uploaded import UPLOADED, parse_uploaded
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

# Files up to here are asked for without asking for their size before.
_SMALL_BYTES = 4 << 20
_MAX_CHECKSUM_FILE_BYTES = 16 << 20
_MAX_UPLOADED_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20


class Survey:
    """Asks one archive about one build; failures that may pass are tried again."""

    def __init__(
        self,
        source: Source,
        archive_url: ArchiveUrl,
        connections: Workers,
        retries: RetryLimits,
        stopped: threading.Event,
    ) -> None:
        """``stopped``, when set, ends pauses between tries."""
        self.archive_url = archive_url
        self._source = source
        self._connections = connections
        self._retries = retries
        self._stopped = stopped
        self._listing: Mapping[str, ArchiveFile] = {}
        self._lock = threading.Lock()  # guards reading SHA256SUMS, so that it is read once
        self._sha256sums: dict[str, bytes] | None = None

    def list(self) -> dict[str, ArchiveFile]:
        """Return the build's files, by name, that can be published.

        Raises:
            BuildNotFound: the archive has no such build.
            ArchiveError: it cannot be listed.
        """
        return self._keep(
            retrying(lambda: self._source.list(self.archive_url), self._retries, self._stopped)
        )

    def glance(self) -> dict[str, ArchiveFile]:
        """Return the files that are complete, as far as that can be told; in one try.

        Where the listing has a file ``UPLOADED``, they are those that it names. (The source
        ``http`` goes by that in any case.)

        Raises:
            TransientArchiveError: this try failed, another one may not.
            BuildNotFound, ArchiveError: as ``list``.
        """
        listing = self._keep(self._source.list(self.archive_url))
        if UPLOADED not in listing:
            return listing
        # Of no generation in particular: the builder writes it anew again and again.
        data = self._read_once(ArchiveFile(UPLOADED), _MAX_UPLOADED_BYTES)
        names = parse_uploaded(data, f"{self.archive_url}/{UPLOADED}")
        return {name: listing[name] for name in names if name in listing}

    def take_over(self, listing: Mapping[str, ArchiveFile]) -> None:
        """Go by a listing that ``list`` of another survey returned."""
        if listing is not self._listing:
            self._listing, self._sha256sums = listing, None

    def _keep(self, listed: Iterable[ArchiveFile]) -> dict[str, ArchiveFile]:
        self._listing, self._sha256sums = usable_files(listed), None
        return dict(self._listing)

    def describe(self, listed: Iterable[ArchiveFile]) -> dict[str, ArchiveFile]:
        """Return files, by name, with the sizes and checksums that their listing lacks.

        Those of small files are told well enough by the answer that brings their bytes.
        """
        files = {file.name: file for file in listed}
        unknown = [
            file
            for file in files.values()
            if (file.stat_tells_more or not file.size_is_exact)
            and (file.size is None or file.size > _SMALL_BYTES)
        ]
        files.update((file.name, file) for file in self._connections.map(self._stat, unknown))
        unchecked = [name for name, file in files.items() if not file.checksums]
        for name, sha256 in self._sha256_beside(unchecked).items():
            files[name] = replace(files[name], checksums=Checksums(sha256=sha256))
        return files

    def stat(self, name: str) -> ArchiveFile:
        """Describe a file as it is now.

        Raises:
            ArchiveError: there is none of that name, or the archive cannot tell.
        """
        return retrying(
            lambda: self._source.stat(self.archive_url, name), self._retries, self._stopped
        )

    def _stat(self, file: ArchiveFile) -> ArchiveFile:
        """Describe a file; where the archive cannot, let the fetch find out."""
        try:
            return self.stat(file.name)
        except ArchiveError as error:
            _log.info("%s of %s: %s", file.name, self.archive_url, error.message)
            return file

    def _sha256_beside(self, names: Collection[str]) -> dict[str, bytes]:
        """Read ``SHA256SUMS``, and ``NAME.sha256`` for what it does not have."""
        digests = dict(self._read_sha256sums()) if names else {}
        listing = self._listing  # another one may take its place meanwhile
        beside = {
            name: listing[f"{name}.sha256"]
            for name in names
            if name not in digests and f"{name}.sha256" in listing
        }
        texts = self._connections.map(self._read, beside.values())
        for name, text in zip(beside, texts, strict=True):
            said = parse_sha256_lines(text)
            digest = said.get("") or said.get(name.rpartition("/")[2]) or said.get(name)
            if digest:
                digests[name] = digest
        return {name: digests[name] for name in names if name in digests}

    def _read_sha256sums(self) -> Mapping[str, bytes]:
        with self._lock:
            if self._sha256sums is None:
                file = self._listing.get("SHA256SUMS")
                self._sha256sums = parse_sha256_lines(self._read(file)) if file else {}
            return self._sha256sums

    def _read(self, file: ArchiveFile) -> str:
        return retrying(
            lambda: self._read_once(file, _MAX_CHECKSUM_FILE_BYTES), self._retries, self._stopped
        ).decode("utf-8", "replace")

    def _read_once(self, file: ArchiveFile, max_bytes: int) -> bytes:
        blocks, total = [], 0
        with self._source.open(self.archive_url, file) as opened:
            while block := opened.read(_BLOCK_BYTES):
                blocks.append(block)
                total += len(block)
                if total > max_bytes:
                    raise ArchiveError(
                        f"{self.archive_url}/{file.name} is too large: over {max_bytes} bytes"
                    )
        encoding = opened.file.content_encoding
        return decoded_bytes(b"".join(blocks), encoding, file.name, max_bytes)
