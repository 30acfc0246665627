"""The real servers that tests read archives from: nginx, and Google Storage, emulated."""

from __future__ import annotations

import grp
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from conftest import missing_tool

if TYPE_CHECKING:
    from google.cloud import storage

_END_SECONDS = 10
# Where system programs are, often beyond the PATH of whoever is not root.
_SYSTEM_PATHS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/local/bin")

_NGINX_CONF = """\
daemon off;
worker_processes 1;
{user}
pid nginx.pid;
error_log error.log;
events {{ worker_connections 1000; }}
http {{
  log_format connections '$connection $request_method $request_uri';
  access_log access.log connections;
  client_body_temp_path temporary;
  proxy_temp_path temporary;
  fastcgi_temp_path temporary;
  uwsgi_temp_path temporary;
  scgi_temp_path temporary;
  sendfile on;
  server {{
    listen {listen};
    {tls}
    location / {{ root "{root}"; autoindex {autoindex}; }}
  }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx; ``directory`` is its own, with its logs."""

    url: str
    directory: Path

    def connections(self) -> set[str]:
        """The connections that requests have come on, all those before the last request's end."""
        lines = (self.directory / "access.log").read_text().splitlines()
        return {line.partition(" ")[0] for line in lines}


@contextmanager
def nginx(
    root: Path,
    directory: Path,
    *,
    autoindex: Literal["html", "json", "off"] = "html",
    certificate: Path | None = None,
) -> Iterator[Nginx]:
    """Serve the files below ``root`` on a free port of 127.0.0.1.

    Args:
        directory: where nginx may keep its own files.
        autoindex: what a directory answers; off: 403.
        certificate: a file with a certificate and its key, to serve https instead of http.
    """
    program = _find_program("nginx")
    directory.mkdir(parents=True)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listen = f"127.0.0.1:{listener.getsockname()[1]}"
    configuration = _NGINX_CONF.format(
        # Unless told otherwise, the worker of root's nginx is somebody who may not read the files.
        user=f"user root {grp.getgrgid(0).gr_name};" if os.geteuid() == 0 else "",
        root=root,
        listen=f"{listen} ssl" if certificate else listen,
        tls=f'ssl_certificate "{certificate}"; ssl_certificate_key "{certificate}";'
        if certificate
        else "",
        autoindex="off" if autoindex == "off" else f"on; autoindex_format {autoindex}",
    )
    (directory / "nginx.conf").write_text(configuration)
    # It takes the listening socket over, as a new nginx does from the old one in an upgrade: the
    # port is nobody else's at any time, and whoever connects now is answered once nginx is ready.
    with listener, (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [program, "-p", str(directory), "-c", "nginx.conf"],
            env={**os.environ, "NGINX": f"{listener.fileno()};"},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Nginx(f"{'https' if certificate else 'http'}://{listen}", directory)
        if process.poll() is not None:
            logs = [
                path for path in (directory / "output", directory / "error.log") if path.exists()
            ]
            raise AssertionError("nginx has ended:\n" + "".join(log.read_text() for log in logs))
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def make_certificate(path: Path) -> Path:
    """Write a certificate for 127.0.0.1 that signs itself, and its key, to ``path``."""
    key, certificate = path.with_suffix(".key"), path.with_suffix(".certificate")
    subprocess.run(
        [
            *(_find_program("openssl"), "req", "-x509", "-nodes", "-days", "2"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes(key.read_bytes() + certificate.read_bytes())
    return path


@contextmanager
def emulated_google_storage() -> Iterator[storage.Client]:
    """Run gcp-storage-emulator, name it in ``STORAGE_EMULATOR_HOST``, yield a client of it.

    It forgets everything at the end, which takes it half a second. It ignores which generation is
    asked for, and closes every connection after one answer.
    """
    try:
        from gcp_storage_emulator.server import create_server
    except ImportError:
        missing_tool("gcp-storage-emulator")
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    server: Any = create_server("127.0.0.1", 0, in_memory=True)
    with server, pytest.MonkeyPatch.context() as environment:
        port = server._api._httpd.server_address[1]  # it has no other way to say it
        environment.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        client = storage.Client(project="test", credentials=AnonymousCredentials())
        yield client
        client.close()


def _find_program(name: str) -> str:
    program = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_PATHS)))
    if program is None:
        missing_tool(name)
    assert program is not None
    return program
