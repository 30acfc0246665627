"""Files that were asked for a moment ago are answered as they were, and only while they are."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polling import wait_until
from raw_client import RawClient
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, TARGET
from artifacts.serving.file_answer import FileAnswer, Origin, Served, WholeFile
from artifacts.serving.hot_files import HotFiles, parse_simple

NAME = f"{TARGET}/{BUILD}"
PATH = f"/static/{NAME}/data.bin"
CONTENT = random.Random(3).randbytes(50_000)
HEAD = f"GET {PATH} HTTP/1.1\r\nHost: lab\r\n".encode()


@pytest.fixture
def archived(tmp_path: Path) -> Path:
    """A file of an archive."""
    path = tmp_path / "archive" / NAME / "data.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def server(serve: Serve, archived: Path) -> RunningServer:
    server = serve("--allow-archive", f"file://{archived.parents[2]}")
    stage(server, archived)
    return server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose build no test changes."""
    directory = tmp_path_factory.mktemp("hot")
    archived = directory / "archive" / NAME / "data.bin"
    archived.parent.mkdir(parents=True)
    archived.write_bytes(CONTENT)
    server = RunningServer(directory / "server", "--allow-archive", f"file://{directory}")
    try:
        stage(server, archived)
        yield server
    finally:
        server.stop()


def stage(server: RunningServer, archived: Path, **more: str) -> None:
    url = f"file://{archived.parent}"
    server.call("/stage", archive_url=url, files=archived.name, **more)


def answer_to(server: RunningServer, request: bytes) -> bytes:
    """Return all that comes until the server hangs up, or answers another request."""
    with RawClient(server.port) as client:
        client.send(request)
        # Whoever keeps the connection is asked something that ends it.
        client.get("/no/such/call", Connection="close")
        return client.rest()


def as_it_was(answer: bytes) -> bytes:
    """Return an answer without what is new each time: dates, and boundaries between parts."""
    boundary = answer.partition(b"; boundary=")[2].partition(b"\r\n")[0]
    answer = re.sub(rb"\r\nDate: [^\r]*", b"", answer)
    return answer.replace(boundary, b"B") if boundary else answer


def sorted_head(answer: bytes) -> tuple[list[bytes], bytes]:
    """Return an answer with its headers in one order."""
    head, _, body = as_it_was(answer).partition(b"\r\n\r\n")
    return sorted(head.split(b"\r\n")), body


@pytest.fixture(scope="module")
def etag(shared: RunningServer) -> str:
    return shared.session.head(shared.url + PATH).headers["ETag"]


def test_a_file_asked_for_again_is_answered_without_a_worker(serve: Serve, archived: Path) -> None:
    server = serve("--allow-archive", f"file://{archived.parents[2]}", "--threads", "1")
    stage(server, archived)
    assert server.get(PATH).content == CONTENT
    # The only worker waits for a body that does not come.
    with RawClient(server.port) as client, RawClient(server.port) as other:
        client.get("/stage", "POST", Content_Length="100000").send(b"a" * 70_000)
        other.get("/health")
        assert [server.get(PATH).content for _ in range(3)] == [CONTENT] * 3
        client.reset()
        assert other.reply().status == 200


_tags = st.sampled_from(["ETAG", '"other"', "W/ETAG", "*", '"a", ETAG', "bad", ""])
_dates = st.sampled_from(
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 2100 00:00:00 GMT", "yesterday", ""]
)
_ranges = st.sampled_from(
    ["bytes=0-9", "bytes=-5", "bytes=5-", "bytes=0-1,5-6", "bytes=50000-", "bytes=9-1", "lines=1"]
)
_HEADERS = {
    "Range": _ranges,
    "range": _ranges,
    "If-Range": st.one_of(_tags, _dates),
    "If-Match": _tags,
    "If-None-Match": _tags,
    "If-Modified-Since": _dates,
    "If-Unmodified-Since": _dates,
    "Connection": st.sampled_from(["keep-alive", "Keep-Alive", "close", "Close", "close, TE", ""]),
    "Accept": st.sampled_from(["*/*", "application/json"]),
    "Cookie": st.sampled_from(["a=b", "(a)=b"]),
    "Content-Length": st.sampled_from(["0", "4", "x"]),
    "Expect": st.just("100-continue"),
    "X-Unknown": st.sampled_from(["a", "=?utf-8?q?a?=", "=?bogus?q?a?=", "a\tb", "\xe4"]),
    "X_Under": st.just("a"),
    "Origin": st.just("http://elsewhere.example"),
    "Transfer-Encoding": st.sampled_from(["gzip", "chunked"]),
}
_header = st.one_of([st.tuples(st.just(name), values) for name, values in _HEADERS.items()])
# Mostly the usual, as of two oddities the first hides the second.
_requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from([*["GET"] * 6, "HEAD", "HEAD", "DELETE"]),
        "query": st.sampled_from([*[""] * 5, "?", "?a=b", "?a=%ff", "#a"]),
        "version": st.sampled_from([*["1.1"] * 6, "1.0", "2.0"]),
        "hosts": st.sampled_from([*[["lab"]] * 4, ["lab:1"], [""], [" lab "], [], ["a", "b"]]),
        "headers": st.lists(_header, max_size=3),
        "end": st.sampled_from([*["\r\n\r\n"] * 6, "\n\r\n", "\r\n\n"]),
    }
)


