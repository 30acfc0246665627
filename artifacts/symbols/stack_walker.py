"""Breakpad's stack walker: finding it, running it, and what its ways to end mean."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from artifacts.errors import BadRequest, DevserverError, one_line
from artifacts.symbols.limited_programs import Ended, LimitedPrograms, ProgramLimits

_log = logging.getLogger(__name__)

WALKER = "minidump_stackwalk"
# Symbols of a browser have a gigabyte, and take several times that in memory.
_ADDRESS_SPACE_BYTES = 16 << 30
# Hundreds of threads with long stacks print a mebibyte or two.
_MAX_PRINTED_BYTES = 8 << 20
# What its output for machines begins with.
_MACHINES_READ = b"OS|"


class WalkerMissing(DevserverError):
    status, code = 501, "walker_missing"


class WalkerFailed(DevserverError):
    status, code = 502, "walker_failed"


class StackWalker:
    """Walks the stacks of minidumps."""

    def __init__(self, programs: LimitedPrograms, path: Path | None, seconds_a_walk: float) -> None:
        """``path``: the walker's; None for the one that is found on PATH."""
        self._programs = programs
        self._path = path
        self._limits = ProgramLimits(seconds_a_walk, _ADDRESS_SPACE_BYTES, _MAX_PRINTED_BYTES)

    def walk(self, dump: Path, symbols: Path, *, for_machines: bool = False) -> str:
        """Return what the walker prints.

        Args:
            dump: the minidump.
            symbols: the directory that has NAME/IDENTIFIER/NAME.sym.
            for_machines: have it print fields between bars, instead of what people read.

        Raises:
            BadRequest: the walker does not take it for a minidump.
            WalkerMissing: it is not installed.
            WalkerFailed, CannotRun, TooMuchOutput: it died, or does not do what it should.
            TimedOut: it took too long.
            Busy: the server is shutting down.
        """
        options = ["-m"] if for_machines else []
        command = [self.find(), *options, str(dump), str(symbols)]
        ended = self._programs.run(command, self._limits, owner=dump)
        _check(ended)
        if for_machines and not ended.output.startswith(_MACHINES_READ):
            raise WalkerFailed(f"{command[0]} -m does not print what {WALKER} does")
        return ended.output.decode("utf-8", "replace")

    def give_up(self, dump: Path) -> None:
        """End the walks of a dump; they fail."""
        self._programs.end(dump)

    def find(self) -> str:
        """Return the walker's path; raise WalkerMissing, which says how to get it."""
        if self._path is not None:
            found = shutil.which(str(self._path.absolute()))
            where = f"at {self._path}, where --minidump-stackwalk says that it is"
        else:
            found = shutil.which(WALKER)
            where = "on PATH"
        if found is None:
            raise WalkerMissing(
                f"{WALKER}, which reads minidumps, is not {where}: install it with "
                "npm install --ignore-scripts minidump, and name the program in "
                "node_modules/minidump/bin/ with --minidump-stackwalk"
            )
        return found


def _check(ended: Ended) -> None:
    if ended.status == 0 and ended.output:
        return
    _log.info("%s ended with status %d: %s", WALKER, ended.status, one_line(ended.chatter[-1000:]))
    if ended.status < 0:
        raise WalkerFailed(f"{WALKER} died of signal {-ended.status} while it read the minidump")
    if ended.output:
        raise WalkerFailed(f"{WALKER} ended with status {ended.status} in the middle of its work")
    raise BadRequest(f"not a minidump that can be read: {WALKER} says nothing of it")
