"""``/api/v1/upkeep``: collecting garbage and checking blobs, for the server's own user."""

from __future__ import annotations

import hmac
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import cherrypy

from artifacts.blobs.upkeep import Upkeep
from artifacts.errors import BadRequest, NotFound
from artifacts.serving.answer import Answer, json_answer, json_error
from artifacts.serving.builds_api import json_call, read_json_object
from artifacts.serving.handlers import check_method, refuse_cross_site
from artifacts.serving.upload_protocol import authorize, sent_token
from artifacts.serving.waiting import Wait
from artifacts.tokens import ADMIN, Tokens

# All bytes that are kept may have to be read.
_MAX_SECONDS = 7 * 24 * 3600.0


class UpkeepApi:
    """``/api/v1/upkeep/…``, with the secret of the server that runs, or a token of an admin."""

    def __init__(self, upkeep: Upkeep, tokens: Tokens, secret: str) -> None:
        self._upkeep = upkeep
        self._tokens = tokens
        self._secret = secret

    @json_call
    def gc(self, *segments: str) -> Wait:
        """/api/v1/upkeep/gc: remove what nobody needs of uploads (POST); answers what was removed.

        Needs a token of scope admin. Whoever asks while it is under way is answered with it.
        """
        _check_no_more(segments)
        check_method(("POST",))
        refuse_cross_site()
        self._authorize()
        return Wait(self._upkeep.collect_garbage(), _MAX_SECONDS, _told)

    @json_call
    def fsck(self, *segments: str) -> Answer | Wait:
        """/api/v1/upkeep/fsck: check all blobs against their checksums (POST); how far it is (GET).

        POST takes JSON: repair, true to forget damaged blobs, so that they are asked for again. It
        answers what was found. Needs a token of scope admin. Whoever asks while it is under way is
        answered with it.
        """
        _check_no_more(segments)
        check_method(("GET", "HEAD", "POST"))
        if cherrypy.request.method == "POST":
            refuse_cross_site()
        self._authorize()
        if cherrypy.request.method != "POST":
            progress = self._upkeep.progress
            return json_answer({"progress": progress and asdict(progress)})
        repair = read_json_object().get("repair", False)
        if not isinstance(repair, bool):
            raise BadRequest("repair must be true or false")
        return Wait(self._upkeep.check(repair=repair), _MAX_SECONDS, _told)

    def _authorize(self) -> None:
        header = cherrypy.request.headers.get("Authorization")
        token = sent_token(header) or ""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._secret.encode("ascii")):
            authorize(self._tokens, header, ADMIN)


def _check_no_more(segments: tuple[str, ...]) -> None:
    if segments:
        raise NotFound(f"no such call: {cherrypy.request.path_info}")


def _told(outcome: Future[Any]) -> Answer:
    error = outcome.exception()
    return json_answer(asdict(outcome.result())) if error is None else json_error(error)
