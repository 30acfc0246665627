"""``devserver symbolicate``: a minidump is sent, and a stack comes back that people can read."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from archive_faults import Fault
from archive_proxy import ArchiveProxy
from assemble_client import CRASH_LAB, AssembleClient, crash_lab
from breakpad_programs import stack_walker
from conftest import Serve
from running_server import REPOSITORY, RunningServer

DUMP = CRASH_LAB / "crash_lab.dmp"
IDENTIFIER = "8FD7DD327311A6F8BAD50BD4BD2D48430"
SOURCE = "/build/crash_lab/crash_lab.cpp"
CRASH = "SIGSEGV /SEGV_MAPERR at 0x0"
ESCAPE = "\x1b"
# What decides about colours and widths.
_TERMINAL_SETTINGS = {"FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES", "TERM"}
_SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has the symbols of the crash, for tests that leave it as it is."""
    with _running(tmp_path_factory.mktemp("symbols")) as server:
        upload_symbols(server)
        yield server


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has no symbols, likewise."""
    with _running(tmp_path_factory.mktemp("bare")) as server:
        yield server


@contextmanager
def _running(directory: Path) -> Iterator[RunningServer]:
    server = RunningServer(directory, "--minidump-stackwalk", stack_walker())
    try:
        yield server
    finally:
        server.stop()


def upload_symbols(server: RunningServer, **renamed: str) -> None:
    """Upload the symbols of the crash; functions may be renamed by part of their names."""
    symbols = crash_lab("crash_lab.sym").decode("ascii")
    for name, other in renamed.items():
        symbols = symbols.replace(f"lab::{name}(", f"{other}(")
    AssembleClient(server).upload(symbols.encode("utf-8"), "crash_lab.sym")


def command(*arguments: str | Path, url: str) -> list[str]:
    program = [sys.executable, str(REPOSITORY / "devserver.py")]
    return [*program, "symbolicate", *map(str, arguments), "--server", url]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _TERMINAL_SETTINGS}
    return {**kept, "TERM": "xterm-256color", **more}


def run(
    *arguments: str | Path, url: str, given: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with pipes all around it; ``given`` is its standard input."""
    ended = subprocess.run(
        command(*arguments, url=url),
        input=given,
        capture_output=True,
        timeout=_SECONDS,
        env=environment(**variables),
        check=False,
    )
    texts = [output.decode("utf-8") for output in (ended.stdout, ended.stderr)]
    assert "Traceback" not in texts[1]
    return subprocess.CompletedProcess(ended.args, ended.returncode, *texts)


def printed(*arguments: str | Path, url: str, given: bytes = b"", **variables: str) -> str:
    """Return what the command prints; it has to succeed, and has nothing else to say."""
    ended = run(*arguments, url=url, given=given, **variables)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def refusal(*arguments: str | Path, url: str, status: int = 1) -> str:
    """Return why the command fails: one line."""
    ended = run(*arguments, url=url)
    assert (ended.returncode, ended.stdout) == (status, ""), ended.stderr
    assert ended.stderr.startswith("devserver: ") and ended.stderr.count("\n") == 1
    return ended.stderr.strip()


def in_terminal(*arguments: str | Path, url: str, **variables: str) -> tuple[str, str]:
    """Run the command, which has to succeed; return what its terminal gets, and what a pipe.

    Standard error is always a terminal; standard output is one unless ``--json`` is asked for.
    """
    master, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            command(*arguments, url=url),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if "--json" in arguments else terminal,
            stderr=terminal,
            env=environment(**variables),
        )
    finally:
        os.close(terminal)
    watchdog = threading.Timer(_SECONDS, process.kill)
    watchdog.start()
    try:
        shown = _read_terminal(master)
        piped = b"" if process.stdout is None else process.stdout.read()
        assert process.wait(timeout=_SECONDS) == 0, shown
        return shown.decode("utf-8"), piped.decode("utf-8")
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()
        os.close(master)


def _read_terminal(master: int) -> bytes:
    shown = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # how Linux says that nobody has the terminal any more
            return shown
        if not block:
            return shown
        shown += block


def frame_lines(output: str) -> list[list[str]]:
    """Return the columns of each frame: number, mark, and what is two blanks apart after that."""
    lines = [line for line in output.split("\n") if line[:2].strip().isdecimal()]
    return [[line[:2].strip(), line[3], *filter(None, line[5:].split("  "))] for line in lines]


def swapped(answer: dict[str, Any]) -> Fault:
    return Fault(swap=json.dumps(answer).encode("utf-8"))


# --- what is printed


