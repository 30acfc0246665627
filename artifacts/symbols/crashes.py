"""Crashes: from a minidump, and whatever symbols there are for it, to a stack walk."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from artifacts.archive_url import BuildName
from artifacts.errors import Busy, DevserverError
from artifacts.futures import Steps, all_ended
from artifacts.symbols.choice import WalkChoice, for_walking
from artifacts.symbols.crash_dump import CrashDump
from artifacts.symbols.debug_files import DebugFiles
from artifacts.symbols.minidump import ModuleNames
from artifacts.symbols.stack_walk import StackWalk
from artifacts.symbols.stack_walker import StackWalker
from artifacts.symbols.staged_symbols import StagedSymbols
from artifacts.symbols.symbol_files import SymbolFiles
from artifacts.workers import Workers

_log = logging.getLogger(__name__)
_Shape = TypeVar("_Shape")

# Dumps that are received, or wait for their turn. (A walk ends a moment after its dump has gone.)
_MAX_DUMPS = 256
_FINDERS = 4


@dataclass(frozen=True)
class WantedBuild:
    """A build whose symbols a dump is to be walked with, and what has them staged."""

    name: BuildName
    stage_symbols: Callable[[], Future[None]]


class Crashes:
    """Turns minidumps into stack walks, as many at a time as there are processors."""

    def __init__(
        self,
        walker: StackWalker,
        staged: StagedSymbols,
        debug_files: DebugFiles,
        symbol_files: SymbolFiles,
        directory: Path,
        check_room: Callable[[], None],
    ) -> None:
        """``directory``: for dumps; ``check_room`` raises InsufficientStorage if it is full."""
        self._walker = walker
        self._staged = staged
        self._debug_files = debug_files
        self._symbol_files = symbol_files
        self._directory = directory
        self._check_room = check_room
        self._room = threading.BoundedSemaphore(_MAX_DUMPS)
        self._finders = Workers("symbol-finder", _FINDERS)
        self._walkers = Workers("stack-walker", os.cpu_count() or 1)

    def receive(self) -> CrashDump:
        """Begin with a dump, which is to be walked, or removed, by whoever takes it in.

        Raises:
            Busy: there are too many already.
            InsufficientStorage, DevserverError: it cannot be written.
        """
        if not self._room.acquire(blocking=False):
            raise Busy("too many minidumps are being read; send it again")
        try:
            return CrashDump(self._directory, self._check_room, self._room.release)
        except BaseException:
            self._room.release()
            raise

    def walk(
        self,
        dump: CrashDump,
        wanted: WantedBuild | None,
        shape: Callable[[StackWalk], _Shape],
        *,
        in_full: bool,
    ) -> Steps[_Shape]:
        """Walk a dump that is there, and remove it in the end.

        Args:
            wanted: the build whose symbols are staged first.
            shape: makes of the walk what is returned, on a thread that has the time.
            in_full: whether what the walker prints for machines is wanted, too.

        Raises:
            DevserverError: as `StackWalker.walk`, and what staging fails with.
        """
        try:
            walked = yield from self._walked(dump, wanted, in_full)
            shaped: _Shape = yield self._walkers.call(shape, walked)
        except DevserverError:
            yield self._finders.call(CrashDump.remove, dump)
            raise
        except BaseException:
            # Whoever has waited for it is gone, and this is no place to take one's time.
            self.remove(dump)
            raise
        yield self._finders.call(CrashDump.remove, dump)
        return shaped

    def remove(self, dump: CrashDump) -> None:
        """Have a dump removed, by a thread that has the time."""
        try:
            self._finders.submit(dump.remove, urgent=False)
        except Busy:
            dump.remove()

    def close(self, timeout_seconds: float) -> None:
        self._finders.close(timeout_seconds)
        self._walkers.close(timeout_seconds)

    def _walked(
        self, dump: CrashDump, wanted: WantedBuild | None, in_full: bool
    ) -> Steps[StackWalk]:
        # Before anything else: what is no minidump, or cannot be walked here, costs nothing.
        modules = yield self._finders.call(CrashDump.modules, dump)
        self._walker.find()
        if wanted is not None:
            yield wanted.stage_symbols()
        name = None if wanted is None else wanted.name
        with_symbols = yield from self._provide(dump, modules, name)
        # Both at once, where there are processors for it: what takes long is to read the symbols.
        walks = [
            self._walkers.call(partial(self._walk, dump), for_machines)
            for for_machines in ((False, True) if in_full else (False,))
        ]
        try:
            yield all_ended(walks)
        except BaseException:
            # Nobody waits for them any more.
            for walk in walks:
                walk.cancel()
            self._walker.give_up(dump.path)
            raise
        text, printed = walks[0].result(), walks[-1].result() if in_full else ""
        return StackWalk(printed, text, modules, with_symbols)

    def _provide(
        self, dump: CrashDump, modules: ModuleNames, name: BuildName | None
    ) -> Steps[frozenset[str]]:
        """Put the symbols that there are beside the dump; return whose they are."""
        debug_ids = {m.debug_id for m in modules.modules if m.debug_id is not None}
        paths, choices = yield self._finders.call(partial(self._find, name), debug_ids)
        making = {}
        for debug_id, choice in choices.items():
            making[debug_id] = self._symbol_files.get(choice)
        yield all_ended(list(making.values()))
        for debug_id, made in making.items():
            error = made.exception()
            if error is None:
                paths[debug_id] = made.result()
            elif isinstance(error, DevserverError):
                # The walk goes on without them, and says so.
                _log.warning("there are no symbols for %s: %s", debug_id, error.message)
            else:
                raise error
        add = partial(dump.add_symbols, modules)
        with_symbols: frozenset[str] = yield self._finders.call(add, paths)
        return with_symbols

    def _find(
        self, name: BuildName | None, debug_ids: Collection[str]
    ) -> tuple[dict[str, Path], dict[str, WalkChoice]]:
        """Return the symbol files that are staged, and what others can be made of, by debug id."""
        staged = {} if name is None else self._staged.of_build(name, debug_ids)
        if missing := set(debug_ids) - staged.keys():
            staged.update(self._staged.find(missing))
        paths = {debug_id: one.path for debug_id, one in staged.items()}
        missing = set(debug_ids) - paths.keys()
        formats = self._symbol_files.formats
        choices = {}
        for debug_id, stored in self._debug_files.with_debug_ids(missing).items():
            if (choice := for_walking(stored, formats)) is not None:
                choices[debug_id] = choice
            else:
                kinds = ", ".join(sorted({one.format for one in stored}))
                _log.warning("no symbols are made for %s of what is there: %s", debug_id, kinds)
        return paths, choices

    def _walk(self, dump: CrashDump, for_machines: bool) -> str:
        return self._walker.walk(dump.path, dump.symbols, for_machines=for_machines)
