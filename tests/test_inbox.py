"""Requests as they come: in pieces, several at once, malformed, too long, with bodies."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from itertools import pairwise

import cherrypy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_client import RawClient
from small_server import port_of, small_server

from artifacts.serving.http_server import HttpServer
from artifacts.serving.inbox import Inbox
from artifacts.serving.request_body import RequestBody

MAX_HEAD_BYTES = 64 << 10
HEADS = [
    b"GET /a HTTP/1.1\r\nHost: lab\r\n\r\n",
    b"HEAD /a HTTP/1.0\r\n\r\n",
    b"\r\nGET /a HTTP/1.1\r\nHost: lab\r\n\r\n",
    b"DELETE /a HTTP/1.1\r\nHost: lab\r\nX-Name: a  b\r\n\r\n",
]
SMALL_BODIES = [
    b"POST /a HTTP/1.1\r\nHost: lab\r\nContent-Length: 4\r\n\r\nbody",
    b"POST /a HTTP/1.1\r\ncontent-length:4\r\nHost: lab\r\n\r\n\r\n\r\n",
    # Otherwise a worker would wait for it, to find the next request.
    b"GET /a HTTP/1.1\r\nHost: lab\r\nContent-Length: 4\r\n\r\nbody",
]
# What no more bytes can make a request of.
GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\0\0\0\0",
    b" GET / HTTP/1.1",
    b"\n",
    b"\r\n\r\nGET / HTTP/1.1",
    b"\rGET / HTTP/1.1",
    b"GET / HTTP/1.1\n",
    b"\r\nGET / HTTP/1.1\n",
    b"GET /\r\n",
    b"SSH-2.0-OpenSSH_9.2p1\r\n",
    b"get / http/1.1\r\n",
]
# Heads that are whole, and wrong.
MALFORMED = [
    b"GET / HTTP/1.1\r\nHost: lab\n\r\n",
    b"GET / HTTP/1.1\r\nHost: lab\r\n\n",
    b"GET / HTTP/1.1\n\n",
    b"GET / HTTP/1.1\r\nHost: lab\nX-Name: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/x\r\nHost: lab\r\n\r\n",
    b"GET http://lab/ HTTP/1.1\r\nHost: lab\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: four\r\n\r\nbody",
    b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: -5\r\n\r\nbody",
    b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: +4\r\n\r\nbody",
    b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: 0_4\r\n\r\nbody",
]


class Line:
    """An inbox, and the client's end of what comes to it."""

    def __init__(self) -> None:
        self._far, self.near = socket.socketpair()
        self.near.setblocking(False)
        self.waits = 0
        self.inbox = Inbox(self.near, self._note_wait)

    def _note_wait(self) -> None:
        self.waits += 1

    def deliver(self, data: bytes) -> None:
        self._far.sendall(data)

    def bring(self, data: bytes) -> bool:
        """Have the loop take bytes in; return whether there is a request."""
        self.deliver(data)
        assert self.inbox.take_in()
        return self.inbox.has_request(MAX_HEAD_BYTES)

    def hang_up(self) -> None:
        self._far.close()

    def close(self) -> None:
        self._far.close()
        self.near.close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    with small_server(unread=lambda _: "not read") as server:
        yield server


@pytest.mark.parametrize("request_", [*HEADS, *SMALL_BODIES])
def test_a_request_is_there_with_its_last_byte_and_no_sooner(request_: bytes, line: Line) -> None:
    *begun, last = (request_[n : n + 1] for n in range(len(request_)))
    assert not any(line.bring(byte) for byte in begun)
    assert line.bring(last)


@pytest.mark.parametrize("request_", [*HEADS, *SMALL_BODIES])
def test_a_request_may_be_cut_in_two_anywhere(request_: bytes) -> None:
    for cut in range(1, len(request_)):
        line = Line()
        assert not line.bring(request_[:cut])
        assert line.bring(request_[cut:]), cut
        line.close()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_will_never_be_a_request_is_not_waited_for(garbage: bytes, line: Line) -> None:
    assert line.bring(garbage)
    # Nor does a worker wait for the rest of it.
    assert line.inbox.readline() + line.inbox.readline() + line.inbox.readline() == garbage
    assert line.waits == 0


def test_a_head_that_does_not_end_is_not_waited_for(line: Line) -> None:
    block = b"GET / HTTP/1.1\r\nX-Name: " + bytes([97]) * 9000
    while not line.bring(block):
        block = bytes([97]) * 9000
    assert MAX_HEAD_BYTES < len(line.inbox) < MAX_HEAD_BYTES + 20_000


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 70000",
        b"Content-Length: 10\r\nExpect: 100-continue",
        b"Transfer-Encoding: chunked",
    ],
)
def test_a_body_that_is_not_to_be_kept_in_memory_is_not_waited_for(
    headers: bytes, line: Line
) -> None:
    assert line.bring(b"POST / HTTP/1.1\r\nHost: lab\r\n" + headers + b"\r\n\r\n")


