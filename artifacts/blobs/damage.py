"""Comparing a stored blob with its name and with what is on record of it."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.blobs.sha1 import new_sha1
from artifacts.blobs.storage import BlobMissing, BlobStorage, StorageError

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Damage:
    """What is wrong with a blob.

    Attributes:
        checksum: by which it is on record.
        is_missing: the storage has none of it.
        words: the same, and more, for people.
        is_unreadable: the storage fails at it, which may pass.
    """

    checksum: str
    is_missing: bool
    words: str
    is_unreadable: bool = False


def find_damage(storage: BlobStorage, checksum: str, size: int) -> Damage | None:
    """Read a blob; return what is wrong with it, None if it is whole.

    Args:
        size: that on record, in bytes.

    Raises:
        StorageError: the storage does not let it be read; that says nothing about the blob.
    """
    digest = new_sha1()
    bytes_read = 0
    try:
        with storage.open(checksum) as blob:
            while bytes_read <= size and (block := blob.read(_BLOCK_BYTES)):
                digest.update(block)
                bytes_read += len(block)
    except BlobMissing:
        return Damage(checksum, True, "it is on record, and not in the storage")
    if bytes_read != size:
        has = f"{bytes_read} bytes" if bytes_read < size else "more"
        return Damage(checksum, False, f"it has {has}, and {size} bytes on record")
    if digest.hexdigest() != checksum:
        return Damage(checksum, False, f"the SHA-1 of its bytes is {digest.hexdigest()}")
    return None


def unreadable(checksum: str, error: StorageError) -> Damage:
    """Return what is wrong with a blob that the storage does not let be read."""
    return Damage(checksum, is_missing=False, words=error.message, is_unreadable=True)
