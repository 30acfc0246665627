"""What the sources make of archives that err, lie, dawdle or are not there."""

from __future__ import annotations

import email.utils
import json
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from archive_server import ArchiveServer, Fault
from real_servers import make_certificate, nginx
from source_calls import ASKING, Ask, assert_is_for_people, every_call, read

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    BuildNotFound,
    NotAllowed,
    TransientArchiveError,
)
from artifacts.plan import usable_files
from artifacts.sources import file as file_source
from artifacts.sources import http, http_index, uploaded
from artifacts.sources.http_range import content_length
from artifacts.sources.registry import Sources
from artifacts.sources.source import ArchiveFile, Source
from artifacts.sources.transport import Timeouts

CONTENT = bytes(range(256)) * 4000
SIZE = len(CONTENT)
FILE = "/target/build/file"
DIRECTORY = "/target/build/"
STALL_SECONDS = 0.3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "target" / "build").mkdir(parents=True)
    (root / "target" / "build" / "file").write_bytes(CONTENT)
    os.utime(root / "target" / "build" / "file", (1_700_000_000, 1_700_000_000))
    return root


@pytest.fixture
def archive(root: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(root) as archive:
        yield archive


@contextmanager
def source_of(url: ArchiveUrl, *allowed: str) -> Iterator[Source]:
    """The source of a build; what is allowed is the build's archive, unless something is named."""
    allow_list = AllowList(allowed or [f"{url.scheme}://{url.authority}"])
    sources = Sources(allow_list, Timeouts(5, STALL_SECONDS), max_connections=8)
    try:
        yield sources.source_of(url)
    finally:
        sources.close()


@pytest.fixture
def url(archive: ArchiveServer) -> ArchiveUrl:
    return ArchiveUrl.parse(archive.url + DIRECTORY)


@pytest.fixture
def source(url: ArchiveUrl) -> Iterator[Source]:
    with source_of(url) as source:
        yield source


@pytest.fixture
def file(source: Source, url: ArchiveUrl) -> ArchiveFile:
    return source.stat(url, "file")


# --- statuses


@every_call
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_a_status_that_may_pass_is_worth_another_try(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, ask: Ask, status: int
) -> None:
    archive.misbehave("*", Fault(status=status, head_too=True))
    with pytest.raises(TransientArchiveError) as caught:
        ask(source, url)
    assert caught.value.retry_after_seconds is None
    assert_is_for_people(caught.value, DIRECTORY, url.authority, f"answered {status}")
    archive.behave()
    ask(source, url)


@every_call
@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 418, 451, 505])
def test_a_status_that_will_not_pass_is_not(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, ask: Ask, status: int
) -> None:
    archive.misbehave("*", Fault(status=status, head_too=True))
    with pytest.raises(ArchiveError) as caught:
        ask(source, url)
    if status != 206:
        assert type(caught.value) is ArchiveError
        assert_is_for_people(caught.value, DIRECTORY, url.authority, f"answered {status}")


@pytest.mark.parametrize("status", [404, 410])
def test_a_status_says_that_something_is_missing(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile, status: int
) -> None:
    archive.misbehave("*", Fault(status=status, head_too=True))
    with pytest.raises(ArchiveFileMissing):
        source.stat(url, "file")
    with pytest.raises(ArchiveFileMissing):
        source.open(url, file)
    with pytest.raises(BuildNotFound):
        source.list(url)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        *((7, 7), ("0", 0), ("9" * 5000, 86400), ("-5", None), ("soon", None), ("\xb2", None)),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 99 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_the_archive_says_when_to_ask_again(
    archive: ArchiveServer,
    source: Source,
    url: ArchiveUrl,
    retry_after: int | str,
    seconds: int | None,
) -> None:
    archive.misbehave("*", Fault(status=429, retry_after=retry_after))
    with pytest.raises(TransientArchiveError) as caught:
        source.list(url)
    assert caught.value.retry_after_seconds == seconds


