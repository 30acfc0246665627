"""Symbols in a running server: debug files, crashes, and the calls for them."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from artifacts.archive_url import ArchiveUrl
from artifacts.blobs.chunked_files import ChunkedFiles
from artifacts.blobs.upload_service import UploadService
from artifacts.config import Config
from artifacts.disk import make_empty_directory
from artifacts.equipment import Equipment
from artifacts.errors import Busy, DevserverError
from artifacts.space import Space
from artifacts.symbols.api import DebugFilesApi
from artifacts.symbols.copies import DebugFileCopies
from artifacts.symbols.crash_api import StageSymbols, SymbolicateDump
from artifacts.symbols.crashes import Crashes
from artifacts.symbols.debug_files import DebugFiles
from artifacts.symbols.inspection import Inspector
from artifacts.symbols.limited_programs import LimitedPrograms
from artifacts.symbols.look_up import LookUps
from artifacts.symbols.stack_walker import StackWalker, WalkerMissing
from artifacts.symbols.staged_symbols import StagedSymbols
from artifacts.symbols.symbol_files import DUMP_SYMS, SymbolFiles
from artifacts.symbols.symbols_api import SymbolsApi
from artifacts.symbols.symcache_builder import SymcacheBuilder
from artifacts.symbols.symcache_records import SymcacheRecords
from artifacts.symbols.symcaches import Symcaches
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

_END_SECONDS = 5


class Symbols:
    """Opened with the server, started with it, and closed with it.

    Attributes:
        symbolicate_dump: the call of that name.
        api: those below ``/api/v1/symbols``.
    """

    def __init__(
        self,
        upload_service: UploadService,
        config: Config,
        equipment: Equipment,
        parse_archive_url: Callable[[str], ArchiveUrl],
        stage_symbols: StageSymbols,
    ) -> None:
        """Open it.

        Args:
            equipment: what downloaders have as well.
            parse_archive_url: parses a URL, and checks that it is allowed.
            stage_symbols: has the debug symbols of a build staged.

        Raises:
            DevserverError: one of the directories cannot be made.
        """
        uploads, timers = upload_service.uploads, equipment.timers
        data = config.data_dir.absolute()
        check_room = Space(data).check_room
        with contextlib.ExitStack() as undo:
            inspector = Inspector(timers)
            undo.callback(inspector.close)
            builder = SymcacheBuilder(timers)
            undo.callback(builder.close)
            records = SymcacheRecords(uploads.database)
            self._symcaches = Symcaches(records, builder, data / "symcaches")
            debug_files = DebugFiles(uploads.database, uploads.files, records)
            assembler = upload_service.assembler
            DebugFilesApi(debug_files, inspector, self._symcaches, assembler).register(
                upload_service.protocol
            )
            temporary, dumps = data / "reading", data / "dumps"
            make_empty_directory(temporary)
            make_empty_directory(dumps)
            chunked_files = ChunkedFiles(
                uploads.blobs, temporary, equipment.connections, equipment.fetch_limits
            )
            staged = StagedSymbols(equipment.staging)
            copies = DebugFileCopies(uploads.files, chunked_files, temporary, check_room)
            look_ups = LookUps(debug_files, records, self._symcaches, copies, staged, timers)
            undo.callback(lambda: look_ups.close(_END_SECONDS))
            programs = LimitedPrograms()
            walker = StackWalker(programs, config.minidump_stackwalk, config.walk_timeout)
            symbol_files = SymbolFiles(
                copies, programs, lambda: _find_dump_syms(config, walker), data / "breakpad"
            )
            undo.callback(lambda: symbol_files.close(_END_SECONDS))
            crashes = Crashes(
                walker,
                staged,
                debug_files,
                symbol_files,
                dumps,
                check_room,
            )
            undo.callback(lambda: crashes.close(_END_SECONDS))
            # First of all: whoever waits for a program is told.
            undo.callback(programs.close)
            self._tidying = Workers("symcache-sweep", 1)
            undo.callback(lambda: self._tidying.close(_END_SECONDS))
            self.symbolicate_dump = SymbolicateDump(
                crashes, parse_archive_url, stage_symbols, config.wait_timeout
            )
            self.api = SymbolsApi(look_ups, config.wait_timeout)
            self._undo = undo.pop_all()

    def start(self) -> None:
        """Begin to tidy up what a crash has left."""
        with contextlib.suppress(Busy):
            self._tidying.submit(self._tidy_up)

    def close(self) -> None:
        self._undo.close()

    def _tidy_up(self) -> None:
        try:
            self._symcaches.remove_unrecorded()
        except (DevserverError, OSError) as error:
            _log.warning("symcaches that nothing names are left: %s", error)


def _find_dump_syms(config: Config, walker: StackWalker) -> str | None:
    """Return the path of ``dump_syms``: as configured, beside the walker, or on PATH."""
    if config.dump_syms is not None:
        return shutil.which(str(config.dump_syms.absolute()))
    with contextlib.suppress(WalkerMissing):
        if beside := shutil.which(str(Path(walker.find()).with_name(DUMP_SYMS))):
            return beside
    return shutil.which(DUMP_SYMS)
