"""What a trained head takes along: its calibration on validation participants, and what it was trained on.

Validation participants also decided when training stopped, where it went by steps (a probe does not), so that the
calibration is a little too confident then; ``training.json`` records what it is worth on test participants, who decided
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neurostorm_bids.evaluation.calibration import half_width
from neurostorm_bids.evaluation.metrics import calibration_error
from neurostorm_bids.evaluation.shift import QualityRanges, TrainingDistribution
from neurostorm_bids.model.config import Target
from neurostorm_bids.training.finetune import Tuned
from neurostorm_bids.training.scores import ClipOutput, Judged, Unit, judged

LEAST_PARTICIPANTS = 10  # of whom a temperature is learnt
TEMPERATURES = np.exp(np.linspace(np.log(0.1), np.log(10), 81))


def calibrated(tuned: Tuned, unit: Unit) -> Tuned:
    """The trained head with its calibration; the same where validation participants are too few.

    Parameters
    ----------
    tuned : Tuned
    unit : {"clip", "run", "participant"}
        What is judged; runs where it is participants, since the participant level predicts runs.
    """
    target = tuned.target
    if target.kind == "retrieval" or not tuned.validation:
        return tuned
    return replace(tuned, target=_calibrated(target, tuned.validation, _at(unit)))


def _at(unit: Unit) -> Unit:
    return "clip" if unit == "clip" else "run"


def _calibrated(target: Target, clips: Sequence[ClipOutput], unit: Unit) -> Target:
    units = judged(target, clips, unit)
    people = [one.participant for one in units]
    n = len(set(people))
    if target.kind == "regression":
        errors = np.array([float(one.truth) - float(one.prediction.rows[0]) for one in units])
        width = half_width(errors, people)
        return replace(target, half_width=width, n_calibrated=n) if np.isfinite(width) else target
    if n < LEAST_PARTICIPANTS or len({one.truth for one in units}) < 2:
        return target
    losses = [_loss(replace(target, temperature=float(t)), clips, unit) for t in TEMPERATURES]
    return replace(target, temperature=float(TEMPERATURES[int(np.argmin(losses))]), n_calibrated=n)


def _loss(target: Target, clips: Sequence[ClipOutput], unit: Unit) -> float:
    """Log loss of pooled probabilities, a participant counting once; a class more of each keeps it finite (Platt)."""
    units = judged(target, clips, unit)
    y, probabilities, weight = _truth(target, units)
    k, n = len(target.classes), weight.sum()
    wanted = (n * np.eye(k)[y] + 1) / (n + k)  # (n, k)
    return float((weight[:, None] * -wanted * np.log(np.maximum(probabilities, 1e-12))).sum() / n)


def _truth(target: Target, units: Sequence[Judged]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes that occurred, probabilities, and weights by which a participant counts once.  # (n,), (n, k), (n,)"""
    y = np.array([target.classes.index(str(one.truth)) for one in units])
    _, person = np.unique([one.participant for one in units], return_inverse=True)
    return y, np.stack([one.prediction.rows[0] for one in units]), 1 / np.bincount(person)[person]


def calibration_record(tuned: Tuned, unit: Unit) -> dict[str, Any]:
    """What the calibration is and what it is worth on test participants, for ``training.json``."""
    target, at = tuned.target, _at(unit)
    if not target.n_calibrated:
        return {"participants": 0, "note": "not calibrated: too few validation participants, or nothing to calibrate"}
    common: dict[str, Any] = {"participants": target.n_calibrated}
    if target.kind == "regression":
        units = judged(target, tuned.test, at)
        errors = [abs(float(one.truth) - float(one.prediction.rows[0])) for one in units]
        covered = np.mean(np.array(errors) <= (target.half_width or 0.0))
        return common | {"half_width": target.half_width, "level": 0.95, "covered_test_runs": float(covered)}
    before, after = (_judged(replace(target, temperature=t), tuned, at) for t in (1.0, target.temperature))
    return common | {"temperature": target.temperature, "test_before": before, "test_after": after}


def _judged(target: Target, tuned: Tuned, unit: Unit) -> dict[str, float]:
    y, probabilities, _ = _truth(target, judged(target, tuned.test, unit))
    brier = ((probabilities - np.eye(len(target.classes))[y]) ** 2).sum(axis=1).mean()
    return {"brier": float(brier), "ece": float(calibration_error(y, probabilities)[0])}


def distribution_of(tuned: Tuned) -> dict[str, Any] | None:
    """``training_distribution`` of the model folder: where embeddings and quality figures of the training runs lie.

    None where there are too few runs to say.
    """
    runs = list(tuned.trained_on)
    if not runs:
        return None
    embedding = TrainingDistribution.of(np.stack([run.embedding for run in runs]), [run.participant for run in runs])
    quality = QualityRanges.of([_figures(run.notes) for run in runs])
    if embedding is None:
        return None
    found: dict[str, Any] = {"runs": len(runs), "participants": len({run.participant for run in runs})}
    found["embedding"] = embedding.as_json()
    return found if quality is None else found | {"quality": quality.as_json()}


def _figures(notes: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in notes.get("quality", {}).items()}
