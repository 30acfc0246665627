"""A storage that fails at some blobs: the others are gone on with, unless it fails at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from artifacts.blobs.storage import StorageError

# One after the other: it is the storage that is away, and each of them may take minutes to say so.
_MAX_IN_A_ROW = 20


class StorageFailures:
    """What a storage fails at while something is done with one blob after the other.

    Attributes:
        first: the first failure; None if there was none.
    """

    def __init__(self) -> None:
        self.first: StorageError | None = None
        self._in_a_row: list[StorageError] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note whether the block fails."""
        try:
            yield
        except StorageError as error:
            self.note(error)
        else:
            self.note_success()

    def note(self, error: StorageError) -> None:
        """Go on after a failure, unless too many have come one after the other."""
        self.first = self.first or error
        self._in_a_row.append(error)
        self.check()

    def note_success(self) -> None:
        self._in_a_row.clear()

    def check(self) -> None:
        """Raise the last failure if too many have come one after the other."""
        if len(self._in_a_row) >= _MAX_IN_A_ROW:
            raise self._in_a_row[-1]
