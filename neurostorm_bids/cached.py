"""Results of the participant level, read back: embeddings by clip, and what the sidecars say of each run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurostorm_bids.errors import ModelsMixed, NeurostormError, NothingToEvaluate, TableUnreadable
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.outputs.atomic import sha256
from neurostorm_bids.outputs.names import parse_entities
from neurostorm_bids.outputs.resume import DATA_HASH, read_sidecar
from neurostorm_bids.outputs.tables import read_tsv

_FUNC = ("sub-*/func", "sub-*/ses-*/func")
_OURS = ("space", "res", "desc")  # entities that we add to those of the run
_RERUN = "Run the participant level again: it computes this result anew and nothing else"


@dataclass(frozen=True, eq=False)
class CachedRun:
    """One run under one model.

    ``clips`` is (n, d), a row a clip; times in seconds of scanner time; ``fd_mm`` NaN where it is unknown.
    """

    path: Path
    name: str
    label: str
    clips: np.ndarray
    onset_s: np.ndarray
    duration_s: np.ndarray
    fd_mm: np.ndarray
    sidecar: Mapping[str, Any]

    @property
    def model(self) -> Mapping[str, Any]:
        """The sidecar's entry on the model."""
        return self.sidecar.get("Model", {})

    @property
    def content_hash(self) -> str | None:
        """Hash of the normalised run; None for results of a release that did not record it."""
        return self.sidecar.get("RunSha256")


def read_cached(
    output_dir: Path, runs: Sequence[BoldRun], labels: Iterable[str] = ()
) -> tuple[dict[str, dict[str, CachedRun]], list[NeurostormError]]:
    """Embeddings of the runs of this call, by model label and run name, and an error for each broken table.

    Parameters
    ----------
    labels : iterable of str
        Models to keep; none keeps all.

    Raises
    ------
    NothingToEvaluate
        No embedding is there.
    ModelsMixed
        Embeddings of one name come from different weights.
    """
    wanted, keep = {run.name for run in runs}, set(labels)
    found: dict[str, dict[str, CachedRun]] = defaultdict(dict)
    broken: list[NeurostormError] = []
    for path in sorted(p for folder in _FUNC for p in output_dir.glob(f"{folder}/*_embedding.tsv")):
        entities = parse_entities(path)
        name = "_".join(f"{key}-{value}" for key, value in entities.items() if key not in _OURS)
        if name not in wanted or (keep and entities["desc"] not in keep):
            continue
        try:
            found[entities["desc"]][name] = _read(path, name, entities["desc"])
        except TableUnreadable as error:
            broken.append(error)
    if not found:
        raise NothingToEvaluate(
            "no embedding of the selected runs is there" + (f"; {len(broken)} are broken" if broken else ""),
            file=output_dir,
            expected="tables written by the participant level",
            remedy="Run the participant level first, or widen the selection",
        )
    for label, of_model in found.items():
        _require_one_model(label, list(of_model.values()))
    return dict(found), broken


def _read(path: Path, name: str, label: str) -> CachedRun:
    sidecar = read_sidecar(path)
    if sidecar.get(DATA_HASH) != sha256(path):
        raise TableUnreadable("was cut or changed since it was written", file=path, remedy=_RERUN)
    rows = read_tsv(path)
    names = [column for column in (rows[0] if rows else ()) if column.startswith("d") and column[1:].isdigit()]
    if not names:
        raise TableUnreadable("holds no clip or no feature", file=path, remedy=_RERUN)
    try:
        clips = np.array([[float(row[column] or "nan") for column in names] for row in rows])  # (n, d)
        times = np.array(
            [[float(row[column] or "nan") for column in ("onset", "duration", "mean_fd")] for row in rows]
        )  # (n, 3)
    except (ValueError, KeyError) as error:
        raise TableUnreadable(f"holds {error} in place of a number", file=path, remedy=_RERUN) from error
    if not np.isfinite(clips).all():
        raise TableUnreadable("lacks a feature", file=path, expected="a number in each cell", remedy=_RERUN)
    onset, duration, displacement = times.T
    return CachedRun(path, name, label, clips, onset, duration, displacement, sidecar)


def _require_one_model(label: str, runs: Sequence[CachedRun]) -> None:
    hashes = {run.model.get("Hash"): run.path for run in runs}
    if len(hashes) > 1:
        raise ModelsMixed(
            f"embeddings named desc-{label} come from {len(hashes)} different models",
            file=list(hashes.values())[-1],
            expected="one model hash under one name",
            remedy="Run the participant level again with one model: it replaces the results of the other",
        )
