#!/usr/bin/env python3
"""The devserver: the CherryPy application, its lab RPCs, and the commands that run it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cherrypy
import click

from artifacts.archive_files import ArchiveFiles
from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.blobs.upload_service import UploadService
from artifacts.build import Build
from artifacts.catalog import Catalog
from artifacts.catalog_file import CatalogError
from artifacts.commands.catalog import catalog_command
from artifacts.commands.client import Client
from artifacts.commands.local_files import find_files
from artifacts.commands.options import CONTEXT_SETTINGS, config_options, given
from artifacts.commands.publish import publish, publish_command
from artifacts.commands.sample_build import make_sample_build
from artifacts.commands.stage import stage_command, watch_staging
from artifacts.commands.status import status_command
from artifacts.commands.symbolicate import symbolicate_command
from artifacts.commands.token import token_command
from artifacts.commands.upkeep import fsck_command, gc_command
from artifacts.config import Config, ConfigError, load_config
from artifacts.control_files import list_control_files, read_control_file, read_suite_controls
from artifacts.database.database import DatabaseUnavailable
from artifacts.disk import LOCK_NAME, DirectoryLock
from artifacts.equipment import Equipment
from artifacts.errors import BadRequest, BuildNotFound, DevserverError, NotFound
from artifacts.extractions import Extractions
from artifacts.fetch import FetchLimits
from artifacts.health import LoadSampler
from artifacts.local_server import announced_to_commands, new_secret, url_on_this_machine
from artifacts.locate import locate
from artifacts.members import Members
from artifacts.on_demand import OnDemand
from artifacts.process import announced, raise_open_files_limit, set_up_logging, signalled_end
from artifacts.remote_archive import RemoteArchives
from artifacts.retries import RetryLimits
from artifacts.serving.answer import Answer, json_answer, text_error
from artifacts.serving.application import mount
from artifacts.serving.builds_api import BuildsApi, FileInfo
from artifacts.serving.documentation import documented_calls
from artifacts.serving.front import ClientLimits
from artifacts.serving.handlers import (
    Arguments,
    check_method,
    give,
    items_of,
    lab_rpc,
    success_or_error,
)
from artifacts.serving.http_server import HttpServer
from artifacts.serving.members_api import ExtractApi, MembersApi
from artifacts.serving.nginx_log import NginxLog
from artifacts.serving.static_files import StaticFiles
from artifacts.serving.waiting import Wait
from artifacts.sources.registry import Sources
from artifacts.sources.transport import Timeouts
from artifacts.staging import Staging
from artifacts.symbols.symbols import Symbols
from artifacts.timers import Timers
from artifacts.tokens import PUBLISH
from artifacts.unpack_limits import UnpackLimits
from artifacts.workers import Workers
from downloader import DownloaderCache

__version__ = "0.1.0"

_log = logging.getLogger("devserver")

# Threads that plan, unpack and publish. They mostly wait for bytes.
_STAGING_THREADS = 128
_WRITEBACK_THREADS = 4
# Threads that look for members of archives and extract them, which takes a processor each.
_REMOTE_MEMBER_THREADS = 16
_MEMBER_THREADS = 8
# Threads that look whether files have been uploaded.
_UPLOAD_WATCH_THREADS = 128
_UPLOAD_WATCH_THREADS_FOR_ONE_ARCHIVE = 16
_MIN_FREE_BYTES_TO_BE_READY = 64 << 20
# What is being answered when the server ends gets as long at least.
_MIN_ANSWER_SECONDS = 2.0


class Lab:
    """The calls that test labs script against, at the root of the server."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._staging = parts.staging
        self._downloads = parts.downloads
        self._static_files = StaticFiles(
            parts.staging,
            parts.downloads,
            parts.on_demand,
            parts.config.wait_timeout,
            parts.config.accel_redirect,
        )
        self.symbolicate_dump = parts.symbols.symbolicate_dump
        self.extract = ExtractApi(parts.members, parts.config.wait_timeout)
        self.members = MembersApi(parts.members, parts.config.wait_timeout)
        self.api = Namespace(
            v1=Namespace(
                builds=BuildsApi(
                    parts.staging,
                    parts.downloads,
                    parts.parse_archive_url,
                    parts.config.wait_timeout,
                ),
                symbols=parts.symbols.api,
                upkeep=parts.upload_service.upkeep_api,
            ),
            **{"0": parts.upload_service.protocol},
            fileinfo=FileInfo(parts.staging, parts.threads, parts.config.wait_timeout),
        )

    def _archive_url(self, arguments: Arguments) -> ArchiveUrl:
        return self._parts.parse_archive_url(arguments.required("archive_url"))

    def _staged_build(self, archive_url: ArchiveUrl) -> Build:
        """Return a build that is in use now; raise BuildNotFound, or Conflict for another's."""
        build = self._staging.known_build(archive_url.name)
        self._staging.check_archive(build, archive_url)
        build.touch()
        return build

    def _wait(self, future: Any, timeout_seconds: float | None = None) -> Wait:
        limit = self._parts.config.wait_timeout
        seconds = limit if timeout_seconds is None else min(timeout_seconds, limit)
        return Wait(future, seconds, success_or_error)

    def _upload_wait(self, arguments: Arguments) -> float:
        """Return for how long a builder is waited for."""
        return min(arguments.seconds("wait") or 0, self._parts.config.wait_timeout)

    def _wait_after(self, upload_wait_seconds: float, future: Any) -> Wait:
        """Wait as long as for any other call, and before that for the builder."""
        seconds = upload_wait_seconds + self._parts.config.wait_timeout
        return Wait(future, seconds, success_or_error)

    @lab_rpc(changes=True)
    def download(self, arguments: Arguments) -> Wait:
        """/download?archive_url=U[&wait=SECONDS]: stage a build.

        Answers Success once the foreground artifacts are staged; the background artifacts are
        staged meanwhile and afterwards, see /wait_for_status. What the builder has not uploaded
        yet is waited for as long as wait says.
        """
        wait_seconds = self._upload_wait(arguments)
        staged = self._downloads.download(self._archive_url(arguments), wait_seconds)
        return self._wait_after(wait_seconds, staged)

    @lab_rpc()
    def wait_for_status(self, arguments: Arguments) -> Wait:
        """/wait_for_status?archive_url=U[&timeout=SECONDS]: wait until a build is staged.

        Answers Success once nothing of the build is under way any more, the failure in words if
        something failed, and 404 for a build that is neither staged nor being staged.
        """
        timeout_seconds = arguments.seconds("timeout")
        settled = self._downloads.wait_for_status(self._archive_url(arguments))
        return self._wait(settled, timeout_seconds)

    @lab_rpc(changes=True)
    def stage(self, arguments: Arguments) -> Wait | str:
        """/stage?archive_url=U&artifacts=A&files=X[&async=True][&clean=True][&wait=S]: stage parts.

        artifacts are names from the catalog; files are names or globs of files in the archive,
        staged as they are. Answers Success when they are staged or, with async=True, when that has
        begun. With clean=True, the whole build is dropped first. What the builder has not uploaded
        yet is waited for as long as wait says.
        """
        archive_url = self._archive_url(arguments)
        items = items_of(arguments.words("artifacts"), arguments.words("files"))
        is_async = arguments.flag("async")
        wait_seconds = self._upload_wait(arguments)
        drop_first = arguments.flag("clean")
        staged = self._downloads.stage(archive_url, items, wait_seconds, drop_first=drop_first)
        return "Success" if is_async else self._wait_after(wait_seconds, staged)

    @lab_rpc(changes=True)
    def stage_debug(self, arguments: Arguments) -> Wait:
        """/stage_debug?archive_url=U[&wait=SECONDS]: stage a build's debug symbols.

        Answers Success when they are staged. What the builder has not uploaded yet is waited for as
        long as wait says.
        """
        archive_url = self._archive_url(arguments)
        wait_seconds = self._upload_wait(arguments)
        return self._wait_after(
            wait_seconds, self._downloads.stage_symbols(archive_url, wait_seconds)
        )

    @lab_rpc()
    def is_staged(self, arguments: Arguments) -> str:
        """/is_staged?archive_url=U&artifacts=a&files=x: tell whether parts are staged.

        Answers True or False, and the failure in words if staging them failed.
        """
        items = items_of(arguments.words("artifacts"), arguments.words("files"))
        return str(self._downloads.is_staged(self._archive_url(arguments), items))

    @lab_rpc()
    def list_image_dir(self, arguments: Arguments) -> str:
        """/list_image_dir?archive_url=U: list the staged files, one path a line, sorted."""
        return "\n".join(sorted(self._staged_build(self._archive_url(arguments)).files()))

    @lab_rpc()
    def locate_file(self, arguments: Arguments) -> str:
        """/locate_file?archive_url=U&file_name=N[&artifacts=a]: find a staged file by its name.

        Answers its path below the build. N is a file's name, or the end of its path; where several
        fit, the one nearest to the top counts. With artifacts, only what these have brought.
        """
        archive_url = self._archive_url(arguments)
        file_name, artifacts = arguments.required("file_name"), arguments.words("artifacts")
        self._parts.catalog.check_known(artifacts)
        return locate(self._staged_build(archive_url), file_name, artifacts)

    @lab_rpc()
    def latestbuild(self, arguments: Arguments) -> str:
        """/latestbuild?target=T[&milestone=R17]: name the highest staged build of a target.

        Numbers compare as numbers. A build counts while all that was asked of it is staged.
        """
        target = BuildName.checked(arguments.required("target"), "any").target
        milestone = arguments.text("milestone")
        names = [
            name
            for name in self._staging.builds_of(target)
            if milestone is None or name.build.startswith(f"{milestone}-")
        ]
        for name in sorted(names, key=lambda name: _version_key(name.build), reverse=True):
            if self._is_whole(name):
                return name.build
        of_milestone = f" of milestone {milestone}" if milestone else ""
        raise BuildNotFound(f"no build{of_milestone} is staged for target {target}")

    def _is_whole(self, name: BuildName) -> bool:
        asked = self._staging.build(name).asked
        if asked is None or not asked.is_staged or self._staging.is_claimed(name):
            return False
        return self._downloads.failure_of(ArchiveUrl.parse(asked.archive_url)) is None

    @lab_rpc()
    def controlfiles(self, arguments: Arguments) -> Answer | str:
        """/controlfiles?build=T/B[&control_path=P][&suite_name=S]: control files of a build.

        With a path, that file's bytes; else the control files below autotest/, one a line, sorted;
        only those of a suite, if one is named.
        """
        build = self._staging.known_build(BuildName.parse(arguments.required("build")))
        build.touch()
        if path := arguments.text("control_path"):
            return Answer(read_control_file(build, path))
        return "\n".join(list_control_files(build, arguments.text("suite_name")))

    @lab_rpc()
    def list_suite_controls(self, arguments: Arguments) -> Answer:
        """/list_suite_controls?build=T/B&suite_name=S: the control files of a suite, as JSON.

        Answers an object: path below autotest/ -> text. They are those that /controlfiles lists.
        """
        name = BuildName.parse(arguments.required("build"))
        suite = arguments.required("suite_name")
        build = self._staging.known_build(name)
        build.touch()
        return json_answer(read_suite_controls(build, suite))

    @lab_rpc()
    def check_health(self, _: Arguments) -> Answer:
        """/check_health: how the machine is doing, as JSON.

        free_disk is in GB; staging_thread_count and apache_client_count are the busy staging
        threads and the clients' open connections.
        """
        load = self._parts.load.latest
        return json_answer(
            {
                "free_disk": round(self._staging.space.free_bytes() / 1e9, 3),
                "staging_thread_count": self._parts.threads.busy,
                "apache_client_count": len(self._parts.server.connections_open),
                "cpu_percent": load.cpu_percent,
                "disk_total_bytes_per_second": round(load.disk_bytes_per_second),
                "network_total_bytes_per_second": round(load.network_bytes_per_second),
            }
        )

    @lab_rpc(methods=("GET", "HEAD"))
    def health(self, _: Arguments) -> Answer:
        """/health: answers while the server is alive."""
        return json_answer({"status": "ok"})

    @lab_rpc(methods=("GET", "HEAD"))
    def ready(self, _: Arguments) -> Answer:
        """/ready: whether the server can stage, and its database be read."""
        problems = []
        try:
            self._staging.check_writable()
            if self._staging.space.free_bytes() < _MIN_FREE_BYTES_TO_BE_READY:
                problems.append(f"the disk of {self._staging.directory} is full")
        except OSError as error:
            problems.append(f"cannot write to {self._staging.directory}: {error.strerror}")
        try:
            self._parts.upload_service.uploads.database.check()
        except DatabaseUnavailable as error:
            problems.append(error.message)
        if self._downloads.is_closed:
            problems.append("the server is shutting down")
        if problems:
            return json_answer({"status": "not ready", "problems": problems}, 503)
        return json_answer({"status": "ok"})

    @cherrypy.expose
    def doc(self, /, *segments: str, **_: Any) -> bytes:
        """/doc, /doc/NAME: what each call does; NAME is like stage, or api/v1/builds."""
        calls = documented_calls(self)
        if not segments:
            return give(
                "\n".join(text.splitlines()[0] for texts in calls.values() for text in texts)
            )
        name = "/".join(segments)
        if name not in calls:
            return give(text_error(NotFound(f"no such call: {name}")))
        return give("\n\n".join(calls[name]))

    @cherrypy.expose
    def static(self, /, *segments: str, **_: Any) -> bytes:
        """/static/TARGET/BUILD/PATH: the staged files, and those that are being staged.

        GET and HEAD, with ranges and conditions; directories answer an index, as HTML or, with
        Accept: application/json, as JSON. What is being staged is sent as it comes. With
        --archive-root, a file that nobody has staged is staged by a GET.
        """
        try:
            check_method(("GET", "HEAD"))
            request = cherrypy.request
            return give(
                self._static_files.answer(request.method, list(segments), dict(request.headers))
            )
        except DevserverError as error:
            return give(text_error(error))

    @cherrypy.expose
    def index(self, /, **_: Any) -> bytes:
        """/: the page for people."""
        page = (_page_directory() / "index.html").read_bytes()
        return give(Answer(page, 200, "text/html; charset=utf-8", _PAGE_HEADERS))


