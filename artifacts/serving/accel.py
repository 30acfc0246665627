"""Bodies that nginx sends: an answer that names a staged file instead of carrying it."""

from __future__ import annotations

from urllib.parse import quote

from artifacts.serving.answer import Answer
from artifacts.serving.file_answer import SAFETY, content_type


def accel_answer(prefix: str, path: str, name: str) -> Answer:
    """Have nginx answer with a file of the static directory.

    Of this answer, nginx keeps the type. Length, dates, tag, conditions and ranges are its own.

    Args:
        prefix: nginx's internal location that shows the static directory.
        path: TARGET/BUILD/PATH, links resolved: nginx is not to follow any there.
        name: what the client asked for, which tells the file's type.
    """
    location = f"{prefix.rstrip('/')}/{quote(path)}"
    return Answer(b"", 200, content_type(name), {**SAFETY, "X-Accel-Redirect": location})
