"""The program that opens debug files: what is in them may crash it, or keep it busy for ever.

Run with a limit of seconds for a file and one of bytes of address space, it reads paths, a line of
JSON each, and answers each with a line of JSON: ``{"objects": [{…}, …]}``, or ``{"refusal": "…"}``
for what is no debug file. It ends with its standard input. It imports nothing of the server, to
start fast and stay small.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from symbolic.debuginfo import Archive
from symbolic.exceptions import SymbolicError

# Fat files have an object for each architecture.
_MAX_OBJECTS = 64
_FEATURES = ("symtab", "debug", "unwind", "sources")


def main(seconds: int, address_space_bytes: int) -> None:
    # Whoever runs the server may have set a lower one, which cannot be raised.
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    if allowed == resource.RLIM_INFINITY or allowed > address_space_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        # Ends the process, whatever it is doing.
        signal.alarm(seconds)
        answer = inspect(json.loads(line))
        signal.alarm(0)
        print(json.dumps(answer), flush=True)


def inspect(path: str) -> dict[str, Any]:
    objects: list[dict[str, Any]] = []
    try:
        # What is cut short may be noticed only while the objects are looked at.
        for found in Archive.open(path).iter_objects():
            if len(objects) == _MAX_OBJECTS:
                return {"refusal": f"it has over {_MAX_OBJECTS} objects"}
            has = found.features
            objects.append(
                {
                    "debug_id": found.debug_id,
                    "code_id": found.code_id,
                    "format": found.file_format,
                    "kind": found.kind,
                    "architecture": found.arch,
                    "features": [feature for feature in _FEATURES if feature in has],
                }
            )
    except SymbolicError as error:
        return {"refusal": error.message}
    return {"objects": objects}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