_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
}


class Namespace:
    """A part of the URL space that only holds others."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Parts:
    """All that a running server consists of; made once, started once, stopped once."""

    def __init__(self, config: Config) -> None:
        """Take the directories and bind the port; raise DevserverError where that fails."""
        self.config = config
        self._allow_list = config.allow_list
        self.catalog = Catalog.load(config.catalog)
        with contextlib.ExitStack() as undo:
            data_lock = DirectoryLock(config.data_dir, config.data_dir / LOCK_NAME)
            undo.callback(data_lock.release)
            self.staging = Staging(config.static_directory.absolute())
            undo.callback(self.staging.close)
            if config.nginx_log is not None:
                undo.callback(NginxLog(config.nginx_log, self._note_use).close)
            timeouts = Timeouts(config.connect_timeout, config.stall_timeout)
            timers = Timers(
                "upload-watch", _UPLOAD_WATCH_THREADS, _UPLOAD_WATCH_THREADS_FOR_ONE_ARCHIVE
            )
            undo.callback(lambda: timers.close(timeout_seconds=1))
            self.secret = new_secret()
            self.upload_service = UploadService(config, timers, self.secret)
            undo.callback(self.upload_service.close)
            self.sources = Sources(
                self._allow_list, timeouts, config.max_connections, self.upload_service.source
            )
            undo.callback(self.sources.close)
            self.connections = Workers("connection", config.max_connections)
            # A read that hangs ends with the process.
            undo.callback(lambda: self.connections.close(timeout_seconds=1))
            writeback = Workers("writeback", _WRITEBACK_THREADS)
            undo.callback(lambda: writeback.close(timeout_seconds=5))
            self.threads = Workers("staging", _STAGING_THREADS)
            undo.callback(lambda: self.threads.close(timeout_seconds=5))
            equipment = Equipment(
                self.staging,
                self.sources,
                self.catalog,
                self.connections,
                writeback,
                self.threads,
                FetchLimits(config.connections, RetryLimits(config.tries)),
                UnpackLimits(
                    config.max_unpacked, config.max_members, self.staging.space.check_room
                ),
                timers,
            )
            self.downloads = DownloaderCache(equipment)
            self.on_demand: OnDemand | None = None
            if config.archive_root is not None:
                archive_root = ArchiveUrl.parse_prefix(config.archive_root)
                self.on_demand = OnDemand(archive_root, equipment, self.downloads)
                undo.callback(self.on_demand.close)
            self.members = self._make_members(equipment, undo)
            self.symbols = Symbols(
                self.upload_service,
                config,
                equipment,
                self.parse_archive_url,
                self.downloads.stage_symbols,
            )
            undo.callback(self.symbols.close)
            self.load = LoadSampler()
            self.server = self._bind()
            self._undo = undo.pop_all()

    def _make_members(self, equipment: Equipment, undo: contextlib.ExitStack) -> Members:
        workers = Workers("member", _MEMBER_THREADS)
        undo.callback(lambda: workers.close(timeout_seconds=5))
        stopped = threading.Event()
        undo.callback(stopped.set)
        # Apart from fetches: an archive that hangs must not hold up staging from others.
        readers = Workers("remote-member", _REMOTE_MEMBER_THREADS)
        undo.callback(lambda: readers.close(timeout_seconds=1))
        remotes = RemoteArchives(self.sources, readers, equipment.fetch_limits.retries, stopped)
        archive_files = ArchiveFiles(
            self.staging,
            self.downloads,
            remotes,
            self.parse_archive_url,
            workers,
            has_archive_root=self.config.archive_root is not None,
        )
        temporary = self.staging.temporary_directory
        extractions = Extractions(temporary, self.staging.space, equipment.timers)
        undo.callback(extractions.close)
        return Members(archive_files, extractions, workers, equipment.unpack_limits)

    def parse_archive_url(self, text: str) -> ArchiveUrl:
        """Parse an archive URL, or TARGET/BUILD of the archive root, and check that it is allowed.

        Raises:
            BadRequest: it is neither.
            NotAllowed: it is not on the allow list.
        """
        if ":" not in text and text.strip(" /").count("/") >= 1:
            if self.config.archive_root is None:
                raise BadRequest(
                    f"not an archive URL: {text!r} (a build named only TARGET/BUILD is looked for "
                    "in the archive given with --archive-root, and none is)"
                )
            text = f"{self.config.archive_root.rstrip('/')}/{BuildName.parse(text)}"
        archive_url = ArchiveUrl.parse(text)
        self._allow_list.check(archive_url)
        self.sources.source_of(archive_url)
        return archive_url

    def _note_use(self, name: BuildName) -> None:
        """Note that nginx has served files of a build by itself."""
        self.staging.build(name).touch()

    @property
    def port(self) -> int:
        return int(self.server.bind_addr[1])

    @property
    def url_on_this_machine(self) -> str:
        host, port = self.server.bind_addr
        is_https = self.config.certificate is not None
        return url_on_this_machine(host, port, is_https=is_https)

    def start(self) -> None:
        self.load.start()
        self.server.start()
        self.upload_service.start()
        self.symbols.start()

    def stop(self) -> None:
        """Refuse new work, give what is under way its time, then end everything."""
        deadline = time.monotonic() + self.config.shutdown_timeout
        self.upload_service.stop()
        self.downloads.close(self.config.shutdown_timeout)
        self.threads.close(timeout_seconds=5)
        self.server.stop(max(_MIN_ANSWER_SECONDS, deadline - time.monotonic()))
        self.load.stop()
        self._undo.close()

    def _bind(self) -> HttpServer:
        """Listen where the configuration says: by default on IPv6 and IPv4, else on IPv4 alone."""
        config = self.config
        application = mount(Lab(self))
        limits = ClientLimits(
            taking_seconds=config.client_timeout, growth_seconds=config.wait_timeout
        )
        hosts = [config.host] if config.host else ["::", "0.0.0.0"]
        for host in hosts:
            try:
                return HttpServer(
                    (host, config.port),
                    application,
                    config.threads,
                    limits,
                    config.certificate,
                )
            except OSError as error:
                if "in use" in str(error):
                    raise DevserverError(
                        f"port {config.port} is in use; choose another with --port"
                    ) from error
                if host != "::":
                    raise DevserverError(
                        f"cannot listen on {host} port {config.port}: {error}"
                    ) from error
        raise DevserverError(f"cannot listen on port {config.port}")


def run(config: Config, *, meanwhile: Callable[[Parts], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    ``meanwhile`` is called on a thread of its own once requests are answered.

    Raises:
        DevserverError: a directory, the port or the catalog cannot be used.
    """
    set_up_logging(config.log_level)
    raise_open_files_limit()
    wait_for_end = signalled_end()
    parts = Parts(config)
    engine = cherrypy.engine
    engine.autoreload.unsubscribe()
    cherrypy.server.unsubscribe()
    engine.subscribe("start", parts.start)
    # Before everything else: while requests are still answered.
    engine.subscribe("stop", parts.stop, priority=10)
    engine.start()
    try:
        with (
            announced_to_commands(config.data_dir, parts.url_on_this_machine, parts.secret),
            announced({config.portfile: str(parts.port), config.pidfile: str(os.getpid())}),
        ):
            _log.info("serving on port %d, files in %s", parts.port, parts.staging.directory)
            if meanwhile is not None:
                threading.Thread(
                    target=meanwhile, args=(parts,), name="meanwhile", daemon=True
                ).start()
            wait_for_end()
            _log.info("ending; what is under way gets %.0f s", config.shutdown_timeout)
    finally:
        engine.exit()
    _log.info("ended")


