"""Programs that look at hostile files may crash, hang or run wild: an error is all that it is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from polling import wait_until

from artifacts.errors import BadRequest, Busy, DevserverError, TimedOut
from artifacts.symbols.limited_programs import (
    CannotRun,
    LimitedPrograms,
    ProgramLimits,
    TooMuchOutput,
)
from artifacts.symbols.stack_walker import StackWalker, WalkerFailed, WalkerMissing

LIMITS = ProgramLimits(seconds=60, address_space_bytes=4 << 30, output_bytes=1 << 20)
# Time enough for a program to start, and to say who it is.
SHORT = ProgramLimits(seconds=2, address_space_bytes=4 << 30, output_bytes=1 << 20)
HANG = "exec sleep 600"

Script = Callable[[str], str]


@pytest.fixture
def programs() -> Iterator[LimitedPrograms]:
    programs = LimitedPrograms()
    yield programs
    programs.close()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Make a program of lines of shell."""

    def make(lines: str) -> str:
        path = tmp_path / f"program-{len(list(tmp_path.iterdir()))}"
        path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return make


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_for_pids(path: Path, count: int) -> list[int]:
    """Return the numbers that programs have written to a file, a line each."""

    def written() -> list[str]:
        return path.read_text("utf-8").split() if path.exists() else []

    wait_until(lambda: len(written()) == count)
    return [int(pid) for pid in written()]


# --- how programs end


def test_what_a_program_prints_is_returned_with_its_status(
    programs: LimitedPrograms, script: Script
) -> None:
    ended = programs.run([script('echo "$1"; echo said >&2; exit 3'), "a b"], LIMITS)
    assert (ended.status, ended.output, ended.chatter) == (3, b"a b\n", "said\n")


def test_of_what_a_program_says_the_last_is_kept(programs: LimitedPrograms, script: Script) -> None:
    lines = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done >&2"
    ended = programs.run([script(lines)], LIMITS)
    assert ended.chatter.endswith("line 2998\nline 2999\n")
    assert len(ended.chatter) <= 4096


def test_a_signal_that_ended_a_program_is_told(programs: LimitedPrograms, script: Script) -> None:
    ended = programs.run([script("echo some; kill -SEGV $$")], LIMITS)
    assert (ended.status, ended.output) == (-11, b"some\n")


