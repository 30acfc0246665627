"""The programs that the benchmark runs: where they are, and which versions."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.place import Unmeasured
from bench.processes import REPOSITORY

# By their names; where Debian has them.
_PACKAGES = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "curl": "curl",
    "aria2c": "aria2",
    "cat": "coreutils",
    "cp": "coreutils",
    "tar": "tar",
    "pigz": "pigz",
    "lbzip2": "lbzip2",
    "zstd": "zstd",
    "xz": "xz-utils",
    "unzip": "unzip",
    "g++": "g++",
}
# What npm has; `make bench` puts it here.
_BREAKPAD = ("minidump_stackwalk",)
_BREAKPAD_DIRECTORY = REPOSITORY / ".venv" / "breakpad" / "node_modules" / "minidump" / "bin"
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_VERSION_OPTIONS = {"nginx": "-v", "unzip": "-v", "wrk": "-v"}
_VERSION = re.compile(r"\d+(\.\d+)+")
_PATH_OF_SERVERS = "/usr/sbin:/usr/local/sbin"


def program_path(name: str) -> str | None:
    if name in _BREAKPAD:
        machine = _MACHINES.get(platform.machine().lower(), "unknown")
        directory = _BREAKPAD_DIRECTORY / f"{platform.system().lower()}-{machine}"
        return shutil.which(directory / name) or shutil.which(name)
    return shutil.which(name) or shutil.which(name, path=_PATH_OF_SERVERS)


def need(*names: str) -> None:
    """Raise Unmeasured, in words, unless all of these programs are there."""
    if missing := [name for name in names if program_path(name) is None]:
        raise Unmeasured(f"needs {' and '.join(missing)} ({_how_to_get(missing)})")


def versioned(name: str) -> str:
    """Return the name with the version of the program, which is there."""
    if name in _BREAKPAD:
        return _versioned_by_npm(name)
    command = [str(program_path(name)), _VERSION_OPTIONS.get(name, "--version")]
    # wrk tells its version, and fails.
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    found = _VERSION.search(result.stdout + result.stderr)
    return f"{name} {found[0]}" if found else name


def describe_programs() -> dict[str, str]:
    return {
        name: versioned(name).removeprefix(f"{name} ") if program_path(name) else "missing"
        for name in (*_PACKAGES, *_BREAKPAD)
    }


def _how_to_get(missing: Sequence[str]) -> str:
    packages = [_PACKAGES[name] for name in missing if name in _PACKAGES]
    ways = [f"on Debian: apt-get install {' '.join(packages)}"] if packages else []
    if not set(_BREAKPAD).isdisjoint(missing):
        ways.append("npm install --ignore-scripts minidump")
    return "; ".join(ways)


def _versioned_by_npm(name: str) -> str:
    """Return the name with the version of the package that the program came with, if it did."""
    package = Path(str(program_path(name))).resolve().parents[2] / "package.json"
    try:
        version = json.loads(package.read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        return name
    return f"{name} of npm's minidump {version}"