def _version_key(build: str) -> list[tuple[int, int, str]]:
    """Order builds so that numbers compare as numbers: R17-1413 over R17-18."""
    return [
        (1, int(part), "") if part.isdecimal() else (0, 0, part)
        for part in re.split(r"(\d+)", build)
        if part
    ]


def _page_directory() -> Path:
    """Return where the page's files are: beside this file, or installed as their own package."""
    here = Path(__file__).resolve().parent
    return here / "static" if (here / "static").is_dir() else here / "devserver_page"


class _Commands(click.Group):
    """The command line; what begins with an option, or is nothing at all, is for ``serve``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in {"-h", "--help", "--version"}):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BadRequest, CatalogError, ConfigError) as error:
            click.echo(f"devserver: {error.message}", err=True)
            ctx.exit(2)
        except DevserverError as error:
            click.echo(f"devserver: {error.message}", err=True)
            ctx.exit(1)
        except OSError as error:
            # Of what results are printed to, say: all else has its own words.
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"devserver: {where}{error.strerror or error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__)
def main() -> None:
    """Stages build artifacts for device test labs: fetched once, verified, served to every machine.

    Without a command, the options are those of serve.
    """


@main.command("serve", context_settings=CONTEXT_SETTINGS)
@config_options
def serve_command(config: Path | None, **options: Any) -> None:
    """Run the server until it is told to end (SIGTERM or Ctrl-C)."""
    run(load_config(given(options), config))


@main.command("demo", context_settings=CONTEXT_SETTINGS)
@click.option("--port", type=click.IntRange(0, 65535), help="port, instead of 8080 or a free one")
def demo_command(port: int | None) -> None:
    """Serve, publish a sample build, and stage it as a lab machine would; until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="devserver-demo-") as directory:
        click.echo("Making a sample build ...", err=True)
        build = make_sample_build(Path(directory).resolve())
        config = load_config(
            {
                "port": _free_port() if port is None else port,
                "data_dir": Path(directory) / "data",
                "log_level": "warning",
            }
        )
        run(config, meanwhile=lambda parts: _demonstrate(parts, build))


