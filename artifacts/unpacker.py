"""Unpacking the archive files of an item: while they arrive, or once they are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from artifacts.content_encoding import decoded
from artifacts.errors import ArchiveError
from artifacts.extract import unpack
from artifacts.fetch import Fetch
from artifacts.growing_file import FetchRestarted
from artifacts.manifest import StagedFile
from artifacts.tree_writer import UnpackedMember
from artifacts.unpack_limits import UnpackLimits


class Unpacker:
    """Unpacks what is wanted of archive files, each into a directory of its own."""

    def __init__(
        self,
        wanted: Callable[[str], bool],
        limits: UnpackLimits,
        note_unpacking: Callable[[], None],
    ) -> None:
        """``note_unpacking`` is called when nothing is left to do but unpacking."""
        self._wanted = wanted
        self._limits = limits
        self._note_unpacking = note_unpacking

    def unpack(self, origin: Fetch | Path, directory: Path) -> dict[str, StagedFile] | None:
        """Unpack a file; return its members by path, all verified if it is a fetch.

        None when the fetch started over: what is in ``directory`` is void.

        Raises:
            ArchiveError: it is no archive, or cannot be trusted.
            DevserverError: what the fetch failed with.
            OSError: the disk refuses.
        """
        if isinstance(origin, Path):
            return self._unpack_kept(origin, origin.name, directory)
        try:
            # What is unpacked is published only when the whole is verified.
            with origin.open_reader(withheld_bytes=0) as reader:
                if reader.content_encoding is not None:
                    return self._unpack_encoded(origin, directory)
                try:
                    members = unpack(reader, directory, wanted=self._wanted, limits=self._limits)
                except ArchiveError as error:
                    # Whose fault is it? Wrong bytes are fetched again; right ones are no archive.
                    origin.wait()
                    if reader.is_cut:
                        return None
                    raise ArchiveError(f"{origin.name}: {error.message}") from error
            self._note_unpacking()
            origin.wait()
        except FetchRestarted:
            return None
        return None if reader.is_cut else _as_files(members)

    def _unpack_encoded(self, fetch: Fetch, directory: Path) -> dict[str, StagedFile] | None:
        """Unpack an archive that is stored compressed as a whole, whatever it is by itself."""
        fetched = fetch.wait()
        if fetched.content_encoding is None:
            return None  # it started over, and was replaced by one that is not
        with decoded(fetched.path, fetched.content_encoding, fetch.name, self._limits) as plain:
            return self._unpack_kept(plain.path, fetch.name, directory)

    def _unpack_kept(self, path: Path, name: str, directory: Path) -> dict[str, StagedFile]:
        """Unpack an archive that is there whole; ``name`` is what messages call it."""
        self._note_unpacking()
        with path.open("rb") as reader:
            try:
                members = unpack(reader, directory, wanted=self._wanted, limits=self._limits)
            except ArchiveError as error:
                raise ArchiveError(f"{name}: {error.message}") from error
        return _as_files(members)


def _as_files(members: list[UnpackedMember]) -> dict[str, StagedFile]:
    return {m.path: StagedFile(m.size, m.crc32c, m.link) for m in members}
