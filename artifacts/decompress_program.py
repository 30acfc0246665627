"""Decompression by a program that uses all processors, where the machine has one."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Self, cast

from artifacts.errors import ArchiveError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK_BYTES = 2**18
_MAX_REASON_BYTES = 2**12
# By the name of the compression. bzip2 is the one that is too slow for one processor, and whose
# blocks can be told apart without unpacking them.
_PROGRAMS = {"bz2": ("lbzip2", "--decompress", "--stdout")}


def program_for(compression: str) -> Sequence[str] | None:
    """Return the command that decompresses standard input; None where there is none."""
    command = _PROGRAMS.get(compression)
    path = shutil.which(command[0]) if command else None
    return (path, *command[1:]) if command and path else None


class ProgramDecompressed(io.RawIOBase):
    """The plain bytes of a compressed stream, by way of a program; ends it when closed.

    Reading raises ArchiveError where the program finds the data damaged or cut off, and what the
    stream raises unchanged.
    """

    def __init__(self, command: Sequence[str], stream: io.RawIOBase) -> None:
        """``stream`` is blocking, and not closed; closing waits for the read under way."""
        self._stream = stream
        self._failure: BaseException | None = None
        # Not a pipe, which somebody would have to empty meanwhile.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (close does)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            bufsize=0,
            env={},
        )
        self._input, self._output = _pipe(self._process.stdin), _pipe(self._process.stdout)
        self._thread = threading.Thread(target=self._feed, name="decompress", daemon=True)
        self._thread.start()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = self._output.readinto(buffer) or 0
        if count == 0:
            self._check_end()
        return count

    def close(self) -> None:
        if not self.closed:
            self._process.kill()
            self._thread.join()
            self._process.wait()
            self._output.close()
            self._said.close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def _feed(self) -> None:
        try:
            with self._input:
                while block := self._stream.read(_BLOCK_BYTES):
                    _write(self._input, block)
        except BrokenPipeError:
            pass  # it has ended, and says why by its status
        except BaseException as error:
            self._failure = error

    def _check_end(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        status = self._process.wait()
        if status != 0:
            self._said.seek(0)
            reason = self._said.read(_MAX_REASON_BYTES).decode("utf-8", "replace")
            said = reason.strip() or f"status {status}"
            raise ArchiveError(f"the archive is damaged or ends early: {said}")


def _pipe(pipe: IO[bytes] | None) -> io.FileIO:
    assert pipe is not None
    return cast(io.FileIO, pipe)


def _write(pipe: io.FileIO, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[pipe.write(view) :]
