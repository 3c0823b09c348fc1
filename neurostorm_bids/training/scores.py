"""Predictions pooled from clips to runs to participants, and the figures by which they are judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.metrics import (
    accuracy_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

from neurostorm_bids.model.config import Target
from neurostorm_bids.model.predict import Prediction, joined, predict
from neurostorm_bids.training.targets import Value

Unit = Literal["clip", "run", "participant"]
GALLERY = 100  # people of a retrieval's gallery, or as many as there are


@dataclass(frozen=True, eq=False)
class ClipOutput:
    """What a head made of one clip."""

    participant: str
    run: str
    first_frame: int
    truth: Value
    outputs: np.ndarray  # (outputs,)


@dataclass(frozen=True, eq=False)
class Judged:
    """One prediction beside its truth; ``prediction`` has one row."""

    participant: str
    run: str | None
    truth: Value
    prediction: Prediction
    n_clips: int


def judged(target: Target, clips: Sequence[ClipOutput], unit: Unit) -> list[Judged]:
    """Predictions of every unit: a run pools its clips, a participant their runs."""
    if unit == "clip":
        return [_judged(target, [clip], clip.run) for clip in clips]
    runs = [_judged(target, members, members[0].run) for members in _grouped(clips, lambda clip: clip.run)]
    if unit == "run":
        return runs
    return [_joined(members) for members in _grouped(runs, lambda run: run.participant)]


def _judged(target: Target, clips: Sequence[ClipOutput], run: str) -> Judged:
    rows = predict(target, torch.from_numpy(np.stack([clip.outputs for clip in clips])))
    return Judged(clips[0].participant, run, clips[0].truth, rows.pooled(), len(clips))


def _joined(runs: Sequence[Judged]) -> Judged:
    pooled = joined([run.prediction for run in runs]).pooled()
    return Judged(runs[0].participant, None, runs[0].truth, pooled, sum(run.n_clips for run in runs))


def _grouped(members: Iterable, key) -> list[list]:
    groups: dict[str, list] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return list(groups.values())


def figures(target: Target, units: Sequence[Judged]) -> dict[str, float]:
    """Figures of a regression or classification; those that the data do not define are left out."""
    if target.kind == "regression":
        truth = np.array([float(unit.truth) for unit in units])
        return _regression_figures(truth, np.array([float(unit.prediction.rows[0]) for unit in units]))
    number = {name: place for place, name in enumerate(target.classes)}
    truth = np.array([number[str(unit.truth)] for unit in units])
    return _class_figures(truth, np.stack([unit.prediction.rows[0] for unit in units]))


def _regression_figures(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    found = {"mae": float(mean_absolute_error(truth, predicted))}
    if len(truth) > 1 and truth.std() > 0:
        found["r2"] = float(r2_score(truth, predicted))
        if predicted.std() > 0:
            found["r"] = float(np.corrcoef(truth, predicted)[0, 1])
    return found


def _class_figures(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    chosen = probabilities.argmax(axis=1)
    present = np.unique(truth)
    found = {"accuracy": float(accuracy_score(truth, chosen))}
    if len(present) > 1:
        recalls = [float((chosen[truth == place] == place).mean()) for place in present]
        found["balanced_accuracy"] = float(np.mean(recalls))
    if len(present) == probabilities.shape[1]:
        scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
        found["auroc"] = float(
            roc_auc_score(truth, scores, multi_class="ovr", labels=np.arange(probabilities.shape[1]))
        )
    return found


# --- retrieval --------------------------------------------------------------------------------------------------


def retrieval_figures(runs: Sequence[Judged], *, seed: int = 0) -> dict[str, float]:
    """Rank-1 and mean average precision of finding each person's last run by their first.

    People with one run cannot be looked for. The gallery holds 100 people, or as many as there are; which ones, the
    seed decides.
    """
    people = [members for members in _grouped(runs, lambda run: run.participant) if len(members) > 1]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(people))[:GALLERY])
    people = [people[number] for number in chosen]
    if len(people) < 2:
        return {}
    query = np.stack([members[0].prediction.rows[0] for members in people])  # (n, size)
    gallery = np.stack([members[-1].prediction.rows[0] for members in people])
    likeness = query @ gallery.T  # (n, n)
    own = np.diag(likeness)[:, None]
    # ties count against: vectors that are all alike find nobody
    rank = 1 + (likeness > own).sum(axis=1) + ((likeness == own).sum(axis=1) - 1)
    return {"rank1": float((rank == 1).mean()), "map": float((1 / rank).mean()), "gallery": float(len(people))}


def chance(target: Target, units: Sequence[Judged]) -> Mapping[str, float]:
    """What guessing reaches on the same units."""
    if target.kind == "regression":
        return {"r2": 0.0}
    if target.kind == "retrieval":
        return {"rank1": 1 / max(1, len({unit.participant for unit in units}))}
    return {"balanced_accuracy": 1 / len(target.classes), "auroc": 0.5}
