"""The program that takes rights away from itself and then becomes another program.

``limit_and_run.py SECONDS ADDRESS_SPACE_BYTES PARENT PROGRAM ARGUMENT…``: limits of processor time
and of memory; it ends with the process PARENT. Files that it writes may have no more than a
mebibyte: what it does goes to its standard output. It imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

_FILE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_CANNOT_RUN = 127


def _limit(which: int, wanted: int) -> None:
    allowed = resource.getrlimit(which)[1]
    limit = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
    resource.setrlimit(which, (limit, limit))


def _end_with_parent(parent: int) -> None:
    """Have the system end this process, whatever it becomes, when its parent is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(_CANNOT_RUN)


def _become(command: list[str], seconds: int, address_space_bytes: int, parent: int) -> None:
    _end_with_parent(parent)
    _limit(resource.RLIMIT_CPU, seconds)
    # macOS refuses this one.
    with contextlib.suppress(ValueError, OSError):
        _limit(resource.RLIMIT_AS, address_space_bytes)
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    # Python ignores these, and what it starts would, too.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        _become(sys.argv[4:], *map(int, sys.argv[1:4]))
    except (OSError, ValueError) as error:
        # As shells do.
        print(getattr(error, "strerror", None) or error, file=sys.stderr)
        sys.exit(_CANNOT_RUN)
