"""The archive that other tests fetch from serves like nginx, and errs exactly as it is told to."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import pytest
from archive_server import ArchiveServer, Fault

CONTENT = bytes(range(256)) * 4
SIZE = len(CONTENT)
FILE = "/t/b/file"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    is_complete: bool  # as its framing says; what is framed by the end of the connection always is


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "t" / "b").mkdir(parents=True)
    (tmp_path / "t" / "b" / "file").write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def archive(root: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(root) as archive:
        yield archive


def connect(archive: ArchiveServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(archive.url.removeprefix("http://"), timeout=10)


def get(archive: ArchiveServer, path: str = FILE, method: str = "GET", **headers: str) -> Reply:
    with closing(connect(archive)) as connection:
        return get_on(connection, path, method, **headers)


def get_on(
    connection: http.client.HTTPConnection, path: str = FILE, method: str = "GET", **headers: str
) -> Reply:
    """Ask on a connection, which stays open if the archive wants it to."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    try:
        return Reply(response.status, response.headers, response.read(), True)
    except http.client.IncompleteRead as error:
        return Reply(response.status, response.headers, error.partial, False)


def get_raw(archive: ArchiveServer, path: str = FILE) -> bytes:
    """All that comes, after the headers, until the archive closes as it is asked to."""
    with ask(archive, path) as connection:
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    return received.partition(b"\r\n\r\n")[2]


def ask(archive: ArchiveServer, path: str = FILE) -> socket.socket:
    port = int(archive.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    return connection


def receive(connection: socket.socket, ending: bytes) -> bytes:
    received = b""
    while not received.endswith(ending):
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def archive_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("archive-")]


def test_serves_files_with_validators_on_one_connection(archive: ArchiveServer) -> None:
    with closing(connect(archive)) as connection:
        got = get_on(connection)
        first_socket = connection.sock
        head = get_on(connection, method="HEAD")
        assert connection.sock is first_socket is not None
    assert (got.status, got.body) == (200, CONTENT)
    assert got.headers["Content-Length"] == str(SIZE)
    assert got.headers["Accept-Ranges"] == "bytes"
    assert got.headers["Last-Modified"].endswith("GMT")
    assert got.headers["ETag"].startswith('"')
    assert (head.status, head.body) == (200, b"")
    names = ("ETag", "Content-Length", "Last-Modified", "Accept-Ranges")
    assert [head.headers[name] for name in names] == [got.headers[name] for name in names]


@pytest.mark.parametrize(
    ("header", "status", "content_range", "body"),
    [
        ("bytes=0-0", 206, "bytes 0-0/1024", CONTENT[:1]),
        ("bytes=2-5", 206, "bytes 2-5/1024", CONTENT[2:6]),
        ("bytes=1020-", 206, "bytes 1020-1023/1024", CONTENT[1020:]),
        ("bytes=1000-9999", 206, "bytes 1000-1023/1024", CONTENT[1000:]),
        ("bytes=-3", 206, "bytes 1021-1023/1024", CONTENT[-3:]),
        ("bytes=-9999", 206, "bytes 0-1023/1024", CONTENT),
        ("bytes=1024-", 416, "bytes */1024", None),
        ("bytes=-0", 416, "bytes */1024", None),
        ("bytes=5-2", 416, "bytes */1024", None),
        ("bytes=1-2,5-6", 200, None, CONTENT),
        ("lines=1-2", 200, None, CONTENT),
    ],
    ids=str,
)
def test_serves_single_byte_ranges(
    archive: ArchiveServer, header: str, status: int, content_range: str | None, body: bytes | None
) -> None:
    got = get(archive, Range=header)
    assert (got.status, got.headers["Content-Range"]) == (status, content_range)
    assert body is None or got.body == body


def test_an_empty_file_is_whole_from_its_first_byte(archive: ArchiveServer, root: Path) -> None:
    (root / "empty").touch()
    got = get(archive, "/empty", Range="bytes=0-")
    assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"", "0")


def test_if_range_gives_the_whole_of_a_file_that_has_changed(
    archive: ArchiveServer, root: Path
) -> None:
    known = get(archive).headers
    for validator in (known["ETag"], known["Last-Modified"]):
        assert get(archive, Range="bytes=1-2", If_Range=validator).status == 206
    (root / "t/b/file").write_bytes(b"other")
    assert get(archive, Range="bytes=1-2", If_Range=known["ETag"]).body == b"other"
    assert get(archive, Range="bytes=1-2", If_Range='W/"x"').status == 200


