"""Files of the archive that are published whole, not unpacked: publishing and recognizing them."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from artifacts.build import Build
from artifacts.content_encoding import decoded
from artifacts.fetch import FetchedFile
from artifacts.manifest import StagedFile, StoredBytes
from artifacts.sources.source import ArchiveFile
from artifacts.unpack_limits import UnpackLimits


def publish_fetched(
    build: Build,
    paths: Sequence[str],
    archive_name: str,
    fetched: FetchedFile,
    limits: UnpackLimits,
) -> None:
    """Make a fetched file readable at ``paths``, decompressed if that is how it is meant.

    Raises:
        ArchiveError: it is not encoded as the archive says, or is too large when decompressed.
        Conflict: other bytes are published there already.
        OSError: the disk refuses.
    """
    sha256 = _in_base64(fetched.sha256)
    if fetched.content_encoding is None:
        staged = StagedFile(fetched.size, fetched.crc32c, archive_name=archive_name)
        for path in paths:
            build.publish_file(fetched.path, path, staged, sha256)
        return
    stored = StoredBytes(fetched.size, fetched.crc32c, sha256)
    encoding = fetched.content_encoding
    with decoded(fetched.path, encoding, archive_name, limits) as plain:
        staged = StagedFile(plain.size, plain.crc32c, archive_name=archive_name, stored=stored)
        for path in paths:
            build.publish_file(plain.path, path, staged)


def kept_file(build: Build, file: ArchiveFile) -> tuple[str, StagedFile] | None:
    """Return path and description of an archive's file that is published whole, still the same.

    None where its size, its checksums or its encoding say that it has changed since.
    """
    there = build.file_from(file.name)
    if there is None:
        return None
    path, staged = there
    if staged.stored is None and file.content_encoding is not None:
        return None
    stored = staged.stored or StoredBytes(staged.size, staged.crc32c, build.sha256_of(path))
    checksums = file.checksums
    if file.size not in {None, stored.size}:
        return None
    if checksums.crc32c is not None:
        return there if checksums.crc32c == stored.crc32c else None
    if checksums.sha256 is not None:
        return there if _in_base64(checksums.sha256) == stored.sha256 else None
    return there


def _in_base64(digest: bytes | None) -> str | None:
    return base64.b64encode(digest).decode("ascii") if digest else None
