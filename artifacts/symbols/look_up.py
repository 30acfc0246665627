"""Looking addresses up by debug id: in debug files that were uploaded, and in staged symbols."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from artifacts.errors import DevserverError, NotFound
from artifacts.futures import Steps
from artifacts.recent_outcomes import RecentOutcomes
from artifacts.shared_calls import SharedCalls
from artifacts.symbols.choice import for_lines
from artifacts.symbols.copies import NOT_THERE, DebugFileCopies
from artifacts.symbols.debug_files import DebugFiles, StoredObject
from artifacts.symbols.staged_symbols import StagedObject, StagedSymbols
from artifacts.symbols.symcache_builder import ConversionFailed
from artifacts.symbols.symcache_records import BuiltSymcache, SymcacheRecords
from artifacts.symbols.symcaches import Symcaches
from artifacts.symbols.worker_process import ProcessFailed, WorkerProcess
from artifacts.timers import Timers
from artifacts.workers import Workers

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)

_THREADS = 8
_SECONDS_A_LOOK_UP = 20
_ADDRESS_SPACE_BYTES = 64 << 30
_IDLE_SECONDS = 600.0
# For which it is remembered which debug files there are, unless there are others.
_REMEMBERED_SECONDS = 60.0
_REMEMBERED_IDS = 10_000


@dataclass(frozen=True)
class Frame:
    """What is at an address: ``file`` as a path, ``line`` from 1; None where it is not known."""

    function: str | None
    file: str | None
    line: int | None


class LookUps:
    """Tells what is at addresses of programs, from symcaches, which are built where need be."""

    def __init__(
        self,
        debug_files: DebugFiles,
        records: SymcacheRecords,
        symcaches: Symcaches,
        copies: DebugFileCopies,
        staged: StagedSymbols,
        timers: Timers,
    ) -> None:
        self._debug_files = debug_files
        self._records = records
        self._symcaches = symcaches
        self._copies = copies
        self._staged = staged
        self._reader = WorkerProcess(
            "look-up",
            timers,
            seconds_a_question=_SECONDS_A_LOOK_UP,
            address_space_bytes=_ADDRESS_SPACE_BYTES,
            idle_seconds=_IDLE_SECONDS,
        )
        self._workers = Workers("look-up", _THREADS)
        # Apart from those that look up meanwhile.
        self._builders = Workers("symcache", _THREADS)
        # By debug id, and the newest debug file that has it.
        self._known: RecentOutcomes[tuple[str, int], list[StoredObject]] = RecentOutcomes(
            _REMEMBERED_SECONDS, _REMEMBERED_IDS, lambda stored: len(stored) + 1
        )
        self._building: SharedCalls[tuple[str, int], None] = SharedCalls()

    def frames(self, debug_id: str, addresses: Sequence[int]) -> Steps[list[list[Frame]]]:
        """Return the frames at each address, relative to the image; inner ones come first.

        Raises:
            NotFound: nothing has that debug id, or tells functions.
            Busy: the server is shutting down.
        """
        begin = partial(self._begin, addresses)
        newest, stored, found = yield self._workers.call(begin, debug_id)
        if found is not None:
            return cast(list[list[Frame]], found)
        tried: list[StoredObject | StagedObject] = [*stored]
        if not stored or "debug" not in stored[0].features:
            staged = yield self._workers.call(self._staged_of, debug_id)
            tried = [*staged, *stored]
        why_not = "none were uploaded, or are staged"
        if newest is not None:
            why_not = (
                "what was uploaded has neither a symbol table nor debug information, or is damaged"
            )
        for one in tried:
            told = yield from self._found(addresses, one)
            if isinstance(told, list):
                return told
            why_not = told
        raise NotFound(f"there are no symbols of {debug_id}: {why_not}")

    def close(self, timeout_seconds: float) -> None:
        self._reader.close()
        self._workers.close(timeout_seconds)
        self._builders.close(timeout_seconds)

    def _begin(
        self, addresses: Sequence[int], debug_id: str
    ) -> tuple[int | None, list[StoredObject], list[list[Frame]] | None]:
        """Return which debug file came last, those that can be used, and what the first one tells.

        In one step, as each costs a hand-over, and nearly always this one is all. The last is None
        where there is more to be done.
        """
        newest = self._debug_files.newest_with(debug_id)
        if newest is None:
            return None, [], None
        usable = partial(_ended, partial(self._usable_of, debug_id))
        stored = self._known.get((debug_id, newest), usable).result()
        is_best = bool(stored) and "debug" in stored[0].features
        return newest, stored, self._look_up(addresses, stored[0]) if is_best else None

    def _found(
        self, addresses: Sequence[int], one: StoredObject | StagedObject
    ) -> Steps[list[list[Frame]] | str]:
        """Return what one debug file tells of the addresses, or why it tells nothing."""
        look_up = partial(self._look_up, addresses)
        found: list[list[Frame]] | None = yield self._workers.call(look_up, one)
        if found is not None:
            return found
        build = partial(self._build, one)
        try:
            yield self._building.join((one.checksum, one.number), build, self._builders)
        except (ConversionFailed, *NOT_THERE) as error:
            _log.warning("%s cannot be looked up: %s", one.debug_id, error.message)
            return error.message
        found = yield self._workers.call(look_up, one)
        return "its symcache is gone as soon as it is built" if found is None else found

    def _usable_of(self, debug_id: str) -> list[StoredObject]:
        stored = self._debug_files.with_debug_ids([debug_id]).get(debug_id, [])
        return for_lines(stored)

    def _staged_of(self, debug_id: str) -> list[StagedObject]:
        return list(self._staged.find([debug_id]).values())

    def _look_up(
        self, addresses: Sequence[int], one: StoredObject | StagedObject
    ) -> list[list[Frame]] | None:
        """Return what is at the addresses; None where there is no symcache that can be read."""
        version = self._symcaches.version()
        path = self._symcaches.path_of(one.checksum, one.number, version)
        if not path.exists():
            return None
        try:
            answer = self._reader.ask({"path": str(path), "addresses": list(addresses)})
        except ProcessFailed as error:
            raise DevserverError(
                f"the symcache of {one.debug_id} could not be read: {error.message}",
                code="look_up_failed",
            ) from error
        if "frames" not in answer:
            # It is damaged, and of no use to anybody.
            _log.warning("%s is not a symcache of version %d: %s", path, version, answer)
            path.unlink(missing_ok=True)
            return None
        return [[Frame(*frame) for frame in frames] for frames in answer["frames"]]

    def _build(self, one: StoredObject | StagedObject) -> None:
        """Build a symcache that is missing; raise ConversionFailed where that cannot be done."""
        if isinstance(one, StagedObject):
            built = self._symcaches.build(one.checksum, one.path, {one.number: one})
        else:
            built = self._build_stored(one)
        for made in built:
            if made.error is not None:
                raise ConversionFailed(made.error)

    def _build_stored(self, stored: StoredObject) -> list[BuiltSymcache]:
        error = self._records.error_of(stored.debug_file_id)
        if error is not None and not error.is_old:
            raise ConversionFailed(error.detail)
        with self._copies.copied(stored) as path:
            built = self._symcaches.build(stored.checksum, path, {stored.number: stored})
        self._records.note(stored.debug_file_id, built)
        return built


def _ended(call: Callable[[], _Result]) -> Future[_Result]:
    """Return the future of a call that is made now."""
    future: Future[_Result] = Future()
    future.set_result(call())
    return future
