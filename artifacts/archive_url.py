"""Archive URLs: parsing, and the one spelling that stands for all others of a build."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from artifacts.errors import BadRequest, NotAllowed

SCHEMES = ("gs", "s3", "http", "https", "file", "store")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{0,221}")
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_MAX_CHARACTERS = 2000
_MAX_SEGMENT_BYTES = 255
# Of a path below a build. What walks trees, or removes them, may do so recursively.
MAX_PATH_SEGMENTS = 200
MAX_PATH_CHARACTERS = 4096
_RESERVED_TARGETS = {"archive"}
# What RFC 3986 allows in a path segment besides letters, digits and "-._~".
_SEGMENT_SAFE = "!$&'()*+,;=:@"


def has_control_characters(text: str) -> bool:
    return any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in text)


def check_segment(segment: str, what: str) -> None:
    """Refuse what cannot be the name of one directory or file.

    Raises:
        BadRequest: the segment is ``.`` or ``..``, holds control characters, or is too long.
    """
    if segment in {".", ".."}:
        raise BadRequest(f"{what} must not have a segment {segment!r}")
    if has_control_characters(segment):
        raise BadRequest(f"{what} must not have control characters: {segment!r}")
    if len(segment.encode("utf-8")) > _MAX_SEGMENT_BYTES:
        raise BadRequest(f"{what} has a segment of over {_MAX_SEGMENT_BYTES} bytes")


def check_relative_path(path: str, what: str) -> str:
    """Return ``path`` if it names something below a directory, whatever the directory.

    Raises:
        BadRequest: it is empty, absolute, has ``.``, ``..`` or empty segments, or control
            characters.
    """
    if not path:
        raise BadRequest(f"{what} is empty")
    if path.startswith("/"):
        raise BadRequest(f"{what} must be relative: {path!r}")
    if path.count("/") >= MAX_PATH_SEGMENTS or len(path) > MAX_PATH_CHARACTERS:
        raise BadRequest(
            f"{what} has over {MAX_PATH_SEGMENTS} segments or {MAX_PATH_CHARACTERS:,} characters"
        )
    for segment in path.split("/"):
        if not segment:
            raise BadRequest(f"{what} has an empty segment: {path!r}")
        check_segment(segment, what)
    return path


@dataclass(frozen=True)
class BuildName:
    """What a build is called in the lab: ``target/build``."""

    target: str
    build: str

    def __str__(self) -> str:
        return f"{self.target}/{self.build}"

    @classmethod
    def parse(cls, text: str) -> BuildName:
        """Parse ``TARGET/BUILD``.

        Raises:
            BadRequest: the text is not two names with a slash between them, or a name is reserved.
        """
        segments = [segment for segment in text.strip().split("/") if segment]
        if len(segments) != 2:
            raise BadRequest(f"not a build, TARGET/BUILD: {text!r}")
        return cls.checked(*segments)

    @classmethod
    def checked(cls, target: str, build: str) -> BuildName:
        for name in (target, build):
            check_segment(name, "target/build")
            if name.startswith("."):
                raise BadRequest(f"names that begin with a dot are reserved: {name!r}")
            if name != name.strip():
                raise BadRequest(f"target/build must not begin or end with a blank: {name!r}")
        if target in _RESERVED_TARGETS:
            raise BadRequest(f"the target {target!r} is reserved")
        return cls(target, build)


@dataclass(frozen=True)
class ArchiveUrl:
    """Where one build lives. Two spellings of one build are equal, and have the same ``str``.

    ``authority`` is the bucket, or host and port; ``segments`` are the path's, percent-decoded for
    http and https, where the archive's server would decode them, and kept as they are elsewhere.
    """

    scheme: str
    authority: str
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ArchiveUrl:
        """Parse and canonicalize an archive URL.

        Raises:
            BadRequest: it is not a URL of a known scheme that names a target and a build.
        """
        url = cls.parse_prefix(text)
        if len(url.segments) < 2:
            raise BadRequest(
                "archive_url must end in a target and a build, like gs://bucket/target/build: "
                f"{text!r}"
            )
        if url.scheme == "store" and len(url.segments) > 2:
            raise BadRequest(f"what is published here is called store://target/build: {text!r}")
        BuildName.checked(*url.segments[-2:])
        # Programs disagree on whether these separate segments.
        if any("\\" in segment for segment in url.segments):
            raise BadRequest(f"archive_url must not have a backslash: {text!r}")
        if url.scheme in _DEFAULT_PORTS and "%2f" in text.lower():
            raise BadRequest(f"archive_url must not have an encoded slash: {text!r}")
        return url

    @classmethod
    def parse_prefix(cls, text: str) -> ArchiveUrl:
        """Parse what may also name a whole archive, as ``gs://`` or ``gs://bucket`` do.

        Raises:
            BadRequest: the text is no such URL.
        """
        if len(text) > _MAX_CHARACTERS:
            raise _too_long()
        stripped = text.strip(string.whitespace).rstrip(f"/{string.whitespace}")
        scheme, colon, rest = stripped.partition(":")
        scheme = scheme.lower()
        if not colon or scheme not in SCHEMES or not (rest.startswith("/") or not rest):
            raise BadRequest(
                f"not an archive URL: {text!r} (expected one like gs://bucket/target/build)"
            )
        for character, name in (("?", "query"), ("#", "fragment")):
            if character in rest and scheme not in {"file"}:
                raise BadRequest(f"archive_url must not have a {name}: {text!r}")
        segments = [segment for segment in rest.split("/") if segment]
        authority = ""
        if scheme not in {"file", "store"} and segments:
            authority = _authority(scheme, segments.pop(0).lower(), text)
        if scheme in _DEFAULT_PORTS:
            segments = [part for s in segments for part in _decoded(s).split("/") if part]
        for segment in segments:
            check_segment(segment, "archive_url")
        url = cls(scheme, authority, tuple(segments))
        # Percent-encoding makes it longer, and it has to be parsed again from what it prints to.
        if len(str(url)) > _MAX_CHARACTERS:
            raise _too_long()
        return url

    @property
    def name(self) -> BuildName:
        return BuildName(*self.segments[-2:])

    @property
    def path(self) -> str:
        """The path within the archive, no slash at either end."""
        return "/".join(self.segments)

    def is_below(self, prefix: ArchiveUrl) -> bool:
        """Whether this is ``prefix`` or lies below it, compared segment by segment."""
        return (
            self.scheme == prefix.scheme
            and prefix.authority in {"", self.authority}
            and self.segments[: len(prefix.segments)] == prefix.segments
        )

    def __str__(self) -> str:
        if self.scheme in _DEFAULT_PORTS:
            path = "/".join(quote(segment, safe=_SEGMENT_SAFE) for segment in self.segments)
        else:
            path = self.path
        if self.scheme == "file":
            return f"file:///{path}"
        return f"{self.scheme}://{'/'.join(part for part in (self.authority, path) if part)}"


class AllowList:
    """The archives that may be read, as prefixes of archive URLs."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._prefixes = [ArchiveUrl.parse_prefix(prefix) for prefix in prefixes]

    def prefixes_of(self, scheme: str) -> list[ArchiveUrl]:
        return [prefix for prefix in self._prefixes if prefix.scheme == scheme]

    def allows(self, url: ArchiveUrl) -> bool:
        return url.scheme == "store" or any(url.is_below(prefix) for prefix in self._prefixes)

    def check(self, url: ArchiveUrl) -> None:
        """Raise NotAllowed unless ``url`` lies below one of the prefixes."""
        if not self.allows(url):
            raise NotAllowed(
                f"archive not allowed: {url} (the operator allows archives with --allow-archive)",
                code="archive_not_allowed",
            )


def _decoded(segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError as error:
        raise BadRequest(f"archive_url is not UTF-8 when decoded: {segment!r}") from error


def _authority(scheme: str, authority: str, text: str) -> str:
    if scheme in {"gs", "s3"}:
        if not _BUCKET.fullmatch(authority) or ".." in authority:
            raise BadRequest(f"not a bucket name in archive_url: {text!r}")
        return authority
    if "@" in authority:
        raise BadRequest("archive_url must not have a user name or password in it")
    match = _HOST.fullmatch(authority)
    port = int(match["port"] or _DEFAULT_PORTS[scheme]) if match else 0
    if not match or not 0 < port < 65536:
        raise BadRequest(f"not a host name in archive_url: {text!r}")
    return match["name"] if port == _DEFAULT_PORTS[scheme] else f"{match['name']}:{port}"


def _too_long() -> BadRequest:
    return BadRequest(f"archive_url is longer than {_MAX_CHARACTERS} characters")