def test_a_program_that_hangs_is_ended_with_its_children(
    programs: LimitedPrograms, script: Script, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    lines = f'sleep 600 & echo $! >> "{pids}"; echo $$ >> "{pids}"; wait'
    with pytest.raises(TimedOut, match=r"^program-0 took over 2 s, and was ended$"):
        programs.run([script(lines)], SHORT)
    started = wait_for_pids(pids, 2)
    wait_until(lambda: not any(is_running(pid) for pid in started))


def test_what_a_program_has_started_ends_with_it(
    programs: LimitedPrograms, script: Script, tmp_path: Path
) -> None:
    if not hasattr(os, "pidfd_open"):
        pytest.skip("this system cannot tell that a process has ended without forgetting it")
    pids = tmp_path / "pids"
    lines = f'sleep 600 </dev/null >/dev/null 2>&1 & echo $! > "{pids}"; echo done'
    assert programs.run([script(lines)], LIMITS).output == b"done\n"
    (pid,) = wait_for_pids(pids, 1)
    wait_until(lambda: not is_running(pid))


def test_what_runs_for_an_owner_is_ended_and_the_rest_goes_on(
    programs: LimitedPrograms, script: Script, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    began = [tmp_path / "began-0", tmp_path / "began-1"]
    waiting = [
        script(f'touch "{path}"; while [ ! -e "{release}" ]; do :; done; echo done')
        for path in began
    ]
    with ThreadPoolExecutor(2) as pool:
        gone, stays = (
            pool.submit(programs.run, [program], LIMITS, None, owner)
            for owner, program in enumerate(waiting)
        )
        wait_until(lambda: all(path.exists() for path in began))
        programs.end(0)
        assert gone.result().status == -signal.SIGKILL
        release.touch()
        assert stays.result().output == b"done\n"


def test_a_program_that_prints_on_and_on_is_ended_in_time(
    programs: LimitedPrograms, script: Script
) -> None:
    with pytest.raises(TimedOut):
        programs.run([script("while :; do echo x >&2; done")], SHORT)


def test_a_program_that_prints_nothing_more_is_ended_in_time(
    programs: LimitedPrograms, script: Script, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(TimedOut):
        programs.run([script(f'echo $$ > "{pids}"; exec sleep 600 >&- 2>&-')], SHORT)
    (pid,) = wait_for_pids(pids, 1)
    assert not is_running(pid)


def test_a_program_whose_child_holds_its_output_is_ended_in_time(
    programs: LimitedPrograms, script: Script, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(TimedOut):
        programs.run([script(f'sleep 600 & echo $! > "{pids}"')], SHORT)
    (pid,) = wait_for_pids(pids, 1)
    wait_until(lambda: not is_running(pid))


# --- limits


def test_a_program_that_prints_too_much_is_ended(programs: LimitedPrograms, script: Script) -> None:
    yes = script("exec yes")
    with pytest.raises(TooMuchOutput, match="printed over 1,048,576 bytes"):
        programs.run([yes], LIMITS)
    with io.BytesIO() as output, pytest.raises(TooMuchOutput):
        programs.run([yes], LIMITS, output)


def test_what_a_program_prints_is_written_to_a_file(
    programs: LimitedPrograms, script: Script, tmp_path: Path
) -> None:
    with (tmp_path / "output").open("w+b") as output:
        ended = programs.run([script("head -c 1048576 /dev/zero")], LIMITS, output)
        assert (ended.status, ended.output) == (0, b"")
        output.seek(0)
        assert output.read() == bytes(1 << 20)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_disk_that_is_full_is_noticed_whatever_the_program_says(
    programs: LimitedPrograms, script: Script
) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        programs.run([script("echo a; exit 0")], LIMITS, full)


def test_a_program_cannot_write_large_files(
    programs: LimitedPrograms, script: Script, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    ended = programs.run([script(f'head -c 2000000 /dev/zero > "{output}"')], LIMITS)
    assert ended.status != 0
    assert output.stat().st_size <= 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_a_program_cannot_have_all_memory(programs: LimitedPrograms) -> None:
    command = [sys.executable, "-I", "-S", "-c", "bytearray(300 << 20)"]
    assert programs.run(command, LIMITS).status == 0
    ended = programs.run(command, ProgramLimits(60, 256 << 20, 1 << 20))
    assert ended.status == 1
    assert "MemoryError" in ended.chatter


def test_secrets_of_the_environment_are_not_passed_on(
    programs: LimitedPrograms, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    ended = programs.run([script("env")], LIMITS)
    assert b"PATH=" in ended.output
    assert b"a-secret" not in ended.output


def test_a_program_has_no_files_of_the_server(programs: LimitedPrograms, tmp_path: Path) -> None:
    # What is listed has the file that lists it.
    code = "import json, os; print(json.dumps(os.listdir('/dev/fd')))"
    with (tmp_path / "kept").open("wb") as kept:
        os.set_inheritable(kept.fileno(), True)
        ended = programs.run([sys.executable, "-I", "-S", "-c", code], LIMITS)
    assert {int(number) for number in json.loads(ended.output)} <= {0, 1, 2, 3}


# --- what cannot be run


def test_what_is_no_program_cannot_be_run(programs: LimitedPrograms, tmp_path: Path) -> None:
    missing, plain, empty = (tmp_path / name for name in ("missing", "plain", "empty"))
    plain.write_text("#!/bin/sh\n")
    empty.write_bytes(b"\0\1\2\3")
    empty.chmod(0o755)
    for path, reason in (
        (missing, "No such file"),
        (plain, "Permission denied"),
        (tmp_path, "Permission denied"),
        (empty, "Exec format error"),
    ):
        with pytest.raises(CannotRun, match=f"^cannot run .*{path.name}: {reason}"):
            programs.run([str(path)], LIMITS)


def test_a_command_that_the_system_refuses_cannot_be_run(programs: LimitedPrograms) -> None:
    with pytest.raises(CannotRun, match="Argument list too long"):
        programs.run(["/bin/sh", "x" * (8 << 20)], LIMITS)


# --- closing


def test_closing_ends_what_is_running(
    programs: LimitedPrograms, script: Script, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    command = [script(f'echo $$ >> "{pids}"; {HANG}')]
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(programs.run, command, LIMITS) for _ in range(3)]
        started = wait_for_pids(pids, 3)
        programs.close()
        for run in running:
            with pytest.raises(Busy, match="shutting down"):
                run.result(30)
    assert not any(is_running(pid) for pid in started)
    with pytest.raises(Busy, match="shutting down"):
        programs.run([script("echo")], LIMITS)


def test_many_programs_run_at_once(programs: LimitedPrograms, script: Script) -> None:
    # Each goes on only when all of them are there.
    there = threading.Barrier(8, timeout=60)
    command = script('echo "$1"')

    def run(number: int) -> bytes:
        there.wait()
        return programs.run([command, str(number)], LIMITS).output

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [b"%d\n" % number for number in range(8)]


# --- the stack walker


@pytest.mark.parametrize(
    ("lines", "seconds", "kind", "status", "message"),
    [
        ("exit 1", 60, BadRequest, 400, "not a minidump that can be read"),
        ("echo Usage >&2; exit 1", 60, BadRequest, 400, "not a minidump that can be read"),
        ("exit 0", 60, BadRequest, 400, "not a minidump that can be read"),
        ("echo some; exit 1", 60, WalkerFailed, 502, "status 1 in the middle of its work"),
        ("kill -SEGV $$", 60, WalkerFailed, 502, "died of signal 11"),
        ("echo some; kill -ABRT $$", 60, WalkerFailed, 502, "died of signal 6"),
        (HANG, 0.5, TimedOut, 504, r"took over 0\.5 s"),
        ("exec yes 0123456789012345678901234567890", 60, TooMuchOutput, 502, "8,388,608 bytes"),
        ("exit 127", 60, CannotRun, 502, "cannot run"),
    ],
)
def test_what_a_walker_ends_with_is_told(
    lines: str,
    seconds: float,
    kind: type[DevserverError],
    status: int,
    message: str,
    programs: LimitedPrograms,
    script: Script,
) -> None:
    walker = StackWalker(programs, Path(script(lines)), seconds)
    with pytest.raises(kind, match=message) as raised:
        walker.walk(Path("dump"), Path("symbols"))
    assert raised.value.status == status


def test_a_walker_is_asked_for_text_or_for_fields(
    programs: LimitedPrograms, script: Script
) -> None:
    lines = r'[ "$1" = -m ] && printf "OS|"; printf "%s," "$@"; printf "\377"'
    walker = StackWalker(programs, Path(script(lines)), 60)
    dump, symbols = Path("/d/-m"), Path("/d/symbols")
    assert walker.walk(dump, symbols) == "/d/-m,/d/symbols,\ufffd"
    assert walker.walk(dump, symbols, for_machines=True) == "OS|-m,/d/-m,/d/symbols,\ufffd"


def test_a_walker_that_prints_something_else_is_none(
    programs: LimitedPrograms, script: Script
) -> None:
    walker = StackWalker(programs, Path(script("echo hello")), 60)
    with pytest.raises(WalkerFailed):
        walker.walk(Path("d"), Path("s"), for_machines=True)


def test_a_walker_is_found_on_the_path(
    programs: LimitedPrograms, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(script("echo walked")).rename(tmp_path / "minidump_stackwalk")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert StackWalker(programs, None, 60).walk(Path("d"), Path("s")) == "walked\n"


def test_who_has_no_walker_is_told_how_to_get_one(
    programs: LimitedPrograms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for path, where in ((None, "not on PATH"), (tmp_path / "walker", f"not at {tmp_path}")):
        with pytest.raises(WalkerMissing, match=where) as raised:
            StackWalker(programs, path, 60).walk(Path("d"), Path("s"))
        assert raised.value.status == 501
        assert "npm install --ignore-scripts minidump" in raised.value.message
