"""Make a virtual environment with pip in it: `python3 make_venv.py DIRECTORY`.

Works on a bare Debian too, whose python3 comes without ensurepip and without pip: there, pip is
fetched from PyPI and its checksum compared. Only the standard library is used, and the syntax is
old enough for an older Python (3.7) to get as far as saying that it is too old.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

OLDEST_PYTHON = (3, 11)
PIP_RELEASE_URL = "https://pypi.org/pypi/pip/json"
TIMEOUT_SECONDS = 60


class SetupError(Exception):
    """What went wrong and what to do about it, in one sentence for the person at the terminal."""


def make_venv(directory: str) -> None:
    """Leave a working virtual environment with pip in `directory`; one that works is kept.

    Raises SetupError when that cannot be done.
    """
    require_python()
    if has_working_pip(directory):
        return
    require_ours_to_clear(directory)
    version = ".".join(map(str, sys.version_info[:3]))
    say(f"Making a virtual environment in {directory} with Python {version} ...")
    if importlib.util.find_spec("ensurepip") is not None:
        made = run([sys.executable, "-m", "venv", "--clear", directory])
        if made.returncode == 0:
            return
    say("Its pip installer (ensurepip) is missing or fails: fetching pip from PyPI instead ...")
    made = run([sys.executable, "-m", "venv", "--clear", "--without-pip", directory])
    if made.returncode != 0:
        raise SetupError(f"Python's venv module could not make {directory}: {last_line(made)}")
    with tempfile.TemporaryDirectory() as download_dir:
        wheel = fetch_pip_wheel(download_dir)
        install_pip_from(wheel, directory)


def require_python() -> None:
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest, found = (".".join(map(str, v[:2])) for v in (OLDEST_PYTHON, sys.version_info))
        raise SetupError(
            f"devserver needs Python {oldest} or newer, and {sys.executable} is {found}; "
            f"where a newer one is installed, name it like this: make PYTHON=python{oldest} demo"
        )


def has_working_pip(directory: str) -> bool:
    python = python_in(directory)
    if not os.path.exists(python):
        return False
    check = f"import pip, sys; sys.exit(sys.version_info[:2] < {OLDEST_PYTHON})"
    return run([python, "-c", check]).returncode == 0


def require_ours_to_clear(directory: str) -> None:
    """Making an environment clears the directory: only an older environment may be cleared."""
    is_old_venv = os.path.exists(os.path.join(directory, "pyvenv.cfg"))
    if os.path.lexists(directory) and not is_old_venv:
        if os.path.isdir(directory) and not os.listdir(directory):
            return
        raise SetupError(f"{directory} is there and no virtual environment: move it away first.")


def fetch_pip_wheel(download_dir: str) -> str:
    """Download pip's newest wheel into `download_dir`, compare its SHA-256, return its path."""
    try:
        release = json.loads(fetch(PIP_RELEASE_URL))
        wheel = next(file for file in release["urls"] if file["packagetype"] == "bdist_wheel")
        name, expected = os.path.basename(wheel["filename"]), wheel["digests"]["sha256"]
        wheel_url = urllib.parse.urljoin(PIP_RELEASE_URL, wheel["url"])
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise SetupError(
            f"What {PIP_RELEASE_URL} answers does not name a wheel of pip ({error!r})."
        ) from error
    content = fetch(wheel_url)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise SetupError(
            f"The download of {name} is damaged: its SHA-256 is {found}, "
            f"PyPI says {expected}; try again."
        )
    path = os.path.join(download_dir, name)
    with open(path, "wb") as file:
        file.write(content)
    return path


def fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            content: bytes = response.read()
            return content
    except (OSError, http.client.HTTPException) as error:
        raise SetupError(
            f"Could not fetch {url} ({error}). Is there a network, and are certificates "
            "installed (Debian: apt-get install ca-certificates)? "
            "Where python3-venv is installed, pip need not be fetched."
        ) from error


def install_pip_from(wheel: str, directory: str) -> None:
    """Install pip: its wheel can be run as it is, and so install itself."""
    pip = [python_in(directory), f"{wheel}/pip", "--isolated"]
    installed = run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel])
    if installed.returncode != 0:
        raise SetupError(f"pip could not install itself: {last_line(installed)}")


def python_in(directory: str) -> str:
    return os.path.join(directory, "bin", "python")


def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def last_line(completed: subprocess.CompletedProcess[bytes]) -> str:
    lines = completed.stdout.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {completed.returncode}"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_venv.py DIRECTORY")
    try:
        make_venv(sys.argv[1])
    except SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
