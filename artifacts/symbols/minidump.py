"""Minidumps: which modules a crashed process had loaded, and giving them names of our own.

The layout is that of Breakpad's ``minidump_format.h``, which follows Microsoft's. A minidump comes
from a crashed device, or from whoever calls itself one: nothing in it is taken for true, and what
cannot be read is left to the stack walker to refuse.

The stack walker makes paths of the names in a dump, and tells modules apart by them. So a dump is
given new names, which are made of debug ids, before it is walked; what the walker says of them is
turned back afterwards (`ModuleNames`).
"""

from __future__ import annotations

import mmap
import re
import struct
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.errors import BadRequest
from artifacts.symbols.debug_ids import parse_debug_id

_SIGNATURE = b"MDMP"
_HEADER_BYTES = 32
_STREAM_BYTES = 12
_MODULE_LIST_STREAM = 4
_MODULE_BYTES = 108
# Within a module: where its name is, and size and place of its CodeView and miscellaneous records.
_NAME_OFFSET = 20
_CODEVIEW_OFFSET = 76
_MISC_OFFSET = 84
# Kinds of CodeView records; the first has a GUID, an age and the name of the debug file.
_PDB70, _ELF_BUILD_ID = b"RSDS", b"LEpB"
_PDB70_HEAD_BYTES = 24
# As many as Breakpad's stack walker reads.
_MAX_STREAMS = 128
_MAX_MODULES = 2048
_MAX_NAME_BYTES = 2048
_MAX_CODEVIEW_BYTES = 32768
# What follows "module-" is the debug id in Breakpad's spelling, with a number if modules of other
# names have it, too; or a number where there is none.
_TOKEN = re.compile(r"module-(?:[0-9A-F]{32}[0-9a-f]{1,8}(?:-[0-9]+)?|without-id-[0-9]+)")
# C0 but for line ends and tabs, DEL, and C1: what terminals obey.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}, " ")


@dataclass(frozen=True)
class DumpModule:
    """A program or library that was loaded.

    Attributes:
        name: of its file, without directories; for people, who are shown it as it is here.
        debug_name: of its debug file, likewise.
        identifier: Breakpad's spelling of its debug id; None where it has none.
        token: the name that the stack walker sees.
    """

    name: str
    debug_name: str
    identifier: str | None
    token: str

    @property
    def debug_id(self) -> str | None:
        return None if self.identifier is None else parse_debug_id(self.identifier)


def rename_modules(path: Path) -> ModuleNames:
    """Give the modules of a minidump, a file of our own, names that are safe as names of files.

    Where the modules cannot be read, none are returned, and the file is as it was.

    Raises:
        BadRequest: it is no minidump at all, or parts of it lie over each other.
        OSError: the file cannot be read, or extended.
    """
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        if size < _HEADER_BYTES:
            raise BadRequest(f"not a minidump: it has {size} bytes")
        added = bytearray()
        with mmap.mmap(file.fileno(), 0) as dump:
            order = _byte_order(dump)
            places = list(_module_places(dump, order))
            modules = _with_tokens([_read_module(dump, order, at) for at in places])
            renamed = [
                _rename(dump, order, at, module.token, size, added)
                for at, module in zip(places, modules, strict=True)
            ]
            # What was changed may have been part of something else, as of another list of modules.
            if places != list(_module_places(dump, order)) or renamed != [
                dump[at : at + _MODULE_BYTES] for at in places
            ]:
                raise BadRequest("not a minidump that can be read: its parts lie over each other")
        file.write(added)
    return ModuleNames(modules)


class ModuleNames:
    """The modules of a dump, and their names in what the stack walker has printed."""

    def __init__(self, modules: Sequence[DumpModule]) -> None:
        self.modules = modules
        self._by_token: dict[str, DumpModule] = {}
        for module in modules:
            self._by_token.setdefault(module.token, module)

    def name_of(self, token: str) -> str:
        """Return the name of a module that the walker calls ``token``, or that itself."""
        module = self._by_token.get(token)
        return token if module is None else module.name

    def debug_name_of(self, token: str) -> str:
        module = self._by_token.get(token)
        return token if module is None else module.debug_name

    def restored(self, text: str) -> str:
        """Return what the walker has printed for people, with the names of the dump.

        What terminals obey is left out: versions of systems and functions may have it, too.
        """
        named = re.sub(
            rf"(WARNING: (?:No|Corrupt) symbols, )({_TOKEN.pattern})",
            lambda match: match[1] + self.debug_name_of(match[2]),
            text,
        )
        return _TOKEN.sub(lambda match: self.name_of(match[0]), named).translate(_CONTROLS)


def _byte_order(dump: mmap.mmap) -> str:
    signature = dump[:4]
    if signature == _SIGNATURE:
        return "<"
    if signature == _SIGNATURE[::-1]:
        return ">"
    raise BadRequest("not a minidump: it does not begin with MDMP")


def _module_places(dump: mmap.mmap, order: str) -> Iterator[int]:
    """Yield where the modules are described, of all lists of modules: there should be one."""
    streams, at = struct.unpack_from(f"{order}II", dump, 8)
    for number in range(min(streams, _MAX_STREAMS)):
        entry = at + number * _STREAM_BYTES
        if entry + _STREAM_BYTES > len(dump):
            return
        kind, size, place = struct.unpack_from(f"{order}III", dump, entry)
        if kind == _MODULE_LIST_STREAM:
            yield from _modules_of_stream(dump, order, place, size)


