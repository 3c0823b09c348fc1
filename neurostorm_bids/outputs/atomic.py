"""Files appear whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neurostorm_bids.errors import NonFiniteOutput
from neurostorm_bids.replacing import replacing

NOT_FINITE_REMEDY = "check the model (neurostorm-models verify) and the values of the run"


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
        raise NonFiniteOutput(
            "a number of the sidecar is not finite", file=path, expected="finite numbers", remedy=NOT_FINITE_REMEDY
        ) from error


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
