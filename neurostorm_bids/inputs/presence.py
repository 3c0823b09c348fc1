"""Is a file really there: not an unfetched annex link, not a placeholder of 0 bytes, and readable."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from neurostorm_bids.errors import FileEmpty, FileNotFetched, FileUnreadable, NeurostormError

ANNEX_POINTER = b"/annex/objects/"  # content of an unlocked git-annex file that was not fetched
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
    except OSError:
        return not_fetched(Path(file)) if Path(file).is_symlink() else FileUnreadable("cannot be found", file=file)
    if not stat.S_ISREG(status.st_mode):
        return FileUnreadable("is not a regular file", file=file)
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
    return not_fetched(Path(file)) if status.st_size < LONGEST_POINTER and _is_pointer(Path(file)) else None


def not_fetched(path: Path) -> FileNotFetched:
    """The error for a file of a DataLad dataset whose content is elsewhere."""
    return FileNotFetched(
        "not fetched",
        file=path,
        expected="content; only its place is here, as in a DataLad dataset",
        remedy=f"Run `datalad get {path}`",
    )


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(ANNEX_POINTER)) == ANNEX_POINTER