def test_decodes_paths_and_answers_404_and_400(archive: ArchiveServer, root: Path) -> None:
    (root / "t" / "ä b%+").write_bytes(b"odd")
    assert get(archive, "/t/%C3%A4%20b%25+?query=1").body == b"odd"
    assert archive.requests[-1].path == "/t/ä b%+"
    assert [get(archive, path).status for path in ("/t/none", "/t/none/", FILE + "/")] == [404] * 3
    assert get(archive, "/t/../../etc/passwd").status == 400


def test_lists_directories_as_html(archive: ArchiveServer, root: Path) -> None:
    (root / "t/b/sub&dir").mkdir()
    (root / "t/b/.hidden").touch()
    (root / "t/b" / ("long" * 20)).touch()
    got = get(archive, "/t/b/")
    lines = got.body.decode().split("\r\n")
    assert got.headers["Content-Type"] == "text/html"
    assert lines[1] == "<head><title>Index of /t/b/</title></head>"
    assert lines[3].endswith('<pre><a href="../">../</a>')
    assert lines[4].startswith('<a href="sub%26dir/">sub&amp;dir/</a>' + " " * 42)
    assert lines[5].startswith('<a href="file">file</a>' + " " * 47)
    assert lines[5].endswith(" " * 16 + "1024")
    assert lines[6].startswith(f'<a href="{"long" * 20}">{("long" * 20)[:47]}..&gt;</a> ')
    assert [lines[4][-1], lines[7]] == ["-", "</pre><hr></body>"]
    redirect = get(archive, "/t/b")
    assert (redirect.status, redirect.headers["Location"]) == (301, "/t/b/")


def test_lists_directories_as_json_or_not_at_all(root: Path) -> None:
    (root / "t/b/sub").mkdir()
    with ArchiveServer(root, listing="json") as archive:
        entries = json.loads(get(archive, "/t/b/").body)
    assert [(entry["name"], entry["type"], entry.get("size")) for entry in entries] == [
        ("sub", "directory", None),
        ("file", "file", SIZE),
    ]
    with ArchiveServer(root, listing=None) as archive:
        assert get(archive, "/t/b/").status == 403


def test_can_do_without_ranges_validators_and_head(root: Path) -> None:
    with ArchiveServer(root, ranges=False, validators=False, head=False) as archive:
        got = get(archive, Range="bytes=1-2")
        assert (got.status, got.body) == (200, CONTENT)
        assert not {"accept-ranges", "etag", "last-modified"} & {n.lower() for n in got.headers}
        assert get(archive, method="HEAD").status == 405


def test_can_have_googles_hash(root: Path) -> None:
    with ArchiveServer(root, goog_hash=True) as archive:
        expected = base64.b64encode(google_crc32c.Checksum(CONTENT).digest()).decode()
        for headers in (get(archive).headers, get(archive, Range="bytes=1-2").headers):
            assert headers["X-Goog-Hash"] == f"crc32c={expected}"


def test_can_be_slow(root: Path) -> None:
    with ArchiveServer(root, latency_seconds=0.1, bytes_per_second=10_240) as archive:
        started = time.monotonic()
        assert get(archive).body == CONTENT
        assert 0.19 < time.monotonic() - started < 2


def test_remembers_what_was_asked_and_counts_what_was_sent(archive: ArchiveServer) -> None:
    get(archive)
    get(archive, Range="bytes=1-2", X_Asked_By="me")
    get(archive, method="HEAD")
    get(archive, "/t/none")
    asked = archive.requests
    assert [(request.method, request.path, request.range_header) for request in asked] == [
        ("GET", FILE, None),
        ("GET", FILE, "bytes=1-2"),
        ("HEAD", FILE, None),
        ("GET", "/t/none", None),
    ]
    assert asked[1].headers["x-asked-by"] == "me"
    assert (
        archive.bytes_sent(FILE) == archive.bytes_sent() == archive.bytes_sent("/t/*") == SIZE + 2
    )
    assert archive.bytes_sent("/t/none") == 0


def test_a_fault_lasts_for_its_times_and_the_next_one_follows(archive: ArchiveServer) -> None:
    archive.misbehave("/t/*", Fault(status=500), times=1)
    archive.misbehave(FILE, Fault(status=503), times=2)
    archive.misbehave(FILE, Fault(status=429), times=1)
    assert [get(archive).status for _ in range(5)] == [503, 503, 429, 500, 200]


def test_behave_forgets_all_faults_and_overrides(archive: ArchiveServer) -> None:
    archive.misbehave("*", Fault(status=500))
    assert [get(archive).status for _ in range(3)] == [500] * 3
    archive.listing_override("/t/b/", b"lies")
    archive.behave()
    assert get(archive).status == 200
    assert get(archive, "/t/b/").body != b"lies"


