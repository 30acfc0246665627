"""A crash dump that was sent: a directory with the dump, and with the symbols to walk it with.

The symbols are links, in the places where Breakpad's stack walker looks for them. The names of
these are made of debug ids, as those in the dump are by then (`minidump`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from artifacts.errors import BadRequest, TooLarge, storage_error
from artifacts.serving.multipart import PartHead
from artifacts.space import RoomWatch
from artifacts.symbols.minidump import DumpModule, ModuleNames, rename_modules

# Of devices with all of their memory in it; others have some hundred KiB.
MAX_DUMP_BYTES = 256 << 20
_FIELD = "minidump"
_MAX_FIELD_BYTES = 8192
_OTHER_FIELDS = frozenset({"archive_url", "format", "wait"})


class CrashDump:
    """A dump, from when it begins to come; as a sink of `MultipartReader`, it takes a form in.

    Attributes:
        fields: what the form has besides the dump.
    """

    def __init__(
        self, directory: Path, check_room: Callable[[], None], removed: Callable[[], None]
    ) -> None:
        """Make a directory below ``directory``; ``removed`` is called when it has been removed.

        Raises:
            InsufficientStorage, DevserverError: it cannot be made.
        """
        self.fields: dict[str, str] = {}
        self._room = RoomWatch(check_room)
        self._removed = removed
        self._directory = directory / f"dump-{uuid.uuid4().hex}"
        self._dump = self._directory / "minidump"
        self._symbols = self._directory / "symbols"
        self._taking: str | None = None
        self._field = bytearray()
        self._bytes: int | None = None
        try:
            self._symbols.mkdir(parents=True)
            self._file = self._dump.open("xb")
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise storage_error(error, "a minidump") from error

    @property
    def path(self) -> Path:
        return self._dump

    @property
    def symbols(self) -> Path:
        return self._symbols

    def begin_part(self, head: PartHead) -> None:
        if head.name == _FIELD:
            if self._bytes is not None:
                raise BadRequest(f"the form has several fields {_FIELD}")
            self._bytes = 0
        elif head.name in self.fields:
            raise BadRequest(f"the form has several fields {head.name}")
        self._taking = head.name
        self._field.clear()

    def take(self, data: memoryview) -> None:
        if self._taking == _FIELD:
            assert self._bytes is not None
            self._bytes += len(data)
            self._room.note(len(data))
            if self._bytes > MAX_DUMP_BYTES:
                raise TooLarge(f"the minidump is larger than {MAX_DUMP_BYTES:,} bytes")
            try:
                self._file.write(data)
            except OSError as error:
                raise storage_error(error, "a minidump") from error
        elif self._taking in _OTHER_FIELDS:
            self._field += data
            if len(self._field) > _MAX_FIELD_BYTES:
                raise TooLarge(f"the field {self._taking} of the form is too long")

    def end_part(self) -> None:
        if self._taking in _OTHER_FIELDS:
            assert self._taking is not None
            self.fields[self._taking] = self._field.decode("utf-8", "replace")
        self._taking = None

    def end(self) -> None:
        """Note that the form has ended.

        Raises:
            BadRequest: there was no dump in it.
        """
        if self._bytes is None:
            raise BadRequest(f"missing argument: {_FIELD}, a file of the form")
        try:
            self._file.close()
        except OSError as error:
            raise storage_error(error, "a minidump") from error

    def modules(self) -> ModuleNames:
        """Return what was loaded, and have it be called by names of ours from now on.

        Raises:
            BadRequest: it is no minidump.
        """
        try:
            return rename_modules(self._dump)
        except OSError as error:
            raise storage_error(error, "a minidump") from error

    def add_symbols(self, modules: ModuleNames, paths: Mapping[str, Path]) -> frozenset[str]:
        """Put symbol files, by debug id, where the walker finds them; return whose they are.

        One that has been removed meanwhile is left out.
        """
        tokens: set[str] = set()
        for module in modules.modules:
            path = paths.get(module.debug_id) if module.debug_id else None
            if path is not None and module.token not in tokens and self._link(module, path):
                tokens.add(module.token)
        return frozenset(tokens)

    def _link(self, module: DumpModule, path: Path) -> bool:
        assert module.identifier is not None
        directory = self._symbols / module.token
        place = directory / module.identifier / f"{module.token}.sym"
        try:
            # Below one that is there: the dump may just have been removed.
            directory.mkdir()
            place.parent.mkdir()
            # A second name keeps the file for as long as it is read; not all file systems do.
            try:
                os.link(path, place)
            except FileNotFoundError:
                # Either the symbols are gone, or the dump is.
                return False
            except OSError:
                place.symlink_to(path)
        except OSError as error:
            raise storage_error(error, "the symbols of a minidump") from error
        return True

    def remove(self) -> None:
        """Remove all of it."""
        with contextlib.suppress(OSError):
            self._file.close()
        # Renamed first: who is just adding symbols must not find it any more.
        gone = self._directory.with_name(f"gone-{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            self._directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        self._removed()
