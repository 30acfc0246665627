"""``/symbolicate_dump`` and ``/api/v1/symbols``: readable stacks, and what is at an address."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import cherrypy

from artifacts.archive_url import ArchiveUrl
from artifacts.errors import BadRequest, DevserverError, NotFound
from artifacts.futures import Steps
from artifacts.serving.answer import json_answer, json_error, text_answer
from artifacts.serving.builds_api import json_call
from artifacts.serving.connection import current_body
from artifacts.serving.handlers import Arguments, Handled, check_method, lab_rpc
from artifacts.serving.multipart import MultipartReader
from artifacts.serving.steps import answer_in_steps
from artifacts.serving.waiting import Reply
from artifacts.symbols.crash_dump import CrashDump
from artifacts.symbols.crashes import Crashes, WantedBuild
from artifacts.symbols.debug_ids import parse_debug_id
from artifacts.symbols.look_up import Frame, LookUps

_BLOCK_BYTES = 1 << 20
_MAX_PARTS = 16
_FORMATS = ("text", "json")
_MAX_ADDRESSES = 1000
_ADDRESS = re.compile(r"0[xX]([0-9a-fA-F]{1,16})|([0-9]{1,20})")
# For a walk, and for what symbols may have to be made first.
_WALK_SECONDS = 900.0
# A look-up takes less than a millisecond, and handing the connection over takes several.
_PATIENCE_SECONDS = 0.02

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
        walked = yield from self._crashes.walk(dump, wanted, in_full=as_json)
        if as_json:
            return json_answer(walked.as_json())
        return text_answer(walked.names.restored(walked.text))


class SymbolsApi:
    """``/api/v1/symbols/DEBUG_ID``"""

    def __init__(self, look_ups: LookUps, timeout_seconds: float) -> None:
        self._look_ups = look_ups
        self._timeout_seconds = timeout_seconds

    @json_call
    def default(self, *segments: str) -> Handled:
        """/api/v1/symbols/DEBUG_ID?addr=0x1158[&addr=…]: what is at addresses of a program.

        GET; answers, for each address relative to the image, function, file and line, and the
        frames if functions are inlined there. They come from the debug files that were uploaded.
        """
        check_method(("GET", "HEAD"))
        if len(segments) != 1:
            raise NotFound(f"no such call: {cherrypy.request.path_info}")
        debug_id = parse_debug_id(segments[0])
        addresses = _addresses(cherrypy.request.params.get("addr"))
        return answer_in_steps(
            self._answer(debug_id, addresses),
            self._timeout_seconds,
            patience_seconds=_PATIENCE_SECONDS,
        )

    def _answer(self, debug_id: str, addresses: Sequence[int]) -> Steps[Reply]:
        try:
            found = yield from self._look_ups.frames(debug_id, addresses)
        except DevserverError as error:
            # Here, as what comes later than the handler's end would be a line of text.
            return json_error(error)
        symbols = [
            _described(address, frames) for address, frames in zip(addresses, found, strict=True)
        ]
        return json_answer({"debug_id": debug_id, "symbols": symbols})


def _addresses(given: object) -> list[int]:
    texts = given if isinstance(given, list) else [given]
    if given in (None, "", []):
        raise BadRequest("missing argument: addr")
    if len(texts) > _MAX_ADDRESSES:
        raise BadRequest(f"at most {_MAX_ADDRESSES:,} addresses are looked up at a time")
    return [_address(text) for text in texts]


def _address(text: object) -> int:
    match = _ADDRESS.fullmatch(text.strip()) if isinstance(text, str) else None
    address = -1 if match is None else int(match[1], 16) if match[1] else int(match[2])
    if not 0 <= address < 1 << 64:
        raise BadRequest(f"argument addr must be an address like 0x1158, not {text!r:.100}")
    return address


def _described(address: int, frames: Sequence[Frame]) -> dict[str, Any]:
    """Describe what is at an address: the innermost frame, and all of them."""
    innermost = frames[0] if frames else Frame(None, None, None)
    described = [_as_json(frame) for frame in frames]
    return {"addr": f"{address:#x}", **_as_json(innermost), "frames": described}


def _as_json(frame: Frame) -> dict[str, Any]:
    # `asdict` copies what it finds, and takes 10 times as long; there may be thousands of frames.
    return {"function": frame.function, "file": frame.file, "line": frame.line}
