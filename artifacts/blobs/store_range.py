"""What a `Source` says of files that consist of blobs, and how it opens them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from artifacts.blobs.blob_range import BlobDamaged, BlobRange
from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.files import BlobPart
from artifacts.blobs.storage import BlobMissing, StorageError
from artifacts.closing import Closing
from artifacts.database.database import DatabaseUnavailable
from artifacts.errors import ArchiveError, TransientArchiveError
from artifacts.sources.source import ArchiveFile


class StoreRange(Closing):
    """Bytes of a file that consists of blobs; see `OpenedRange`."""

    end_is_told = True

    def __init__(
        self,
        blobs: BlobStore,
        parts: Sequence[BlobPart],
        file: ArchiveFile,
        what: str,
        start: int,
        stop: int,
        *,
        checks_blobs: bool = True,
    ) -> None:
        """Open bytes ``start`` up to ``stop`` of ``file``, which messages call ``what``.

        Args:
            parts, checks_blobs: as `BlobRange` takes them.
        """
        self.file = file
        self.start = start
        self.stop: int | None = stop
        self._what = what
        with archive_errors(what):
            self._blob_range = BlobRange(blobs, parts, start, stop, checks_blobs=checks_blobs)

    def read(self, max_bytes: int) -> bytes:
        with archive_errors(self._what):
            return self._blob_range.read(max_bytes)

    def close(self) -> None:
        self._blob_range.close()


@contextlib.contextmanager
def archive_errors(what: str) -> Iterator[None]:
    """Raise what goes wrong with ``what`` in a block as an archive's errors."""
    try:
        yield
    except (BlobMissing, BlobDamaged) as error:
        # It has been dropped: another try would not find it, and who publishes it sends it again.
        raise ArchiveError(
            f"cannot read {what}: {error.message}; publish or upload it once more"
        ) from error
    except (StorageError, DatabaseUnavailable) as error:
        raise TransientArchiveError(f"cannot read {what}: {error.message}") from error


def part_bytes(sizes: Sequence[int]) -> int | None:
    """Return the size of all parts but the last, for an `ArchiveFile`; None if there is none."""
    if len(sizes) < 2 or len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0] or not sizes[0]:
        return None
    return sizes[0]
