"""Deliveries: answers on their way to clients, without a thread and without copying files."""

from __future__ import annotations

import enum
import errno
import os
import socket
import ssl
from collections import deque

from artifacts.serving.file_answer import FileAnswer, ServedFile, WholeFile

# What is sent at once of a file where the kernel cannot do it, as through TLS, which takes no more.
_COPIED_BYTES = 16 << 10
# The most that the kernel is told to send in one go, and that is read from the disk ahead of that.
_SENT_AT_ONCE_BYTES = 1 << 20
_MSG_MORE = getattr(socket, "MSG_MORE", 0)
_CANNOT_SEND_FILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Standing(enum.Enum):
    """Why sending has paused."""

    DONE = enum.auto()
    CLIENT_IS_BUSY = enum.auto()  # it has to take what it was sent first
    BYTES_ARE_MISSING = enum.auto()  # of a file that is growing
    BYTES_ARE_ON_DISK = enum.auto()  # and sending them would mean to wait for it


class CutShort(Exception):
    """The file ends before what was promised of it."""


class Delivery:
    """One answer on its way: literal bytes, and parts of a file, in turn.

    The kernel sends the file's bytes from its cache; what goes through TLS, and files of systems
    that do not know how, are copied. The delivery owns the file.
    """

    def __init__(self, head: bytes, answer: FileAnswer | None = None) -> None:
        """``head`` goes before the body of ``answer``, or is the whole of it."""
        self.file: ServedFile | None = answer.file if answer is not None else None
        self.bytes_sent = 0
        self._literal = memoryview(head)
        # (literal bytes, start and stop of the range after them) each
        self._parts: deque[tuple[bytes, int, int]] = deque()
        self._position = self._stop = 0
        self._warm_stop = 0  # up to where the bytes at ``_position`` have been read ahead
        if answer is not None and answer.file is not None:
            self._parts.extend((part.before, part.start, part.stop) for part in answer.parts)
            if answer.tail:
                self._parts.append((answer.tail, 0, 0))
            if self._parts and not self._parts[0][0]:
                _, self._position, self._stop = self._parts.popleft()

    @property
    def position(self) -> int:
        """Where in the file the next bytes are."""
        return self._position

    @property
    def file_bytes_left(self) -> int:
        return self._stop - self._position + sum(stop - start for _, start, stop in self._parts)

    def is_cached(self) -> bool:
        """Whether the file's next bytes are in the page cache, as far as a look can tell."""
        return self.file is None or self._look_into_cache(self._stop) is True

    def _look_into_cache(self, stop: int) -> bool | None:
        """Whether the file's bytes up to ``stop`` are in the page cache; None: nothing tells."""
        assert self.file is not None
        if stop <= self._position:
            return True
        return _is_cached(self.file, self._position) and _is_cached(self.file, stop - 1)

    def read_ahead(self) -> None:
        """Read the next bytes into the page cache; blocks, and is not to overlap ``send``.

        Raises:
            OSError: the disk fails.
        """
        # The client may be cut meanwhile, which closes the file.
        file = self.file
        if file is not None:
            count = min(_SENT_AT_ONCE_BYTES, self._stop - self._position)
            os.preadv(file.fileno(), [bytearray(count)], self._position)
            self._warm_stop = self._position + count

    @property
    def closes_at_once(self) -> bool:
        """Whether closing the file cannot mean to wait for the disk."""
        is_whole = isinstance(self.file, WholeFile)
        return self.file is None or (is_whole and os.fstat(self.file.fileno()).st_nlink > 0)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def send(self, connection: socket.socket, max_bytes: int) -> Standing:
        """Send what the client takes without blocking, at most about ``max_bytes`` of them.

        Raises:
            OSError: the connection is broken.
            CutShort: the file is shorter than promised.
            DevserverError: the file will not be whole.
        """
        budget = max_bytes
        while budget > 0:
            if self._literal:
                sent = self._send_literal(connection)
            elif self._position < self._stop:
                assert self.file is not None
                stop = self.file.readable_to(self._position)
                if stop is None:
                    return Standing.BYTES_ARE_MISSING
                stop = min(stop, self._stop, self._position + _SENT_AT_ONCE_BYTES)
                count = stop - self._position
                if count <= 0:
                    raise CutShort
                if self._warm_stop <= self._position and self._look_into_cache(stop) is False:
                    return Standing.BYTES_ARE_ON_DISK
                sent = _send_file(connection, self.file.fileno(), self._position, count)
                self._position += sent or 0
            elif self._parts:
                literal, self._position, self._stop = self._parts.popleft()
                self._literal = memoryview(literal)
                self._warm_stop = 0
                continue
            else:
                return Standing.DONE
            if sent is None:
                return Standing.CLIENT_IS_BUSY
            self.bytes_sent += sent
            budget -= sent
        return Standing.CLIENT_IS_BUSY

    def _send_literal(self, connection: socket.socket) -> int | None:
        # What is there goes out at once, before anything waits.
        follows = (
            self._position < self._stop
            and self.file is not None
            and self.file.readable_to(self._position) is not None
        )
        try:
            if isinstance(connection, ssl.SSLSocket):
                sent = connection.send(self._literal)
            else:
                sent = connection.send(self._literal, _MSG_MORE if follows else 0)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        self._literal = self._literal[sent:]
        return sent


def _send_file(connection: socket.socket, file: int, offset: int, count: int) -> int | None:
    """Send bytes of a file; return how many the client has taken, None if it takes none now."""
    try:
        if isinstance(connection, ssl.SSLSocket):
            return _copy(connection, file, offset, count)
        try:
            sent = os.sendfile(connection.fileno(), file, offset, count)
        except OSError as error:
            if error.errno not in _CANNOT_SEND_FILE:
                raise
            return _copy(connection, file, offset, count)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None
    if not sent:
        raise CutShort
    return sent


def _copy(connection: socket.socket, file: int, offset: int, count: int) -> int:
    block = os.pread(file, min(count, _COPIED_BYTES), offset)
    if not block:
        raise CutShort
    return connection.send(block)


def _is_cached(file: ServedFile, position: int) -> bool | None:
    """Whether a byte is in the page cache; None where nothing tells."""
    no_wait = getattr(os, "RWF_NOWAIT", None)
    if no_wait is None:
        return None
    try:
        os.preadv(file.fileno(), [bytearray(1)], position, no_wait)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
