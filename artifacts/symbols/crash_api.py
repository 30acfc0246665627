"""``/symbolicate_dump``: readable stacks of crashes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import cherrypy

from artifacts.archive_url import ArchiveUrl
from artifacts.errors import BadRequest
from artifacts.futures import Steps
from artifacts.serving.answer import json_answer, text_answer
from artifacts.serving.connection import current_body
from artifacts.serving.handlers import Arguments, Handled, lab_rpc
from artifacts.serving.multipart import MultipartReader
from artifacts.serving.steps import answer_in_steps
from artifacts.serving.waiting import Reply
from artifacts.symbols.crash_dump import CrashDump
from artifacts.symbols.crashes import Crashes, WantedBuild
from artifacts.symbols.stack_walk import StackWalk

_BLOCK_BYTES = 1 << 20
_MAX_PARTS = 16
_FORMATS = ("text", "json")
# For a walk, and for what symbols may have to be made first.
_WALK_SECONDS = 900.0

# Has the debug symbols of a build staged; a builder is waited for as many seconds.
StageSymbols = Callable[[ArchiveUrl, float], "Future[None]"]


class SymbolicateDump:
    """``/symbolicate_dump``"""

    def __init__(
        self,
        crashes: Crashes,
        parse_archive_url: Callable[[str], ArchiveUrl],
        stage_symbols: StageSymbols,
        max_wait_seconds: float,
    ) -> None:
        """``max_wait_seconds``: the longest that staging, and a builder, is waited for."""
        self._crashes = crashes
        self._parse_archive_url = parse_archive_url
        self._stage_symbols = stage_symbols
        self._max_wait_seconds = max_wait_seconds

    @lab_rpc(changes=True, methods=("POST",))
    def index(self, _: Arguments) -> Handled:
        """/symbolicate_dump?[archive_url=U][&format=json][&wait=S]: make a minidump readable.

        POST, multipart/form-data, with the minidump in the field minidump; the other arguments may
        be fields, too. Answers what Breakpad's stack walker prints or, with format=json, the same
        as JSON. With archive_url, that build's debug symbols are staged first, as /stage_debug
        does. Symbols are found by the debug ids of the dump's modules, in the builds that are
        staged and in the debug files that were uploaded.
        """
        dump = self._crashes.receive()
        try:
            reader = MultipartReader(cherrypy.request.headers.get("Content-Type"), dump, _MAX_PARTS)
            body = current_body()
            while block := body.read_some(_BLOCK_BYTES):
                reader.feed(block)
            reader.end()
            dump.end()
            steps, seconds = self._begin(dump)
        except BaseException:
            dump.remove()
            raise
        return answer_in_steps(steps, seconds)

    def _begin(self, dump: CrashDump) -> tuple[Steps[Reply], float]:
        """Return the steps of the answer, and how long they may take."""
        given = Arguments({**dump.fields, **cherrypy.request.params})
        kind = given.text("format") or "text"
        if kind not in _FORMATS:
            raise BadRequest(f"argument format must be {' or '.join(_FORMATS)}, not {kind!r:.100}")
        wait_seconds = min(given.seconds("wait") or 0, self._max_wait_seconds)
        wanted = None
        seconds = _WALK_SECONDS
        if (text := given.text("archive_url")) is not None:
            archive_url = self._parse_archive_url(text)
            wanted = WantedBuild(
                archive_url.name, lambda: self._stage_symbols(archive_url, wait_seconds)
            )
            seconds += wait_seconds + self._max_wait_seconds
        return self._answer(dump, wanted, as_json=kind == "json"), seconds

    def _answer(
        self, dump: CrashDump, wanted: WantedBuild | None, *, as_json: bool
    ) -> Steps[Reply]:
        shape = _json_of if as_json else _text_of
        answer = yield from self._crashes.walk(dump, wanted, shape, in_full=as_json)
        return answer


def _text_of(walked: StackWalk) -> Reply:
    return text_answer(walked.names.restored(walked.text))


def _json_of(walked: StackWalk) -> Reply:
    return json_answer(walked.as_json())
