"""Debug files put together by hand, as small as their formats allow."""

from __future__ import annotations

import struct
import uuid

X86_64, ARM64 = (0x01000007, 3), (0x0100000C, 0)
_MH_DSYM = 10
_LC_UUID = 0x1B


def macho(identity: uuid.UUID, cpu: tuple[int, int] = X86_64) -> bytes:
    """A Mach-O file of debug information, of which there is none."""
    command = struct.pack("<II", _LC_UUID, 24) + identity.bytes
    header = struct.pack("<8I", 0xFEEDFACF, *cpu, _MH_DSYM, 1, len(command), 0, 0)
    return header + command


def fat_macho(objects: list[tuple[tuple[int, int], bytes]]) -> bytes:
    """A Mach-O file for several processors."""
    head = struct.pack(">II", 0xCAFEBABE, len(objects))
    offset = 4096
    body = b""
    for cpu, content in objects:
        head += struct.pack(">5I", *cpu, offset + len(body), len(content), 12)
        body += content.ljust(4096, b"\0")
    return head.ljust(offset, b"\0") + body


def pe(
    identity: uuid.UUID, age: int, timestamp: int = 0x5AB38077, image_size: int = 0x3000
) -> bytes:
    """A DLL of 64 bits that names its PDB."""
    section_rva, section_offset, section_size = 0x1000, 0x400, 0x200
    codeview = b"RSDS" + identity.bytes_le + struct.pack("<I", age) + b"crash_lab.pdb\0"
    codeview_at = 28
    directory = struct.pack(
        "<IIHHIIII",
        *(0, timestamp, 0, 0, 2, len(codeview)),
        *(section_rva + codeview_at, section_offset + codeview_at),
    )
    section = (directory + codeview).ljust(section_size, b"\0")
    directories = [(0, 0)] * 16
    directories[6] = (section_rva, len(directory))
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        *(0x20B, 14, 0, 0, section_size, 0, 0, section_rva),
        *(0x180000000, 0x1000, 0x200, 6, 0, 0, 0, 6, 0, 0),
        *(image_size, 0x400, 0, 2, 0, 0x100000, 0x1000, 0x100000, 0x1000, 0, 16),
    ) + b"".join(struct.pack("<II", *entry) for entry in directories)
    coff = struct.pack("<HHIIIHH", 0x8664, 1, timestamp, 0, 0, len(optional), 0x2022)
    header = struct.pack(
        "<8sIIIIIIHHI",
        b".rdata",
        *(section_size, section_rva, section_size, section_offset, 0, 0, 0, 0, 0x40000040),
    )
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    return (dos + b"PE\0\0" + coff + optional + header).ljust(section_offset, b"\0") + section


def breakpad(debug_id: str, name: str = "thing", lines: str = "") -> bytes:
    """Breakpad symbols; ``debug_id`` is Breakpad's, of 33 digits."""
    return f"MODULE Linux x86_64 {debug_id} {name}\n{lines}PUBLIC 1000 0 main\n".encode()
