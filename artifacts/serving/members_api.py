"""``/extract`` and ``/members``: what is in the archive files of builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import cherrypy

from artifacts.archive_files import Wanted
from artifacts.archive_url import BuildName, check_relative_path
from artifacts.errors import DevserverError, NotFound
from artifacts.futures import Steps
from artifacts.members import FoundMember, Members
from artifacts.serving.answer import text_answer, text_error
from artifacts.serving.file_answer import FileAnswer, Served, WholeFile, file_answer
from artifacts.serving.handlers import Arguments, Handled, check_method, give, is_cross_site
from artifacts.serving.steps import answer_in_steps
from artifacts.serving.waiting import Reply
from artifacts.tree_writer import path_of


def _archive_call(handler: Callable[[Any, Wanted, Arguments], Handled]) -> Any:
    """Expose a method as what is below its name: TARGET/BUILD/ARCHIVE."""

    @wraps(handler)
    def call(self: Any, /, *segments: str, **given: Any) -> bytes:
        try:
            check_method(("GET", "HEAD"))
            if len(segments) < 3:
                raise NotFound(f"no such call: {cherrypy.request.path_info}")
            name = BuildName.checked(*segments[:2])
            archive_name = check_relative_path("/".join(segments[2:]), "archive")
            if any(segment.startswith(".") for segment in segments):
                raise NotFound(f"{name} has no file {archive_name!r:.200}")
            may_stage = cherrypy.request.method == "GET" and not is_cross_site(
                cherrypy.request.headers
            )
            return give(handler(self, Wanted(name, archive_name, may_stage), Arguments(given)))
        except DevserverError as error:
            return give(text_error(error))

    return cherrypy.expose(call)


class ExtractApi:
    """``/extract/TARGET/BUILD/ARCHIVE``"""

    def __init__(self, members: Members, timeout_seconds: float) -> None:
        self._members = members
        self._timeout_seconds = timeout_seconds

    @_archive_call
    def default(self, wanted: Wanted, arguments: Arguments) -> Handled:
        """/extract/TARGET/BUILD/ARCHIVE?file=PATH: one member of a tar or zip of the build.

        GET and HEAD, with ranges and conditions, and the headers of /static. PATH is one that
        /members lists; links within the archive are followed.
        """
        path = check_relative_path(path_of(arguments.required("file")), "file")
        request = cherrypy.request
        is_head = request.method == "HEAD"
        steps = self._answer(wanted, path, request.headers, is_head)
        return answer_in_steps(steps, self._timeout_seconds)

    def _answer(
        self, wanted: Wanted, path: str, headers: Mapping[str, str], is_head: bool
    ) -> Steps[Reply]:
        answer = FileAnswer(404, {})

        def wants_bytes(found: FoundMember) -> bool:
            nonlocal answer
            served = Served(path, found.size, found.etag, found.modified_at, found.offset)
            answer = file_answer(_Unopened(), served, headers)
            return answer.file is not None and answer.length > 0 and not is_head

        opened = yield from self._members.extract(wanted, path, wants_bytes)
        answer.file = WholeFile(opened) if isinstance(opened, int) else opened
        return answer


class MembersApi:
    """``/members/TARGET/BUILD/ARCHIVE``"""

    def __init__(self, members: Members, timeout_seconds: float) -> None:
        self._members = members
        self._timeout_seconds = timeout_seconds

    @_archive_call
    def default(self, wanted: Wanted, _: Arguments) -> Handled:
        """/members/TARGET/BUILD/ARCHIVE: list what is in a tar or zip of the build.

        Answers the paths of files and links, one a line, sorted; directories are not listed.
        """
        return answer_in_steps(self._answer(wanted), self._timeout_seconds)

    def _answer(self, wanted: Wanted) -> Steps[Reply]:
        paths = yield from self._members.list(wanted)
        return text_answer(paths)


class _Unopened:
    """Stands for a file until it is known whether a request is to be answered with its bytes."""

    def fileno(self) -> int:
        raise AssertionError("nothing is sent of a file that is not open")

    def readable_to(self, position: int) -> int | None:
        return None

    def watch(self, position: int, changed: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def close(self) -> None:
        pass
