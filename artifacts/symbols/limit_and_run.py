"""The program that takes rights away from itself and then becomes another program.

``limit_and_run.py SECONDS ADDRESS_SPACE_BYTES PROGRAM ARGUMENT…``: limits of processor time and of
memory. Files that it writes may have no more than a mebibyte: what it does goes to its standard
output. It imports nothing but the standard library.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

_FILE_BYTES = 1 << 20


def _limit(which: int, wanted: int) -> None:
    allowed = resource.getrlimit(which)[1]
    limit = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
    resource.setrlimit(which, (limit, limit))


if __name__ == "__main__":
    seconds, address_space_bytes = map(int, sys.argv[1:3])
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_AS, address_space_bytes)
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    # Python ignores these, and what it starts would, too.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(sys.argv[3], sys.argv[3:])
    except OSError as error:
        # As shells tell it.
        print(f"cannot run {sys.argv[3]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)