def test_the_next_request_begins_where_the_one_before_ends(line: Line) -> None:
    assert line.bring(HEADS[0] + HEADS[3] + HEADS[1][:9])
    assert line.inbox.head == HEADS[0]
    line.inbox.drop_head()
    assert line.inbox.has_request(MAX_HEAD_BYTES)
    assert line.inbox.head == HEADS[3]
    line.inbox.drop_head()
    assert not line.inbox.has_request(MAX_HEAD_BYTES)
    assert line.bring(HEADS[1][9:])
    assert line.inbox.head == HEADS[1]


def test_a_worker_reads_lines_and_bytes_and_waits_only_for_what_is_not_there(line: Line) -> None:
    line.bring(b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: 70000\r\n\r\nhere")
    line.near.settimeout(30)
    assert line.inbox.readline(4) == b"POST"
    assert line.inbox.readline() == b" / HTTP/1.1\r\n"
    assert line.inbox.readline(1000) == b"Host: lab\r\n"
    assert line.inbox.readline() + line.inbox.readline() == b"Content-Length: 70000\r\n\r\n"
    assert line.inbox.read(0) == b""
    assert line.inbox.read(4) == b"here"
    assert line.waits == 0
    line.deliver(b"there")
    assert line.inbox.read(5) == b"there"
    assert line.waits == 1


def begin_large_body(line: Line) -> None:
    head = b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: 100000\r\n\r\n"
    assert line.bring(head)
    assert line.inbox.has_body_to_come
    line.inbox.read(len(head))


def test_half_a_body_is_not_taken_for_a_whole_one(line: Line) -> None:
    begin_large_body(line)
    line.bring(b"half")
    line.hang_up()
    line.near.settimeout(30)
    with pytest.raises(ConnectionResetError):
        line.inbox.read(8)
    with pytest.raises(ConnectionResetError):
        line.inbox.read()


def test_a_line_within_a_body_does_not_fill_the_memory(line: Line) -> None:
    line.near.settimeout(30)
    for _ in range(10):
        line.bring(b"1" * 10_000)
    assert 0 < len(line.inbox.readline()) < 100_000


def test_a_body_that_comes_byte_by_byte_is_not_waited_for_for_ever(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_large_body(line)
    seconds = iter(range(0, 10_000, 5))
    monkeypatch.setattr("artifacts.serving.inbox.time.monotonic", lambda: float(next(seconds)))
    line.near.settimeout(30)
    received = 0
    with pytest.raises(TimeoutError):
        for _ in range(100):
            line.deliver(b"x")
            received += len(line.inbox.read(1))
    # Each takes five seconds, and thirty are given for what is so slow.
    assert received == 7


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_400_at_once(garbage: bytes, server: HttpServer) -> None:
    with RawClient(port_of(server)) as client:
        assert client.send(garbage).reply().status == 400
        assert client.is_hung_up_on


@pytest.mark.parametrize("malformed", MALFORMED)
def test_a_malformed_head_is_400(malformed: bytes, server: HttpServer) -> None:
    with RawClient(port_of(server)) as client:
        assert client.send(malformed).reply().status == 400
        assert client.is_hung_up_on


@pytest.mark.parametrize("end", [b"", b" HTTP/1.1\r\n\r\n", b"\r\n\r\n"])
def test_an_overlong_request_line_is_414(end: bytes, server: HttpServer) -> None:
    with RawClient(port_of(server)) as client:
        # More than the system keeps for those who hang up while more comes.
        assert client.send(b"GET /" + b"a" * 400_000 + end).reply().status == 414
        assert client.is_hung_up_on


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_an_overlong_head_is_413(end: bytes, server: HttpServer) -> None:
    with RawClient(port_of(server)) as client:
        lines = b"".join(b"X-Name: %d\r\n" % n for n in range(30_000))
        head = b"GET / HTTP/1.1\r\nHost: lab\r\n" + lines.removesuffix(b"\r\n") + end
        assert client.send(head).reply().status == 413
        assert client.is_hung_up_on


def test_a_client_may_wait_until_its_body_is_asked_for(server: HttpServer) -> None:
    with RawClient(port_of(server)) as client:
        for body in (b"0123456789", b"b" * 70_000):
            client.get("/a", "POST", Content_Length=str(len(body)), Expect="100-continue")
            assert client.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert json.loads(client.send(body).reply().body)[-1] == body.decode()


def test_who_is_answered_without_the_body_is_not_asked_for_it(server: HttpServer) -> None:
    with RawClient(port_of(server)) as client:
        client.get("/unread", "POST", Content_Length="10", Expect="100-continue")
        assert client.reply().text == "not read"
        assert client.is_hung_up_on


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server: HttpServer) -> None:
    with RawClient(port_of(server)) as client:
        client.get("/a", "POST", Content_Length="2000000", Expect="100-continue")
        assert client.reply().status == 413
        assert client.is_hung_up_on


def test_chunks_are_one_body_whatever_they_come_with(server: HttpServer) -> None:
    chunks = b"4\r\nbody\r\n7;a=b\r\n and \r\n\r\n5\r\nmore.\r\n0\r\nTrailer: x\r\n\r\n"
    head = b"POST /a HTTP/1.1\r\nHost: lab\r\nTransfer-Encoding: chunked\r\n\r\n"
    for count in (1, 7, 1000):
        with RawClient(port_of(server)) as client:
            for start in range(0, len(head + chunks), count):
                client.send((head + chunks)[start : start + count])
            reply = client.reply()
            assert json.loads(reply.body)[-1] == "body and \r\nmore."
            # Where the next request would begin depends on who has read the trailers.
            assert reply.headers["connection"] == "close"
            assert client.is_hung_up_on


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"four\r\nbody\r\n0\r\n\r\n", 400),
        (b"4\r\nbody0\r\n\r\n", 400),
        (b"1" * 100_000, 400),
        (b"200000\r\n", 413),
        (b"fffff\r\n" + b"a" * 0xFFFFF + b"\r\nffff\r\n", 413),
        # Each byte would cost as much as thousands.
        (b"1\r\na\r\n" * 20_000, 400),
        ((b"1;" + b"x" * 4000 + b"\r\na\r\n") * 20, 400),
    ],
)
def test_chunks_that_are_malformed_or_too_large_are_refused(
    chunks: bytes, status: int, server: HttpServer
) -> None:
    with RawClient(port_of(server)) as client:
        client.get("/a", "POST", Transfer_Encoding="chunked").send(chunks)
        assert client.reply().status == status
        assert client.is_hung_up_on


