"""Incremental decompression: the plain bytes of a stream, whatever it is compressed with."""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from artifacts.decompress_program import ProgramDecompressed, program_for
from artifacts.errors import ArchiveError
from artifacts.read_ahead import ReadAhead

try:
    # Some three times as fast; there are no builds of it for every processor.
    from isal import isal_zlib
except ImportError:
    import zlib as isal_zlib  # type: ignore[no-redef]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 2**20
READ_AHEAD_BYTES = BLOCK_BYTES // 4
MAX_XZ_MEMORY_BYTES = 2**28  # xz -9 needs a quarter of it
MAX_ZSTD_WINDOW_LOG = 27  # what zstd(1) unpacks unless it is told otherwise


class Decompressor(Protocol):
    """What bz2 and lzma call their decompressors' methods; one decompressor reads one member."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Inflate:
    def __init__(self, wbits: int) -> None:
        self._inflate = isal_zlib.decompressobj(wbits=wbits)
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


def open_deflate() -> Decompressor:
    """Return what decompresses bare deflate, without a header of gzip's or zlib's."""
    return _Inflate(-zlib.MAX_WBITS)


def open_gzip() -> Decompressor:
    """Return what decompresses one member of gzip."""
    return _Inflate(16 + zlib.MAX_WBITS)


def _xz_decompressor() -> Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY_BYTES)


def open_zstd() -> Decompressor:
    """Return what decompresses one frame of zstd."""
    parameter = zstd.DecompressionParameter.window_log_max
    return zstd.ZstdDecompressor(options={parameter: MAX_ZSTD_WINDOW_LOG})


@dataclass(frozen=True)
class _Compression:
    name: str
    magics: tuple[bytes, ...]  # any of which a member begins with
    open: Callable[[], Decompressor]


_COMPRESSIONS = (
    _Compression("gz", (b"\x1f\x8b\x08",), open_gzip),
    _Compression("bz2", (b"BZh",), bz2.BZ2Decompressor),
    _Compression("xz", (b"\xfd7zXZ\x00",), _xz_decompressor),
    # A frame may be one to be skipped (RFC 8878, section 3.1.2); parallel zstd begins with such.
    _Compression(
        "zst",
        (b"\x28\xb5\x2f\xfd", *(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))),
        open_zstd,
    ),
)
MAGIC_BYTES = max(len(magic) for compression in _COMPRESSIONS for magic in compression.magics)
# What decompressors raise on bad data; bz2's is OSError.
DECOMPRESSION_ERRORS = (
    zlib.error,
    cast(type[Exception], isal_zlib.error),
    lzma.LZMAError,
    zstd.ZstdError,
    OSError,
)


@contextmanager
def decompressed(reader: io.RawIOBase | io.BufferedIOBase) -> Iterator[io.RawIOBase]:
    """Lend the plain bytes of a stream that is compressed, in one or more members, or not at all.

    Which it is is told by the first bytes: gz, bz2, xz or zst. What is compressed is unpacked on
    other threads, some MiB ahead of who reads. Reading raises ArchiveError for data that is damaged
    or cut off, and what ``reader`` raises unchanged.

    Args:
        reader: blocking, read from where it stands, and not closed. What it reads is waited for
            in the end.
    """
    head, whole = peek(reader, MAGIC_BYTES)
    compression = _compression_of(head)
    if compression is None:
        yield whole
    elif command := program_for(compression.name):
        with ProgramDecompressed(command, whole) as plain:
            yield plain
    else:
        with ReadAhead(_Decompressed(whole, compression)) as ahead:
            yield ahead


def is_compressed(head: bytes) -> bool:
    """Whether a stream that begins with ``head``, MAGIC_BYTES long, is compressed."""
    return _compression_of(head) is not None


def _compression_of(head: bytes) -> _Compression | None:
    return next((c for c in _COMPRESSIONS if head.startswith(c.magics)), None)


def peek(reader: io.RawIOBase | io.BufferedIOBase, count: int) -> tuple[bytes, io.RawIOBase]:
    """Return the first ``count`` bytes, or what there is of them; and all, to be read once."""
    head = b""
    while len(head) < count and (more := reader.read(count - len(head))):
        head += more
    return head, _Rejoined(head, reader)


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, reader: io.RawIOBase | io.BufferedIOBase) -> None:
        self._head = head
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._head:
            return self._reader.readinto(buffer) or 0
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._head))
        target[:count], self._head = self._head[:count], self._head[count:]
        return count


class _Decompressed(io.RawIOBase):
    """The plain bytes of a compressed stream.

    A block at most is taken and given at a time, so that a bomb costs no memory.
    """

    def __init__(self, reader: io.RawIOBase, compression: _Compression) -> None:
        self._reader = reader
        self._compression = compression
        self._input = b""  # read ahead and not used yet
        self._decompressor: Decompressor | None = compression.open()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        output = self._decompress(min(len(target), BLOCK_BYTES))
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
            except DECOMPRESSION_ERRORS as error:
                raise ArchiveError(f"the archive is damaged: {error}") from error
            if output:
                return output
        return b""

    def _open_next_member(self, unused: bytes) -> None:
        # Zeros may pad the members; what else is not another member is ignored, as gzip(1) does.
        self._input = unused.lstrip(b"\0")
        while len(self._input) < MAGIC_BYTES and (more := self._read_input()):
            self._input = (self._input + more).lstrip(b"\0")
        has_more = self._input.startswith(self._compression.magics)
        self._decompressor = self._compression.open() if has_more else None
