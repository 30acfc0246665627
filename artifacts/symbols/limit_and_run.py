"""The program that takes rights away from itself and then becomes another program.

``limit_and_run.py SECONDS ADDRESS_SPACE_BYTES FILE_BYTES PROGRAM ARGUMENT…``: limits of processor
time, memory, and of what a file may be written to. It imports nothing but the standard library.
"""

from __future__ import annotations

import os
import resource
import sys


def _limit(which: int, wanted: int) -> None:
    allowed = resource.getrlimit(which)[1]
    limit = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
    resource.setrlimit(which, (limit, limit))


if __name__ == "__main__":
    seconds, address_space_bytes, file_bytes = map(int, sys.argv[1:4])
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_AS, address_space_bytes)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    try:
        os.execv(sys.argv[4], sys.argv[4:])
    except OSError as error:
        # As shells tell it.
        print(f"cannot run {sys.argv[4]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)