def test_head_meets_only_the_faults_that_say_so(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(status=503), times=1)
    assert [get(archive, method=method).status for method in ("HEAD", "GET")] == [200, 503]
    archive.misbehave(FILE, Fault(status=503, head_too=True), times=1)
    assert [get(archive, method=method).status for method in ("HEAD", "GET")] == [503, 200]


@pytest.mark.parametrize("status", [401, 403, 404, 416, 429, 500, 503])
def test_refuses_with_a_status(archive: ArchiveServer, status: int) -> None:
    archive.misbehave(FILE, Fault(status=status, retry_after=7))
    got = get(archive)
    assert (got.status, got.headers["Retry-After"], got.is_complete) == (status, "7", True)
    assert ("WWW-Authenticate" in got.headers) == (status == 401)
    assert got.headers["Content-Range"] == ("bytes */1024" if status == 416 else None)
    assert archive.bytes_sent() == 0


def test_redirects(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(redirect="http://elsewhere/"))
    got = get(archive)
    assert (got.status, got.headers["Location"]) == (302, "http://elsewhere/")


def test_resets_before_any_answer(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(reset=True))
    with pytest.raises(ConnectionResetError):
        get(archive)


def test_cuts_a_body_short(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(cut_after=100))
    got = get(archive)
    assert got.headers["Content-Length"] == str(SIZE)
    assert (got.body, got.is_complete) == (CONTENT[:100], False)
    assert get(archive, Range="bytes=50-").body == CONTENT[50:150]
    assert archive.bytes_sent() == 200


def test_cuts_a_body_short_with_a_reset(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(cut_after=100, rst=True))
    with ask(archive) as connection, pytest.raises(ConnectionResetError):
        while connection.recv(65536):
            pass


def test_stalls_until_it_is_to_behave(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(stall_after=100))
    with ask(archive) as connection:
        receive(connection, CONTENT[:100])
        assert archive.bytes_sent() == 100
        archive.behave()
        receive(connection, CONTENT[100:])


def test_a_stalled_answer_ends_when_its_client_hangs_up(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(stall_after=100))
    with ask(archive) as connection:
        receive(connection, CONTENT[:100])
        (thread,) = (thread for thread in archive_threads() if "connection" in thread.name)
    thread.join(5)
    assert not thread.is_alive()
    assert archive.bytes_sent() == 100


def test_flips_a_byte_in_the_first_answer_that_has_it(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(flip_at=300), times=1)
    assert get(archive, Range="bytes=0-299").body == CONTENT[:300]
    flipped = bytes([CONTENT[300] ^ 0xFF])
    assert get(archive, Range="bytes=290-310").body == (
        CONTENT[290:300] + flipped + CONTENT[301:311]
    )
    assert get(archive).body == CONTENT


def test_swaps_content_under_the_same_validators(archive: ArchiveServer) -> None:
    known = get(archive).headers["ETag"]
    archive.misbehave("/t/*", Fault(swap=b"<html>Log in!</html>"))
    got = get(archive)
    assert (got.status, got.body, got.headers["ETag"]) == (200, b"<html>Log in!</html>", known)
    assert get(archive, Range="bytes=6-8").body == b"Log"
    assert get(archive, "/t/none").body == b"<html>Log in!</html>"


def test_replaces_the_file_on_disk_between_two_ranges(archive: ArchiveServer, root: Path) -> None:
    known = get(archive, Range="bytes=0-9").headers
    archive.misbehave(FILE, Fault(replace_with=CONTENT[::-1]), times=1)
    got = get(archive, Range="bytes=10-19", If_Range=known["ETag"])
    assert (got.status, got.body) == (200, CONTENT[::-1])
    assert got.headers["ETag"] != known["ETag"]
    assert got.headers["Last-Modified"] != known["Last-Modified"]
    assert [path.name for path in (root / "t/b").iterdir()] == ["file"]


def test_ignores_if_range(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(ignore_if_range=True))
    assert get(archive, Range="bytes=0-9", If_Range='"old"').status == 206


def test_truncates_and_claims_that_this_is_all(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(truncate_to=10))
    got = get(archive)
    assert (got.status, got.body, got.is_complete) == (200, CONTENT[:10], True)
    part = get(archive, Range="bytes=100-199")
    assert (part.status, part.body, part.is_complete) == (206, CONTENT[100:110], True)
    assert part.headers["Content-Range"] == "bytes 100-199/1024"


def test_sends_more_than_it_said(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(extra=5))
    assert get(archive).headers["Content-Length"] == str(SIZE)
    assert get_raw(archive) == CONTENT + b"#####"