def test_the_archive_says_until_when_to_wait(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    archive.misbehave("*", Fault(status=503, retry_after=in_a_minute))
    with pytest.raises(TransientArchiveError) as caught:
        source.list(url)
    assert caught.value.retry_after_seconds in range(50, 62)


@pytest.mark.parametrize("options", [{"head": False}, {"head": False, "ranges": False}])
def test_a_server_that_does_not_know_head_tells_when_the_file_is_opened(
    root: Path, options: dict[str, bool]
) -> None:
    with ArchiveServer(root, **options) as archive:  # type: ignore[arg-type]
        url = ArchiveUrl.parse(archive.url + DIRECTORY)
        with source_of(url) as source:
            file = source.stat(url, "file")
            assert file == ArchiveFile("file")
            with source.open(url, file) as opened:
                assert opened.file.size == SIZE
                assert opened.file.generation is not None
            assert read(source, url, file) == CONTENT


# --- connections


def test_an_archive_that_is_down_is_said_to_be(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.down()
    for ask in ASKING.values():
        with pytest.raises(TransientArchiveError) as caught:
            ask(source, url)
        assert_is_for_people(caught.value, f"{url.authority} refused the connection", DIRECTORY)
    archive.up()
    assert read(source, url, file) == CONTENT


def test_a_host_that_is_not_known_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    url = ArchiveUrl.parse("http://archive.example:8080/target/build")
    with source_of(url) as source, pytest.raises(TransientArchiveError) as caught:
        source.list(url)
    assert_is_for_people(
        caught.value, "archive.example:8080 cannot be found: Name or service not known"
    )


def test_a_certificate_that_is_not_trusted_is_not_worth_another_try(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "certificate")
    with nginx(tmp_path, tmp_path / "nginx", certificate=certificate) as server:
        url = ArchiveUrl.parse(server.url + DIRECTORY)
        with source_of(url) as source, pytest.raises(ArchiveError) as caught:
            source.list(url)
    assert type(caught.value) is ArchiveError
    assert_is_for_people(caught.value, f"the certificate of {url.authority} is not trusted")


@every_call
def test_a_connection_that_is_reset_is_worth_another_try(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, ask: Ask
) -> None:
    archive.misbehave("*", Fault(reset=True, head_too=True))
    with pytest.raises(TransientArchiveError) as caught:
        ask(source, url)
    assert_is_for_people(caught.value, f"{url.authority} reset the connection", DIRECTORY)


def test_what_has_come_before_a_stall_is_given_at_once_and_then_the_stall_is_told(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(stall_after=1000))
    with source.open(url, file) as opened:
        content = b""
        while len(content) < 1000:
            content += opened.read(1 << 20)
        assert content == CONTENT[:1000]
        with pytest.raises(TransientArchiveError) as caught:
            opened.read(1 << 20)
    assert_is_for_people(caught.value, f"{url.authority} sent nothing for 0.3 seconds", FILE)
    archive.behave()
    assert read(source, url, file) == CONTENT


@pytest.mark.parametrize("record_bytes", [1000, 16_384])
def test_what_has_come_before_a_stall_is_given_over_tls_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_bytes: int
) -> None:
    certificate = make_certificate(tmp_path / "certificate")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as threads:

        def send_half() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(10_000)
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
                for offset in range(0, SIZE // 2, record_bytes):
                    tls.sendall(CONTENT[offset : min(offset + record_bytes, SIZE // 2)])
                done.wait(30)

        sending = threads.submit(send_half)
        url = ArchiveUrl.parse(f"https://127.0.0.1:{listener.getsockname()[1]}/target/build")
        with source_of(url) as source, source.open(url, ArchiveFile("file")) as opened:
            content = b""
            while len(content) < SIZE // 2:
                content += opened.read(1 << 20)
            with pytest.raises(TransientArchiveError, match="sent nothing"):
                opened.read(1 << 20)
        done.set()
        sending.result()
    assert content == CONTENT[: SIZE // 2]


def test_a_listing_that_stalls_is_worth_another_try(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    archive.misbehave(DIRECTORY, Fault(stall_after=10))
    with pytest.raises(TransientArchiveError) as caught:
        source.list(url)
    assert_is_for_people(caught.value, "sent nothing for 0.3 seconds", DIRECTORY)


def test_an_archive_that_accepts_and_never_answers_is_worth_another_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        authority = f"127.0.0.1:{silent.getsockname()[1]}"
        url = ArchiveUrl.parse(f"http://{authority}/target/build")
        with source_of(url) as source:
            for ask in ASKING.values():
                with pytest.raises(TransientArchiveError) as caught:
                    ask(source, url)
                assert_is_for_people(caught.value, f"{authority} sent nothing for 0.3 seconds")


@pytest.mark.parametrize("answer", [b"", b"220 mail.example ESMTP\r\n", b"HTTP/1.1 huh\r\n\r\n"])
def test_a_server_that_does_not_speak_http_is_said_not_to(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        authority = f"127.0.0.1:{listener.getsockname()[1]}"
        url = ArchiveUrl.parse(f"http://{authority}/target/build")
        with source_of(url) as source, pytest.raises(TransientArchiveError) as caught:
            source.list(url)
        thread.join()
    expected = "did not answer in HTTP" if answer else "closed the connection without an answer"
    assert_is_for_people(caught.value, f"{authority} {expected}")


@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize(
    "fault", [Fault(cut_after=5000), Fault(cut_after=5000, rst=True), Fault(cut_after=0)]
)
def test_a_cut_is_told_after_what_came_before_it(
    archive: ArchiveServer,
    source: Source,
    url: ArchiveUrl,
    file: ArchiveFile,
    fault: Fault,
    start: int,
) -> None:
    archive.misbehave(FILE, fault)
    content = b""
    with (
        source.open(url, file, start) as opened,
        pytest.raises(TransientArchiveError) as caught,
    ):
        while block := opened.read(1 << 20):
            content += block
    assert CONTENT[start:].startswith(content)
    if not fault.rst:
        assert len(content) == fault.cut_after
    assert_is_for_people(caught.value, url.authority, "the connection", FILE)


def test_a_cut_body_in_chunks_is_told(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    archive.misbehave(FILE, Fault(chunked=True, cut_after=5000))
    with source.open(url, ArchiveFile("file")) as opened:
        assert (opened.stop, opened.end_is_told) == (None, True)
        with pytest.raises(TransientArchiveError):
            while opened.read(1 << 20):
                pass


def test_a_body_in_chunks_is_read_to_its_end(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    archive.misbehave(FILE, Fault(chunked=True))
    assert read(source, url, ArchiveFile("file")) == CONTENT
    assert read(source, url, ArchiveFile("file"), 1000, 5000) == CONTENT[1000:5000]


def test_a_body_without_a_length_does_not_pretend_to_have_an_end(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    archive.misbehave(FILE, Fault(no_length=True, cut_after=5000), times=1)
    archive.misbehave(FILE, Fault(no_length=True), times=1)
    for expected in (CONTENT[:5000], CONTENT):
        with source.open(url, ArchiveFile("file")) as opened:
            assert (opened.stop, opened.end_is_told) == (None, False)
            assert b"".join(iter(lambda: opened.read(1 << 20), b"")) == expected


@pytest.mark.parametrize("path", [DIRECTORY, f"{DIRECTORY}UPLOADED"])
def test_half_a_listing_is_none(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, path: str
) -> None:
    archive.listing_override(f"{DIRECTORY}UPLOADED", b"file\nother\n" * 10)
    if path == DIRECTORY:
        archive.misbehave(f"{DIRECTORY}UPLOADED", Fault(status=404))
    for fault in (Fault(cut_after=50), Fault(chunked=True, cut_after=50)):
        archive.misbehave(path, fault, times=1)
        with pytest.raises(TransientArchiveError):
            source.list(url)
    assert source.list(url)


# --- ranges and lengths


@pytest.mark.parametrize(
    "content_range",
    [
        *("bytes 0-999/1024000", "bytes 1001-2000/1024000", "bytes 1000-3000/1024000"),
        *("bytes 1000-1000/1024000", "bytes 1000-998/1024000", "bytes */1024000", "bytes"),
        *("chunks 1000-1999/1024000", "1000-1999", "bytes 1000-1999", "bytes=1000-1999/1024000"),
        *(f"bytes 1000-{'9' * 5000}/*", "bytes -1000/1024000", "bytes \xb2-\xb3/*"),
    ],
)
def test_bytes_that_are_not_those_asked_for_are_refused(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile, content_range: str
) -> None:
    archive.misbehave(FILE, Fault(content_range=content_range))
    with pytest.raises(TransientArchiveError) as caught:
        source.open(url, file, 1000, 2000)
    assert "asked for bytes from 1000 to 2000" in caught.value.message


def test_a_range_that_ends_behind_the_end_of_the_file_is_refused(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    archive.misbehave(FILE, Fault(content_range="bytes 1000-1999/1500"))
    with pytest.raises(TransientArchiveError):
        source.open(url, ArchiveFile("file"), 1000, 2000)


def test_a_range_of_a_file_of_another_size_is_of_another_file(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(content_range=f"bytes 1000-1999/{SIZE + 1}"))
    with pytest.raises(ArchiveFileChanged):
        source.open(url, file, 1000, 2000)


def test_a_size_that_is_not_told_is_no_other_size(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(content_range="bytes 1000-1999/*"))
    assert read(source, url, file, 1000, 2000) == CONTENT[1000:2000]


def test_a_range_that_is_shorter_than_it_says_is_refused(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(truncate_to=500))
    with pytest.raises(TransientArchiveError):
        source.open(url, file, 1000, 2000)


def test_less_than_was_asked_for_may_be_sent_if_it_says_so(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(content_range=f"bytes 1000-1499/{SIZE}", truncate_to=500))
    with source.open(url, file, 1000, 2000) as opened:
        assert (opened.start, opened.stop) == (1000, 1500)
        assert opened.read(1 << 20) == CONTENT[1000:1500]
        assert opened.read(1 << 20) == b""


def test_a_whole_file_that_is_shorter_than_it_was_has_changed(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(truncate_to=500))
    with pytest.raises(ArchiveFileChanged):
        source.open(url, file)


def test_a_range_that_cannot_be_had_is_worth_another_try(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(status=416))
    with pytest.raises(TransientArchiveError):
        source.open(url, file, 1000, 2000)
    with pytest.raises(TransientArchiveError):
        source.open(url, file)


def test_a_range_behind_the_end_of_a_file_that_has_shrunk_is_of_another_file(
    archive: ArchiveServer, root: Path, source: Source, url: ArchiveUrl
) -> None:
    file = ArchiveFile("file", SIZE, size_is_exact=True)
    (root / "target" / "build" / "file").write_bytes(b"short")
    with pytest.raises(ArchiveFileChanged):
        source.open(url, file, 1000, 2000)


def test_what_comes_after_the_end_is_neither_read_nor_taken_for_an_answer(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(extra=100_000), times=3)
    assert read(source, url, file) == CONTENT
    assert read(source, url, file, 1000, 2000) == CONTENT[1000:2000]
    assert read(source, url, file, 1000) == CONTENT[1000:]
    assert read(source, url, file, 5, 10) == CONTENT[5:10]


def test_an_ignored_range_gives_the_whole_file_from_its_start(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, file: ArchiveFile
) -> None:
    archive.misbehave(FILE, Fault(ignore_range=True))
    with source.open(url, file, 1000, 2000) as opened:
        assert (opened.start, opened.stop) == (0, SIZE)
        assert b"".join(iter(lambda: opened.read(1 << 20), b"")) == CONTENT


@pytest.mark.parametrize("span", [(0, None), (0, 1000), (1000, None), (1000, 2000)])
@pytest.mark.parametrize("fault", [Fault(), Fault(ignore_if_range=True), Fault(ignore_range=True)])
def test_a_replaced_file_has_changed_however_the_server_takes_if_range(
    archive: ArchiveServer,
    root: Path,
    source: Source,
    url: ArchiveUrl,
    file: ArchiveFile,
    fault: Fault,
    span: tuple[int, int | None],
) -> None:
    path = root / "target" / "build" / "file"
    path.write_bytes(CONTENT[::-1])
    os.utime(path, (1_700_000_100, 1_700_000_100))
    archive.misbehave(FILE, fault)
    with pytest.raises(ArchiveFileChanged):
        source.open(url, file, *span)


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "\xb2", "12abc", "", "1_0", "+5"])
def test_a_length_that_is_no_number_is_no_length(length: str) -> None:
    response = requests.Response()
    response.headers["Content-Length"] = length
    assert content_length(response) is None


# --- redirects


def test_a_redirect_to_an_allowed_place_is_followed(
    archive: ArchiveServer, root: Path, url: ArchiveUrl
) -> None:
    with ArchiveServer(root) as other, source_of(url, archive.url, other.url) as source:
        archive.misbehave("*", Fault(redirect=f"{other.url}{FILE}?token=1#x", head_too=True))
        file = source.stat(url, "file")
        assert file.size == SIZE
        assert read(source, url, file, 1000, 2000) == CONTENT[1000:2000]
        assert [request.path for request in other.requests] == [FILE, FILE]
        assert other.requests[1].range_header == "bytes=1000-1999"


@pytest.mark.parametrize("location", ["file", "/target/build/file", "/target//build/./file"])
def test_a_redirect_may_be_relative(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, location: str
) -> None:
    archive.misbehave(FILE, Fault(redirect=location), times=5)
    assert read(source, url, ArchiveFile("file")) == CONTENT


def test_a_redirect_may_be_spelled_in_utf8(
    archive: ArchiveServer, root: Path, source: Source, url: ArchiveUrl
) -> None:
    (root / "target" / "build" / "ü").write_bytes(b"umlaut")
    archive.misbehave(FILE, Fault(redirect="/target/build/ü".encode().decode("latin-1")))
    assert read(source, url, ArchiveFile("file")) == b"umlaut"


@every_call
def test_a_redirect_to_a_place_that_is_not_allowed_is_not_even_connected_to(
    archive: ArchiveServer, root: Path, source: Source, url: ArchiveUrl, ask: Ask
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        archive.misbehave("*", Fault(redirect=f"http://{place}/secret", head_too=True))
        with pytest.raises(NotAllowed) as caught:
            ask(source, url)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert caught.value.code == "archive_not_allowed"
    assert_is_for_people(caught.value, DIRECTORY, f"http://{place}/secret")


def test_a_redirect_to_another_directory_of_the_same_host_may_not_be_allowed(
    archive: ArchiveServer, root: Path, url: ArchiveUrl
) -> None:
    (root / "secret").write_bytes(b"secret")
    with source_of(url, f"{archive.url}/target") as source:
        for location in ("/secret", "../../secret", "/target/../secret", "/target/%2e%2e/secret"):
            archive.misbehave(FILE, Fault(redirect=location), times=1)
            with pytest.raises((NotAllowed, ArchiveError)):
                source.open(url, ArchiveFile("file"))
    assert {request.path for request in archive.requests} == {FILE}


@pytest.mark.parametrize(
    "location",
    [
        *("file:///etc/hostname", "ftp://127.0.0.1/file", "gs://bucket/target/build/file"),
        *("data:text/plain,x", "javascript:x", "gopher://127.0.0.1", "unix:///socket"),
        *("http://", "http:", "//", "http://[", "http://[::1", "http://127.0.0.1:x/"),
        *("http://user:password@127.0.0.1/", "http://127.0.0.1:99999/", "http://a b/", "\xff\xfe"),
        *("http://{allowed}@127.0.0.1/", "http://127.0.0.1\\@{allowed}/"),
        *("http://127.0.0.1#@{allowed}/", "http://127.0.0.1?@{allowed}/"),
        *("https://{allowed}/x",),
    ],
)
def test_a_redirect_to_no_place_on_the_allow_list_is_refused(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, location: str
) -> None:
    archive.misbehave(FILE, Fault(redirect=location.format(allowed=url.authority)))
    with pytest.raises((NotAllowed, ArchiveError)) as caught:
        source.open(url, ArchiveFile("file"))
    assert not isinstance(caught.value, TransientArchiveError)
    assert_is_for_people(caught.value)
    assert len(archive.requests) == 1 or "over 5 times" in caught.value.message


def test_redirects_that_go_round_in_circles_end(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    archive.misbehave(FILE, Fault(redirect=f"{DIRECTORY}other"))
    archive.misbehave(f"{DIRECTORY}other", Fault(redirect=FILE))
    with pytest.raises(ArchiveError, match="redirects over 5 times"):
        source.open(url, ArchiveFile("file"))
    assert len(archive.requests) == 6


def test_the_body_of_a_redirect_is_not_read(
    archive: ArchiveServer, root: Path, source: Source, url: ArchiveUrl
) -> None:
    endless = b"HTTP/1.1 302 Found\r\nLocation: " + FILE.encode() + b"\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sent = 0

        def send_for_ever() -> None:
            nonlocal sent
            connection, _ = listener.accept()
            with connection, pytest.raises(ConnectionError):
                connection.recv(10_000)
                connection.sendall(endless)
                while sent < 1 << 30:
                    sent += connection.send(b"x" * 100_000)

        thread = threading.Thread(target=send_for_ever)
        thread.start()
        endless_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        there = ArchiveUrl.parse(endless_url + DIRECTORY)
        with source_of(there) as source, pytest.raises((ArchiveError, NotAllowed)):
            source.open(there, ArchiveFile("file"))
        thread.join()
    assert sent < 100 << 20


# --- listings


def index_of(*rows: str) -> bytes:
    links = "".join(f"<a {row}\r\n" for row in rows)
    return f"<html><body><h1>Index of /</h1><pre>{links}</pre></body></html>".encode()


def listed(archive: ArchiveServer, source: Source, url: ArchiveUrl, page: bytes) -> list[str]:
    archive.listing_override(DIRECTORY, page)
    return [file.name for file in source.list(url)]


def test_names_that_no_file_of_a_build_can_have_are_not_in_an_index(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    impossible = [
        *("../", "..", "./", ".", "/", "", "../../etc/passwd", "/etc/passwd", "//", "a/b", "a//b"),
        *("..%2f..%2fetc%2fpasswd", "%2e%2e/", "%2e%2e", ".%2e/", "%2fetc%2fpasswd", "a%2fb"),
        *("a%00b", "a%0ab", "a%0d%0ab", "a%1b[31m", "a%7f", "x" * 300, "%2e", "..%00"),
    ]
    page = index_of('href="file">file</a>', *(f'href="{href}">x</a>' for href in impossible))
    assert listed(archive, source, url, page) == ["file"]
    assert {request.path for request in archive.requests} == {DIRECTORY, f"{DIRECTORY}UPLOADED"}

    page = json.dumps(
        [
            {"name": name, "type": kind}
            for name in ("..", ".", "", "/", "a/b", "../x", "/etc/passwd", "a\0b", "a\nb", "\udcff")
            for kind in ("file", "directory")
        ]
    ).encode()
    assert listed(archive, source, url, page) == []


def test_names_that_no_file_can_have_are_not_fetched(
    archive: ArchiveServer, root: Path, source: Source, url: ArchiveUrl
) -> None:
    (root / "secret").write_bytes(b"secret")
    names = [
        "../../secret",
        "..",
        "/secret",
        "a/../../../secret",
        "a\0b",
        "a\x1bb",
        "./file",
        "a//b",
    ]
    uploaded = "\n".join([*names, "file", "", "  ", "file\r", "sub/file"])
    archive.listing_override(f"{DIRECTORY}UPLOADED", uploaded.encode())
    files = source.list(url)
    assert list(usable_files(files)) == ["file", "sub/file"]
    for file in files:
        if file.name in names:
            with pytest.raises(ArchiveFileMissing):
                source.open(url, file)
            with pytest.raises(ArchiveFileMissing):
                source.stat(url, file.name)
    assert {request.path for request in archive.requests} == {f"{DIRECTORY}UPLOADED"}


def test_links_that_lead_elsewhere_are_not_in_an_index(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    page = index_of(
        'href="?C=N;O=D">Name</a>',
        'href="?C=M;O=A">Last modified</a>',
        f'href="{DIRECTORY}?C=S;O=A">Size</a>',
        'href="file?download">file</a>',
        'href="http://elsewhere.example/target/build/other">other</a>',
        'href="//elsewhere.example/target/build/other">other</a>',
        f'href="https://{url.authority}/target/build/other">other</a>',
        'href="http://[broken/">other</a>',
        'href="/target/">Parent Directory</a>',
        'href="/target/buildings/other">other</a>',
        'href="#top">top</a>',
        'href="javascript:alert(1)">other</a>',
        'href="mailto:root@localhost">other</a>',
        'name="href">other</a>',
        'data-href="other">other</a>',
        'title="no href=other here">other</a>',
        'href="relative">relative</a>',
        'href="./dotted">dotted</a>',
        f'href="{DIRECTORY}absolute">absolute</a>',
        f'href="http://{url.authority}{DIRECTORY}full">full</a>',
        "class=x href='single'>single</a>",
        'HREF = bare class="x">bare</a>',
        'href="amp&amp;ersand%26">amp&amp;ersand&amp;</a>',
        'href="relative">relative again</a>',
    )
    assert listed(archive, source, url, page) == [
        *("relative", "dotted", "absolute", "full", "single", "bare", "amp&ersand&"),
    ]


def test_sizes_are_taken_from_where_they_are_exact(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    archive.listing_override(
        DIRECTORY,
        index_of(
            'href="exact">exact</a>          20-Nov-2026 13:52                4096',
            'href="rounded">rounded</a>      20-Nov-2026 13:52                  4K',
            'href="name">name 123</a>',
            'href="year">year</a> 2026',
            f'href="huge">huge</a>           20-Nov-2026 13:52                {"9" * 5000}',
        ),
    )
    assert {file.name: file.size for file in source.list(url)} == {
        **{"exact": 4096, "rounded": None, "name": None, "year": None, "huge": None},
    }
    archive.listing_override(
        DIRECTORY,
        b"""[{"name": "exact", "type": "file", "size": 4096}, {"name": "none", "type": "file"},
        {"name": "text", "size": "1"}, {"name": "true", "size": true}, {"name": "0", "size": 0.5},
        {"name": "less", "size": -1}, {"name": "null", "size": null}, {"name": "huge", "size": 1%s},
        {"name": "list", "size": [1]}, {"name": "no type", "size": 7}]"""
        % (b"0" * 40),
    )
    assert {file.name: file.size for file in source.list(url) if file.size is not None} == {
        **{"exact": 4096, "no type": 7},
    }


@pytest.mark.parametrize(
    "page",
    [
        *(b"", b"not HTML at all", b"{}", b'{"error": "no such thing"}', b"\x00\xff\xfe binary"),
        *(b"[", b"[1]", b"[[]]", b'["file"]', b"[null]", b'[{"type": "file"}]', b'[{"name": 1}]'),
        *(b'[{"name": "file"}', b'[{"name": "file"}] more', b"[NaN]", b"[" * 200_000),
        *(b'[{"name": "x", "size": ' + b"1" * 5000 + b"}]", b'[{"name": ["file"]}]', b"[Infinity"),
    ],
)
def test_what_is_no_index_is_no_listing(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, page: bytes
) -> None:
    archive.listing_override(DIRECTORY, page)
    with pytest.raises(ArchiveError) as caught:
        source.list(url)
    assert not isinstance(caught.value, TransientArchiveError)
    assert_is_for_people(caught.value, DIRECTORY)


def test_ten_thousand_files_are_listed_at_once(
    archive: ArchiveServer, root: Path, source: Source, url: ArchiveUrl
) -> None:
    names = [f"file {number:05}.bin" for number in range(10_000)]
    rows = (f'href="{name}">{name}</a>  20-Nov-2026 13:52  {4096}' for name in names)
    began = time.process_time()
    assert listed(archive, source, url, index_of(*rows)) == names
    page = json.dumps([{"name": name, "type": "file", "size": 1} for name in names]).encode()
    assert listed(archive, source, url, page) == names
    archive.listing_override(f"{DIRECTORY}UPLOADED", "\n".join(names).encode())
    assert [file.name for file in source.list(url)] == names
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "unit",
    [
        *(b"<a ", b'<a href="', b"<a href=", b"<!--", b"<a href='", b"</", b"<", b"href=", b"&"),
        *(
            b"<a >",
            b"<a >x</a> 1 1 ",
            b'<a href="x"',
            b" 1",
            b"<a>",
            b"<a \r\n>",
            b"&#",
            b"<a href ",
        ),
    ],
)
def test_a_page_made_to_take_long_does_not(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, unit: bytes
) -> None:
    page = b"<html><a href='x'>x</a> " + unit * (1_000_000 // len(unit))
    began = time.process_time()
    assert "x" in listed(archive, source, url, page)
    assert time.process_time() - began < 3


def test_a_listing_over_the_limit_is_refused_without_reading_all_of_it(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_MAX_LISTING_BYTES", 1 << 20)
    for path in (f"{DIRECTORY}UPLOADED", DIRECTORY):
        archive.behave()
        archive.listing_override(path, b"x" * (100 << 20))
        for fault in (Fault(), Fault(chunked=True), Fault(no_length=True)):
            archive.misbehave(path, fault, times=1)
            with pytest.raises(ArchiveError, match="larger than 1048576 bytes"):
                source.list(url)
    assert archive.bytes_sent() < 100 << 20


def test_listings_of_too_many_files_are_refused(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ENTRIES", 100)
    monkeypatch.setattr(http_index, "MAX_ENTRIES", 100)
    monkeypatch.setattr(uploaded, "_MAX_NAMES", 100)
    html = index_of(*(f'href="{number}">x</a>' for number in range(101)))
    names = json.dumps([{"name": str(number)} for number in range(101)]).encode()
    for path, page in (
        (DIRECTORY, html),
        (DIRECTORY, names),
        (f"{DIRECTORY}UPLOADED", b"x\n" * 101),
    ):
        archive.listing_override(path, page)
        with pytest.raises(ArchiveError, match="over 100 files"):
            source.list(url)


def test_directories_without_end_are_given_up(
    archive: ArchiveServer, source: Source, url: ArchiveUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_MAX_DIRECTORIES", 20)
    page = index_of('href="file">x</a>', 'href="loop/">x</a>')
    for depth in range(20):
        archive.listing_override(DIRECTORY + "loop/" * depth, page)
    assert len(source.list(url)) == 9
    page = index_of(*(f'href="{number}/">x</a>' for number in range(21)))
    archive.listing_override(DIRECTORY, page)
    with pytest.raises(ArchiveError, match="20 directories"):
        source.list(url)


def test_a_directory_that_is_gone_when_it_is_looked_into_was_empty(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    page = index_of('href="gone/">gone/</a>', 'href="file">file</a>')
    assert listed(archive, source, url, page) == ["file"]


# --- proxies and passwords


def test_proxies_are_those_of_the_environment(
    archive: ArchiveServer, root: Path, url: ArchiveUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ArchiveServer(root) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        elsewhere = ArchiveUrl.parse("http://archive.example/target/build")
        proxy.listing_override("http://archive.example/target/build/UPLOADED", b"proxied")
        with source_of(elsewhere) as source:
            assert [file.name for file in source.list(elsewhere)] == ["proxied"]
            proxy.down()
            with pytest.raises(TransientArchiveError) as caught:
                source.list(elsewhere)
        assert_is_for_people(caught.value, "the proxy for archive.example refused the connection")
    with source_of(url) as source:
        assert [file.name for file in source.list(url)] == ["file"]


def test_passwords_are_those_in_netrc(
    archive: ArchiveServer,
    root: Path,
    url: ArchiveUrl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login lab password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with source_of(url) as source:
        source.list(url)
    assert archive.requests[0].headers["Authorization"] == "Basic bGFiOnNlY3JldA=="


def test_an_archive_cannot_leave_cookies(
    archive: ArchiveServer, source: Source, url: ArchiveUrl
) -> None:
    # The fault has no headers of its own: this one brings another along.
    archive.misbehave("*", Fault(status=404, retry_after="1\r\nSet-Cookie: a=b"), times=2)
    assert requests.get(archive.url, timeout=5).cookies["a"] == "b"
    with pytest.raises(ArchiveFileMissing):
        source.open(url, ArchiveFile("file"))
    source.list(url)
    assert not any(request.headers["Cookie"] for request in archive.requests)


# --- Google Storage


@pytest.fixture
def google(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    """What is asked as Google Storage; it has one object, of the old generation 1."""
    objects = root / "download" / "storage" / "v1" / "b" / "bucket" / "o"
    (objects / "target" / "build").mkdir(parents=True)
    (objects / "target" / "build" / "file").write_bytes(CONTENT)
    with ArchiveServer(root) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        described = {"name": "target/build/file", "size": str(SIZE), "generation": "1"}
        server.listing_override(
            "/storage/v1/b/bucket/o",
            json.dumps({"items": [described]}).encode(),
            "application/json",
        )
        server.listing_override(
            "/storage/v1/b/bucket/o/target/build/file",
            json.dumps(described).encode(),
            "application/json",
        )
        yield server


GS_URL = ArchiveUrl.parse("gs://bucket/target/build")
GS_FILE = ArchiveFile("file", SIZE, size_is_exact=True, generation="1", has_ranges=True)
GS_ASKING = {
    "list": lambda source: source.list(GS_URL),
    "stat": lambda source: source.stat(GS_URL, "file"),
    "open": lambda source: source.open(GS_URL, GS_FILE),
}
every_gs_call = pytest.mark.parametrize("ask", GS_ASKING.values(), ids=GS_ASKING)


@every_gs_call
def test_google_storage_that_is_down_is_said_to_be(
    google: ArchiveServer, ask: Callable[[Source], object]
) -> None:
    google.down()
    began = time.monotonic()
    with source_of(GS_URL) as source, pytest.raises(TransientArchiveError) as caught:
        ask(source)
    assert time.monotonic() - began < 5
    host = google.url.removeprefix("http://")
    assert_is_for_people(caught.value, str(GS_URL), f"{host} refused the connection")


@every_gs_call
def test_google_storage_that_does_not_answer_is_given_up_in_time(
    google: ArchiveServer, ask: Callable[[Source], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}")
        began = time.monotonic()
        with source_of(GS_URL) as source, pytest.raises(TransientArchiveError) as caught:
            ask(source)
    assert time.monotonic() - began < 5
    assert_is_for_people(caught.value, str(GS_URL), f"{host} sent nothing for 0.3 seconds")


@every_gs_call
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_status_of_google_storage_that_may_pass_is_worth_another_try(
    google: ArchiveServer, ask: Callable[[Source], object], status: int
) -> None:
    google.misbehave("*", Fault(status=status, retry_after=7))
    with source_of(GS_URL) as source, pytest.raises(TransientArchiveError) as caught:
        ask(source)
    assert caught.value.retry_after_seconds == 7
    assert str(status) in caught.value.message


@every_gs_call
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_status_of_google_storage_that_will_not_pass_is_not(
    google: ArchiveServer, ask: Callable[[Source], object], status: int
) -> None:
    google.misbehave("*", Fault(status=status))
    with source_of(GS_URL) as source, pytest.raises(ArchiveError) as caught:
        ask(source)
    assert type(caught.value) is ArchiveError
    assert "gs://bucket/target/build" in caught.value.message


@pytest.mark.parametrize("answer", [b"not JSON", b"<html>", b'{"items": [{}]}'])
def test_an_answer_that_is_not_google_storages_is_an_error(
    google: ArchiveServer, answer: bytes
) -> None:
    google.listing_override("/storage/v1/b/bucket/o", answer, "application/json")
    with source_of(GS_URL) as source, pytest.raises(ArchiveError):
        source.list(GS_URL)


def test_google_storage_is_read_as_any_other_archive_that_errs(google: ArchiveServer) -> None:
    path = "/download/storage/v1/b/bucket/o/target/build/file"
    with source_of(GS_URL) as source:
        assert [file.name for file in source.list(GS_URL)] == ["file"]
        # This server's validators are none of Google's, which is why the generation is not known.
        assert read(source, GS_URL, GS_FILE, 1000, 2000) == CONTENT[1000:2000]
        google.misbehave(path, Fault(cut_after=1000), times=1)
        with pytest.raises(TransientArchiveError) as caught:
            read(source, GS_URL, GS_FILE)
        assert_is_for_people(caught.value, "gs://bucket/target/build/file", "cut the connection")


def test_googles_credentials_are_not_carried_to_where_it_redirects(
    google: ArchiveServer, root: Path
) -> None:
    with ArchiveServer(root) as other, source_of(GS_URL) as source:
        google.misbehave("*", Fault(redirect=f"{other.url}{FILE}"))
        with pytest.raises(NotAllowed):
            source.open(GS_URL, GS_FILE)
        assert other.requests == []


# --- directories of this machine


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A build in the allowed directory ``root``, beside which there is a secret."""
    build = tmp_path / "root" / "target" / "build"
    build.mkdir(parents=True)
    (build / "file").write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(b"secret")
    return build


@pytest.fixture
def directory(build: Path) -> ArchiveUrl:
    return ArchiveUrl.parse(f"file://{build}")


@pytest.fixture
def files(build: Path, directory: ArchiveUrl) -> Iterator[Source]:
    with source_of(directory, f"file://{build.parent.parent}") as source:
        yield source


def test_links_within_the_allowed_directory_are_followed(
    build: Path, files: Source, directory: ArchiveUrl
) -> None:
    (build / "link").symlink_to("file")
    (build / "other").symlink_to(build.parent / "elsewhere")
    (build.parent / "elsewhere").write_bytes(b"elsewhere")
    listing = {file.name: file for file in files.list(directory)}
    assert listing.keys() == {"file", "link", "other"}
    assert read(files, directory, listing["link"]) == CONTENT
    assert read(files, directory, listing["other"]) == b"elsewhere"
    (build.parent / "latest").symlink_to("build")
    latest = ArchiveUrl.parse(f"file://{build.parent}/latest")
    assert {file.name for file in files.list(latest)} == {"file", "link", "other"}
    assert read(files, latest, files.stat(latest, "link")) == CONTENT


def test_links_out_of_the_allowed_directory_are_refused(
    build: Path, files: Source, directory: ArchiveUrl, tmp_path: Path
) -> None:
    (build / "absolute").symlink_to(tmp_path / "secret")
    (build / "relative").symlink_to("../../../secret")
    (build / "directory").symlink_to(tmp_path)
    (build / "chain").symlink_to("relative")
    assert "directory/secret" not in {file.name for file in files.list(directory)}
    for name in ("absolute", "relative", "directory/secret", "chain"):
        with pytest.raises(NotAllowed) as caught:
            files.open(directory, ArchiveFile(name))
        assert caught.value.code == "archive_not_allowed"
        with pytest.raises(NotAllowed):
            files.stat(directory, name)
    (build.parent / "outside").symlink_to(tmp_path)
    with pytest.raises(NotAllowed):
        files.list(ArchiveUrl.parse(f"file://{build.parent}/outside"))


def test_a_link_that_is_turned_while_it_is_opened_leads_nowhere(
    build: Path,
    files: Source,
    directory: ArchiveUrl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = build / "link"
    link.symlink_to("file")
    really_open = os.open

    def turn_and_open(path: Path, flags: int) -> int:
        link.unlink()
        link.symlink_to(tmp_path / "secret")
        descriptor = really_open(path, flags)
        link.unlink()
        link.symlink_to("file")
        return descriptor

    monkeypatch.setattr(file_source.os, "open", turn_and_open)
    with pytest.raises(ArchiveFileChanged):
        files.open(directory, ArchiveFile("link"))


def test_links_that_lead_nowhere_are_passed_over(
    build: Path, files: Source, directory: ArchiveUrl
) -> None:
    (build / "loop").symlink_to("loop")
    (build / "loop directory").symlink_to(".")
    (build / "dangling").symlink_to("nothing")
    assert [file.name for file in files.list(directory)] == ["file"]
    with pytest.raises(ArchiveFileMissing):
        files.open(directory, ArchiveFile("dangling"))
    with pytest.raises(ArchiveError, match="symbolic links"):
        files.open(directory, ArchiveFile("loop"))
    with pytest.raises(ArchiveError, match="symbolic links"):
        files.stat(directory, "loop")
    with pytest.raises(ArchiveError, match="symbolic links"):
        files.list(ArchiveUrl.parse(f"{directory}/loop"))


def test_what_is_no_file_is_not_opened_and_does_not_hang(
    build: Path, files: Source, directory: ArchiveUrl
) -> None:
    os.mkfifo(build / "fifo")
    (build / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory() as short:
        listener.bind(f"{short}/socket")
        os.link(f"{short}/socket", build / "socket")
        assert [file.name for file in files.list(directory)] == ["file"]
        for name in ("fifo", "socket", "directory"):
            with pytest.raises(ArchiveError):
                files.open(directory, ArchiveFile(name))
            with pytest.raises(ArchiveError):
                files.stat(directory, name)
    (build / "device").symlink_to(os.devnull)
    with source_of(directory, "file:///") as source, pytest.raises(ArchiveError, match="regular"):
        source.open(directory, ArchiveFile("device"))


def test_names_that_lead_out_of_a_build_are_not_opened(
    build: Path, files: Source, directory: ArchiveUrl
) -> None:
    (build.parent / "neighbour").write_bytes(b"neighbour")
    for name in ("../neighbour", "../build/file", "/etc/hostname", "", ".", "a\0b", "./file"):
        with pytest.raises(ArchiveFileMissing):
            files.open(directory, ArchiveFile(name))
        with pytest.raises(ArchiveFileMissing):
            files.stat(directory, name)


def test_a_name_that_is_not_utf8_is_not_in_the_way(
    build: Path, files: Source, directory: ArchiveUrl
) -> None:
    try:
        (build / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    except OSError:
        return  # this filesystem has no such names
    assert list(usable_files(files.list(directory))) == ["file"]


def test_directories_without_permission_are_said_to_be() -> None:
    # Not below pytest's own directories, which nobody but their owner may enter.
    with tempfile.TemporaryDirectory() as temporary:
        build = Path(temporary) / "target" / "build"
        (build / "closed").mkdir(parents=True)
        (build / "closed" / "file").write_bytes(b"")
        Path(temporary).chmod(0o755)
        url = ArchiveUrl.parse(f"file://{build}")
        for closed in (build / "closed", build):
            closed.chmod(0)
            with source_of(url, f"file://{temporary}") as source, as_nobody_special():
                for ask in (
                    lambda: source.list(url),
                    lambda: source.open(url, ArchiveFile("closed/file")),
                    lambda: source.stat(url, "closed/file"),
                ):
                    with pytest.raises(ArchiveError, match="Permission denied"):
                        ask()


@contextmanager
def as_nobody_special() -> Iterator[None]:
    """Be held to permissions, even if root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_is_gone_between_looking_and_describing_is_passed_over(
    build: Path, files: Source, directory: ArchiveUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    (build / "a").mkdir()
    (build / "b.tmp").write_bytes(b"")
    (build / "c").mkdir()
    really_scan = os.scandir

    @contextmanager
    def scan_and_tidy_up(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with really_scan(path) as scanned:
            entries = list(scanned)
        if path == build:
            (build / "b.tmp").rename(build / "b")
            (build / "c").rmdir()
        yield entries

    monkeypatch.setattr(file_source.os, "scandir", scan_and_tidy_up)
    assert [file.name for file in files.list(directory)] == ["file"]


@pytest.mark.parametrize("content", [b"shorter", CONTENT[::-1], CONTENT + b"longer"])
def test_a_file_that_is_written_while_it_is_read_is_not_read_to_its_end(
    build: Path, files: Source, directory: ArchiveUrl, content: bytes
) -> None:
    os.utime(build / "file", (1_700_000_000, 1_700_000_000))
    file = files.stat(directory, "file")
    for span in ((0, None), (0, 1000), (1000, None)):
        (build / "file").write_bytes(CONTENT)
        os.utime(build / "file", (1_700_000_000, 1_700_000_000))
        with files.open(directory, file, *span) as opened:
            opened.read(100)
            (build / "file").write_bytes(content)
            with pytest.raises(TransientArchiveError, match="changed while it was read"):
                while opened.read(1000):
                    pass
        with pytest.raises(ArchiveFileChanged):
            files.open(directory, file, *span)


def test_an_empty_range_of_a_file_is_empty(
    build: Path, files: Source, directory: ArchiveUrl
) -> None:
    file = files.stat(directory, "file")
    for start in (0, 100, SIZE):
        assert read(files, directory, file, start, start) == b""
    assert read(files, directory, file, SIZE + 100) == b""
