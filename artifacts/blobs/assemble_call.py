"""What a request to assemble files is answered, whatever the files are for."""

from __future__ import annotations

import json
from typing import Any

from artifacts.blobs.assembly import Assembler, Assembly, Purpose
from artifacts.blobs.offers import read_offers
from artifacts.serving.answer import Answer
from artifacts.serving.connection import current_body

_MAX_BODY_BYTES = 16 << 20


def assemble_offered(assembler: Assembler, purpose: Purpose) -> Answer:
    """Read the offers of the current request; answer where each of them stands.

    Raises:
        BadRequest, TooLarge: the request as a whole is malformed.
        DatabaseUnavailable: nothing can be told now.
    """
    offers = read_offers(current_body().read_all(_MAX_BODY_BYTES))
    standing = assembler.answer(purpose, list(offers.possible.values()))
    standing.update((key, Assembly.error(detail)) for key, detail in offers.impossible.items())
    answers = {key: _as_json(standing[key]) for key in offers.keys}
    # Not json_answer: there may be some megabytes of it, which are not for people.
    return Answer(json.dumps(answers).encode("ascii"), content_type="application/json")


def _as_json(assembly: Assembly) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "state": assembly.state,
        "missingChunks": list(assembly.missing_chunks),
    }
    if assembly.detail is not None:
        shown["detail"] = assembly.detail
    if assembly.dif is not None:
        shown["dif"] = assembly.dif
    return shown
