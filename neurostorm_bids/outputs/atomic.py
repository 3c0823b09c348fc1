"""Files appear whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neurostorm_bids.errors import NonFiniteOutput, OutputNotWritable, OutputWriteFailed


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
        raise OutputWriteFailed(
            f"cannot be written ({error.strerror or error})", file=path, remedy="free space or quota, then run again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _open_partial(path: Path, partial: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        return _open_locked(partial)
    except OSError as error:
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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text at once; a file that holds it already is left as it is."""
    data = text.encode("utf-8")
    if _holds(path, data):
        return
    with replacing(path) as handle:
        handle.write(data)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON: the given order of keys, two spaces, one newline at the end.

    Raises
    ------
    NonFiniteOutput
        A number is NaN or infinite, which JSON cannot say.
    """
    write_text(path, json_text(content, path))


def json_text(content: Mapping[str, Any], path: Path | None = None) -> str:
    """JSON text of plain values, NumPy scalars and arrays, paths and dataclass-free mappings."""
    try:
        return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise NonFiniteOutput("a number of the sidecar is not finite", file=path, expected="finite numbers") from error


def _plain(value: Any) -> Any:
    """The value in JSON's own types; floats rounded to nine significant digits, as in the tables."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return _rounded(value)
    if isinstance(value, Path):
        return value.as_posix()
    return value


def _rounded(value: float) -> float | int:
    if not math.isfinite(value):
        return value
    rounded = float(f"{value:.9g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
