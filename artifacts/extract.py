"""Safe, streaming unpacking of archive files.

Bytes travel through layers, and each bounds what a hostile archive can make the next one do:

    reader → decompressed → TarStream → tarfile (parses headers, nothing else) → TreeWriter
    reader → ZipDirectory (all headers) → members decompressed one by one → TreeWriter

What decompresses takes and gives at most a block at a time, so that a bomb costs no memory.
TarStream bounds what the headers of one member may take, and says where the archive ends early.
ZipDirectory bounds what all of them may take, and has them agree with each other. tarfile never
touches the disk: TreeWriter writes, below one directory, through nothing but directories that it
made.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from artifacts.decompress import peek
from artifacts.errors import ArchiveError
from artifacts.tree_writer import TreeWriter, UnpackedMember
from artifacts.unpack_limits import UnpackLimits, UnpackUsage
from artifacts.unpack_tar import unpack_tar
from artifacts.unpack_zip import ZIP_MAGICS, unpack_zip


def unpack(
    reader: io.RawIOBase | io.BufferedIOBase,
    directory: Path,
    *,
    wanted: Callable[[str], bool],
    limits: UnpackLimits,
) -> list[UnpackedMember]:
    """Unpack the archive that is in ``reader``: zip, or tar (plain, gz, bz2, xz or zst).

    Its first bytes tell which. ``reader`` is blocking, at its start, and not closed; a tar archive
    is read once and in order, a zip archive has to be one that can seek. ``directory`` exists, is
    empty, and nobody else's. ``wanted`` is asked for each member's path, directories included, and
    those it declines are neither written nor checked; they do count against ``limits``.

    Files and links come back in the archive's order. Of members of one path the last counts in a
    tar archive; a zip archive may not have such. A hard link comes back as the file it is.
    Directories are made and not listed. Files and links keep their times, as long as these are not
    in the future; owners, and the times of directories, are ignored. Files get mode 644 or, where
    executable, up to 755. Long runs of zeros become holes.

    Raises:
        ArchiveError: it is no such archive, ends early, is damaged, exceeds a limit, is encrypted,
            or has a member that is not safe to write: a name or link that leads out of the
            directory, a device. What is in the directory by then is not to be used.
        OSError: the disk refuses. What ``reader`` and the check of the room raise comes
            through unchanged, too.
    """
    tree = TreeWriter(directory, limits.check_room)
    usage = UnpackUsage(limits)
    head, whole = peek(reader, len(ZIP_MAGICS[0]))
    if head not in ZIP_MAGICS:
        unpack_tar(whole, tree, wanted=wanted, usage=usage)
    elif reader.seekable():
        unpack_zip(reader, tree, wanted=wanted, usage=usage)
    else:
        raise ArchiveError("a zip archive that is itself stored compressed cannot be unpacked")
    return list(tree.members.values())
