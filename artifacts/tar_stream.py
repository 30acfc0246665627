"""Reading a tar archive forward, with strict headers.

tarfile parses the headers, and nothing else: it gets at them through TarStream, which bounds what
those of one member may take, and says where the archive ends early. A bad header is an error here,
and not the archive's end, as tarfile would have it.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from typing import IO, cast

from artifacts.decompress import BLOCK_BYTES, READ_AHEAD_BYTES
from artifacts.errors import ArchiveError

MAX_HEADER_BYTES = 2**20  # of one member: its long name, its pax records, its sparse map
MAX_NESTED_HEADERS = 32  # of one member; honest ones have up to five
MAX_GLOBAL_HEADER_BYTES = 2**14  # of all global pax headers; every member is shown all of them

_PAX_TYPES = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_PAX_RECORD = re.compile(rb"([0-9]{1,8}) [^=\n]+=")
_MANY_DIGITS = re.compile(rb"(?<![0-9])[0-9]{256}")


class TarMember(tarfile.TarInfo):
    """A member as its headers describe it, none of which is to be trusted.

    Attributes:
        header_bytes: how many bytes its headers take.
        stored_bytes: how many bytes the archive has of it behind them, padding included.
    """

    header_bytes = 0
    stored_bytes = 0

    def __str__(self) -> str:
        return f"the archive's member {self.name!r:.200}"

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> TarMember:
        stream = cast(TarStream, archive.fileobj)
        start = stream.position
        stream.nested_headers += 1
        if stream.nested_headers > MAX_NESTED_HEADERS:
            raise _damaged(start, f"a member has over {MAX_NESTED_HEADERS} headers")
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except (tarfile.HeaderError, ValueError, IndexError) as error:
            if error is stream.failure:
                raise
            if start == 0 and isinstance(error, tarfile.InvalidHeaderError):  # type: ignore[attr-defined]
                raise _no_archive() from error
            raise _damaged(start, str(error)) from error
        finally:
            stream.nested_headers -= 1

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # All versions of tarfile come through here between a header and what belongs to it.
        if self.size < 0:
            raise ValueError("a negative size")
        if self.type in _PAX_TYPES:
            stream = cast(TarStream, archive.fileobj)
            stream.check_pax_records(self.size, are_global=self.type == tarfile.XGLTYPE)
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


class TarStream:
    """An uncompressed archive: tarfile gets its headers by ``read``, we the rest by ``take``.

    What is skipped is not read where ``plain`` can seek.
    """

    def __init__(self, plain: io.RawIOBase, read_ahead_bytes: int = READ_AHEAD_BYTES) -> None:
        """``plain`` is read from where it stands, which is where positions count from."""
        self.failure: Exception | None = None  # of reading, not of parsing what was read
        self.position = 0
        self.nested_headers = 0  # tarfile reads those of one member one inside the other
        self._end = _bytes_left(plain) if plain.seekable() else None
        self._buffered = io.BufferedReader(plain, read_ahead_bytes)
        self._global_header_bytes = 0
        self._header_bytes = 0
        self._given_back = b""

    def members(self) -> Iterator[TarMember]:
        """Yield the members in order; what is not taken of one's bytes is skipped.

        A member's ``offset`` is where its headers begin, ``offset_data`` where its bytes do.

        Raises:
            ArchiveError: it is not a tar archive, ends early, or has a bad header.
        """
        with tarfile.TarFile(
            fileobj=cast(IO[bytes], self),
            tarinfo=TarMember,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive:
            while (member := cast(TarMember | None, archive.next())) is not None:
                archive.members.clear()  # type: ignore[attr-defined]
                member.header_bytes, self._header_bytes = self._header_bytes, 0
                member.stored_bytes = archive.offset - self.position
                if member.size < 0 or member.stored_bytes < 0:
                    raise ArchiveError(f"{member} is damaged: its size is negative")
                yield member
                self.seek(archive.offset)
        # Two blocks of zeros end an archive; some tars write one.
        start = self.position
        if self.take(tarfile.BLOCKSIZE).strip(b"\0"):
            raise _damaged(start, "after only one block of zeros there is more")

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, or what is left of them at the end."""
        data, self._given_back = self._given_back[:size], self._given_back[size:]
        if not data:
            try:
                data = self._buffered.read(size)
            except Exception as error:
                self.failure = error
                raise
        self.position += len(data)
        return data

    def take_exactly(self, size: int) -> Iterator[bytes]:
        """Yield the next ``size`` bytes in blocks; raise ArchiveError if there are fewer."""
        while size > 0:
            data = self.take(min(size, BLOCK_BYTES))
            if not data:
                raise self._ends_early()
            size -= len(data)
            yield data

    # --- what tarfile calls

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        """Skip forward to ``position``."""
        if self._end is None or self._given_back:
            for _ in self.take_exactly(position - self.position):
                pass
        elif position > self._end:
            raise ArchiveError(f"the archive ends early, after byte {self._end:,}")
        elif position > self.position:
            self._buffered.seek(position - self.position, os.SEEK_CUR)
            self.position = position

    def read(self, size: int) -> bytes:
        start = self.position
        self._header_bytes += size
        if size < 0 or self._header_bytes > MAX_HEADER_BYTES:
            raise _damaged(start, f"a member's headers take over {MAX_HEADER_BYTES:,} bytes")
        data = self.take(size)
        if len(data) < size:
            raise _no_archive() if start == 0 else self._ends_early()
        return data

    def check_pax_records(self, size: int, *, are_global: bool) -> None:
        """Check, before tarfile reads them, that ``size`` bytes of sound pax records follow."""
        start = self.position
        self._global_header_bytes += size if are_global else 0
        if self._global_header_bytes > MAX_GLOBAL_HEADER_BYTES:
            raise _damaged(start, f"global headers take over {MAX_GLOBAL_HEADER_BYTES:,} bytes")
        records = self.read(-(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        _check_pax_records(records, start)
        self._given_back = records
        self.position = start
        self._header_bytes -= len(records)

    def _ends_early(self) -> ArchiveError:
        return ArchiveError(f"the archive ends early, after byte {self.position:,}")


def _bytes_left(plain: io.RawIOBase) -> int:
    position = plain.tell()
    end = plain.seek(0, os.SEEK_END)
    plain.seek(position)
    return end - position


def _check_pax_records(data: bytes, start: int) -> None:
    # tarfile before 3.11.10 and 3.12.6 takes quadratic time and memory over records that overlap,
    # and over long runs of digits.
    position = 0
    while position < len(data) and data[position] != 0:
        match = _PAX_RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or match.end() >= end or data[end - 1 : end] != b"\n":
            break
        position = end
    else:
        if not _MANY_DIGITS.search(data):
            return
    raise _damaged(start + position, "a bad pax header")


def _no_archive() -> ArchiveError:
    return ArchiveError("neither a tar archive, compressed or not, nor a zip archive")


def _damaged(position: int, problem: str) -> ArchiveError:
    return ArchiveError(f"the archive is damaged at byte {position:,}: {problem}")
