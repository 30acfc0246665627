"""The real servers that tests read archives from: nginx; Google Storage and S3, emulated."""

from __future__ import annotations

import grp
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import pytest
import requests
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
    with run_nginx(configuration, directory, listener):
        yield Nginx(f"{'https' if certificate else 'http'}://{listen}", directory)


@contextmanager
def run_nginx(configuration: str, directory: Path, listener: socket.socket) -> Iterator[None]:
    """Run nginx on a socket that ``configuration`` says it listens on, and close it.

    ``directory`` is made, for nginx.conf and the files that it names without theirs.
    """
    program = _find_program("nginx")
    directory.mkdir(parents=True)
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
        yield
        if process.poll() is not None:
            logs = [
                path for path in (directory / "output", directory / "error.log") if path.exists()
            ]
            raise AssertionError("nginx has ended:\n" + "".join(log.read_text() for log in logs))
    finally:
        _end(process)


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


# So that listings have pages, without thousands of objects.
S3_PAGE_FILES = 10
_S3_SERVER = """\
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

application = DomainDispatcherApplication(create_backend_app)
make_server("127.0.0.1", 0, application, threaded=True, fd=int(sys.argv[1])).serve_forever()
"""
_SIGNATURE = "AWS4-HMAC-SHA256 Credential=key/20200101/us-east-1/s3/aws4_request, Signature=0"
# What would lead the library to somebody's real account, or make it look for one.
_S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
_S3_VARIABLES = ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class Bucket:
    """A bucket of an emulated S3, written to without the library that the source uses."""

    name: str
    url: str

    def put(self, key: str, content: bytes, **headers: str) -> None:
        """Store an object; ``headers`` are spelled with underscores for dashes."""
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        self._request("PUT", f"/{quote(key)}", content, spelled)

    def put_in_parts(self, key: str, parts: list[bytes]) -> None:
        """Store an object as large ones are, so that its ETag is none of its bytes' checksums."""
        path = f"/{quote(key)}"
        begun = self._request("POST", f"{path}?uploads").text
        upload = begun.partition("<UploadId>")[2].partition("</UploadId>")[0]
        listed = ""
        for number, part in enumerate(parts, 1):
            query = f"partNumber={number}&uploadId={quote(upload)}"
            etag = self._request("PUT", f"{path}?{query}", part).headers["ETag"]
            listed += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        self._request("POST", f"{path}?uploadId={quote(upload)}", body)

    def delete(self, key: str) -> None:
        self._request("DELETE", f"/{quote(key)}")

    def _request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> requests.Response:
        # moto looks whether a request is signed, and not by whom or how.
        signed = {"Authorization": _SIGNATURE, **(headers or {})}
        response = requests.request(
            method, self.url + path, data=body, headers=signed, timeout=_END_SECONDS
        )
        response.raise_for_status()
        return response


@dataclass(frozen=True)
class S3:
    """A running emulated S3."""

    url: str

    def create_bucket(self, name: str) -> Bucket:
        bucket = Bucket(name, f"{self.url}/{name}")
        bucket._request("PUT", "")
        return bucket


@contextmanager
def emulated_s3(directory: Path) -> Iterator[S3]:
    """Run moto's server, name it in ``AWS_ENDPOINT_URL``, yield it.

    ``directory`` is where its output goes. No region is set: it has to work without one. Its
    listings have pages of ``S3_PAGE_FILES``.
    """
    if importlib.util.find_spec("moto") is None:
        missing_tool("moto")
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener, (directory / "s3-output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _S3_SERVER, str(listener.fileno())],
            env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(S3_PAGE_FILES)},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        with pytest.MonkeyPatch.context() as environment:
            for name in _S3_VARIABLES:
                environment.delenv(name, raising=False)
            for name, value in {**_S3_ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
                environment.setenv(name, value)
            yield S3(url)
        if process.poll() is not None:
            raise AssertionError("moto has ended:\n" + (directory / "s3-output").read_text())
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _find_program(name: str) -> str:
    program = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_PATHS)))
    if program is None:
        missing_tool(name)
    assert program is not None
    return program
