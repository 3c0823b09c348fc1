"""From the outputs of a head to values in natural units, class probabilities or retrieval vectors.

A head of two classes has ONE output, the logit of the second class: a softmax over it would always say class 0 with
certainty (the reference's demo does). A regression whose scaler nobody stated stays in standard units and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from neurostorm_bids.errors import TargetScalerInvalid
from neurostorm_bids.model.config import Target

STANDARD_UNITS = "standard units"
MINMAX_UNITS = "fraction of the training range"


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one target, a row per clip.

    Exactly one of the arrays is there: ``values`` (n,) for a regression, ``probabilities`` (n, classes) for a
    classification, ``vectors`` (n, 128) of unit length for a retrieval.
    """

    target: Target
    unit: str | None = None
    values: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    vectors: np.ndarray | None = None

    @property
    def natural_units(self) -> bool:
        """Whether ``values`` are in the target's own unit; False where its scaler is unknown."""
        return self.target.kind != "regression" or self.target.mean is not None

    @property
    def n_clips(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def rows(self) -> np.ndarray:
        """The one array that is there."""
        found = {"regression": self.values, "classification": self.probabilities, "retrieval": self.vectors}
        rows = found[self.target.kind]
        if rows is None:
            raise TypeError(f"a {self.target.kind} prediction without its array")
        return rows

    def with_rows(self, rows: np.ndarray) -> Prediction:
        """The same prediction for other rows."""
        if self.target.kind == "regression":
            return replace(self, values=rows)
        if self.target.kind == "classification":
            return replace(self, probabilities=rows)
        return replace(self, vectors=rows)

    def pooled(self) -> Prediction:
        """One row for all clips: the mean value, mean probabilities, or the mean vector at unit length."""
        mean = self.rows.mean(axis=0, keepdims=True)
        return self.with_rows(mean / np.linalg.norm(mean) if self.target.kind == "retrieval" else mean)

    def clip_sd(self) -> np.ndarray | None:
        """SD over clips (unbiased) of values (1,) or probabilities (classes,); None for one clip or vectors."""
        if self.n_clips < 2 or self.vectors is not None:
            return None
        return np.atleast_1d(self.rows.std(axis=0, ddof=1))

    def classes(self) -> tuple[str, ...]:
        """The likeliest class of each row (of equals the first); empty for other kinds."""
        if self.probabilities is None:
            return ()
        return tuple(self.target.classes[index] for index in self.probabilities.argmax(axis=1))


def predict(target: Target, outputs: Tensor) -> Prediction:
    """Read the outputs of one head.

    Parameters
    ----------
    target : Target
    outputs : Tensor
        (n, 1) of a regression or of two classes; (n, classes); (n, 128) of a retrieval.
    """
    outputs = outputs.detach().double().cpu()
    if target.kind == "classification":
        return Prediction(target, probabilities=class_probabilities(outputs, target.temperature).numpy())
    if target.kind == "retrieval":
        return Prediction(target, vectors=outputs.numpy())
    values = outputs[:, 0].numpy()  # (n,)
    if target.mean is None or target.std is None:
        return Prediction(target, MINMAX_UNITS if target.scaling == "minmax" else STANDARD_UNITS, values)
    return Prediction(target, target.unit, target.mean + target.std * values)


def class_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Probabilities of all classes.  # (n, 1) or (n, classes) -> (n, classes)"""
    logits = logits / temperature
    if logits.shape[1] == 1:
        return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
    return torch.softmax(logits, dim=1)


def with_scaler(target: Target, first: float, second: float) -> Target:
    """A regression target with its scaler: mean and SD, or for a min-max scaled target minimum and maximum.

    Raises
    ------
    TargetScalerInvalid
        Not a regression, another scaler there already, or numbers that scale nothing.
    """
    scale = second - first if target.scaling == "minmax" else second
    pair = "MINIMUM,MAXIMUM" if target.scaling == "minmax" else "MEAN,SD"
    if target.kind != "regression":
        raise TargetScalerInvalid(f"the target {target.name} is a {target.kind}", expected="a regression")
    if not (math.isfinite(first) and math.isfinite(scale) and scale > 0):
        fault = f"the scaler {first:g},{second:g} of {target.name} scales nothing"
        raise TargetScalerInvalid(fault, expected=f"{pair} in the target's unit, the scale above 0")
    if target.mean is not None and (target.mean, target.std) != (first, scale):
        raise TargetScalerInvalid(
            f"the model has a scaler for {target.name} already ({target.mean:g}, {target.std:g})",
            remedy="leave --target-scaler out",
        )
    return replace(target, mean=float(first), std=float(scale))


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Predictions of one target for successive batches of clips as one."""
    return parts[0].with_rows(np.concatenate([part.rows for part in parts]))
