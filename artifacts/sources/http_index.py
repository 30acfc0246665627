"""Index pages of web servers: what lies right below a directory.

A page may be hostile: it is read in time proportional to its length (Python's own HTML parser
takes hours for a page of a megabyte that is made for it), and what it names that cannot be the
name of a file right below it is passed over.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from artifacts.archive_url import check_segment
from artifacts.errors import ArchiveError, BadRequest

MAX_ENTRIES = 1_000_000

_TAG = re.compile(r"<[a-z!]", re.IGNORECASE)
# A link, its text, and what follows it on its line. No part of it can be matched in two ways.
_LINK = re.compile(
    r"<a\s(?P<attributes>[^<>]*+)>(?:[^<]*+</a>(?P<details>[^<\r\n]*+))?", re.IGNORECASE
)
_ATTRIBUTE = re.compile(
    r"""(?P<name>[^\s"'=]++)\s*+(?:=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s"']++)))?+"""
)
# The last column of nginx's index; other servers round sizes, and are not taken at their word.
_DETAILS = re.compile(r"\s*\S+ \S+ +([0-9]{1,15})\s*")


@dataclass(frozen=True)
class IndexEntry:
    """``size``, in bytes, is for planning; what a file's own answer says is what counts."""

    name: str
    is_directory: bool
    size: int | None = None


def parse_index(page: bytes, url: str) -> list[IndexEntry]:
    """Return the entries of an index page, HTML or JSON as nginx makes them, each name once.

    Raises:
        ArchiveError: it is neither, or has over ``MAX_ENTRIES``.
    """
    text = page.decode("utf-8", "replace")
    if text.lstrip()[:1] == "[":
        entries = _parse_json(text, url)
    elif _TAG.search(text):
        entries = _parse_html(text, url)
    else:
        raise ArchiveError(f"{url} is neither an index page nor is there a file UPLOADED")
    found: dict[str, IndexEntry] = {}
    for entry in entries:
        if _is_name(entry.name):
            found[entry.name] = entry
        if len(found) > MAX_ENTRIES:
            raise _too_many(url)
    return list(found.values())


def _too_many(url: str) -> ArchiveError:
    return ArchiveError(f"{url} lists over {MAX_ENTRIES} files")


def _parse_json(text: str, url: str) -> Iterator[IndexEntry]:
    if text.count("{") > MAX_ENTRIES:  # before they take a hundred times the page's memory
        raise _too_many(url)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"the JSON index at {url} is malformed: {error}") from error
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise ArchiveError(f"the JSON index at {url} has an entry without a name")
        size = row.get("size")
        has_size = type(size) is int and 0 <= size < 10**15
        yield IndexEntry(row["name"], row.get("type") == "directory", size if has_size else None)


def _parse_html(text: str, url: str) -> Iterator[IndexEntry]:
    here = urlsplit(url)
    for link in _LINK.finditer(text):
        name = _name_below(here, url, _href(link["attributes"]))
        if name:
            details = _DETAILS.fullmatch(link["details"] or "")
            size = int(details[1]) if details else None
            yield IndexEntry(name.removesuffix("/"), name.endswith("/"), size)


def _href(attributes: str) -> str:
    for attribute in _ATTRIBUTE.finditer(attributes):
        if attribute["name"].lower() == "href":
            return html.unescape(attribute[2] or attribute[3] or attribute[4] or "")
    return ""


def _name_below(here: SplitResult, url: str, href: str) -> str | None:
    """Return what ``href`` names below ``url``, with the slash of a directory; else None."""
    try:
        there = urlsplit(urljoin(url, href))
    except ValueError:
        return None
    directory, path = unquote(here.path), unquote(there.path)
    if (there.scheme, there.netloc) != (here.scheme, here.netloc) or there.query:
        return None
    return path.removeprefix(directory) if path.startswith(directory) else None


def _is_name(name: str) -> bool:
    try:
        check_segment(name, "name")
    except BadRequest:
        return False
    return bool(name) and "/" not in name