def test_frames_have_functions_lines_and_modules(server: RunningServer) -> None:
    output = printed(DUMP, url=server.url)

    first, system, blank, thread, *_ = output.split("\n")
    assert (first, blank, thread) == (CRASH, "", "Thread 0, crashed")
    assert system.startswith("Linux ") and system.endswith("1 processor") and "amd64" in system
    descend = "lab::descend(lab::Widget*, int)"
    expected = [
        ("lab::poke(lab::Widget*, int)", 16),
        (descend, 23),
        *[(descend, 25)] * 3,
        ("lab::run_job(char const*)", 31),
        ("main", 39),
    ]
    assert [[part.strip() for part in line] for line in frame_lines(output)[: len(expected)]] == [
        [str(number), "", function, f"{SOURCE}:{line}", "crash_lab"]
        for number, (function, line) in enumerate(expected)
    ]
    columns = {line.index(SOURCE) for line in output.split("\n") if SOURCE in line}
    assert len(columns) == 1
    assert "crash_lab  8FD7" not in output  # it has symbols


def test_what_was_found_by_scanning_is_marked_and_all_that_follows(server: RunningServer) -> None:
    output = printed(DUMP, url=server.url)
    answer = json.loads(printed(DUMP, "--json", url=server.url))
    scanned = [f["trust"] == "stack scanning" for f in answer["threads"][0]["frames"]]
    marks = [line[1] for line in frame_lines(output)]
    assert 7 <= scanned.index(True) < len(scanned)
    assert marks == [" "] * scanned.index(True) + ["?"] * (len(scanned) - scanned.index(True))
    assert "?: found by scanning the stack" in output


def test_without_symbols_it_is_told_which_are_needed_and_what_to_do(
    bare_server: RunningServer,
) -> None:
    output = printed(DUMP, url=bare_server.url)
    assert output.startswith(f"{CRASH}\n")
    assert frame_lines(output)[:2] == [
        ["0", " ", "crash_lab + 0x113f"],
        ["1", " ", "crash_lab + 0x116b"],
    ]
    _, _, lacking = output.partition("There are no symbols for\n")
    assert lacking.startswith(f"  crash_lab      {IDENTIFIER}\n")
    assert "libm.so.6" not in output  # no frame is in it
    assert "Upload debug files" in lacking and "--archive-url" in lacking


def test_json_is_what_the_server_answers(server: RunningServer) -> None:
    answer = json.loads(printed(DUMP, "--json", url=server.url))
    assert answer["crash_reason"] == "SIGSEGV /SEGV_MAPERR"
    assert answer["crashed_thread"] == 0
    frame = answer["threads"][0]["frames"][0]
    assert (frame["function"], frame["line"]) == ("lab::poke(lab::Widget*, int)", 16)
    assert answer["modules"][0]["debug_id"] == IDENTIFIER


def test_the_crashed_thread_is_shown_and_the_others_on_demand(server: RunningServer) -> None:
    answer = json.loads(printed(DUMP, "--json", url=server.url))
    (crashed,) = answer["threads"]
    other = {
        "thread": 0,
        "crashed": False,
        "frames": [{**crashed["frames"][0], "function": "idle"}],
    }
    answer |= {"crashed_thread": 7, "threads": [other, {**crashed, "thread": 7}]}
    with ArchiveProxy(server.url) as proxy:
        proxy.misbehave("/symbolicate_dump", swapped(answer))
        output = printed(DUMP, url=proxy.url)
        assert "Thread 7, crashed\n" in output and "lab::poke" in output
        assert "--all-threads shows 1 other thread, too.\n" in output and "idle" not in output

        output = printed(DUMP, "--all-threads", url=proxy.url)
        assert output.index("Thread 7, crashed\n") < output.index("Thread 0\n0") < len(output)
        assert "idle" in output and "other thread" not in output

        proxy.behave()
        answer |= {"crash_reason": None, "crash_address": None, "crashed_thread": None}
        answer["threads"] = [other, {**crashed, "thread": 7, "crashed": False}]
        proxy.misbehave("/symbolicate_dump", swapped(answer))
        output = printed(DUMP, url=proxy.url)
        assert output.startswith("No crash\n") and "\nThread 0\n" in output
        assert "lab::poke" not in output


def test_a_crashed_thread_without_frames_is_not_passed_over(server: RunningServer) -> None:
    answer = json.loads(printed(DUMP, "--json", url=server.url))
    answer["crashed_thread"] = 3
    answer["threads"][0]["crashed"] = False
    with ArchiveProxy(server.url) as proxy:
        proxy.misbehave("/symbolicate_dump", swapped(answer))
        output = printed(DUMP, url=proxy.url)
    assert "Thread 3, crashed: its stack cannot be read" in output
    assert "1 other thread" in output and not frame_lines(output)


