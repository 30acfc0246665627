"""The dump of crash_lab, walked without a server, and dumps that are put together by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assemble_client import crash_lab
from breakpad_programs import stack_walker

from artifacts.symbols.limited_programs import LimitedPrograms
from artifacts.symbols.minidump import ModuleNames, rename_modules
from artifacts.symbols.stack_walk import StackWalk
from artifacts.symbols.stack_walker import StackWalker

IDENTIFIER = "8FD7DD327311A6F8BAD50BD4BD2D48430"
DEBUG_ID = "8fd7dd32-7311-a6f8-bad5-0bd4bd2d4843"
MODULE_BYTES = 108
MODULE_LIST_STREAM, EXCEPTION_STREAM = 4, 6
HEADER_BYTES = 32


def stream_entry(dump: bytes, kind: int) -> int:
    """Return where the directory of a little-endian dump has a stream."""
    streams, at = struct.unpack_from("<II", dump, 8)
    for entry in range(at, at + 12 * streams, 12):
        if struct.unpack_from("<I", dump, entry) == (kind,):
            return entry
    raise LookupError(kind)


def module_list(dump: bytes) -> int:
    """Return where the module list of a little-endian dump is."""
    (place,) = struct.unpack_from("<I", dump, stream_entry(dump, MODULE_LIST_STREAM) + 8)
    return int(place)


def patched(dump: bytes, at: int, *numbers: int) -> bytes:
    """Return a dump with 32 bits each written over, in little-endian order."""
    changed = bytearray(dump)
    struct.pack_into(f"<{len(numbers)}I", changed, at, *numbers)
    return bytes(changed)


@dataclass(frozen=True)
class MadeModule:
    """A module of a dump that is made: its name, and its CodeView record."""

    name: str
    codeview: bytes = b""
    base: int = 0x10000


def made_dump(modules: Sequence[MadeModule], *, order: str = "<", padding: int = 0) -> bytes:
    """Return a dump that has nothing but modules; ``order`` is that of ``struct``."""
    place = HEADER_BYTES + 12
    size = 4 + padding + MODULE_BYTES * len(modules)
    head = struct.pack(f"{order}6IQ", 0x504D444D, 0xA793, 1, HEADER_BYTES, 0, 0, 0)
    head += struct.pack(f"{order}III", MODULE_LIST_STREAM, size, place)
    entries = struct.pack(f"{order}I", len(modules)) + bytes(padding)
    rest = b""
    for module in modules:
        name = module.name.encode("utf-16-le" if order == "<" else "utf-16-be", "surrogatepass")
        name_at = place + size + len(rest)
        rest += struct.pack(f"{order}I", len(name)) + name + b"\0\0"
        codeview_at = place + size + len(rest)
        rest += module.codeview
        entries += struct.pack(f"{order}QIIII", module.base, 0x1000, 0, 0, name_at) + bytes(52)
        entries += struct.pack(f"{order}II", len(module.codeview), codeview_at) + bytes(24)
    return head + entries + rest


def codeview(kind: int, rest: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}I", kind) + rest


def pdb70(guid: bytes, age: int, name: bytes, order: str = "<") -> bytes:
    """Return a CodeView record of a PDB; ``guid`` as it stands in the dump."""
    return codeview(0x53445352, guid + struct.pack(f"{order}I", age) + name, order)


def build_id(identity: bytes, order: str = "<") -> bytes:
    """Return a CodeView record of an ELF file."""
    return codeview(0x4270454C, identity, order)


class DumpOnDisk:
    """A dump in a directory of its own, with its modules renamed, and symbols beside it."""

    def __init__(self, directory: Path, content: bytes | None = None) -> None:
        """``content``: of the dump; that of crash_lab's crash if None."""
        directory.mkdir(parents=True)
        self.path = directory / "minidump"
        self.symbols = directory / "symbols"
        self.symbols.mkdir()
        self.path.write_bytes(crash_lab("crash_lab.dmp") if content is None else content)
        self.names: ModuleNames = rename_modules(self.path)
        self.with_symbols: set[str] = set()

    def add_symbols(self, content: bytes, number: int = 0) -> None:
        """Give symbols to a module, the program itself if nothing else is said."""
        module = self.names.modules[number]
        assert module.identifier is not None
        place = self.symbols / module.token / module.identifier
        place.mkdir(parents=True)
        (place / f"{module.token}.sym").write_bytes(content)
        self.with_symbols.add(module.token)

    def walked(self) -> StackWalk:
        """Have the real walker walk it, for people and for machines."""
        walker = StackWalker(LimitedPrograms(), Path(stack_walker()), 60)
        text = walker.walk(self.path, self.symbols)
        printed = walker.walk(self.path, self.symbols, for_machines=True)
        return StackWalk(printed, text, self.names, frozenset(self.with_symbols))
