"""A devserver in a process of its own, driven through its front door."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import requests

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 30
END_SECONDS = 45


class RunningServer:
    """A server on a free port, with directories below ``directory``; end it with ``stop``."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        environment: dict[str, str] | None = None,
        open_files: int | None = None,
        program: Path = REPOSITORY / "devserver.py",
    ):
        """Start it; it may have no more than ``open_files`` open, if that is given.

        ``program``: a Python program that is the server, wrapped.
        """
        self.directory = directory
        self.static_directory = directory / "static"
        directory.mkdir(parents=True, exist_ok=True)
        portfile = directory / "port"
        portfile.unlink(missing_ok=True)
        self.log_path = directory / "log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(_limited_to(open_files) if open_files is not None else ()),
                    *(sys.executable, str(program)),
                    *("--host", "127.0.0.1", "--port", "0", "--portfile", str(portfile)),
                    *("--data-dir", str(directory / "data")),
                    *("--static-dir", str(self.static_directory)),
                    *options,
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        self.port = self._read_port(portfile)
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = requests.Session()
        self.session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=400))

    def _read_port(self, portfile: Path) -> int:
        looked = threading.Event()
        for _ in range(START_SECONDS * 20):
            if portfile.exists() and (text := portfile.read_text(encoding="ascii")):
                return int(text)
            if self.process.poll() is not None:
                break
            looked.wait(0.05)
        self.process.kill()
        self.process.wait()
        raise AssertionError(f"the server did not start:\n{self.log}")

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **query: Any) -> requests.Response:
        return self.session.get(self.url + path, params=query, timeout=120)

    def call(self, path: str, **query: Any) -> str:
        """Return the body of an answer that has to be 200."""
        response = self.get(path, **query)
        assert response.status_code == 200, f"{response.status_code}: {response.text}"
        return response.text

    def file(self, path: str) -> bytes:
        response = self.get(f"/static/{path}")
        assert response.status_code == 200, f"{response.status_code}: {response.text}"
        return response.content

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(timeout=END_SECONDS)
        self.session.close()

    def stop(self) -> int:
        """Ask it to end; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.session.close()


def _limited_to(open_files: int) -> tuple[str, ...]:
    return ("sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh")
