"""Minidumps to send, builds that have their symbols, and what is to come of both."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import requests
from assemble_client import CRASH_LAB, crash_lab
from running_server import RunningServer

TARGET = "lamp-release"
IDENTIFIER = "8FD7DD327311A6F8BAD50BD4BD2D48430"
SOURCE = "/build/crash_lab/crash_lab.cpp"
# Function, line and trust of the frames of the crashed thread that are not noise.
FRAMES = [
    ("lab::poke(lab::Widget*, int)", 16, "given as instruction pointer in context"),
    ("lab::descend(lab::Widget*, int)", 23, "call frame info"),
    *[("lab::descend(lab::Widget*, int)", 25, "call frame info")] * 3,
    ("lab::run_job(char const*)", 31, "call frame info"),
    ("main", 39, "call frame info"),
]
_MODULE_LIST_STREAM, _SYSTEM_INFO_STREAM = 4, 7
TIMEOUT_SECONDS = 120


def dump() -> bytes:
    return crash_lab("crash_lab.dmp")


def expected_text() -> str:
    return (CRASH_LAB / "expected-symbols.txt").read_text(encoding="utf-8")


def send_dump(
    server: RunningServer, content: bytes, fields: dict[str, str] | None = None, **query: str
) -> requests.Response:
    """Send a minidump, with other fields of the form."""
    return requests.post(
        f"{server.url}/symbolicate_dump",
        params=query,
        files={"minidump": ("crash.dmp", content)},
        data=fields or {},
        timeout=TIMEOUT_SECONDS,
    )


def walked(server: RunningServer, content: bytes | None = None, **query: str) -> dict[str, Any]:
    """Return what becomes of a minidump, as JSON; the real one where none is given."""
    response = send_dump(server, dump() if content is None else content, format="json", **query)
    assert response.status_code == 200, f"{response.status_code}: {response.text}"
    assert response.headers["Content-Type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def frames(found: dict[str, Any]) -> list[tuple[str | None, int | None, str | None]]:
    """Return function, line and trust of as many frames as are expected of the crashed thread."""
    (crashed,) = [thread for thread in found["threads"] if thread["crashed"]]
    shown = crashed["frames"][: len(FRAMES)]
    return [(frame["function"], frame["line"], frame["trust"]) for frame in shown]


def is_symbolicated(found: dict[str, Any]) -> bool:
    return frames(found) == FRAMES


def kept_dumps(server: RunningServer) -> list[Path]:
    """Return what there is of dumps that were sent."""
    return list((server.directory / "data" / "dumps").iterdir())


def symbol_files(server: RunningServer) -> list[Path]:
    """Return the symbol files that were made of uploads."""
    return list((server.directory / "data" / "breakpad").iterdir())


def make_build(
    archive: Path, build: str, symbols: dict[str, bytes], name: str = "debug.tgz"
) -> str:
    """Make a build that has a payload, and debug symbols by path below debug/breakpad/.

    Returns its name.
    """
    directory = archive / TARGET / build
    directory.mkdir(parents=True)
    (directory / f"chromeos_{build}_lamp_full_dev.bin").write_bytes(b"payload")
    (directory / name).write_bytes(packed(symbols))
    return f"{TARGET}/{build}"


def packed(symbols: dict[str, bytes]) -> bytes:
    """Return a tar with symbols, and with what else is in such archives."""
    held = {f"debug/breakpad/{path}": content for path, content in symbols.items()}
    held["debug/sbin/init.debug"] = b"not for Breakpad"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, content in held.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def crash_lab_symbols() -> dict[str, bytes]:
    return {f"crash_lab/{IDENTIFIER}/crash_lab.sym": crash_lab("crash_lab.sym")}


def with_module_name(content: bytes, name: str) -> bytes:
    """Return a minidump whose first module has another name."""
    changed = bytearray(content)
    _, place = _stream(content, _MODULE_LIST_STREAM)
    encoded = name.encode("utf-16-le")
    # Behind the number of modules, where the first one says where its name is.
    struct.pack_into("<I", changed, place + 4 + 20, len(changed))
    return bytes(changed) + struct.pack("<I", len(encoded)) + encoded + b"\0\0"


def with_architecture(content: bytes, number: int) -> bytes:
    """Return a minidump that says to be of another processor."""
    changed = bytearray(content)
    _, place = _stream(content, _SYSTEM_INFO_STREAM)
    struct.pack_into("<H", changed, place, number)
    return bytes(changed)


def with_stream_size(content: bytes, kind: int, size: int) -> bytes:
    """Return a minidump that announces another size for a stream, and as many of what it holds."""
    changed = bytearray(content)
    entry, place = _stream(content, kind)
    struct.pack_into("<I", changed, entry + 4, size)
    struct.pack_into("<I", changed, place, size // 8)
    return bytes(changed)


def _stream(content: bytes, kind: int) -> tuple[int, int]:
    """Return where the directory's entry of a stream is, and where the stream."""
    count, directory = struct.unpack_from("<II", content, 8)
    for entry in range(directory, directory + count * 12, 12):
        found, _, place = struct.unpack_from("<III", content, entry)
        if found == kind:
            return entry, place
    raise AssertionError(f"there is no stream {kind}")