# --- where it is printed to


def test_into_a_pipe_go_plain_text_and_whole_lines(serve: Serve) -> None:
    server = serve("--minidump-stackwalk", stack_walker())
    name = "very_long" * 300
    upload_symbols(server, run_job=name)
    for columns in ("20", "5000"):
        output = printed(DUMP, url=server.url, COLUMNS=columns)
        assert ESCAPE not in output and "\r" not in output
        (line,) = [line for line in output.split("\n") if line.startswith(" 5 ")]
        assert f"{name}(char const*)  {SOURCE}:31  crash_lab" in line
        # What is too long for a column does not move the others.
        assert f" 6   main {' ' * 20}" in output and f" 6   main {' ' * 70}" not in output


def test_on_a_terminal_there_are_colours(server: RunningServer) -> None:
    shown, _ = in_terminal(DUMP, url=server.url)
    plain = printed(DUMP, url=server.url)
    assert f"{ESCAPE}[1;31m{CRASH}{ESCAPE}[0m" in shown
    assert f"{ESCAPE}[36mlab::poke" in shown
    # Noise is dim, and nothing else.
    assert f"{ESCAPE}[2m 8 ? lab::run_job" in shown
    assert [line for line in frame_lines(plain) if line[1] == "?"]

    shown, _ = in_terminal(DUMP, url=server.url, NO_COLOR="1")
    assert f"{ESCAPE}[36m" not in shown and "lab::poke" in shown
    assert f"{ESCAPE}[36mlab::poke" in printed(DUMP, url=server.url, FORCE_COLOR="1")


def test_a_large_dump_has_a_bar_if_there_is_a_terminal(
    server: RunningServer, tmp_path: Path
) -> None:
    large = tmp_path / "large.dmp"
    large.write_bytes(DUMP.read_bytes() + bytes(9_000_000))
    shown, piped = in_terminal(large, "--json", url=server.url)
    assert "9.0/9.0 MB" in shown
    assert json.loads(piped)["crash_reason"]

    shown, piped = in_terminal(DUMP, "--json", url=server.url)
    assert shown == ""
    assert json.loads(piped)["crash_reason"]
    assert printed(large, url=server.url).startswith(CRASH)


# --- where dumps come from


