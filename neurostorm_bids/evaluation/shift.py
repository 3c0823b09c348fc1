"""How far a run lies from what a model was trained on: Mahalanobis distance of its embedding, and quality figures.

Light on purpose: the participant level asks it of every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

QUANTILE = 0.975
LEAST_RUNS = 30
SHARE_KEPT = 0.99  # of the variance; the rest is measured by one common variance
MOST_KEPT = 64  # directions: a pack stays small
DIGITS = 7  # of what is written: embeddings are float32


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
    def of(cls, embeddings: np.ndarray, people: Sequence[str] | None = None) -> TrainingDistribution | None:
        """The distribution of training runs; None for too few of them.

        Parameters
        ----------
        embeddings : ndarray of shape (n, d)
            A row a run.
        people : sequence of str, optional
            Whose each run is: the threshold is that of runs of people whom the distribution does not know.
        """
        n, d = embeddings.shape
        if n < LEAST_RUNS:
            return None
        mean = embeddings.mean(axis=0)
        _, singular, directions = np.linalg.svd(embeddings - mean, full_matrices=False)
        variance = singular**2 / (n - 1)
        n_kept = 1 + int(np.searchsorted(np.cumsum(variance) / variance.sum(), SHARE_KEPT))
        n_kept = min(n_kept, n // 3, len(variance), MOST_KEPT)  # more directions than that would be learnt by heart
        left = variance[n_kept:]
        rest = float(max(left.sum() / max(d - n_kept, 1), 1e-6 * variance[0], 1e-30))
        made = cls(mean, directions[:n_kept], np.maximum(variance[:n_kept], rest), rest, np.inf)
        return cls(made.mean, made.directions, made.variance, rest, _threshold(made, embeddings, _parts(n, people)))

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
            "mean": _rounded(self.mean),
            "directions": _rounded(self.directions),
            "variance": _rounded(self.variance),
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


def _rounded(values: np.ndarray) -> Any:
    return np.vectorize(lambda value: float(f"{value:.{DIGITS}g}"), otypes=[float])(values).tolist()


def _parts(n: int, people: Sequence[str] | None) -> np.ndarray:
    """One of ten parts for each run, the runs of a person in one.  # (n,)"""
    _, person = np.unique(np.arange(n).astype(str) if people is None else np.array(people), return_inverse=True)
    return (np.random.default_rng(0).permutation(int(person.max()) + 1) % 10)[person]


def _threshold(made: TrainingDistribution, embeddings: np.ndarray, part: np.ndarray) -> float:
    """The quantile of cross-validated distances: ten parts, each measured by the other nine."""
    distances = np.empty(len(embeddings))
    for number in np.unique(part):
        others = embeddings[part != number]
        mean = others.mean(axis=0)
        _, singular, directions = np.linalg.svd(others - mean, full_matrices=False)
        k = min(len(made.variance), len(singular))
        variance = np.maximum(singular[:k] ** 2 / (len(others) - 1), made.rest)
        fitted = TrainingDistribution(mean, directions[:k], variance, made.rest, np.inf)
        distances[part == number] = fitted.distance(embeddings[part == number])
    return _quantile(distances)


def _quantile(distances: np.ndarray) -> float:
    """The value that a new one exceeds in 2.5 % of cases; the largest of all where they are too few to say."""
    rank = min(len(distances), int(np.ceil((len(distances) + 1) * QUANTILE)))
    return float(np.sort(distances)[rank - 1])