def the_usual(**but: object) -> dict[str, Any]:
    usual = {"method": "GET", "query": "", "version": "1.1", "hosts": ["lab"], "headers": []}
    return {**usual, "end": "\r\n\r\n", **but}


@given(request_=_requests)
@example(request_=the_usual())
@example(request_=the_usual(method="HEAD", headers=[("Range", "bytes=5-")]))
@example(request_=the_usual(headers=[("Connection", "Close")]))
@example(request_=the_usual(headers=[("Cookie", "(a)=b")]))
@example(request_=the_usual(headers=[("X-Unknown", "=?bogus?q?a?=")]))
@example(request_=the_usual(headers=[("Range", "=?utf-8?q?bytes=3D0-9?=")]))
@example(request_=the_usual(headers=[("X-Unknown", "abcd")], end="\n\r\n"))
@settings(max_examples=200, deadline=None)
def test_the_answer_is_the_same_the_long_way_and_the_hot_one(
    request_: dict[str, Any], shared: RunningServer, etag: str
) -> None:
    target = PATH + request_["query"]
    lines = [f"{request_['method']} {target} HTTP/{request_['version']}"]
    lines += [f"Host: {host}" for host in request_["hosts"]]
    lines += [f"{name}: {value}".replace("ETAG", etag) for name, value in request_["headers"]]
    request = ("\r\n".join(lines) + request_["end"]).encode("latin-1")
    if ("Content-Length", "4") in request_["headers"]:
        request += b"body"
    # A blank line in front is passed over, and makes a request go the long way.
    long = answer_to(shared, b"\r\n" + request)
    for host in request_["hosts"][:1]:
        warm = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")
        answer_to(shared, warm)
    assert sorted_head(answer_to(shared, request)) == sorted_head(long)


@pytest.mark.parametrize(
    ("head", "is_simple"),
    [
        (HEAD + b"\r\n", True),
        (HEAD + b"Range: bytes=0-1\r\nX-A: b\r\n\r\n", True),
        (HEAD.replace(b"GET", b"HEAD") + b"Connection: close\r\n\r\n", True),
        (HEAD.replace(b"1.1", b"1.0") + b"\r\n", False),
        (HEAD.replace(b"GET", b"POST") + b"\r\n", False),
        (b"\r\n" + HEAD + b"\r\n", False),
        (HEAD[:-1] + b"X" + b"\n\r\n", False),
        (HEAD[:-2] + b"\n\r\n", False),
        (HEAD + b"Host: lab\r\n\r\n", False),
        (HEAD + b"Range: bytes=0-1\r\nrange: bytes=2-3\r\n\r\n", False),
        (HEAD + b" folded\r\n\r\n", False),
        (HEAD + b"Range : bytes=0-1\r\n\r\n", False),
        (HEAD + b"Content-Length: 4\r\n\r\n", False),
        (HEAD + b"X-A: =?utf-8?q?a?=\r\n\r\n", False),
        (HEAD + b"X-A: a\rb\r\n\r\n", False),
        (b"", False),
    ],
)
def test_only_the_usual_goes_the_hot_way(head: bytes, is_simple: bool) -> None:
    assert (parse_simple(head) is not None) == is_simple


def test_a_dropped_build_is_not_found_at_once(server: RunningServer) -> None:
    assert [server.get(PATH).status_code for _ in range(2)] == [200, 200]
    assert server.session.delete(f"{server.url}/api/v1/builds/{NAME}").status_code == 204
    assert [server.get(PATH).status_code for _ in range(2)] == [404, 404]