def test_a_dump_may_come_from_standard_input(server: RunningServer, tmp_path: Path) -> None:
    plain = printed(DUMP, url=server.url)
    assert printed("-", url=server.url, given=DUMP.read_bytes()) == plain
    with DUMP.open("rb") as file:
        ended = subprocess.run(
            command("-", url=server.url),
            stdin=file,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment(),
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (0, plain)
    assert "it has 0 bytes" in refusal("-", url=server.url)


def test_a_dump_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    missing = tmp_path / "crash\x1b[31m.dmp"
    said = refusal(missing, url=nowhere, status=2)
    assert "No such file or directory" in said and ESCAPE not in said
    assert "Is a directory" in refusal(tmp_path, url=nowhere, status=2)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that fails when it is read")
def test_a_dump_that_fails_while_it_is_read_is_told(server: RunningServer) -> None:
    said = refusal("/proc/self/mem", url=server.url)
    assert said == "devserver: cannot read /proc/self/mem: Input/output error"


def test_what_is_no_minidump_is_refused_in_the_server_s_words(
    server: RunningServer, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("The device crashed again.\n" * 10)
    assert refusal(text, url=server.url) == (
        "devserver: not a minidump: it does not begin with MDMP"
    )
    cut = CRASH_LAB / "crash_lab.truncated.dmp"
    assert "not a minidump that can be read" in refusal(cut, url=server.url)


def test_a_dump_that_is_too_large_is_refused(server: RunningServer, tmp_path: Path) -> None:
    large = tmp_path / "large.dmp"
    with large.open("wb") as file:
        file.write(DUMP.read_bytes())
        file.truncate((256 << 20) + 1)
    assert "larger than 268,435,456 bytes" in refusal(large, url=server.url)
    with large.open("ab") as file:
        file.truncate(400 << 20)
    assert "larger than" in refusal(large, url=server.url)


# --- what is in them


def test_names_of_modules_are_printed_and_not_obeyed(
    bare_server: RunningServer, tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile.dmp"
    for name, shown in (
        (f"{ESCAPE}[31m\x9b\r\n\u202e", " [31m     + 0x113f"),
        ("[red]evil", "[red]evil + 0x113f"),
    ):
        encoded, other = (text.encode("utf-16-le") for text in ("crash_lab", name))
        hostile.write_bytes(DUMP.read_bytes().replace(encoded, other))
        output = printed(hostile, url=bare_server.url)
        assert f" 0   {shown}\n" in output
        assert all(character.isprintable() or character == "\n" for character in output)


def test_names_of_functions_are_printed_and_not_obeyed(serve: Serve) -> None:
    server = serve("--minidump-stackwalk", stack_walker())
    upload_symbols(
        server,
        poke=f"{ESCAPE}]0;evil\x07",
        descend="[bold red]evil[/]:smile:",
        run_job="\u202e\x9b2J\x7fünï",
    )
    output = printed(DUMP, url=server.url)
    assert all(character.isprintable() or character == "\n" for character in output)
    functions = [line[2].strip() for line in frame_lines(output)]
    assert functions[0] == "]0;evil (lab::Widget*, int)"
    assert functions[1] == "[bold red]evil[/]:smile:(lab::Widget*, int)"
    assert functions[5].endswith("2J ünï(char const*)")

    shown, _ = in_terminal(DUMP, url=server.url)
    assert f"{ESCAPE}]" not in shown and "\x07" not in shown and "\x9b" not in shown
    assert "[bold red]evil[/]:smile:" in shown
    answer = printed(DUMP, "--json", url=server.url)
    assert answer.isascii()
    assert all(character.isprintable() or character == "\n" for character in answer)
    assert "\x7f" in json.loads(answer)["threads"][0]["frames"][5]["function"]

    in_ascii = printed(DUMP, url=server.url, PYTHONIOENCODING="ascii")
    assert "?n?(char const*)" in in_ascii


# --- the symbols of a build


def test_the_symbols_of_a_build_are_staged_first(serve: Serve, tmp_path: Path) -> None:
    server = serve(
        *("--minidump-stackwalk", stack_walker(), "--allow-archive", f"file://{tmp_path}")
    )
    build = tmp_path / "lamp-release/R1-1.0.0"
    build.mkdir(parents=True)
    symbols = crash_lab("crash_lab.sym")
    with tarfile.open(build / "debug.tgz", "w:gz") as tar:
        member = tarfile.TarInfo(f"debug/breakpad/crash_lab/{IDENTIFIER}/crash_lab.sym")
        member.size = len(symbols)
        tar.addfile(member, io.BytesIO(symbols))
    url = f"file://{build}"

    assert "lab::poke" not in printed(DUMP, url=server.url)
    output = printed(DUMP, "--archive-url", url, "--wait", "1", url=server.url)
    assert frame_lines(output)[6][2].strip() == "main"
    # What the build lacks, it need not be named for again.
    assert "libc.so.6" in output and "--archive-url" not in output
    assert "lab::poke" in printed(DUMP, url=server.url)


def test_a_build_that_does_not_exist_is_told(server: RunningServer) -> None:
    said = refusal(DUMP, "--archive-url", "store://lamp-release/R9", url=server.url)
    assert said.startswith("devserver: no such build: store://lamp-release/R9")
    said = refusal(DUMP, "--archive-url", "http://other.example/lamp/R9", url=server.url)
    assert "other.example" in said


# --- servers


def test_a_server_that_is_not_there_is_told() -> None:
    said = refusal(DUMP, url="http://127.0.0.1:9")
    assert "no devserver answers at http://127.0.0.1:9" in said


def test_a_server_that_is_no_devserver_is_told(server: RunningServer) -> None:
    with ArchiveProxy(server.url) as proxy:
        for body in (b"<html>", b"[]", b'{"threads": [{}]}'):
            proxy.misbehave("/symbolicate_dump", Fault(swap=body), times=1)
            assert f"what answers at {proxy.url}" in refusal(DUMP, url=proxy.url)


def test_a_server_without_a_walker_says_so(serve: Serve, tmp_path: Path) -> None:
    server = serve("--minidump-stackwalk", str(tmp_path / "none"))
    assert "--minidump-stackwalk" in refusal(DUMP, url=server.url)


# --- how it is called


def test_help_names_what_there_is() -> None:
    ended = run("--help", url="http://127.0.0.1:9")
    assert ended.returncode == 0
    for option in ("--archive-url", "--wait", "--all-threads", "--json", "--server", "--token"):
        assert option in ended.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--wait", "-1", DUMP],
        ["--archive-url", "nonsense://x", DUMP],
    ],
)
def test_wrong_use_is_2(arguments: list[str | Path]) -> None:
    ended = run(*arguments, url="http://127.0.0.1:9")
    assert (ended.returncode, ended.stdout) == (2, "")
