"""Building symcaches, in processes of their own: one for each processor."""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

from artifacts.errors import Busy, DevserverError, storage_error
from artifacts.symbols.worker_process import ProcessFailed, WorkerProcess
from artifacts.timers import Timers

# Debug information of a gigabyte takes a minute or so.
_SECONDS_A_SYMCACHE = 300
_ADDRESS_SPACE_BYTES = 16 << 30
_IDLE_SECONDS = 60.0


class ConversionFailed(DevserverError):
    """There is no symcache of a debug file, because of what is in it."""

    status, code = 422, "conversion_failed"


class SymcacheBuilder:
    """Makes symcaches of debug files."""

    def __init__(self, timers: Timers, *, seconds_a_symcache: int = _SECONDS_A_SYMCACHE) -> None:
        self._seconds = seconds_a_symcache
        self._processes = [
            WorkerProcess(
                "convert",
                timers,
                seconds_a_question=seconds_a_symcache,
                address_space_bytes=_ADDRESS_SPACE_BYTES,
                idle_seconds=_IDLE_SECONDS,
            )
            for _ in range(os.cpu_count() or 1)
        ]
        # The one used last is the first to be used again: the others may end.
        self._free: queue.LifoQueue[WorkerProcess] = queue.LifoQueue()
        for process in self._processes:
            self._free.put(process)

    def version(self) -> int:
        """Return the version of the format that symcaches are built in.

        Raises as `build` does.
        """
        return int(self._ask({})["version"])

    def build(self, path: Path, debug_id: str, architecture: str | None, to: Path) -> None:
        """Write the symcache of one object of the debug file ``path`` to ``to``, durably.

        ``architecture``: the object's; None for the first one that has the debug id.

        Raises:
            ConversionFailed: the file has none, or the process that was at it ended.
            StorageError, InsufficientStorage: it cannot be written.
            Busy: others are built for too long, or the server is shutting down.
        """
        answer = self._ask(
            {
                "path": str(path),
                "debug_id": debug_id,
                "architecture": architecture,
                "to": str(to),
            }
        )
        if "refusal" in answer:
            raise ConversionFailed(str(answer["refusal"]))
        if "errno" in answer:
            number = answer["errno"]
            raise storage_error(OSError(number, os.strerror(number)), "a symcache")

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for process in self._processes:
            process.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            process = self._free.get(timeout=2 * self._seconds)
        except queue.Empty:
            raise Busy("symcaches are built more slowly than debug files come") from None
        try:
            return process.ask(question)
        except ProcessFailed as error:
            raise ConversionFailed(error.message) from error
        finally:
            self._free.put(process)
