"""Incremental decompression: the plain bytes of a stream, whatever it is compressed with."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from artifacts.errors import ArchiveError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 2**20
READ_AHEAD_BYTES = BLOCK_BYTES // 4
MAX_XZ_MEMORY_BYTES = 2**28  # xz -9 needs a quarter of it


class _Decompressor(Protocol):
    """What bz2 and lzma call their decompressors' methods; one decompressor reads one member."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _GzipDecompressor:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        output = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        # zlib may hold back more behind a full output even after it has taken all input.
        self.needs_input = len(output) < max_length and not self._inflate.unconsumed_tail
        return output


_DECOMPRESSORS: dict[bytes, Callable[[], _Decompressor]] = {
    b"\x1f\x8b\x08": _GzipDecompressor,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY_BYTES),
}
_MAGIC_BYTES = max(map(len, _DECOMPRESSORS))


class Decompressed(io.RawIOBase):
    """The plain bytes of a stream that is compressed, in one or more members, or not at all.

    It is told by the first bytes: gz, bz2 or xz. A block at most is taken and given at a time, so
    that a bomb costs no memory. Reading raises ArchiveError for data that is damaged or cut off,
    and what the stream raises unchanged.
    """

    def __init__(self, reader: io.RawIOBase | io.BufferedIOBase) -> None:
        """``reader`` is blocking, read from where it stands, and not closed."""
        self._reader = reader
        self._input = b""  # read ahead and not used yet
        while len(self._input) < _MAGIC_BYTES and (more := self._read_input()):
            self._input += more
        self._magic = next((m for m in _DECOMPRESSORS if self._input.startswith(m)), b"")
        self._decompressor = _DECOMPRESSORS[self._magic]() if self._magic else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        if self._magic:
            output = self._decompress(min(len(target), BLOCK_BYTES))
        elif self._input:
            output, self._input = self._input[: len(target)], self._input[len(target) :]
        else:
            return self._reader.readinto(target) or 0
        target[: len(output)] = output
        return len(output)

    def _read_input(self) -> bytes:
        return self._reader.read(READ_AHEAD_BYTES) or b""

    def _decompress(self, max_bytes: int) -> bytes:
        while self._decompressor is not None:
            if self._decompressor.eof:
                self._open_next_member(self._decompressor.unused_data)
                continue
            data = b""
            if self._decompressor.needs_input:
                data, self._input = self._input or self._read_input(), b""
                if not data:
                    raise ArchiveError("the archive ends early: its compressed data is cut off")
            try:
                output = self._decompressor.decompress(data, max_bytes)
            except (zlib.error, lzma.LZMAError, OSError) as error:  # OSError: bz2's bad data
                raise ArchiveError(f"the archive is damaged: {error}") from error
            if output:
                return output
        return b""

    def _open_next_member(self, unused: bytes) -> None:
        # Zeros may pad the members; what else is not another member is ignored, as gzip(1) does.
        self._input = unused.lstrip(b"\0")
        while len(self._input) < _MAGIC_BYTES and (more := self._read_input()):
            self._input = (self._input + more).lstrip(b"\0")
        more_members = self._input.startswith(self._magic)
        self._decompressor = _DECOMPRESSORS[self._magic]() if more_members else None
