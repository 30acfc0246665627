"""multipart/form-data: what parts there are, wherever the body is cut; what is malformed."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upload_client import Part, content_type, multipart

from artifacts.errors import BadRequest
from artifacts.serving.multipart import MultipartReader, PartHead

BOUNDARY = b"xyz-9"
MAX_PARTS = 8
BLOCK_BYTES = 1 << 20
# What boundaries are made of, and a little else.
_PIECES = [b"\r", b"\n", b"\r\n", b"-", b"--", b"\r\n--", b"xyz", b"xyz-", b"-9", b"a", b"\0", b" "]

data = (
    st.lists(st.sampled_from(_PIECES), max_size=20)
    .map(b"".join)
    # Otherwise it would be a boundary.
    .filter(lambda data: BOUNDARY not in data)
)
names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=10)
parts = st.lists(
    st.builds(Part, data, st.none() | names, name=names), min_size=1, max_size=MAX_PARTS
)


class Collected:
    """A sink that keeps what comes."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._head: PartHead | None = None
        self._data = b""

    def begin_part(self, head: PartHead) -> None:
        assert self._head is None
        self._head, self._data = head, b""

    def take(self, data: memoryview) -> None:
        self._data += data

    def end_part(self) -> None:
        assert self._head is not None
        self.parts.append(Part(self._data, self._head.filename, self._head.name))
        self._head = None


class Nothing:
    """A sink that keeps nothing."""

    def begin_part(self, head: PartHead) -> None: ...

    def take(self, data: memoryview) -> None: ...

    def end_part(self) -> None: ...


def read(*blocks: bytes, boundary: bytes = BOUNDARY) -> list[Part]:
    collected = Collected()
    reader = MultipartReader(content_type(boundary), collected, MAX_PARTS)
    for block in blocks:
        reader.feed(block)
    reader.end()
    return collected.parts


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[a:b] for a, b in pairwise(edges)]


@given(parts, st.lists(st.integers(0, 10_000), max_size=6))
def test_the_parts_are_the_same_wherever_the_body_is_cut(
    parts: list[Part], places: list[int]
) -> None:
    body = multipart(parts, BOUNDARY)
    assert read(*cut(body, places)) == parts
    assert read(*(body[n : n + 1] for n in range(len(body)))) == parts


@given(parts, st.integers(0, 10_000))
def test_what_is_cut_off_anywhere_is_refused(parts: list[Part], place: int) -> None:
    body = multipart(parts, BOUNDARY).removesuffix(b"--\r\n")
    begun = body[: 1 + place % len(body)]
    with pytest.raises(BadRequest):
        read(begun)


@given(st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=3))
def test_garbage_is_refused_or_has_no_parts_and_nothing_else(
    garbage: bytes, places: list[int]
) -> None:
    try:
        assert read(*cut(garbage, places)) == []
    except BadRequest as error:
        assert error.message.isprintable()


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b'form-data; name="file"; filename="abc"', Part(b"a", "abc")),
        (b"form-data; name=file; filename=abc", Part(b"a", "abc")),
        (b'FORM-DATA; Name="file"; FileName="abc"', Part(b"a", "abc")),
        (b'form-data;filename="abc";name="file"', Part(b"a", "abc")),
        (b'form-data; name="file"; filename="a;b\\"c"', Part(b"a", 'a;b"c')),
        (b'form-data; name="file"; filename="../../\0x"', Part(b"a", "../../\0x")),
        (b'form-data; name="file"; filename=""', Part(b"a", "")),
        (b'form-data; name="file"', Part(b"a", None)),
        ('form-data; name="f\xfc"'.encode(), Part(b"a", None, "f\xfc")),
        (b'form-data; name="f\xfc"', Part(b"a", None, "f\\xfc")),
    ],
)
def test_names_are_read_as_clients_spell_them(head: bytes, part: Part) -> None:
    for header in (b"Content-Disposition: ", b"content-disposition:"):
        body = b"--xyz-9\r\nX-More: 1\r\n" + header + head + b"\r\n\r\na\r\n--xyz-9--\r\n"
        assert read(body) == [part]


@pytest.mark.parametrize(
    "heads",
    [
        b"",
        b"Content-Type: text/plain\r\n",
        b"Content-Disposition:\r\n",
        b'Content-Disposition: attachment; name="file"\r\n',
        b'Content-Disposition: form-data; filename="abc"\r\n',
        b'Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="b"\r\n',
        b'Content-Disposition: form-data; name="a"\n',
        b"X-Long: " + b"a" * 5000 + b"\r\n",
        b"X" * 5000 + b": a\r\n",
        b"X-Blank:" + b" " * 5000 + b"\r\n",
        b"X-Many: 1\r\n" * 9,
        b"no colon\r\n",
    ],
)
def test_parts_without_a_proper_head_are_refused(heads: bytes) -> None:
    with pytest.raises(BadRequest):
        read(b"--xyz-9\r\n" + heads + b"\r\na\r\n--xyz-9--\r\n")


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "multipart/mixed; boundary=xyz-9",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; charset=utf-8",
        "multipart/form-data; boundary=" + "x" * 300,
    ],
)
def test_without_a_boundary_nothing_is_read(content_type: str | None) -> None:
    with pytest.raises(BadRequest):
        MultipartReader(content_type, Collected(), MAX_PARTS)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=xyz-9",
        'multipart/form-data; boundary="xyz-9"',
        "Multipart/Form-Data; charset=utf-8; Boundary=xyz-9",
        "multipart/form-data;boundary=xyz-9;",
    ],
)
def test_boundaries_are_read_as_clients_spell_them(content_type: str) -> None:
    collected = Collected()
    reader = MultipartReader(content_type, collected, MAX_PARTS)
    reader.feed(multipart([Part(b"a", "abc")], BOUNDARY))
    reader.end()
    assert collected.parts == [Part(b"a", "abc")]