def test_small_chunks_that_are_here_are_read_together(line: Line) -> None:
    head = b"POST / HTTP/1.1\r\nHost: lab\r\nTransfer-Encoding: chunked\r\n\r\n"
    line.bring(head + b"1\r\na\r\n" * 1000 + b"2\r\nb")
    line.near.settimeout(30)
    line.inbox.read(len(head))
    body = RequestBody(line.inbox, None, 1 << 20, lambda: None)
    assert body.read_some(10) == b"a" * 10
    assert body.read_some(1 << 20) == b"a" * 990 + b"b"
    line.deliver(b"b\r\n0\r\n\r\n")
    assert body.read_some(1 << 20) == b"b"
    assert body.read_some(1 << 20) == b""


@pytest.mark.parametrize("sizes", [[11], [6, 5], [10, 1]])
def test_chunks_over_the_limit_together_are_refused_though_all_are_here(
    sizes: list[int], line: Line
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: lab\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (size, b"a" * size) for size in sizes)
    line.bring(head + chunks + b"0\r\n\r\n")
    line.inbox.read(len(head))
    with pytest.raises(cherrypy.HTTPError) as refused:
        RequestBody(line.inbox, None, 10, lambda: None).read()
    assert refused.value.code == 413


def test_chunks_of_a_hundred_bytes_are_a_body_of_any_size(server: HttpServer) -> None:
    with RawClient(port_of(server)) as client:
        client.get("/a", "POST", Transfer_Encoding="chunked")
        client.send((b"64\r\n" + b"a" * 100 + b"\r\n") * 10_000 + b"0\r\n\r\n")
        assert len(json.loads(client.reply().body)[-1]) == 1_000_000


def test_what_is_left_of_a_body_that_nobody_reads_is_no_request(server: HttpServer) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nHost: lab\r\n\r\n"
    with RawClient(port_of(server)) as client:
        client.get("/unread", "DELETE", Content_Length=str(len(hidden))).send(hidden)
        client.get("/b")
        assert client.reply().text == "not read"
        assert json.loads(client.reply().body)[1] == "/b"


_names = st.text("abcXYZ019-_.~%20", max_size=30)
_requests = st.lists(
    st.tuples(
        st.sampled_from(["GET", "DELETE", "POST", "PUT"]),
        _names,
        _names.map(str.strip),
        st.binary(max_size=200),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@given(requests=_requests, cuts=st.lists(st.integers(0, 3000), max_size=12))
@settings(max_examples=60, deadline=None)
def test_however_a_stream_of_requests_is_cut_the_answers_are_the_same(
    requests: list[tuple[str, str, str, bytes, bool]], cuts: list[int], server: HttpServer
) -> None:
    stream, expected = b"", []
    for method, name, header, body, has_blank_line in requests:
        stream += b"\r\n" if has_blank_line else b""
        lines = [f"{method} /{name} HTTP/1.1", "Host: lab", f"X-Name: {header}"]
        lines += [f"Content-Length: {len(body)}"] if body else []
        stream += "\r\n".join([*lines, "", ""]).encode() + body
        expected.append([method, f"/{name}", "lab", header, body.decode("latin-1")])
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    with RawClient(port_of(server)) as client:
        for start, stop in pairwise(edges):
            client.send(stream[start:stop])
        assert [json.loads(client.reply().body) for _ in requests] == expected
