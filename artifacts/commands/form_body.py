"""Forms with files, multipart/form-data (RFC 7578), as they are sent: piece by piece."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@dataclass(frozen=True)
class FormFile:
    """A file of a form; ``size`` in bytes, None where that shows only when it has been read.

    Attributes:
        field: the name of its field; ASCII without quotes, as ``filename``.
        pieces: its bytes, some mebibyte at a time at most; taken once, when they are sent.
    """

    field: str
    filename: str
    size: int | None
    pieces: Iterable[ReadableBuffer]


class FormBody:
    """The body of a form, of which one piece at a time is in memory; can be sent once.

    ``len`` tells its bytes, if all files have a size.
    """

    def __init__(self, files: Sequence[FormFile]) -> None:
        self._files = files
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._heads = [
            (
                f"--{boundary}\r\n"
                f'Content-Disposition: form-data; name="{file.field}"; '
                f'filename="{file.filename}"\r\n'
                "Content-Type: application/octet-stream\r\n\r\n"
            ).encode("ascii")
            for file in files
        ]
        self._end = f"--{boundary}--\r\n".encode("ascii")

    def __len__(self) -> int:
        size = len(self._end)
        for head, file in zip(self._heads, self._files, strict=True):
            if file.size is None:
                raise TypeError(f"nobody knows the size of {file.filename}")
            size += len(head) + file.size + len(b"\r\n")
        return size

    def __iter__(self) -> Iterator[ReadableBuffer]:
        for head, file in zip(self._heads, self._files, strict=True):
            yield head
            yield from file.pieces
            yield b"\r\n"
        yield self._end
