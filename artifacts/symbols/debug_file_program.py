"""The program that opens debug files and symcaches: what is in them may crash it, or take for ever.

Run with the name of its work, a limit of seconds for a request and one of bytes of address space,
it reads requests, a line of JSON each, and answers each with a line of JSON. It ends with its
standard input. It imports nothing of the server, to start fast and stay small.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from symbolic.debuginfo import Archive, Object
from symbolic.exceptions import SymbolicError
from symbolic.symcache import SYMCACHE_LATEST_VERSION, SymCache

Answer = dict[str, Any]

# Fat files have an object for each architecture.
_MAX_OBJECTS = 64
_FEATURES = ("symtab", "debug", "unwind", "sources")
# Each is mapped, and takes a file descriptor's worth of memory until it is read.
_MAX_OPEN_SYMCACHES = 64
# Of a name or path that is answered; C++ makes names without end.
_MAX_CHARACTERS = 4096


def main(work: str, seconds: int, address_space_bytes: int) -> None:
    # Whoever runs the server may have set a lower one, which cannot be raised.
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    if allowed == resource.RLIM_INFINITY or allowed > address_space_bytes:
        # macOS refuses this one.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = _WORKS[work]()
    for line in sys.stdin:
        # Ends the process, whatever it is doing.
        signal.alarm(seconds)
        answered = answer(json.loads(line))
        signal.alarm(0)
        print(json.dumps(answered), flush=True)


def _inspect(request: Answer) -> Answer:
    """Answer what the objects of the file ``path`` are, or why it is no debug file."""
    objects: list[Answer] = []
    try:
        # What is cut short may be noticed only while the objects are looked at.
        for found in Archive.open(request["path"]).iter_objects():
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


def _convert(request: Answer) -> Answer:
    """Write the symcache of one object of the file ``path`` to the file ``to``.

    The object is that of ``debug_id`` and ``architecture``, or of any if that is none. Without a
    path, only the version of the format is answered.
    """
    version = {"version": SYMCACHE_LATEST_VERSION}
    if "path" not in request:
        return version
    try:
        symcache = _object_of(request).make_symcache()
        with open(request["to"], "wb") as file:
            symcache.dump_into(file)
            file.flush()
            os.fsync(file.fileno())
    except SymbolicError as error:
        return {**version, "refusal": error.message}
    except LookupError as error:
        return {**version, "refusal": str(error)}
    except OSError as error:
        return {**version, "errno": error.errno}
    return version


def _object_of(request: Answer) -> Object:
    for found in Archive.open(request["path"]).iter_objects():
        if found.debug_id == request["debug_id"] and request["architecture"] in {None, found.arch}:
            return found
    raise LookupError(f"it has no object {request['debug_id']} for {request['architecture']}")


def _looking_up() -> Callable[[Answer], Answer]:
    from multi_demangle import demangle_symbol

    open_symcaches: OrderedDict[str, SymCache] = OrderedDict()

    def opened(path: str) -> SymCache | None:
        symcache = open_symcaches.get(path)
        if symcache is None:
            symcache = SymCache.open(path)
            if not symcache.is_latest_version:
                return None
            open_symcaches[path] = symcache
            if len(open_symcaches) > _MAX_OPEN_SYMCACHES:
                open_symcaches.popitem(last=False)
        open_symcaches.move_to_end(path)
        return symcache

    def look_up(request: Answer) -> Answer:
        """Answer the frames at each of the ``addresses`` of the symcache ``path``.

        A frame is [function, file, line]; the innermost of inlined ones comes first.
        """
        try:
            symcache = opened(request["path"])
            if symcache is None:
                return {"is_outdated": True}
            frames = [
                [
                    [
                        demangle_symbol(found.symbol[:_MAX_CHARACTERS])[:_MAX_CHARACTERS] or None,
                        found.full_path and found.full_path[:_MAX_CHARACTERS],
                        found.line or None,
                    ]
                    for found in symcache.lookup(address)
                ]
                for address in request["addresses"]
            ]
        except SymbolicError as error:
            open_symcaches.pop(request["path"], None)
            return {"refusal": error.message}
        return {"frames": frames}

    return look_up


_WORKS: dict[str, Callable[[], Callable[[Answer], Answer]]] = {
    "inspect": lambda: _inspect,
    "convert": lambda: _convert,
    "look-up": _looking_up,
}

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