@pytest.mark.parametrize("claimed", [10, 2000])
def test_claims_another_length_than_it_sends(archive: ArchiveServer, claimed: int) -> None:
    archive.misbehave(FILE, Fault(claim_length=claimed, head_too=True))
    assert get(archive, method="HEAD").headers["Content-Length"] == str(claimed)
    assert get(archive).headers["Content-Length"] == str(claimed)
    assert get_raw(archive) == CONTENT
    part = get(archive, Range="bytes=5-")
    assert part.headers["Content-Range"] == f"bytes 5-{claimed - 1}/{claimed}"
    assert (part.body, part.is_complete) == (CONTENT[5:claimed], claimed < SIZE)


def test_gives_no_length(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(no_length=True), times=1)
    got = get(archive)
    assert (got.body, got.headers["Content-Length"]) == (CONTENT, None)
    assert got.headers["Connection"] == "close"


def test_sends_chunks_and_cuts_them(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(no_length=True, chunked=True), times=1)
    got = get(archive)
    assert (got.body, got.is_complete) == (CONTENT, True)
    assert got.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in got.headers
    archive.misbehave(FILE, Fault(no_length=True, chunked=True, cut_after=100), times=1)
    cut = get(archive)
    assert (cut.body, cut.is_complete) == (CONTENT[:100], False)
    assert archive.bytes_sent() == SIZE + 100


def test_lies_about_ranges_and_etags(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(content_range="bytes 5-9/10", lie_etag='"x"'), times=1)
    archive.misbehave(FILE, Fault(ignore_range=True), times=1)
    lie = get(archive, Range="bytes=1-2")
    assert (lie.status, lie.body) == (206, CONTENT[1:3])
    assert (lie.headers["Content-Range"], lie.headers["ETag"]) == ("bytes 5-9/10", '"x"')
    assert get(archive, Range="bytes=1-2").status == 200


def test_trickles(archive: ArchiveServer) -> None:
    archive.misbehave(FILE, Fault(trickle=10_240))
    started = time.monotonic()
    assert get(archive).body == CONTENT
    assert time.monotonic() - started > 0.09


def test_holds_bodies_until_the_test_lets_them_go(archive: ArchiveServer) -> None:
    release = threading.Event()
    archive.misbehave(FILE, Fault(hold=release))
    with ask(archive) as first, ask(archive) as second:
        for connection in (first, second):
            assert receive(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert archive.bytes_sent() == 0
        release.set()
        for connection in (first, second):
            receive(connection, CONTENT)


def test_overrides_a_listing(archive: ArchiveServer) -> None:
    archive.listing_override("/t/b/", b"[]", "application/json")
    archive.listing_override("/not/there/", b"<html></html>")
    assert get(archive, "/t/b/").body == b"[]"
    assert get(archive, "/t/b/").headers["Content-Type"] == "application/json"
    assert get(archive, "/not/there/").headers["Content-Type"] == "text/html"
    archive.misbehave("/t/b/", Fault(status=500))
    assert get(archive, "/t/b/").status == 500


def test_goes_down_and_comes_up_on_the_same_port(archive: ArchiveServer) -> None:
    url = archive.url
    with closing(connect(archive)) as kept:
        get_on(kept)
        archive.down()
        assert kept.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        get(archive)
    archive.up()
    assert (get(archive).body, archive.url) == (CONTENT, url)
    archive.down()
    archive.up()
    assert get(archive).body == CONTENT


def test_serves_hundreds_at_the_same_time(archive: ArchiveServer) -> None:
    release = threading.Event()
    archive.misbehave(FILE, Fault(hold=release))
    with ExitStack() as stack, ThreadPoolExecutor(10) as pool:
        connections = [stack.enter_context(ask(archive)) for _ in range(200)]
        release.set()
        received = list(pool.map(lambda connection: receive(connection, CONTENT), connections))
    assert len(received) == 200


def test_nothing_outlives_the_archive(root: Path) -> None:
    with ExitStack() as stack:
        with ArchiveServer(root) as archive:
            archive.misbehave("/t/b/", Fault(hold=threading.Event()))
            archive.misbehave(FILE, Fault(trickle=1), times=1)
            archive.misbehave(FILE, Fault(stall_after=100))
            get_on(stack.enter_context(closing(connect(archive))), "/t/none")
            held = stack.enter_context(ask(archive, "/t/b/"))
            receive(held, b"\r\n\r\n")
            trickling = stack.enter_context(ask(archive))
            receive(trickling, b"\r\n\r\n")
            stalled = stack.enter_context(ask(archive))
            receive(stalled, CONTENT[:100])
            left_at = time.monotonic()
        assert time.monotonic() - left_at < 1
        assert archive_threads() == []
        assert [connection.recv(1) for connection in (held, trickling, stalled)] == [b""] * 3
        with pytest.raises(ConnectionRefusedError):
            get(archive)