def _free_port() -> int:
    """Return 8080, or 0 where something else listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return 0 if probe.connect_ex(("127.0.0.1", 8080)) == 0 else 8080


def _demonstrate(parts: Parts, build: Path) -> None:
    server = f"http://localhost:{parts.port}"
    name = BuildName.checked(build.parent.name, build.name)
    archive_url = f"store://{name}"
    try:
        with Client(
            server, parts.upload_service.uploads.tokens.create("demo", [PUBLISH])
        ) as client:
            click.echo(f"Publishing it as {archive_url} ...", err=True)
            publish(client, name, find_files([build]))
            click.echo(f"Staging {archive_url} ...", err=True)
            client.get_text("/download", archive_url=archive_url)
            click.echo(
                "Success: the foreground artifacts are staged, a machine can install.", err=True
            )
            watch_staging(client, name, {"archive_url": archive_url, "artifacts": [], "files": []})
    except DevserverError as error:
        click.echo(f"devserver: {error.message}", err=True)
    click.echo(f"The page:      {server}/")
    click.echo(f"A staged file: {server}/static/{name}/update.gz")
    click.echo(f"Try:           curl '{server}/wait_for_status?archive_url={archive_url}'")
    click.echo("Serving until Ctrl-C ...")


main.add_command(stage_command)
main.add_command(publish_command)
main.add_command(status_command)
main.add_command(symbolicate_command)
main.add_command(token_command)
main.add_command(catalog_command)
main.add_command(gc_command)
main.add_command(fsck_command)


if __name__ == "__main__":
    main()
