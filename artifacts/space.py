"""Room on the disk: promised to plans before they start, so that two do not count on the same."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from artifacts.errors import InsufficientStorage

# What unpacking leaves of a disk: an archive that comes to more than was thought must not fill it.
_MAX_SPARE_BYTES = 64 << 20
_CHECK_EVERY_BYTES = 4 << 20
_SPARE_SHARE = 20  # of a small disk, one part in so many


class Space:
    """The free space of the disk that ``directory`` is on, and who has been promised some of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # guards the reservations
        self._reservations: set[Reservation] = set()

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._directory).free

    def check_room(self) -> None:
        """Raise InsufficientStorage when the disk is about to be full."""
        usage = shutil.disk_usage(self._directory)
        if usage.free < min(_MAX_SPARE_BYTES, usage.total // _SPARE_SHARE):
            raise InsufficientStorage(
                f"the disk is nearly full: only {_megabytes(usage.free)} are free"
            )

    def reserve(
        self, needed_bytes: int, what: str, bytes_written: Callable[[], int]
    ) -> Reservation:
        """Promise ``needed_bytes``, of which ``bytes_written()`` have been used so far.

        Raises:
            InsufficientStorage: they are not there.
        """
        with self._lock:
            promised = sum(reservation.outstanding_bytes for reservation in self._reservations)
            free = self.free_bytes()
            if needed_bytes > free - promised:
                raise InsufficientStorage(
                    f"not enough disk for {what}: it needs {_megabytes(needed_bytes)}, free are "
                    f"{_megabytes(free)}, of which {_megabytes(promised)} are promised to others"
                )
            reservation = Reservation(self, needed_bytes, bytes_written)
            self._reservations.add(reservation)
            return reservation

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            self._reservations.discard(reservation)


class RoomWatch:
    """Looks whether there is room while something is written that nobody knows the size of."""

    def __init__(self, check_room: Callable[[], None]) -> None:
        """``check_room`` raises InsufficientStorage where there is none."""
        self._check_room = check_room
        self._unchecked_bytes = 0
        check_room()

    def note(self, count: int) -> None:
        """Note that as many bytes are written, or about to be; raise InsufficientStorage."""
        self._unchecked_bytes += count
        if self._unchecked_bytes >= _CHECK_EVERY_BYTES:
            self._unchecked_bytes = 0
            self._check_room()


class Reservation:
    """Bytes of disk promised to somebody, who releases it in the end."""

    def __init__(self, space: Space, needed_bytes: int, bytes_written: Callable[[], int]) -> None:
        self._space = space
        self._needed_bytes = needed_bytes
        self._bytes_written = bytes_written

    @property
    def outstanding_bytes(self) -> int:
        return max(0, self._needed_bytes - self._bytes_written())

    def release(self) -> None:
        self._space._release(self)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