@pytest.mark.parametrize("boundary", [b"-", b"--", b"x", b"a b", b"x" * 70, b"'()+_,-./:=?"])
def test_odd_boundaries_are_boundaries(boundary: bytes) -> None:
    collected = Collected()
    quoted = f'multipart/form-data; boundary="{boundary.decode()}"'
    reader = MultipartReader(quoted, collected, MAX_PARTS)
    sent = [Part(b"-\r\n-", "abc"), Part(b"", "def")]
    reader.feed(multipart(sent, boundary))
    reader.end()
    assert collected.parts == sent


def test_what_follows_the_last_boundary_is_passed_over() -> None:
    body = multipart([Part(b"a", "abc")], BOUNDARY)
    assert read(body, b"epilogue", b"\r\n--xyz-9\r\n") == [Part(b"a", "abc")]


def test_a_body_without_parts_has_none() -> None:
    assert read() == []
    assert read(b"--xyz-9--") == read(b"--xyz-9--\r\n") == []


def test_too_many_parts_are_refused() -> None:
    sent = [Part(b"a", "abc")] * MAX_PARTS
    assert read(multipart(sent, BOUNDARY)) == sent
    with pytest.raises(BadRequest, match="too many parts"):
        read(multipart([*sent, sent[0]], BOUNDARY))


@pytest.mark.parametrize(
    "body",
    [
        b"preamble\r\n--xyz-9--\r\n",
        b"--xyz-9\nContent-Disposition: form-data; name=a\n\na\n--xyz-9--\n",
        b"--xyz-9 \r\nContent-Disposition: form-data; name=a\r\n\r\na\r\n--xyz-9--\r\n",
        b"--xyz\r\nContent-Disposition: form-data; name=a\r\n\r\na\r\n--xyz--\r\n",
    ],
)
def test_what_is_no_multipart_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read(body)


@pytest.mark.parametrize("padding", [b" ", b"\t"])
def test_blanks_behind_a_boundary_are_passed_over_as_long_as_they_are_few(padding: bytes) -> None:
    def blocks(blanks: int) -> list[bytes]:
        body = multipart([Part(b"a", "abc")], BOUNDARY).removesuffix(b"--\r\n")
        body += padding * blanks + b"\r\n" + multipart([Part(b"b", "def")], BOUNDARY)[9:]
        return [body[n : n + 100] for n in range(0, len(body), 100)]

    assert read(*blocks(10)) == [Part(b"a", "abc"), Part(b"b", "def")]
    with pytest.raises(BadRequest, match="between its parts"):
        read(*blocks(2000))


def test_only_so_much_is_passed_over_before_the_first_boundary() -> None:
    body = multipart([Part(b"a", "abc")], BOUNDARY)
    assert read(b"\r\n" * 10 + body) == [Part(b"a", "abc")]
    with pytest.raises(BadRequest):
        read(b"\r\n" * 2000, body)


def cpu_seconds_of(content: bytes, count: int) -> float:
    """Return what it costs to read a body of 32 MiB, or as far as that is refused."""
    data = content * (count // len(content))
    body = b"--xyz-9\r\nContent-Disposition: form-data; name=a\r\n\r\n" + data + b"\r\n--xyz-9--"
    blocks = [body[n : n + BLOCK_BYTES] for n in range(0, len(body), BLOCK_BYTES)]
    reader = MultipartReader(content_type(BOUNDARY), Nothing(), MAX_PARTS)
    begun = time.thread_time()
    try:
        for block in blocks:
            reader.feed(block)
    except BadRequest:
        pass
    return time.thread_time() - begun


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"-",
        b"\r\n--",
        b"\r\n--xyz-",
        b"\r\n--xyz-9q",
        b"\r\n--xyz-9-q",
        b"\r\n--xyz-9\rq",
        b"\r\n--xyz-9" + b" " * BLOCK_BYTES,
        b"\r\n--xyz-9" + b" " * BLOCK_BYTES + b"\r\nContent-Disposition: form-data; name=a\r\n\r\n",
    ],
)
def test_no_bytes_cost_much_more_than_others(content: bytes) -> None:
    count = 32 << 20
    # Some 10 ms; what the parser takes byte by byte costs many seconds.
    random = min(cpu_seconds_of(os.urandom(count), count) for _ in range(3))
    assert cpu_seconds_of(content, count) < 1 + 20 * random