def _modules_of_stream(dump: mmap.mmap, order: str, place: int, size: int) -> Iterator[int]:
    if size < 4 or place + 4 > len(dump):
        return
    (count,) = struct.unpack_from(f"{order}I", dump, place)
    # Some writers align what follows to 8 bytes.
    padding = 4 if size == 4 + 4 + count * _MODULE_BYTES else 0
    first = place + 4 + padding
    if count <= _MAX_MODULES and first + count * _MODULE_BYTES <= len(dump):
        for number in range(count):
            yield first + number * _MODULE_BYTES


def _with_tokens(modules: Sequence[DumpModule]) -> list[DumpModule]:
    """Return the modules with their tokens: the same for those of the same name and id."""
    tokens: dict[tuple[str | None, str], str] = {}
    taken: set[str] = set()
    for number, module in enumerate(modules):
        key = (module.identifier, module.name)
        if key not in tokens:
            token = f"module-{module.identifier or f'without-id-{number}'}"
            tokens[key] = f"{token}-{number}" if token in taken else token
            taken.add(tokens[key])
    return [replace(module, token=tokens[module.identifier, module.name]) for module in modules]


def _read_module(dump: mmap.mmap, order: str, at: int) -> DumpModule:
    """Return a module that has no token yet."""
    (name_at,) = struct.unpack_from(f"{order}I", dump, at + _NAME_OFFSET)
    name = _file_name(_read_string(dump, order, name_at))
    identifier, debug_name = _read_codeview(_codeview_record(dump, order, at), order)
    return DumpModule(name, name if debug_name is None else debug_name, identifier, token="")


def _codeview_record(dump: mmap.mmap, order: str, at: int) -> bytes:
    """Return the CodeView record of a module; b"" where it has none that may be read."""
    size, place = struct.unpack_from(f"{order}II", dump, at + _CODEVIEW_OFFSET)
    return dump[place : place + size] if size <= _MAX_CODEVIEW_BYTES else b""


def _read_codeview(record: bytes, order: str) -> tuple[str | None, str | None]:
    """Return the identifier that a CodeView record has, and the name of the debug file.

    Breakpad makes the identifier of a build id without looking at the order of its bytes.
    """
    kind = record[:4] if order == "<" else record[3::-1]
    if kind == _PDB70 and len(record) > _PDB70_HEAD_BYTES:
        (age,) = struct.unpack_from(f"{order}I", record, 20)
        name = record[_PDB70_HEAD_BYTES:].partition(b"\0")[0].decode("utf-8", "replace")
        return _identifier(record[4:20], order, age), _file_name(name)
    if kind == _ELF_BUILD_ID and len(record) > 4:
        return _identifier(record[4:20].ljust(16, b"\0"), "<", 0), None
    return None, None


def _identifier(guid: bytes, order: str, age: int) -> str:
    first, second, third = struct.unpack_from(f"{order}IHH", guid)
    return f"{first:08X}{second:04X}{third:04X}{guid[8:].hex().upper()}{age:x}"


def _read_string(dump: mmap.mmap, order: str, at: int) -> str:
    """Return a string of UTF-16 that says how many bytes it has; "" where there is none."""
    if at + 4 > len(dump):
        return ""
    (size,) = struct.unpack_from(f"{order}I", dump, at)
    encoding = "utf-16-le" if order == "<" else "utf-16-be"
    return dump[at + 4 : at + 4 + min(size, _MAX_NAME_BYTES)].decode(encoding, "replace")


def _file_name(path: str) -> str:
    """Return what follows the last separator of any system, without what terminals obey."""
    name = re.split(r"[/\\]", path)[-1]
    return "".join(" " if unicodedata.category(c)[0] == "C" else c for c in name)


def _rename(dump: mmap.mmap, order: str, at: int, token: str, size: int, added: bytearray) -> bytes:
    """Have a module be called ``token``; what that takes is to follow the dump's ``size`` bytes.

    Returns what describes the module now. Its debug file is called likewise; what is not understood
    of that is taken away.
    """
    encoded = token.encode("utf-16-le" if order == "<" else "utf-16-be")
    struct.pack_into(f"{order}I", dump, at + _NAME_OFFSET, size + len(added))
    added += struct.pack(f"{order}I", len(encoded)) + encoded + b"\0\0"
    record = _codeview_record(dump, order, at)
    kind = record[:4] if order == "<" else record[3::-1]
    if kind == _PDB70 and len(record) > _PDB70_HEAD_BYTES:
        renamed = record[:_PDB70_HEAD_BYTES] + token.encode("ascii") + b"\0"
        struct.pack_into(f"{order}II", dump, at + _CODEVIEW_OFFSET, len(renamed), size + len(added))
        added += renamed
    elif kind != _ELF_BUILD_ID:
        struct.pack_into(f"{order}II", dump, at + _CODEVIEW_OFFSET, 0, 0)
        # The miscellaneous record, which may have a name as well.
        struct.pack_into(f"{order}II", dump, at + _MISC_OFFSET, 0, 0)
    return dump[at : at + _MODULE_BYTES]
