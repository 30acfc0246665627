"""nginx before a devserver, as it is to be deployed: with deploy/nginx.conf."""

from __future__ import annotations

import copy
import grp
import os
import pwd
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from real_servers import run_nginx
from running_server import REPOSITORY, RunningServer

CONFIGURATION = REPOSITORY / "deploy" / "nginx.conf"
# Its --accel-redirect.
ACCEL_PREFIX = "/.published/"
_STATIC_LOCATION = re.compile(r"\n        location /static/ \{.*?\n        \}\n", re.DOTALL)


@contextmanager
def deployed_nginx(
    upstream_url: str,
    static_directory: Path,
    directory: Path,
    *,
    serves_published: bool = True,
    log_socket: Path | None = None,
    user: str = "root",
) -> Iterator[str]:
    """Run nginx with the configuration that is to be deployed; yield its URL.

    Args:
        upstream_url: where devserver is, or what stands in for it.
        directory: where nginx may keep its own files; it is made.
        serves_published: as it is there; else without the location that it says can be left out.
        log_socket: devserver's ``--nginx-log``.
        user: whose the workers are, where root runs the tests.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    configuration = CONFIGURATION.read_text()
    if not serves_published:
        configuration, count = _STATIC_LOCATION.subn("", configuration)
        assert count == 1
    for there, here in (
        ("user www-data;", _user_directive(user)),
        ("pid /run/", "daemon off; pid "),
        ("/var/log/nginx/", ""),
        ("http {", f"http {{ {_temporary_paths()}"),
        ("server 127.0.0.1:8080;", f"server {upstream_url.removeprefix('http://')};"),
        ("default /run/devserver-static;", f"default {static_directory};"),
        ("listen 80 default_server", f"listen {address}"),
        ("listen [::]:80 default_server backlog=4096;", ""),
    ):
        assert there in configuration, there
        configuration = configuration.replace(there, here)
    configuration = configuration.replace(
        "unix:/run/devserver/nginx.sock", f"unix:{log_socket or directory / 'none'}"
    )
    with run_nginx(configuration, directory, listener):
        yield f"http://{address}"


def reached_at(url: str, server: RunningServer) -> RunningServer:
    """Return the same server, as it is reached through another."""
    front = copy.copy(server)
    front.url, front.session = url, requests.Session()
    return front


def _user_directive(user: str) -> str:
    if os.geteuid() != 0:
        return ""
    return f"user {user} {grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name};"


def _temporary_paths() -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{kind}_temp_path temporary;" for kind in kinds)
