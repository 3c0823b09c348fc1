"""How far a run lies from what a model was trained on: Mahalanobis distance of its embedding.

Light on purpose: the participant level asks it of every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

QUANTILE = 0.975
LEAST_RUNS = 30
SHARE_KEPT = 0.99  # of the variance; the rest is measured by one common variance


@dataclass(frozen=True, eq=False)
class TrainingDistribution:
    """Embeddings of training runs, as a normal distribution.

    Attributes
    ----------
    mean : ndarray of shape (d,)
    directions : ndarray of shape (k, d)
        Of unit length, orthogonal.
    variance : ndarray of shape (k,)
    rest : float
        Variance in every other direction.
    threshold : float
        Distance below which 97.5 % of training runs lie, each measured by a distribution without it (approximately).
    """

    mean: np.ndarray
    directions: np.ndarray
    variance: np.ndarray
    rest: float
    threshold: float

    @classmethod
    def of(cls, embeddings: np.ndarray) -> TrainingDistribution | None:
        """The distribution of training runs; None for too few of them.  # (n, d)"""
        n, d = embeddings.shape
        if n < LEAST_RUNS:
            return None
        mean = embeddings.mean(axis=0)
        _, singular, directions = np.linalg.svd(embeddings - mean, full_matrices=False)
        variance = singular**2 / (n - 1)
        n_kept = 1 + int(np.searchsorted(np.cumsum(variance) / variance.sum(), SHARE_KEPT))
        n_kept = min(n_kept, n // 3, len(variance))  # more directions than that would be learnt by heart
        left = variance[n_kept:]
        rest = float(max(left.sum() / max(d - n_kept, 1), 1e-6 * variance[0], 1e-30))
        made = cls(mean, directions[:n_kept], np.maximum(variance[:n_kept], rest), rest, np.inf)
        return cls(made.mean, made.directions, made.variance, rest, float(_threshold(made, embeddings)))

    def distance(self, embeddings: np.ndarray) -> np.ndarray:
        """Mahalanobis distances.  # (n, d) -> (n,)"""
        centred = np.atleast_2d(embeddings) - self.mean
        along = centred @ self.directions.T  # (n, k)
        beside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.sqrt((along**2 / self.variance).sum(axis=1) + beside / self.rest)

    def resembles(self, embedding: np.ndarray) -> bool:
        """Whether a run lies where training runs do.  # (d,)"""
        return bool(self.distance(embedding)[0] <= self.threshold)

    def as_json(self) -> dict[str, Any]:
        """For ``model.json``."""
        return {
            "mean": self.mean.tolist(),
            "directions": self.directions.tolist(),
            "variance": self.variance.tolist(),
            "rest": self.rest,
            "threshold": self.threshold,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingDistribution:
        """What `as_json` gave.

        Raises
        ------
        KeyError, ValueError
            For anything else.
        """
        arrays = [np.array(content[name], dtype=float) for name in ("mean", "directions", "variance")]
        mean, directions, variance = arrays
        if directions.shape != (len(variance), len(mean)) or not all(np.isfinite(a).all() for a in arrays):
            raise ValueError("directions, variance and mean do not belong together")
        return cls(mean, directions, variance, float(content["rest"]), float(content["threshold"]))


def _threshold(made: TrainingDistribution, embeddings: np.ndarray) -> float:
    """The quantile of cross-validated distances: ten parts, each measured by the other nine."""
    n = len(embeddings)
    part = np.random.default_rng(0).permutation(n) % 10
    distances = np.empty(n)
    for number in range(10):
        others = embeddings[part != number]
        mean = others.mean(axis=0)
        _, singular, directions = np.linalg.svd(others - mean, full_matrices=False)
        k = min(len(made.variance), len(singular))
        variance = np.maximum(singular[:k] ** 2 / (len(others) - 1), made.rest)
        fitted = TrainingDistribution(mean, directions[:k], variance, made.rest, np.inf)
        distances[part == number] = fitted.distance(embeddings[part == number])
    return float(np.quantile(distances, QUANTILE))
