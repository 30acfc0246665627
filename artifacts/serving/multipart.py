"""``multipart/form-data`` as it streams by (RFC 7578), read with python-multipart's parser."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from artifacts.errors import BadRequest

# Of one part.
_MAX_HEADERS = 8
_MAX_HEADER_BYTES = 4096
# Around one part, besides its boundary and what its headers say: line ends and the like.
_MAX_FRAME_BYTES = 64
# Of blocks, as much as this and an eighth are searched for boundaries.
_SEARCHED_BYTES = 16 << 10


@dataclass(frozen=True)
class PartHead:
    """What a part says of itself; ``filename`` is None for a plain field."""

    name: str
    filename: str | None


class PartSink(Protocol):
    """Takes parts in, one after another. What it raises, `MultipartReader.feed` raises."""

    def begin_part(self, head: PartHead) -> None: ...

    def take(self, data: memoryview) -> None:
        """Take some of the part's bytes, which are not there any more afterwards."""

    def end_part(self) -> None: ...


class MultipartReader:
    """Reads one body, block by block. What is malformed raises BadRequest."""

    def __init__(self, content_type: str | None, sink: PartSink, max_parts: int) -> None:
        """Begin with a body.

        Args:
            content_type: the header of that name.
            sink: what takes the parts.
            max_parts: how many parts there may be.
        """
        boundary = _boundary_of(content_type)
        self._sink = sink
        self._parts_left = max_parts
        # The parser steps through some bytes one by one, at a thousand times the cost of others.
        # These two limit how many: boundaries within parts, which are none, and what is between
        # parts, such as blanks behind a boundary.
        self._delimiter = b"\r\n--" + boundary
        self._delimiters_left = max_parts + 1
        self._frame_bytes_left = (max_parts + 1) * (len(self._delimiter) + _MAX_FRAME_BYTES)
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition: bytes | None = None
        self._has_begun = self._is_whole = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": sink.end_part,
                    "on_end": self._on_end,
                },
                max_header_count=_MAX_HEADERS,
                max_header_size=_MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, block: bytes) -> None:
        """Read the next bytes of the body."""
        self._has_begun = True
        if self._is_whole:
            # What follows the last boundary is of no interest.
            return
        self._delimiters_left -= self._delimiters_in(block)
        if self._delimiters_left < 0:
            raise BadRequest("the multipart body has too many parts, or its boundary within them")
        self._frame_bytes_left -= len(block)
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise _malformed(error) from error
        if self._frame_bytes_left < 0 and not self._is_whole:
            raise BadRequest("the multipart body is malformed: too much is between its parts")

    def end(self) -> None:
        """Note that the body has ended. An empty one has no parts."""
        if self._has_begun and not self._is_whole:
            raise BadRequest("the multipart body is cut short: its last boundary is missing")

    def _delimiters_in(self, block: bytes) -> int:
        """Return how many there are; of a large block, only of some of it.

        To look through all of it would cost as much as parsing it. Who puts many there cannot know
        where to.
        """
        searched = max(_SEARCHED_BYTES, len(block) // 8)
        start = random.randrange(len(block) - searched) if len(block) > searched else 0
        return block.count(self._delimiter, start, start + searched)

    def _on_part_begin(self) -> None:
        if not self._parts_left:
            raise BadRequest("the multipart body has too many parts")
        self._parts_left -= 1
        self._disposition = None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._frame_bytes_left += end - start
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._frame_bytes_left += end - start
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            if self._disposition is not None:
                raise BadRequest("a part of the multipart body has two Content-Dispositions")
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header((self._disposition or b"").decode("latin-1"))
        name, filename = options.get(b"name"), options.get(b"filename")
        if kind != b"form-data" or name is None:
            raise BadRequest("a part of the multipart body has no name")
        self._sink.begin_part(PartHead(_text(name), None if filename is None else _text(filename)))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._frame_bytes_left += end - start
        with memoryview(data) as view, view[start:end] as part:
            self._sink.take(part)

    def _on_end(self) -> None:
        self._is_whole = True


def _boundary_of(content_type: str | None) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise BadRequest(f"the body must be multipart/form-data, not {content_type!r:.100}")
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("the Content-Type names no boundary")
    return boundary


def _text(option: bytes) -> str:
    return option.decode("utf-8", "backslashreplace")


def _malformed(error: FormParserError) -> BadRequest:
    return BadRequest(f"the multipart body is malformed: {error}")
