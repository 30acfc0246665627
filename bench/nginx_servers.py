"""nginx as a peer: alone, and as a cache of slices.

Each is as a careful administrator would have it: a worker for each processor, sendfile, the access
log buffered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.processes import free_port, started, wait_until
from bench.programs import need, program_path, versioned
from bench.web_servers import WebServer

_CONFIGURATION = """\
daemon off;
worker_processes auto;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log {directory}/nginx-access.log combined buffer=64k flush=1s;
    client_body_temp_path {directory}/nginx-tmp;
    proxy_temp_path {directory}/nginx-tmp;
    fastcgi_temp_path {directory}/nginx-tmp;
    uwsgi_temp_path {directory}/nginx-tmp;
    scgi_temp_path {directory}/nginx-tmp;
    sendfile on;
    tcp_nopush {tcp_nopush};
    keepalive_requests 100000;
    default_type application/octet-stream;
{more}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
{locations}
    }}
}}
"""
_FILES = """\
        location / {{ root "{files}"; }}
"""
_CACHE = """\
    proxy_cache_path {directory}/cache levels=1:2 keys_zone=slices:16m max_size=100g
                     inactive=1d use_temp_path=off;
"""
_SLICES = """\
        location / {{
            slice 8m;
            proxy_cache slices;
            proxy_cache_key $uri$slice_range;
            proxy_cache_valid 200 206 1d;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
            proxy_set_header Range $slice_range;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_pass {origin_url};
        }}
"""


@contextmanager
def nginx_static(directory: Path, files: Path) -> Iterator[WebServer]:
    """nginx, serving files."""
    locations = _FILES.format(files=files)
    with _nginx(directory, locations) as (port, process):
        yield WebServer("nginx", f"{versioned('nginx')} (sendfile)", port, "/", [process])


@contextmanager
def nginx_slices(directory: Path, origin_url: str, prefix: str = "/") -> Iterator[WebServer]:
    """nginx as a cache that is empty: slices of 8 MiB, each fetched by one for all who want it.

    ``prefix`` is what is before a file's name on ``origin_url``.
    """
    locations = _SLICES.format(origin_url=origin_url)
    more = _CACHE.format(directory=directory)
    # With tcp_nopush, the end of each slice waits 40 ms for more to send along.
    with _nginx(directory, locations, more=more, tcp_nopush="off") as (port, process):
        how = f"{versioned('nginx')} as a cache of 8 MiB slices"
        yield WebServer("nginx slices", how, port, prefix, [process])


@contextmanager
def _nginx(
    directory: Path, locations: str, *, more: str = "", tcp_nopush: str = "on"
) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    configuration = _CONFIGURATION.format(
        directory=directory, port=port, more=more, tcp_nopush=tcp_nopush, locations=locations
    )
    with run_nginx(directory, configuration) as process:
        yield port, process


@contextmanager
def run_nginx(directory: Path, configuration: str) -> Iterator[psutil.Process]:
    """Run nginx in a directory, which is made; yield its master once its workers are there."""
    need("nginx")
    directory.mkdir(parents=True)
    path = directory / "nginx.conf"
    path.write_text(configuration, encoding="utf-8")
    command = [str(program_path("nginx")), "-p", str(directory), "-c", str(path)]
    with started([*command, "-e", str(directory / "nginx-error.log")], directory / "log") as nginx:
        process = psutil.Process(nginx.pid)
        wait_until(lambda: len(process.children()) > 0)
        yield process
