"""The errors that clients get to see, each with its HTTP status.

Messages are one line, in the words of the person who has to fix it.
"""

from __future__ import annotations

import errno
import logging
import unicodedata

_log = logging.getLogger(__name__)


def one_line(text: str) -> str:
    """Return ``text`` on one line, without control characters, at most 1,000 characters long."""
    cleaned = "".join(" " if unicodedata.category(c) in {"Cc", "Cs"} else c for c in text)
    cleaned = " ".join(cleaned.split())
    return cleaned if len(cleaned) <= 1000 else cleaned[:999] + "…"


class DevserverError(Exception):
    """The root of the hierarchy; raised as it is only for a failure read back from a manifest."""

    status = 500
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(one_line(message))
        if status is not None:
            self.status = status
        if code is not None:
            self.code = code
        self.retry_after_seconds = retry_after_seconds

    @property
    def message(self) -> str:
        return str(self.args[0])

    def again(self) -> DevserverError:
        """Return an error that says the same, to be raised for another request."""
        return type(self)(
            self.message,
            status=self.status,
            code=self.code,
            retry_after_seconds=self.retry_after_seconds,
        )


class BadRequest(DevserverError):
    status, code = 400, "bad_request"


class NotAuthorized(DevserverError):
    """No token was sent, or one that is not known."""

    status, code = 401, "not_authorized"


class NotAllowed(DevserverError):
    status, code = 403, "not_allowed"


class NotFound(DevserverError):
    status, code = 404, "not_found"


class BuildNotFound(NotFound):
    code = "build_not_found"


class ArtifactNotFound(NotFound):
    code = "artifact_not_found"


class MethodNotAllowed(DevserverError):
    status, code = 405, "method_not_allowed"


class Conflict(DevserverError):
    status, code = 409, "conflict"


class ArchiveError(DevserverError):
    """The archive is unreachable, denies, or sends wrong bytes."""

    status, code = 502, "archive_error"


class TransientArchiveError(ArchiveError):
    """The archive failed in a way that may pass; worth another try after a pause."""


class ArchiveFileMissing(ArchiveError):
    """The archive does not have a file that its listing names."""


class ArchiveObjectMissing(ArchiveFileMissing):
    """The archive says that it has the bucket, and not the object."""


class ArchiveRangeMissing(TransientArchiveError):
    """The file is shorter than what was asked of it."""


class ArchiveFileChanged(ArchiveError):
    """The file in the archive is no longer the one whose bytes have been read so far."""


class TooLarge(DevserverError):
    """An upload is over a limit."""

    status, code = 413, "too_large"


class Busy(DevserverError):
    status, code = 503, "busy"

    def __init__(
        self, message: str, *, retry_after_seconds: int | None = 5, **more: object
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)


def busy_if_out_of_files(error: OSError) -> Busy | None:
    """Return what to tell instead, if this process or the system has too many files open."""
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return Busy("too many files are open; ask again")
    return None


def shutting_down() -> Busy:
    return Busy("the server is shutting down")


class TimedOut(DevserverError):
    status, code = 504, "timed_out"


class InsufficientStorage(DevserverError):
    status, code = 507, "insufficient_storage"


def storage_error(error: OSError, what: str) -> DevserverError:
    """Say in words what the disk refused while ``what`` was being written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return InsufficientStorage(f"the disk is full: no room left to write {what}")
    reason = error.strerror or str(error)
    return DevserverError(f"cannot write {what}: {reason}", code="storage_error")


def in_words(error: Exception, doing: str, what: str) -> DevserverError:
    """Return ``error``, which came while ``doing`` something with ``what``, as one of ours."""
    if isinstance(error, DevserverError):
        return error
    if isinstance(error, OSError):
        return storage_error(error, what)
    _log.error("%s of %s failed", doing, what, exc_info=error)
    return DevserverError(f"{doing} failed: {type(error).__name__}; the server's log says more")
