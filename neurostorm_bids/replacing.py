"""Files that appear whole or not at all, whoever else writes them and whenever the power fails."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from neurostorm_bids.errors import OutputNotWritable, OutputWriteFailed

FULL_OR_BROKEN = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}  # faults of the disk, not of who may write


def write_failed(error: OSError, file: Path | str) -> OutputWriteFailed:
    """What to tell of a disk that took no more."""
    fault = f"cannot be written ({error.strerror or error})"
    return OutputWriteFailed(fault, file=file, remedy="free space or quota, check the disk, then run again")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` for writing; on success it takes the place of ``path``, else it disappears.

    Readers see the old content or the new, never a part, whoever else writes the same file. What a killed
    process left of the same file is removed.

    Raises
    ------
    OutputNotWritable
        The folder cannot be created or written.
    OutputWriteFailed
        Writing, flushing or renaming failed (a full disk, for example).
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    handle = _open_partial(path, partial)
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise write_failed(error, path) from error
    finally:
        with suppress(OSError):  # what stays of it is removed by the next writer of this file
            partial.unlink(missing_ok=True)


def _open_partial(path: Path, partial: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        return _open_locked(partial)
    except OSError as error:
        if error.errno in FULL_OR_BROKEN:
            raise write_failed(error, path) from error
        raise OutputNotWritable(
            f"cannot be written ({error.strerror or error})",
            file=path.parent,
            expected="a folder that this user may create and write",
            remedy="check its permissions, or name another output folder",
        ) from error


def _open_locked(partial: Path) -> BinaryIO:
    """A new file that no other writer takes for abandoned; one taken for it before it was locked is made anew."""
    while True:
        handle = partial.open("xb")  # not mkstemp: its mode 0600 would override the user's umask
        with suppress(OSError):  # some cluster file systems have no locks; renaming alone keeps files whole
            fcntl.flock(handle, fcntl.LOCK_EX)  # a writer that looks whether this is abandoned holds it a moment
        if partial.exists():
            return handle
        handle.close()


def _remove_abandoned(path: Path) -> None:
    """Remove partial files of ``path`` whose writer is gone: its lock went with it."""
    for partial in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError), partial.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets a folder be opened and flushed
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
