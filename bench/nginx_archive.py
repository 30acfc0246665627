"""The fast archive: nginx on loopback, answering as Google Storage's JSON API does.

It serves each object at its media URL, with the headers that Google sends; what Google would say of
it; and a listing for each target, of which there is one build. (The emulated Google Storage of the
tests reads whole objects for each range.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.objects import BUCKET, Object, listing_of
from bench.processes import free_port, is_answered, started, wait_until
from bench.programs import program_path

_CONFIGURATION = """\
daemon off;
worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
    log_format sent '$body_bytes_sent';
    access_log {directory}/nginx-sent.log sent;
    client_body_temp_path {directory}/nginx-tmp;
    proxy_temp_path {directory}/nginx-tmp;
    fastcgi_temp_path {directory}/nginx-tmp;
    uwsgi_temp_path {directory}/nginx-tmp;
    scgi_temp_path {directory}/nginx-tmp;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    keepalive_requests 100000;
    default_type application/octet-stream;
    map $arg_prefix $target {{ "~*^(?<first>[a-z0-9-]+)(%2F|/)" $first; }}
    server {{
        listen 127.0.0.1:{port};
        location = /storage/v1/b/{bucket}/o {{
            default_type application/json;
            alias {directory}/listing-$target.json;
        }}
{locations}
    }}
}}
"""
_LOCATION = """\
        location = "{media_path}" {{
{headers}
            alias "{path}";
        }}
        location = "{resource_path}" {{
            default_type application/json;
            return 200 '{resource}';
        }}
"""


class NginxArchive:
    """A running nginx; ``url`` is its endpoint."""

    def __init__(self, directory: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = directory / "nginx-sent.log"

    def bytes_sent(self) -> int:
        """Return the body bytes of all answers that have ended."""
        return sum(int(line) for line in self._log.read_text(encoding="ascii").split())


@contextmanager
def nginx_archive(directory: Path, objects: Sequence[Object]) -> Iterator[NginxArchive]:
    directory.mkdir(parents=True)
    for target in {each.target for each in objects}:
        listing = listing_of(objects, f"{target}/")
        (directory / f"listing-{target}.json").write_bytes(listing)
    port = free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            directory=directory,
            port=port,
            bucket=BUCKET,
            locations="".join(_location_of(each) for each in objects),
        ),
        encoding="utf-8",
    )
    command = [str(program_path("nginx")), "-p", str(directory), "-c", str(configuration)]
    with started([*command, "-e", str(directory / "nginx-error.log")], directory / "log"):
        archive = NginxArchive(directory, port)
        wait_until(lambda: is_answered(objects[0].media_url(archive.url)))
        yield archive


def _location_of(each: Object) -> str:
    headers = "\n".join(f'            add_header {k} "{v}";' for k, v in each.headers.items())
    return _LOCATION.format(
        media_path=each.media_path,
        headers=headers,
        path=each.path,
        resource_path=each.resource_path,
        resource=json.dumps(each.resource),
    )
