"""Breakpad's programs, as `make test` has installed them, or as they are on PATH."""

from __future__ import annotations

import platform
import shutil

from conftest import missing_tool
from running_server import REPOSITORY

_INSTALLED = REPOSITORY / ".venv" / "breakpad" / "node_modules" / "minidump" / "bin"
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def stack_walker() -> str:
    """Return the path of ``minidump_stackwalk``; skip the test where there is none."""
    return _find("minidump_stackwalk")


def dump_syms() -> str:
    """Return the path of ``dump_syms``; skip the test where there is none."""
    return _find("dump_syms")


def _find(program: str) -> str:
    machine = _MACHINES.get(platform.machine().lower(), "unknown")
    installed = _INSTALLED / f"{platform.system().lower()}-{machine}" / program
    found = shutil.which(installed) or shutil.which(program)
    if found is None:
        missing_tool(program)
    assert found is not None
    return found
