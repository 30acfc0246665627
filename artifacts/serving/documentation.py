"""``/doc``: what each call does, as the docstring of its handler says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any


def exposed_handlers(root: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what CherryPy exposes at ``root`` and below, each with its path, no slash in front.

    A handler for what is below it, or for itself, has the path of the object that it belongs to:
    ``index`` and ``default`` below ``builds`` are both ``builds``.
    """
    for name in sorted(dir(root), key=lambda name: (name != "index", name)):
        if name.startswith("_"):
            continue
        part = getattr(root, name)
        below = f"{path}/{name}" if path else name
        if getattr(part, "exposed", False):
            yield path if path and name in {"index", "default"} else below, part
        elif name in vars(root):
            yield from exposed_handlers(part, below)


def documented_calls(root: object) -> dict[str, list[str]]:
    """Return what the calls below ``root`` do, by path, in order; one text a handler.

    The first line of each text is the form of the call and what it does.
    """
    texts: dict[str, list[str]] = {}
    for path, handler in exposed_handlers(root):
        if handler.__doc__:
            texts.setdefault(path, []).append(inspect.cleandoc(handler.__doc__))
    return dict(sorted(texts.items()))