# --- quality figures --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualityRanges:
    """Where the quality figures of training runs lie.

    ``middle`` is the median of each figure, ``below`` and ``above`` its distance from the 16th and 84th percentile. A
    run is as far away as its oddest figure, in these distances; 97.5 % of the training runs lie within ``threshold``.
    """

    middle: Mapping[str, float]
    below: Mapping[str, float]
    above: Mapping[str, float]
    threshold: float

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, float]]) -> QualityRanges | None:
        """The ranges of figures that all runs have; None for too few runs."""
        names = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        if len(runs) < LEAST_RUNS or not names:
            return None
        values = np.array([[run[name] for name in names] for run in runs])  # (n, figures)
        low, middle, high = np.quantile(values, [0.16, 0.5, 0.84], axis=0)
        # a figure that hardly differs must not mark every other run
        least = np.maximum(0.01 * np.abs(middle), 1e-6)
        below, above = np.maximum(middle - low, least), np.maximum(high - middle, least)
        by_name = [dict(zip(names, part.tolist(), strict=True)) for part in (middle, below, above)]
        made = cls(by_name[0], by_name[1], by_name[2], np.inf)
        oddest = np.array([max(made.distances(run).values()) for run in runs])
        return replace(made, threshold=_quantile(oddest))

    def distances(self, figures: Mapping[str, float]) -> dict[str, float]:
        """How far each figure that is known lies from the middle of the training runs."""
        away = {name: figures[name] - middle for name, middle in self.middle.items() if name in figures}
        return {name: abs(d) / (self.above if d > 0 else self.below)[name] for name, d in away.items()}

    def odd(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """Figures that lie outside, each with the end of the range that it is beyond."""
        away = {name: distance for name, distance in self.distances(figures).items() if distance > self.threshold}
        return tuple(f"{name} {figures[name]:.3g} (training runs {self._end(name, figures[name])})" for name in away)

    def _end(self, name: str, value: float) -> str:
        middle = self.middle[name]
        if value > middle:
            return f"up to {middle + self.threshold * self.above[name]:.3g}"
        return f"from {middle - self.threshold * self.below[name]:.3g}"

    def as_json(self) -> dict[str, Any]:
        """For ``model.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> QualityRanges:
        """What `as_json` gave.

        Raises
        ------
        KeyError, ValueError, TypeError, AttributeError
            For anything else.
        """
        middle, below, above = (
            {str(k): float(v) for k, v in content[name].items()} for name in ("middle", "below", "above")
        )
        if not middle.keys() == below.keys() == above.keys() or min((*below.values(), *above.values())) <= 0:
            raise ValueError("middle, below and above do not belong together")
        return cls(middle, below, above, threshold=float(content["threshold"]))


@dataclass(frozen=True)
class Mark:
    """How a run compares with the training runs of a head; ``resembles`` is None where the head cannot say.

    ``odd`` holds the quality figures outside their range, in words.
    """

    resembles: bool | None = None
    distance: float | None = None
    threshold: float | None = None
    odd: tuple[str, ...] = ()

    @classmethod
    def of(cls, trained_on: Mapping[str, Any] | None, embedding: np.ndarray, figures: Mapping[str, float]) -> Mark:
        """Compare a run with what `distribution_of` wrote.

        Parameters
        ----------
        trained_on : mapping, optional
            ``training_distribution`` of ``model.json``.
        embedding : ndarray of shape (d,)
            Mean over the clips of the run.
        figures : mapping
            Quality figures of the run.

        Raises
        ------
        KeyError, ValueError, TypeError, AttributeError
            When ``trained_on`` is something else.
        """
        if not trained_on or "embedding" not in trained_on:
            return cls()
        embeddings = TrainingDistribution.from_json(trained_on["embedding"])
        distance = float(embeddings.distance(embedding)[0])
        odd = QualityRanges.from_json(trained_on["quality"]).odd(figures) if "quality" in trained_on else ()
        return cls(distance <= embeddings.threshold and not odd, distance, embeddings.threshold, odd)

    def sentence(self) -> str:
        """What is odd, in words."""
        far = self.distance is not None and self.threshold is not None and self.distance > self.threshold
        away = [f"its embedding is {self.distance:.3g} from their centre (limit {self.threshold:.3g})"] if far else []
        return f"the run is unlike those that it was trained on: {', '.join([*away, *self.odd])}"

    def as_json(self) -> dict[str, Any]:
        """For a sidecar."""
        if self.resembles is None:
            return {}
        return {"EmbeddingDistance": self.distance, "EmbeddingLimit": self.threshold, "OddQuality": list(self.odd)}


UNKNOWN = Mark()
