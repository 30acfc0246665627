"""Build: one build on disk, its files and its manifest."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from artifacts.archive_url import ArchiveUrl, BuildName
from artifacts.disk import fsync_directory, link_into_place, write_durably
from artifacts.errors import ArchiveFileChanged, Conflict
from artifacts.manifest import (
    Failure,
    Item,
    ItemRecord,
    ItemState,
    Manifest,
    StagedFile,
)
from artifacts.trees import Tree, TreeCache, tree_survived

_log = logging.getLogger(__name__)

_TOUCH_SECONDS = 5.0
# Files published one by one are recorded together: at most this share of the time goes into that.
_RECORDING_SHARE = 0.05
_MAX_UNRECORDED_SECONDS = 2.0


@dataclass(frozen=True)
class Asked:
    """Where a build stands, in short."""

    archive_url: str
    items: Mapping[Item, ItemRecord]

    @property
    def failure(self) -> Failure | None:
        return next((r.failure for r in self.items.values() if r.failure), None)

    @property
    def missing(self) -> list[Item]:
        return [item for item, r in self.items.items() if r.state is ItemState.ASKED]

    @property
    def is_staged(self) -> bool:
        """Whether all that was asked of the build is there, and that is something."""
        states = {record.state for record in self.items.values()}
        return ItemState.STAGED in states and states <= {ItemState.STAGED, ItemState.ABSENT}

    @property
    def has_staged(self) -> bool:
        """Whether anything of it is there."""
        return any(record.state is ItemState.STAGED for record in self.items.values())


class Build:
    """One build: what is published, and the manifest that vouches for it.

    Publishing and recording are two steps. What is published but not recorded is invisible, and is
    removed when the next process starts.
    """

    def __init__(
        self,
        name: BuildName,
        directory: Path,
        records: Path,
        tree_cache: TreeCache,
        boot_id: str,
    ) -> None:
        self.name = name
        self.directory = directory
        self._records = records
        self._tree_cache = tree_cache
        self._boot_id = boot_id
        # Guards everything below. Held while the manifest is read or written, never during a fetch.
        self._lock = threading.RLock()
        self._manifest = self._load()
        self._trees_are_checked = False
        self._unrecorded: dict[str, StagedFile] = {}
        self._unrecorded_members: dict[str, StagedFile] = {}  # of trees
        self._unrecorded_sha256: dict[str, str] = {}
        self._unsynced: set[Path] = set()
        self._recorded_at = 0.0
        self._recording_seconds = 0.0
        self._touched_at = 0.0

    # --- what it is

    @property
    def asked(self) -> Asked | None:
        """What was asked of it and became of it; None for a build that nobody knows."""
        with self._lock:
            if self._manifest is None:
                return None
            return Asked(self._manifest.archive_url, dict(self._manifest.items))

    @property
    def size(self) -> int:
        """The bytes that are published, each file once."""
        with self._lock:
            if self._manifest is None:
                return 0
            files, items = self._manifest.files, self._manifest.items.values()
            of_trees = sum(r.size - sum(files[path].size for path in r.paths) for r in items)
            return of_trees + sum(file.size for file in files.values())

    @property
    def last_used(self) -> float | None:
        """When it was last read or asked about, in seconds since the epoch."""
        try:
            return (self._records / "staged.timestamp").stat().st_mtime
        except OSError:
            return None

    def touch(self) -> None:
        """Note that the build is in use; cheap, as it writes every few seconds at most."""
        now = time.monotonic()
        with self._lock:
            if self._manifest is None or now - self._touched_at < _TOUCH_SECONDS:
                return
            self._touched_at = now
        with contextlib.suppress(OSError):
            (self._records / "staged.timestamp").touch()

    def state_of(self, item: Item) -> ItemRecord | None:
        """Return the record of an item, its trees checked if the machine has crashed since."""
        with self._lock:
            self.check_trees()
            self._check_directory()
            return self._manifest.items.get(item) if self._manifest else None

    def find(self, path: str) -> StagedFile | None:
        """Return what is published at ``path``; None if nothing is."""
        with self._lock:
            if self._manifest is None:
                return None
            return self._manifest.files.get(path) or next(
                (tree[path] for tree in self._all_trees() if path in tree), None
            )

    def resolve(self, path: str) -> tuple[str, StagedFile] | None:
        """Return path and description of a published file, links followed; None if there is none.

        Links lead to other published files of the build, or nowhere.
        """
        file = self.find(path)
        if file is not None and file.link is None:
            return path, file
        top = self.directory.resolve()
        try:
            real = (self.directory / path).resolve(strict=True).relative_to(top).as_posix()
        except (OSError, ValueError, RuntimeError):
            return None
        file = self.find(real)
        return (real, file) if file is not None and file.link is None else None

    def files(self) -> dict[str, StagedFile]:
        """Return all that is published, links that lead nowhere excepted, by path."""
        with self._lock:
            if self._manifest is None:
                return {}
            everything = dict(self._manifest.files)
            for tree in self._all_trees():
                everything.update(tree)
        return {
            path: file
            for path, file in everything.items()
            if file.link is None or (self.directory / path).exists()
        }

    def files_of(self, item: Item) -> dict[str, StagedFile]:
        """Return what an item published, by path."""
        with self._lock:
            self.check_trees()
            record = self._manifest.items.get(item) if self._manifest else None
            if record is None or self._manifest is None:
                return {}
            files = {path: self._manifest.files[path] for path in record.paths}
            for name in record.trees:
                files.update(self._tree_cache.load(self._records / name))
            return files

    def members_of(self, item: Item) -> list[str]:
        """Return the paths that an item's archives brought, as they are on record, unchecked."""
        with self._lock:
            record = self._manifest.items.get(item) if self._manifest else None
            trees = record.trees if record else ()
            with contextlib.suppress(FileNotFoundError, ValueError):
                return [p for name in trees for p in self._tree_cache.load(self._records / name)]
        return []

    def file_from(self, archive_name: str) -> tuple[str, StagedFile] | None:
        """Return path and description of the archive's file where it is published as it is."""
        with self._lock:
            recorded = self._manifest.files if self._manifest else {}
            for files in (self._unrecorded, recorded):
                # Most files keep their name, and builds may have ten thousand of them.
                if (file := files.get(archive_name)) and file.archive_name == archive_name:
                    return archive_name, file
            for path, file in chain(self._unrecorded.items(), recorded.items()):
                if file.archive_name == archive_name:
                    return path, file
        return None

    def sha256_of(self, path: str) -> str | None:
        with self._lock:
            unrecorded = self._unrecorded_sha256.get(path)
            return unrecorded or (self._manifest.sha256.get(path) if self._manifest else None)

    # --- changing it

    def begin(self, archive_url: ArchiveUrl, items: Mapping[Item, ItemState]) -> None:
        """Record that items are asked for, or absent; the first thing that happens to a build."""
        with self._lock:
            is_ours = self._records.exists()
            is_new = self._manifest is None or self._manifest.archive_url != str(archive_url)
            if is_new:
                self._records.mkdir(parents=True, exist_ok=True)
                (self._records / "staged.timestamp").touch()
            with self._recording(Manifest(str(archive_url)) if is_new else None) as manifest:
                for item, state in items.items():
                    manifest.items[item] = ItemRecord(state)
            if is_ours and is_new:
                self.remove_unrecorded()

    def publish_file(
        self, source: Path, path: str, file: StagedFile, sha256: str | None = None
    ) -> None:
        """Make ``source`` readable at ``path``, to be recorded later.

        ``sha256``, in base64, where it is known already.

        Raises:
            Conflict: other bytes are published there already.
        """
        with self._lock:
            if not self._may_publish(path, file):
                return
            destination = self._make_parent(path)
            link_into_place(source, destination)
            self._unsynced.add(destination.parent)
            self._unrecorded[path] = file
            if sha256 is not None:
                self._unrecorded_sha256[path] = sha256
            if self.seconds_to_recording == 0:
                self.record_published()

    @property
    def seconds_to_recording(self) -> float | None:
        """When what is published is worth recording; None if there is nothing to record."""
        with self._lock:
            if not self._unrecorded:
                return None
            pause = min(self._recording_seconds / _RECORDING_SHARE, _MAX_UNRECORDED_SECONDS)
            return max(0.0, self._recorded_at + pause - time.monotonic())

    def record_published(self) -> None:
        """Record the files that are published, though their item is not complete."""
        with self._lock:
            if self._manifest is not None and self._unrecorded:
                with self._recording():
                    pass

    def published_file(self, path: str) -> StagedFile | None:
        """Return the file at ``path``, recorded or not, if it was published by itself."""
        with self._lock:
            recorded = self._manifest.files.get(path) if self._manifest else None
            return self._unrecorded.get(path) or recorded

    def withdraw(self, path: str, stale: StagedFile) -> None:
        """Take back a file of an item that was never complete.

        It stays where an item that is complete counts on it, and where it is not ``stale`` any
        more, as ``published_file`` returned it: somebody else has replaced it meanwhile.
        """
        with self._lock:
            assert self._manifest is not None
            if self.published_file(path) is not stale:
                return
            counted_on = chain(
                (record.paths for record in self._manifest.items.values()), self._all_trees()
            )
            if path in self._unrecorded_members or any(path in paths for paths in counted_on):
                return
            self._unrecorded.pop(path, None)
            self._unrecorded_sha256.pop(path, None)
            with self._recording() as manifest:
                manifest.files.pop(path, None)
                manifest.sha256.pop(path, None)
            (self.directory / path).unlink(missing_ok=True)

    def publish_link(self, path: str, target: str) -> None:
        """Make a symbolic link at ``path`` to ``target``, both below the build."""
        with self._lock:
            destination = self._make_parent(path)
            relative = os.path.relpath(self.directory / target, destination.parent)
            if not self._may_publish(path, StagedFile(0, link=relative)):
                return
            destination.unlink(missing_ok=True)
            destination.symlink_to(relative)
            self._unsynced.add(destination.parent)
            self._unrecorded[path] = StagedFile(0, link=relative)

    def publish_tree(self, source: Path, members: Mapping[str, StagedFile]) -> None:
        """Move unpacked members, by path below ``source`` and below the build alike, into place.

        Raises:
            Conflict: other bytes are published at one of the paths already.
        """
        with self._lock:
            trees = list(self._all_trees())
            wanted = [
                path for path, file in members.items() if self._may_publish(path, file, trees)
            ]
            parents: set[str] = set()  # those that are there; most members share theirs
            for path in wanted:
                parent = path.rpartition("/")[0]
                if parent not in parents:
                    self._make_parent(path)
                    parents.add(parent)
                try:
                    os.replace(f"{source}/{path}", f"{self.directory}/{path}")
                except IsADirectoryError:
                    raise self._is_a_directory(path) from None
                self._unrecorded_members[path] = members[path]

    def record_staged(
        self, item: Item, paths: Iterable[str], trees: Iterable[Mapping[str, StagedFile]]
    ) -> None:
        """Record an item whose files and trees are all published.

        Raises:
            ArchiveFileChanged: one of the files has been withdrawn since.
        """
        with self._lock:
            assert self._manifest is not None
            paths = tuple(sorted(paths))
            files = {**self._manifest.files, **self._unrecorded}
            for path in paths:
                if path not in files:
                    raise ArchiveFileChanged(
                        f"{path} of {self.name} was replaced in the archive while {item.name} "
                        "was being staged; ask for it again"
                    )
            names, size = [], 0
            for number, tree in enumerate(trees):
                name = f"{item.name}-{zlib.crc32(str(item).encode()):08x}-{number}.tree.json"
                self._tree_cache.write(self._records / name, tree)
                names.append(name)
                size += sum(file.size for file in tree.values())
                for path in tree:
                    self._unrecorded_members.pop(path, None)
            size += sum(files[path].size for path in paths)
            with self._recording() as manifest:
                manifest.items[item] = ItemRecord(
                    ItemState.STAGED, paths, tuple(names), size, self._boot_id if names else None
                )
            if names:
                self._tree_cache.note_recorded()

    def record_failed(self, item: Item, failure: Failure) -> bool:
        """Record why an item failed; return False where there is no manifest to do so."""
        with self._lock:
            if self._manifest is None:
                return False
            with self._recording() as manifest:
                manifest.items[item] = ItemRecord(ItemState.FAILED, failure=failure)
            return True

    def forget(self, items: Iterable[Item]) -> None:
        """Take back that items were asked for, of which nothing has come.

        A manifest that is left without items goes when the claim is given back.
        """
        with self._lock:
            if self._manifest is None:
                return
            records = self._manifest.items
            asked = [i for i in items if i in records and records[i].state is ItemState.ASKED]
            if asked:
                with self._recording() as manifest:
                    for item in asked:
                        del manifest.items[item]

    def record_sha256(self, path: str, digest: str) -> None:
        with self._lock:
            if self._manifest is not None:
                with self._recording() as manifest:
                    manifest.sha256[path] = digest

    def remove_unrecorded(self) -> None:
        """Remove the files that the manifest does not vouch for, and directories left empty."""
        if self.directory.is_symlink():
            return  # somebody else's; nothing is published through a link
        with self._lock:
            self._unrecorded.clear()
            self._unrecorded_sha256.clear()
            self._unrecorded_members.clear()
            for aside in self._records.glob(".*"):
                aside.unlink()
            recorded = set()
            if self._manifest is not None:
                recorded = set(self._manifest.files)
                for tree in self._all_trees():
                    recorded.update(tree)
            for directory, _, names in os.walk(self.directory, topdown=False):
                for name in names:
                    path = Path(directory, name)
                    if path.relative_to(self.directory).as_posix() not in recorded:
                        path.unlink()
                # A link to a directory is among walk's directories, not its files.
                with os.scandir(directory) as entries:
                    links = [Path(e.path) for e in entries if e.is_symlink()]
                for path in links:
                    if path.relative_to(self.directory).as_posix() not in recorded:
                        path.unlink()
                with contextlib.suppress(OSError):
                    os.rmdir(directory)

    def move_away(self, trash: Path, *, files_first: bool = False) -> None:
        """Take the build off disk into ``trash``: first its manifest, then its files.

        ``files_first``: the other way round.
        """
        with self._lock:
            self._manifest = None
            self._tree_cache.forget(self._records)
            self._unrecorded.clear()
            self._unrecorded_sha256.clear()
            self._unrecorded_members.clear()
            directories = [(self._records, "records"), (self.directory, "files")]
            if files_first:
                directories.reverse()
            for directory, name in directories:
                if directory.exists():
                    directory.replace(trash / f"{name}-{os.urandom(8).hex()}")
                    fsync_directory(directory.parent)

    # --- inside

    def _load(self) -> Manifest | None:
        path = self._records / "manifest.json"
        try:
            return Manifest.from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            _log.error("%s is damaged (%s); %s counts as not staged", path, error, self.name)
            return None

    @contextlib.contextmanager
    def _recording(self, manifest: Manifest | None = None) -> Iterator[Manifest]:
        """Change a copy of the manifest, or ``manifest``; it counts once it is on the disk."""
        if manifest is None:
            assert self._manifest is not None
            manifest = self._manifest.copy()
        yield manifest
        begun_at = time.monotonic()
        for directory in self._unsynced:
            fsync_directory(directory)
        self._unsynced.clear()
        manifest.files.update(self._unrecorded)
        manifest.sha256.update(self._unrecorded_sha256)
        write_durably(self._records / "manifest.json", manifest.to_json())
        self._manifest = manifest
        self._unrecorded.clear()
        self._unrecorded_sha256.clear()
        self._recorded_at = time.monotonic()
        self._recording_seconds = self._recorded_at - begun_at

    def _may_publish(
        self, path: str, file: StagedFile, trees: Sequence[Tree] | None = None
    ) -> bool:
        """Whether ``path`` is free; False if the very same is there; Conflict if something else."""
        there = self._unrecorded.get(path) or self._unrecorded_members.get(path)
        if there is None and self._manifest is not None:
            there = self._manifest.files.get(path)
        if there is None:
            listed = self._all_trees() if trees is None else trees
            there = next((tree[path] for tree in listed if path in tree), None)
        if there is None:
            return True
        if (there.size, there.crc32c, there.link) == (file.size, file.crc32c, file.link):
            return False
        raise Conflict(f"{self.name} already has another {path}")

    def _make_parent(self, path: str) -> Path:
        """Create the directories above ``path``; refuse to go through a link or a file."""
        destination = self.directory / path
        directory = self.directory
        for segment in ["", *path.split("/")[:-1]]:
            directory = directory / segment
            if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
                raise Conflict(f"{self.name} has something else where {path} needs a directory")
            if not directory.exists():
                directory.mkdir(parents=not segment)
                self._unsynced.add(directory.parent)
        if destination.is_dir() and not destination.is_symlink():
            raise self._is_a_directory(path)
        return destination

    def _is_a_directory(self, path: str) -> Conflict:
        return Conflict(f"{self.name} has a directory where {path} is to go")

    def _all_trees(self) -> Iterator[Tree]:
        self.check_trees()
        assert self._manifest is not None
        for record in self._manifest.items.values():
            for name in record.trees:
                yield self._tree_cache.load(self._records / name)

    def check_trees(self) -> None:
        """Drop items whose trees are damaged, or did not survive a crash of the machine whole."""
        with self._lock:
            if self._manifest is None or self._trees_are_checked:
                return
            self._trees_are_checked = True
            items: dict[Item, ItemRecord] = {}
            for item, record in self._manifest.items.items():
                is_doubtful = bool(record.trees) and record.boot_id != self._boot_id
                if not all(self._tree_survived(name, is_doubtful) for name in record.trees):
                    _log.warning(
                        "%s of %s did not survive; it is staged anew", item.name, self.name
                    )
                    items[item] = ItemRecord(ItemState.ASKED)
                elif is_doubtful:
                    items[item] = replace(record, boot_id=self._boot_id)
            if items:
                with self._recording() as manifest:
                    manifest.items.update(items)

    def _check_directory(self) -> None:
        """Note that somebody has removed the build's files by hand, all of them."""
        if self._manifest is None or self.directory.is_dir():
            return
        # An item may have nothing to lose: archives that are unpacked may be empty.
        lost = [item for item, record in self._manifest.items.items() if self._has_files(record)]
        if lost:
            _log.warning("%s is gone; %s is staged anew when asked for", self.directory, self.name)
            with self._recording() as manifest:
                manifest.items.update(dict.fromkeys(lost, ItemRecord(ItemState.ASKED)))
                manifest.files.clear()
                manifest.sha256.clear()

    def _has_files(self, record: ItemRecord) -> bool:
        trees = (self._tree_cache.load(self._records / name) for name in record.trees)
        return bool(record.paths) or any(trees)

    def _tree_survived(self, name: str, is_doubtful: bool) -> bool:
        try:
            tree = self._tree_cache.load(self._records / name)
        except (FileNotFoundError, ValueError):
            return False
        return not is_doubtful or tree_survived(tree, self.directory)
