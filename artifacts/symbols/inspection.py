"""Inspecting debug files, in a process of their own that may crash, or be ended when it hangs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.blobs.assembly import Refused
from artifacts.errors import DevserverError
from artifacts.symbols.worker_process import ProcessFailed, WorkerProcess
from artifacts.timers import Timers

_SECONDS_A_FILE = 60
# Files are mapped, and may have two GiB.
_ADDRESS_SPACE_BYTES = 4 << 30
_IDLE_SECONDS = 60.0
_MAX_CODE_ID_CHARACTERS = 255
_NO_DEBUG_ID = "00000000-0000-0000-0000-000000000000"


class InspectionFailed(DevserverError):
    """The process that looked at a file ended, or was ended; the next file gets another one."""

    code = "inspection_failed"


@dataclass(frozen=True)
class DebugObject:
    """What a debug file has for one architecture.

    Attributes:
        debug_id: in lower case, as in 8fd7dd32-7311-a6f8-bad5-0bd4bd2d4843, with -AGE at its end
            where it has one.
        code_id: in lower case; None where there is none.
        format: elf, macho, pe, pdb, breakpad, sourcebundle, …
        kind: exe, lib, dump, dbg, src, rel, other or none.
        features: out of symtab, debug, unwind and sources.
    """

    debug_id: str
    code_id: str | None
    format: str
    kind: str
    architecture: str
    features: tuple[str, ...]


class Inspector:
    """Tells what is in debug files, one at a time."""

    def __init__(
        self,
        timers: Timers,
        *,
        seconds_a_file: int = _SECONDS_A_FILE,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._process = WorkerProcess(
            "inspect",
            timers,
            seconds_a_question=seconds_a_file,
            address_space_bytes=_ADDRESS_SPACE_BYTES,
            idle_seconds=idle_seconds,
        )

    def inspect(self, path: Path) -> tuple[DebugObject, ...]:
        """Return what is in a file, at least one object.

        Raises:
            Refused: it is no debug file.
            InspectionFailed: it could not be looked at; another try may be of use.
            Busy: the server is shutting down.
        """
        try:
            answer = self._process.ask({"path": str(path)})
        except ProcessFailed as error:
            raise InspectionFailed(f"the file could not be inspected: {error.message}") from error
        return _objects_of(answer)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.close()


def _objects_of(answer: dict[str, Any]) -> tuple[DebugObject, ...]:
    if "refusal" in answer:
        raise Refused(f"not a debug file: {answer['refusal']}")
    found = []
    for entry in answer["objects"]:
        code_id = entry["code_id"]
        # It is the file's own text, of any length; one that is cut would be another one.
        is_usable = code_id is not None and len(code_id) <= _MAX_CODE_ID_CHARACTERS
        if entry["debug_id"] != _NO_DEBUG_ID:
            found.append(
                DebugObject(
                    entry["debug_id"],
                    code_id if is_usable else None,
                    entry["format"],
                    entry["kind"],
                    entry["architecture"],
                    tuple(entry["features"]),
                )
            )
    if not found:
        raise Refused("not a debug file: nothing in it has a debug id")
    return tuple(found)
