"""devserver behind nginx, as it is to be deployed: with deploy/nginx.conf."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.nginx_servers import run_nginx
from bench.processes import REPOSITORY, Devserver, free_port
from bench.programs import versioned
from bench.web_servers import WebServer

# What the configuration expects of devserver.
_ACCEL_PREFIX = "/.published/"
# Without this location, nginx sends what devserver tells it to send.
_STATIC_LOCATION = re.compile(r"\n        location /static/ \{.*?\n        \}\n", re.DOTALL)


def devserver_behind_nginx(directory: Path) -> Devserver:
    """Start a devserver with the options that it has behind nginx."""
    log = str(_log_socket(directory))
    return Devserver(directory, "--accel-redirect", _ACCEL_PREFIX, "--nginx-log", log)


@contextmanager
def nginx_before(
    directory: Path, server: Devserver, devserver_directory: Path, build: str, *, asks: bool
) -> Iterator[WebServer]:
    """nginx before a devserver that was started by ``devserver_behind_nginx``.

    ``asks``: for each file, nginx asks devserver (X-Accel-Redirect); else it serves what is
    published by itself, and asks for what it does not find.
    """
    port = free_port()
    configuration = (REPOSITORY / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path nginx-tmp;" for kind in kinds)
    for there, here in (
        ("user www-data;", "user root;" if os.geteuid() == 0 else ""),
        ("pid /run/", "daemon off; pid "),
        ("/var/log/nginx/", f"{directory}/"),
        ("http {", f"http {{ {temporary}"),
        ("server 127.0.0.1:8080;", f"server 127.0.0.1:{server.port};"),
        ("default /run/devserver-static;", f"default {server.static_directory};"),
        ("unix:/run/devserver/nginx.sock", f"unix:{_log_socket(devserver_directory)}"),
        ("listen 80 default_server", f"listen 127.0.0.1:{port}"),
        ("listen [::]:80 default_server backlog=4096;", ""),
    ):
        if there not in configuration:
            raise RuntimeError(f"deploy/nginx.conf has no {there!r} any more: adapt {__name__}")
        configuration = configuration.replace(there, here)
    if asks:
        configuration = _STATIC_LOCATION.sub("\n", configuration)
    way = "X-Accel-Redirect" if asks else "which sends what is published"
    with run_nginx(directory, configuration) as process:
        yield WebServer(
            name=f"devserver behind nginx, {way}",
            description=f"devserver behind {versioned('nginx')}, {way}",
            port=port,
            prefix=f"/static/{build}/",
            processes=[process, server.process],
        )


def _log_socket(devserver_directory: Path) -> Path:
    return devserver_directory / "nginx.sock"
