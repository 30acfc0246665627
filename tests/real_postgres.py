"""A real PostgreSQL for tests: its own directory, a Unix socket, nothing that is worth a sync."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from polling import wait_until

_USER = "devserver"
_END_SECONDS = 30
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "300",
    "shared_buffers": "16MB",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
}
# Beyond PATH: each version of Debian's packages has a directory of its own, and so has Homebrew's.
_PLACES = ("usr/lib/postgresql/*/bin", "opt/homebrew/opt/postgresql*/bin", "usr/local/pgsql/bin")


class Postgres:
    """A PostgreSQL server that runs until ``stop``; what it keeps goes with ``remove``."""

    def __init__(self, programs: Path) -> None:
        """Make it and start it; ``programs`` is the directory that ``find_programs`` has found."""
        self._programs = programs
        # The path of a socket is short, so it cannot be in a test's own directory.
        self.directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user = _unprivileged_user()
        if self._user is not None:
            shutil.chown(self.directory, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            *("initdb", "-D", "data", "-U", _USER, "-A", "trust", "-E", "UTF8"),
            *("--no-locale", "--no-sync", "--no-instructions"),
        )
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://{_USER}@/{database}?host={self.directory}"

    def make_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"d{uuid.uuid4().hex}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}".encode("ascii"))
        return self.url(name)

    def remove_database(self, url: str) -> None:
        """Remove a database, and end whatever is still connected to it."""
        name = urlsplit(url).path.lstrip("/")
        with self.connect("postgres") as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode("ascii"))

    def cut_off_everybody(self, url: str) -> None:
        """End all connections to a database."""
        name = urlsplit(url).path.lstrip("/")
        connections = "FROM pg_stat_activity WHERE datname = %s"
        with self.connect("postgres") as connection:
            connection.execute(f"SELECT pg_terminate_backend(pid) {connections}".encode(), [name])
            wait_until(
                lambda: connection.execute(f"SELECT 1 {connections}".encode(), [name]).rowcount == 0
            )

    def connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        """Connect past devserver: each statement is a transaction; a context manager."""
        return psycopg.connect(self.url(database), autocommit=True)

    def start(self) -> None:
        with (self.directory / "output").open("ab") as output:
            settings = {**_SETTINGS, "unix_socket_directories": str(self.directory)}
            self._process = subprocess.Popen(
                [
                    str(self._programs / "postgres"),
                    *("-D", str(self.directory / "data")),
                    *(f"--{name}={value}" for name, value in settings.items()),
                ],
                cwd=self.directory,
                user=self._user,
                group=self._group(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(
                "PostgreSQL has ended:\n" + (self.directory / "output").read_text()
            )
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End it; whoever is connected is cut off."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_END_SECONDS)
            raise
        finally:
            self._process = None

    def remove(self) -> None:
        shutil.rmtree(self.directory)

    def _run(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self.directory,
            user=self._user,
            group=self._group(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{program}: {ended.stderr}"

    def _group(self) -> int | None:
        return None if self._user is None else pwd.getpwnam(self._user).pw_gid


def find_programs() -> Path | None:
    """Return the directory of PostgreSQL's programs, the newest; None where it is not installed."""
    in_path = shutil.which("initdb")
    if in_path is not None:
        return Path(in_path).resolve().parent
    found = [directory for place in _PLACES for directory in Path("/").glob(place)]
    found = [directory for directory in found if (directory / "initdb").exists()]
    return max(found, key=_version, default=None)


@contextmanager
def running_postgres(programs: Path) -> Iterator[Postgres]:
    """Run a PostgreSQL for the length of a block."""
    postgres = Postgres(programs)
    try:
        yield postgres
    finally:
        postgres.stop()
        postgres.remove()


def _version(directory: Path) -> int:
    return max(map(int, re.findall(r"\d+", str(directory))), default=0)


def _unprivileged_user() -> str | None:
    """Return whom to run as, as PostgreSQL refuses to run as root; None for who we are."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"
