"""``/api/v1/symbols``: what is at an address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import cherrypy

from artifacts.errors import BadRequest, NotFound
from artifacts.futures import Steps
from artifacts.serving.answer import json_answer
from artifacts.serving.builds_api import json_call
from artifacts.serving.handlers import Handled, check_method
from artifacts.serving.steps import answer_in_steps
from artifacts.serving.waiting import Reply
from artifacts.symbols.debug_ids import parse_debug_id
from artifacts.symbols.look_up import Frame, LookUps

_MAX_ADDRESSES = 1000
_ADDRESS = re.compile(r"0[xX]([0-9a-fA-F]{1,16})|([0-9]{1,20})")
# A look-up takes less than a millisecond, and handing the connection over takes several.
_PATIENCE_SECONDS = 0.02


class SymbolsApi:
    """``/api/v1/symbols/DEBUG_ID``"""

    def __init__(self, look_ups: LookUps, timeout_seconds: float) -> None:
        self._look_ups = look_ups
        self._timeout_seconds = timeout_seconds

    @json_call
    def default(self, *segments: str) -> Handled:
        """/api/v1/symbols/DEBUG_ID?addr=0x1158[&addr=…]: what is at addresses of a program.

        GET; answers, for each address relative to the image, function, file and line, and the
        frames if functions are inlined there. They come from debug files that were uploaded, and
        from the symbols of staged builds.
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
        found = yield from self._look_ups.frames(debug_id, addresses)
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
