"""The programs that the benchmark runs: where they are, and which versions."""

from __future__ import annotations

import re
import shutil
import subprocess

from bench.place import Unmeasured

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
}
_VERSION_OPTIONS = {"nginx": "-v", "unzip": "-v", "wrk": "-v"}
_VERSION = re.compile(r"\d+(\.\d+)+")
_PATH_OF_SERVERS = "/usr/sbin:/usr/local/sbin"


def program_path(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_PATH_OF_SERVERS)


def need(*names: str) -> None:
    """Raise Unmeasured, in words, unless all of these programs are there."""
    if missing := [name for name in names if program_path(name) is None]:
        packages = " ".join(_PACKAGES[name] for name in missing)
        raise Unmeasured(f"needs {' and '.join(missing)} (on Debian: apt-get install {packages})")


def versioned(name: str) -> str:
    """Return the name with the version of the program, which is there."""
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
        for name in _PACKAGES
    }
