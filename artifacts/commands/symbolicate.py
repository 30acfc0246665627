"""``devserver symbolicate``: send a minidump to a running server, and print a readable stack."""

from __future__ import annotations

import contextlib
import json
import os
import stat as stat_module
import sys
from collections.abc import Iterator
from io import FileIO
from typing import Any

import click
from rich.progress import Progress, TaskID

from artifacts.commands.client import Client, server_options
from artifacts.commands.crash_report import parse_report, print_report
from artifacts.commands.form_body import FormBody, FormFile
from artifacts.commands.options import CONTEXT_SETTINGS, wait_option
from artifacts.commands.progress import progress_bars
from artifacts.commands.stage import build_name_of
from artifacts.errors import BadRequest, DevserverError

_STANDARD_INPUT = "-"
_PIECE_BYTES = 1 << 20
# From which on there is a bar.
_LARGE_BYTES = 4 << 20
# For staging, making symbols and walking, besides waiting for a builder: more than servers take.
_ANSWER_SECONDS = 2 * 3600.0


@click.command("symbolicate", context_settings=CONTEXT_SETTINGS)
@click.argument("dump", type=click.Path(readable=False, allow_dash=True))
@click.option("--archive-url", metavar="URL", help="build whose debug symbols are staged first")
@wait_option
@click.option("--all-threads", is_flag=True, help="print all threads, not just the crashed one")
@click.option("--json", "as_json", is_flag=True, help="print the server's answer as JSON")
@server_options
def symbolicate_command(
    dump: str,
    archive_url: str | None,
    wait_seconds: int,
    all_threads: bool,
    as_json: bool,
    server: str,
    token: str | None,
) -> None:
    """Print a readable stack of a crash.

    DUMP is a minidump; - reads it from standard input. The server finds the symbols by the debug
    ids in the dump: in builds that are staged, and in debug files that were uploaded.
    """
    query = {"format": "json"}
    if archive_url is not None:
        build_name_of(archive_url)  # raises, before anything is sent
        query |= {"archive_url": archive_url, "wait": str(wait_seconds)}
    with _opened(dump) as file, Client(server, token) as client:
        answer = _symbolicate(client, dump, file, query, _ANSWER_SECONDS + wait_seconds)
        report = parse_report(answer, client.server)
    if as_json:
        # The one control character that is no escape sequence in JSON already.
        click.echo(json.dumps(answer, indent=1).replace("\x7f", "\\u007f"))
    else:
        print_report(report, all_threads=all_threads, archive_url=archive_url)


def _symbolicate(
    client: Client, dump: str, file: FileIO, query: dict[str, str], timeout_seconds: float
) -> Any:
    """Send a dump, with a bar on standard error if it is large; return the server's answer."""
    size = _size_of(file)
    with _UploadBar(size) as bar:
        body = FormBody([FormFile("minidump", "minidump", size, _pieces(dump, file, size, bar))])
        return client.post_body_for_json(
            "/symbolicate_dump",
            body if size is not None else iter(body),
            body.content_type,
            timeout_seconds,
            **query,
        )


def _opened(dump: str) -> FileIO:
    try:
        if dump != _STANDARD_INPUT:
            return open(dump, "rb", buffering=0)
        if sys.stdin is None:
            raise BadRequest("cannot read standard input: it is closed")
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    except OSError as error:
        raise BadRequest(_cannot_read(dump, error)) from error


def _size_of(file: FileIO) -> int | None:
    """Return how many bytes are left to read; None for what is no regular file, or says 0.

    Those of /proc say so, whatever they have.
    """
    status = os.fstat(file.fileno())
    if not stat_module.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - file.tell()) or None


def _pieces(dump: str, file: FileIO, size: int | None, bar: _UploadBar) -> Iterator[bytes]:
    left = size
    while left is None or left > 0:
        try:
            piece = file.read(_PIECE_BYTES if left is None else min(_PIECE_BYTES, left))
        except OSError as error:
            # As it is, it would be taken for one of the connection.
            raise DevserverError(_cannot_read(dump, error)) from error
        if not piece:
            break
        yield piece
        bar.advance(len(piece))
        if left is not None:
            left -= len(piece)
    if left:
        raise DevserverError(
            f"{_called(dump)} has changed while it was sent; send it once it stays as it is"
        )
    bar.tell_all_is_sent()


def _called(dump: str) -> str:
    return "standard input" if dump == _STANDARD_INPUT else dump


def _cannot_read(dump: str, error: OSError) -> str:
    return f"cannot read {_called(dump)}: {error.strerror}"


class _UploadBar:
    """A bar on standard error, if that is a terminal and the dump a large one."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._is_wanted = sys.stderr.isatty()
        self._bytes_sent = 0
        self._shown: tuple[Progress, TaskID] | None = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> _UploadBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._update()
        self._undo.close()

    def advance(self, count: int) -> None:
        self._bytes_sent += count
        is_large = (self._size or self._bytes_sent) >= _LARGE_BYTES
        if self._shown is None and self._is_wanted and is_large:
            progress = self._undo.enter_context(progress_bars())
            self._shown = progress, progress.add_task("sent", total=self._size, state="", rate="")
        self._update()

    def tell_all_is_sent(self) -> None:
        self._size = self._bytes_sent
        self._update("waiting for the stack")

    def _update(self, state: str = "") -> None:
        if self._shown is not None:
            progress, task = self._shown
            progress.update(task, completed=self._bytes_sent, total=self._size, state=state)