def test_a_replaced_file_is_the_new_one_at_once(server: RunningServer, archived: Path) -> None:
    old = [server.get(PATH) for _ in range(2)]
    # Of the same length and age: nothing but its place on the disk tells.
    status = archived.stat()
    archived.write_bytes(CONTENT[::-1])
    os.utime(archived, ns=(status.st_atime_ns, status.st_mtime_ns))
    stage(server, archived, clean="True")
    new = [server.get(PATH) for _ in range(2)]
    assert [answer.content for answer in new] == [CONTENT[::-1]] * 2
    assert new[0].headers["ETag"] == new[1].headers["ETag"] != old[1].headers["ETag"]
    with_old_tag = {"If-None-Match": old[0].headers["ETag"]}
    assert server.session.get(server.url + PATH, headers=with_old_tag).status_code == 200


def test_a_file_that_is_gone_or_something_else_is_not_answered(server: RunningServer) -> None:
    path = server.static_directory / NAME / "data.bin"
    assert [server.get(PATH).status_code for _ in range(2)] == [200, 200]
    path.rename(path.with_name("aside"))
    assert server.get(PATH).status_code == 404
    path.with_name("aside").rename(path)
    assert [server.get(PATH).status_code for _ in range(2)] == [200, 200]
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert server.get(PATH).status_code == 404
    path.unlink()
    os.mkfifo(path)
    assert server.get(PATH).status_code == 404


def test_a_file_that_has_grown_or_shrunk_on_the_disk_is_told_as_it_is(
    server: RunningServer,
) -> None:
    assert [server.get(PATH).status_code for _ in range(2)] == [200, 200]
    path = server.static_directory / NAME / "data.bin"
    for size in (len(CONTENT) - 10, len(CONTENT) + 10):
        os.truncate(path, size)
        assert [len(server.get(PATH).content) for _ in range(2)] == [size] * 2


def test_reading_counts_as_use_though_no_worker_sees_it(server: RunningServer) -> None:
    def last_used() -> str:
        (build,) = server.get("/api/v1/builds").json()["builds"]
        return str(build["last_used"])

    assert [server.get(PATH).status_code for _ in range(2)] == [200, 200]
    before = last_used()

    def is_later() -> bool:
        # Asked for all the time, so that it is never cold.
        assert server.get(PATH).content == CONTENT
        return last_used() > before

    wait_until(is_later)


def test_many_machines_ask_for_it_at_once(shared: RunningServer) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: shared.get(PATH).content, range(400)))
    assert answers == [CONTENT] * 400


def test_pipelined_requests_are_answered_in_their_order(shared: RunningServer) -> None:
    shared.get(PATH)
    with RawClient(shared.port) as client:
        for n in range(50):
            client.get(PATH, Range=f"bytes={n}-{n + 9}")
            if n % 10 == 5:
                client.get("/health")
            if n % 10 == 7:
                client.get(PATH, "HEAD")
        for n in range(50):
            assert client.reply().body == CONTENT[n : n + 10]
            if n % 10 == 5:
                assert client.reply().headers["content-type"] == "application/json"
            if n % 10 == 7:
                assert client.reply("HEAD").headers["content-length"] == str(len(CONTENT))


def test_what_is_remembered_is_short_and_not_remembered_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    served = Served(path.name, len(CONTENT), None, None)
    hot_files = HotFiles()

    def is_answered(target: bytes) -> bool:
        request = parse_simple(b"GET " + target + b" HTTP/1.1\r\nHost: lab\r\n\r\n")
        assert request is not None
        answer = hot_files.answer(request)
        if answer is not None:
            answer.close()
        return answer is not None

    long_target = b"/file?" + b"a" * 10_000
    with open(path, "rb") as file:
        whole = WholeFile(os.dup(file.fileno()))
        answer = FileAnswer(200, {}, whole, origin=Origin(str(path), served))
        for target in (b"/file", long_target):
            hot_files.remember(target, b"lab", answer)
        answer.close()
    assert is_answered(b"/file")
    assert not is_answered(b"/other")
    assert not is_answered(long_target)
    later = time.monotonic() + 6
    monkeypatch.setattr("artifacts.serving.hot_files.time.monotonic", lambda: later)
    assert not is_answered(b"/file")
