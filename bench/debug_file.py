"""Large debug files, made of a small one."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def debug_file(size: int) -> bytes:
    """Return a new ELF file of ``size`` bytes: this Python's program, and random bytes behind it.

    What follows the last section of an ELF file is of no interest to those who read it.
    """
    program = Path(sys.executable).resolve().read_bytes()
    return program + os.urandom(size - len(program))
