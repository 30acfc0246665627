"""Processes that look at hostile files: each begins a session, and ends with all of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess

_END_SECONDS = 5
# What Python needs to find its libraries. The rest of the server's environment, such as the keys of
# its storage, is nothing for a process that hostile files may take over.
_ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "PYTHONHOME", "PYTHONPATH"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
)


def plain_environment() -> dict[str, str]:
    """Return the environment of such a process."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


def has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process, the first of its session; return whether it ended in time.

    Where the system can tell it otherwise, it is not reaped: until then its number, which is that
    of its session, is nobody else's, and the session can be ended.
    """
    if process.returncode is not None:
        return True
    if hasattr(os, "pidfd_open"):
        descriptor = os.pidfd_open(process.pid)
        try:
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            return bool(ended.poll(seconds * 1000))
        finally:
            os.close(descriptor)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process, unless it has been reaped, and all that it has started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def close_and_wait(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes to a process that was ended, and reap it; some seconds at most."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
