"""What is used in a ``with`` block, and closed at its end."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """Gives a class with ``close`` what a ``with`` statement needs."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
