"""The static directory: the builds in it, who is changing which, and what a crash left behind."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.build import Build
from artifacts.disk import DirectoryLock, boot_id, fsync_directory, write_durably
from artifacts.errors import BadRequest, BuildNotFound, Busy, Conflict, DevserverError
from artifacts.space import Space
from artifacts.trees import TreeCache
from artifacts.workers import Workers

_log = logging.getLogger(__name__)

# Names with a leading dot are nobody's target.
_OWN_DIRECTORY = ".devserver"
_KEPT_IN_MEMORY = 128


class Staging:
    """Owns a static directory: one process at a time, from construction to ``close``.

    ``under_way/`` has a marker for each build that is being changed. After a crash only these need
    a look, however many builds there are.
    """

    def __init__(self, static_directory: Path) -> None:
        """Take the directory and clean up after a crash.

        Raises:
            DevserverError: another process has it, or it cannot be written.
        """
        self.directory = static_directory
        own = static_directory / _OWN_DIRECTORY
        self._lock_file = DirectoryLock(static_directory, own / "lock")
        self._records = own / "builds"
        self._temporary = own / "tmp"
        self._trash = own / "trash"
        self._markers = own / "under_way"
        self.space = Space(static_directory)
        self._boot_id = boot_id()
        self._trees = TreeCache()
        # Guards the two dictionaries and the claims; never held during I/O on a build's files.
        self._lock = threading.RLock()
        self._builds: weakref.WeakValueDictionary[BuildName, Build] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[BuildName, Build] = OrderedDict()
        self._claims: dict[BuildName, ArchiveUrl] = {}
        self._cleaner = Workers("cleaner", 1)
        try:
            for directory in (self._records, self._temporary, self._trash, self._markers):
                directory.mkdir(exist_ok=True)
            self._clean_up_after_crash()
        except OSError as error:
            self.close()
            raise DevserverError(f"cannot use {static_directory}: {error}") from error

    def close(self) -> None:
        self._cleaner.close(timeout_seconds=5)
        self._lock_file.release()

    # --- builds

    def build(self, name: BuildName) -> Build:
        """Return the one object that stands for a build, known or not."""
        with self._lock:
            build = self._builds.get(name)
            if build is None:
                directory = self.directory / name.target / name.build
                records = self._records / name.target / name.build
                build = Build(name, directory, records, self._trees, self._boot_id)
                self._builds[name] = build
            self._recent[name] = build
            self._recent.move_to_end(name)
            if len(self._recent) > _KEPT_IN_MEMORY:
                self._recent.popitem(last=False)
            return build

    def known_build(self, name: BuildName) -> Build:
        """Return a build that has a manifest; raise BuildNotFound for others."""
        build = self.build(name)
        if build.asked is None:
            raise BuildNotFound(f"no such build: {name}")
        return build

    @property
    def trees_recorded(self) -> int:
        """What grows whenever members of archives become part of a build."""
        return self._trees.recorded

    def manifest_version(self, name: BuildName) -> tuple[int, int] | None:
        """Return what changes whenever a build's manifest does; None where there is none."""
        try:
            status = (self._records / name.target / name.build / "manifest.json").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def targets(self) -> list[str]:
        return _names_in(self._records)

    def builds_of(self, target: str) -> list[BuildName]:
        return [BuildName(target, build) for build in _names_in(self._records / target)]

    def all_builds(self) -> Iterator[BuildName]:
        for target in self.targets():
            yield from self.builds_of(target)

    # --- changing them

    def claim(self, archive_url: ArchiveUrl) -> Build:
        """Take the right to change a build, until ``release``.

        Raises:
            Conflict: the build has been staged, or is being staged, from another archive.
            OSError: the disk refuses; then nothing is claimed.
        """
        name = archive_url.name
        with self._lock:
            build = self.build(name)
            self.check_archive(build, archive_url)
            self._mark(name)
            self._claims[name] = archive_url
            return build

    def check_archive(self, build: Build, archive_url: ArchiveUrl) -> None:
        """Raise Conflict if the build is another archive's."""
        with self._lock:
            claimed_by = self._claims.get(build.name)
        asked = build.asked
        staged_from = asked.archive_url if asked and asked.has_staged else None
        for other in (claimed_by and str(claimed_by), staged_from):
            if other and other != str(archive_url):
                raise Conflict(
                    f"{build.name} is staged from {other}, not from {archive_url}; "
                    "drop it first to stage the other one",
                    code="other_archive",
                )

    def is_claimed(self, name: BuildName) -> bool:
        with self._lock:
            return name in self._claims

    def release(self, archive_url: ArchiveUrl, *, is_clean: bool = True) -> None:
        """Give a claim back; what is not ``is_clean`` is looked at again at the next start.

        A build of which nothing is asked any more goes.
        """
        name = archive_url.name
        with self._lock:
            if self._claims.get(name) == archive_url:
                del self._claims[name]
                if self._move_away_if_empty(self.build(name)) and is_clean:
                    self._remove_marker(name)

    def drop(self, name: BuildName) -> None:
        """Take a build off the disk; its bytes are freed in the background.

        Raises:
            BuildNotFound: there is none.
            Conflict: it is being staged.
            OSError: the disk refuses, for another reason than that it is full.
        """
        with self._lock:
            build = self.known_build(name)
            if name in self._claims:
                raise Conflict(f"{name} is being staged; it can be dropped afterwards")
            # After a crash halfway, what has lost its manifest is removed for its marker's sake.
            # Without one, files must not outlive their manifest: nobody would ever remove them.
            # A manifest whose files are gone is noticed, and can be dropped again.
            self._move_away(build, files_first=not self._mark_if_there_is_room(name))
            self._remove_marker(name)

    def new_directory(self) -> Path:
        """Return an empty temporary directory on the disk of the static directory."""
        return Path(tempfile.mkdtemp(prefix="tree-", dir=self._temporary))

    @property
    def temporary_directory(self) -> Path:
        return self._temporary

    def throw_away(self, directory: Path) -> None:
        """Delete a temporary directory in the background."""
        directory.replace(self._trash / directory.name)
        self._empty_trash()

    def check_writable(self) -> None:
        """Write a file and read it back; OSError where that fails."""
        path = self._temporary / f"ready-{uuid.uuid4().hex}"
        path.write_bytes(b"ready")
        try:
            if path.read_bytes() != b"ready":
                raise OSError(f"{path} does not read back what was written to it")
        finally:
            path.unlink()

    # --- inside

    def _move_away(self, build: Build, *, files_first: bool = False) -> None:
        build.move_away(self._trash, files_first=files_first)
        # Builds are made under a claim only: nobody is just making one there.
        if not any(claimed.target == build.name.target for claimed in self._claims):
            for directory in (self.directory, self._records):
                _remove_if_empty(directory / build.name.target)
        self._empty_trash()

    def _move_away_if_empty(self, build: Build) -> bool:
        """Take a marked build away if its manifest says nothing; return False where that fails."""
        asked = build.asked
        # A link is somebody else's, and nobody has asked for it to go.
        if asked is None or asked.items or build.directory.is_symlink():
            return True
        try:
            self._move_away(build)
        except (OSError, Busy):
            _log.exception("removing %s, of which nothing is asked any more", build.name)
            return False
        return True

    def _marker(self, name: BuildName) -> Path:
        return self._markers / hashlib.sha1(str(name).encode("utf-8")).hexdigest()

    def _mark(self, name: BuildName) -> None:
        marker = self._marker(name)
        if not marker.exists():
            write_durably(marker, str(name).encode("utf-8"))

    def _mark_if_there_is_room(self, name: BuildName) -> bool:
        try:
            self._mark(name)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            return False
        return True

    def _remove_marker(self, name: BuildName) -> None:
        try:
            self._marker(name).unlink(missing_ok=True)
        except OSError:
            # It stays for the next start, which will find nothing to do.
            _log.exception("removing the marker of %s", name)

    def _clean_up_after_crash(self) -> None:
        for path in self._temporary.iterdir():
            path.replace(self._trash / f"{path.name}-{os.urandom(4).hex()}")
        for marker in self._markers.iterdir():
            try:
                name = BuildName.parse(marker.read_text(encoding="utf-8"))
                is_whole = self._marker(name) == marker
            except (BadRequest, UnicodeDecodeError):
                is_whole = False
            if is_whole:
                _log.info("%s was under way when the last server ended", name)
                build = self.build(name)
                build.remove_unrecorded()
                self._move_away_if_empty(build)
            else:
                _log.warning("%s names no build", marker)
            marker.unlink()
        fsync_directory(self._markers)
        self._empty_trash()

    def _empty_trash(self) -> None:
        self._cleaner.submit(self._delete_trash)

    def _delete_trash(self) -> None:
        for path in self._trash.iterdir():
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            except (OSError, RecursionError):
                # The others can go all the same.
                _log.exception("deleting %s", path)


def _names_in(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return
