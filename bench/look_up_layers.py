"""Ways to look addresses up: symbolic alone, and each layer that devserver puts around it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar, cast

from multi_demangle import demangle_symbol
from symbolic.symcache import SymCache

from artifacts.blobs.blob_store import BlobStore
from artifacts.blobs.chunked_files import ChunkedFiles
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.files import Files
from artifacts.database.database import Database
from artifacts.database.locks import ProcessLocks
from artifacts.fetch import FetchLimits
from artifacts.futures import Steps
from artifacts.symbols.copies import DebugFileCopies
from artifacts.symbols.debug_files import DebugFiles
from artifacts.symbols.look_up import LookUps
from artifacts.symbols.staged_symbols import StagedSymbols
from artifacts.symbols.symcache_builder import SymcacheBuilder
from artifacts.symbols.symcache_records import SymcacheRecords
from artifacts.symbols.symcaches import Symcaches
from artifacts.symbols.worker_process import WorkerProcess
from artifacts.timers import Timers
from artifacts.workers import Workers
from bench.processes import CALL_SECONDS

# What is at each of the addresses: its frames, of function, file and line.
Found = list[list[list[Any]]]
LookUp = Callable[[Sequence[int]], Found]
_BLOCK_BYTES = 1 << 20
_LENGTH = re.compile(rb"(?i)\ncontent-length: *(\d+)")
_Result = TypeVar("_Result")


def symbolic_alone(symcache: Path) -> LookUp:
    """Look up in this process, in a symcache that it opens now."""
    opened = SymCache.open(str(symcache))

    def look_up(addresses: Sequence[int]) -> Found:
        return [
            [
                [demangle_symbol(one.symbol) or None, one.full_path, one.line or None]
                for one in opened.lookup(address)
            ]
            for address in addresses
        ]

    return look_up


class _NothingStaged:
    """In the place of `StagedSymbols`, where all that is looked up was uploaded."""

    def find(self, _: Collection[str]) -> dict[str, Any]:
        return {}


class Reader:
    """The process that devserver reads symcaches with, asked as it asks it."""

    def __init__(self, timers: Timers) -> None:
        self._process = WorkerProcess(
            "look-up",
            timers,
            seconds_a_question=20,
            address_space_bytes=64 << 30,
            idle_seconds=CALL_SECONDS,
        )

    def look_up(self, symcache: Path, addresses: Sequence[int]) -> Found:
        question = {"path": str(symcache), "addresses": list(addresses)}
        found: Found = self._process.ask(question)["frames"]
        return found

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


@contextmanager
def all_but_http(data_directory: Path, debug_id: str, room: Path) -> Iterator[LookUp]:
    """Look up as the server does when it is asked, on the same data, in this process."""
    with ExitStack() as stack:
        database = Database.in_directory(data_directory)
        stack.callback(database.close)
        locks = ProcessLocks()
        stack.callback(locks.close)
        connections = Workers("connection", 1)
        stack.callback(connections.close, 5)
        timers = stack.enter_context(running_timers())
        records, files = SymcacheRecords(database), Files(database)
        blobs = BlobStore(database, DirectoryStorage(data_directory / "blobs"), locks)
        chunked_files = ChunkedFiles(blobs, room, connections, FetchLimits(1))
        builder = SymcacheBuilder(timers)
        stack.callback(builder.close)
        look_ups = LookUps(
            DebugFiles(database, files, records),
            records,
            Symcaches(records, builder, data_directory / "symcaches"),
            DebugFileCopies(files, chunked_files, room, lambda: None),
            cast(StagedSymbols, _NothingStaged()),
            timers,
        )
        stack.callback(look_ups.close, 5)

        def look_up(addresses: Sequence[int]) -> Found:
            found = _result_of(look_ups.frames(debug_id, addresses))
            return [[list(astuple(frame)) for frame in frames] for frames in found]

        yield look_up


class KeptConnection:
    """A client that asks for one thing after another over one connection, and is fast at it."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=CALL_SECONDS)

    def get(self, path: str) -> bytes:
        """Return the body of an answer that has to be 200."""
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        self._socket.sendall(request.encode("ascii"))
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, body = received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise RuntimeError(f"{path:.100} was answered {head + body[:200]!r}")
        while len(body) < int(length[1]):
            body += self._receive()
        return body

    def __enter__(self) -> KeptConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _receive(self) -> bytes:
        block = self._socket.recv(_BLOCK_BYTES)
        if not block:
            raise ConnectionError("the server has closed the connection")
        return block


def path_of(debug_id: str, addresses: Sequence[int]) -> str:
    """Return what to ask a server for."""
    query = "&".join(f"addr={address:#x}" for address in addresses)
    return f"/api/v1/symbols/{debug_id}?{query}"


def found_in(answer: bytes) -> Found:
    """Return what a server has answered."""
    return [
        [[frame["function"], frame["file"], frame["line"]] for frame in symbol["frames"]]
        for symbol in json.loads(answer)["symbols"]
    ]


@contextmanager
def running_timers() -> Iterator[Timers]:
    timers = Timers("timer", 2, 2)
    try:
        yield timers
    finally:
        timers.close(5)


def _result_of(steps: Steps[_Result]) -> _Result:
    """Take all steps, and wait for each."""
    try:
        awaited = next(steps)
        while True:
            awaited = steps.send(awaited.result(CALL_SECONDS))
    except StopIteration as end:
        result: _Result = end.value
        return result
