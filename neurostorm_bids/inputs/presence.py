"""Is a file really there: not an unfetched annex link, not a placeholder of 0 bytes, and readable."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from neurostorm_bids.errors import FileEmpty, FileNotFetched, FileUnreadable, NeurostormError

ANNEX_POINTER = b"/annex/objects/"  # content of an unlocked git-annex file that was not fetched
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_POINTER = 512


def fault_of(file: str | Path) -> NeurostormError | None:
    """What stops a file from being read, or None.

    Returns
    -------
    FileNotFetched, FileEmpty, FileUnreadable or None
        Not raised, so that all faults of a dataset can be told together.
    """
    try:
        status = os.stat(file)  # noqa: PTH116 - a dataset has a million files, and a Path for each would be held in memory
    except OSError as error:
        return _absent(Path(file), error)
    if not stat.S_ISREG(status.st_mode):
        return FileUnreadable("is not a regular file", file=file, remedy="Remove it, and fetch or write the file again")
    if status.st_size == 0:
        return FileEmpty(
            "is empty (0 bytes)",
            file=file,
            expected="data; this is a placeholder or an interrupted copy",
            remedy="Copy or fetch it again",
        )
    if not os.access(file, os.R_OK):
        return FileUnreadable(
            "cannot be read: permission denied", file=file, remedy="Ask its owner for read permission"
        )
    return _pointer_fault(Path(file)) if status.st_size < LONGEST_POINTER else None


def _absent(file: Path, error: OSError) -> NeurostormError:
    if error.errno == errno.ELOOP:
        return FileUnreadable(
            "is a link that leads back to itself", file=file, remedy="Remove it, and fetch or write the file again"
        )
    if file.is_symlink():
        return not_fetched(file)
    return FileUnreadable("cannot be found", file=file, remedy="Fetch it again")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder; a link that leads back to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def not_fetched(path: Path) -> FileNotFetched:
    """The error for a file of a DataLad dataset whose content is elsewhere."""
    return FileNotFetched(
        "not fetched",
        file=path,
        expected="content; only its place is here, as in a DataLad dataset",
        remedy=f"Run `datalad get {path}`",
    )


def _pointer_fault(path: Path) -> FileNotFetched | None:
    with path.open("rb") as stream:
        start = stream.read(len(LFS_POINTER))
    if start.startswith(ANNEX_POINTER):
        return not_fetched(path)
    if start != LFS_POINTER:
        return None
    return FileNotFetched(
        "not fetched", file=path, expected="content; this is a pointer of Git LFS", remedy="Run `git lfs pull`"
    )
