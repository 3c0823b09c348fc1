"""Which results exist already: a result is complete when its sidecar carries the right key and its file is whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neurostorm_bids.errors import TableUnreadable
from neurostorm_bids.outputs.atomic import sha256
from neurostorm_bids.outputs.names import sidecar_of

KEY = "ResumeKey"
DATA_HASH = "DataSha256"


def outputs_complete(paths: Iterable[Path], key: str) -> bool:
    """True when every data file is whole and its sidecar carries ``key``.

    Sidecars are written after their data, so a killed run leaves either no sidecar or one with an older key; a
    file that was cut or edited since fails its hash. Either way the result is computed again.
    """
    return all(is_complete(path, key) for path in paths)


def is_whole(path: Path) -> bool:
    """True when a data file is there as its sidecar describes it, whatever it was made with."""
    try:
        return read_sidecar(path).get(DATA_HASH) == sha256(path)
    except (TableUnreadable, OSError):
        return False


def is_complete(path: Path, key: str) -> bool:
    """True when one data file is whole and its sidecar carries ``key``."""
    try:
        sidecar = read_sidecar(path)
        return sidecar.get(KEY) == key and sidecar.get(DATA_HASH) == sha256(path)
    except (TableUnreadable, OSError):
        return False


def read_sidecar(path: Path) -> dict[str, Any]:
    """Sidecar of a data file of ours.

    Raises
    ------
    TableUnreadable
        The sidecar is missing, empty, or no JSON object.
    """
    sidecar = sidecar_of(path)
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TableUnreadable(f"cannot be read as JSON ({error})", file=sidecar, remedy=_RERUN) from error
    if not isinstance(content, dict):
        raise TableUnreadable("holds no JSON object", file=sidecar, remedy=_RERUN)
    return content


_RERUN = "run the participant level again: it computes what is missing"
