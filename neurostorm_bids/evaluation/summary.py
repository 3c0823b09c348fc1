"""Metrics of all that is compared, each with interval, spread over repeats, p, and the model's difference from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neurostorm_bids.evaluation.intervals import (
    NONE,
    Interval,
    percentile,
    precision_interval,
    r2_interval,
    score_interval,
    widening_of,
)
from neurostorm_bids.evaluation.learning import Outcome, each_repeat
from neurostorm_bids.evaluation.metrics import (
    COUNTED,
    LEAST,
    MOST,
    ROUNDING,
    SHARES,
    WITHOUT_INTERVAL,
    Scores,
    metrics_of,
    scored_classes,
)
from neurostorm_bids.evaluation.permutation import p_value
from neurostorm_bids.evaluation.problem import Problem

NOBODY = np.zeros(0)  # where nothing was trained again


@dataclass(frozen=True)
class MetricRow:
    """One metric of one set of features.

    ``value`` is the mean over repeats, ``interval`` from resampled participants, ``repeat_sd`` the SD over repeats
    (of the folds alone: no interval), ``p`` from permuted labels.
    """

    features: str
    metric: str
    value: float
    interval: Interval
    repeat_sd: float
    p: float
    n_permutations: int


@dataclass(frozen=True)
class Difference:
    """A model's metric less that of a comparison, over the same resamples."""

    model: str
    features: str
    metric: str
    value: float
    interval: Interval


@dataclass(frozen=True, eq=False)
class Summary:
    """All rows, and all differences of the models from everything else."""

    rows: tuple[MetricRow, ...]
    differences: tuple[Difference, ...]

    def row(self, features: str, metric: str) -> MetricRow:
        """The row of some features and metric."""
        return next(row for row in self.rows if (row.features, row.metric) == (features, metric))

    def value(self, features: str, metric: str) -> float | None:
        """The value of some features and metric, where there are such features."""
        return next((row.value for row in self.rows if (row.features, row.metric) == (features, metric)), None)

    def difference(self, model: str, features: str, metric: str) -> Difference | None:
        """A model's difference, where there is such a comparison."""
        found = (d for d in self.differences if (d.model, d.features, d.metric) == (model, features, metric))
        return next(found, None)


def summarise(problem: Problem, outcomes: Mapping[str, Outcome], models: Sequence[str], weights: np.ndarray) -> Summary:
    """Put everything side by side.

    Parameters
    ----------
    problem : Problem
    outcomes : mapping of name to Outcome
    models : sequence of str
        Those of the outcomes that are compared with the others.
    weights : ndarray of shape (b, n)
        Resamples (`intervals.resamples`), the same for all: differences are paired.
    """
    n = {metric: independent(problem, metric) for metric in metrics_of(problem.kind)}
    observed = {name: by_repeat(problem, outcome) for name, outcome in outcomes.items()}
    resampled = {name: over_repeats(problem, outcome, weights) for name, outcome in outcomes.items()}
    jointly = {name: outcome.interaction for name, outcome in outcomes.items()}
    rows, differences = [], []
    for name, outcome in outcomes.items():
        for metric in metrics_of(problem.kind):
            value = float(observed[name][metric].mean())
            interval = _of_metric(metric, value, resampled[name][metric], jointly[name].get(metric, NOBODY), n[metric])
            rows.append(_row(name, metric, observed[name][metric], interval, outcome.permuted))
    known = {(row.features, row.metric): row for row in rows}
    for model in models:
        for name in (name for name in outcomes if name != model):
            for metric in metrics_of(problem.kind):
                value = float(observed[model][metric].mean() - observed[name][metric].mean())
                tested, both = (_difference(of[model], of[name], metric) for of in (resampled, jointly))
                interval = _of_difference(metric, tested, both, n[metric])
                if metric in SHARES and np.isnan(interval.low) and abs(value) > ROUNDING:
                    interval = _between_shares(known[model, metric], known[name, metric])
                differences.append(Difference(model, name, metric, value, interval))
    return Summary(tuple(rows), tuple(differences))


def by_repeat(problem: Problem, outcome: Outcome) -> Scores:
    """Metrics of each repeat.  # (repeats,) each"""
    each = each_repeat(problem, outcome)
    return {metric: np.array([float(scores[metric][0]) for scores in each]) for metric in metrics_of(problem.kind)}


def over_repeats(problem: Problem, outcome: Outcome, weights: np.ndarray) -> Scores:
    """Metrics of each resample, mean over repeats.  # (b,) each"""
    each = each_repeat(problem, outcome, weights)
    return {metric: np.mean([scores[metric] for scores in each], axis=0) for metric in metrics_of(problem.kind)}


def independent(problem: Problem, metric: str) -> int:
    """How many families a metric counts: all, of the AUPRC those of the class (of several, of the smallest).

    The AUPRC is a mean over the rows of a class, whose number is the size of its sample (Boyd 2013).
    """
    families = np.array(problem.families)
    if metric != "auprc":
        return len(set(problem.families))
    of_classes = (len(set(families[problem.values == k])) for k in scored_classes(len(problem.classes)))
    return max(2, min(number for number in of_classes if number))


def _difference(one: Scores, other: Scores, metric: str) -> np.ndarray:
    """A metric of one less that of the other, paired; empty where one of the two was not trained again."""
    return one[metric] - other[metric] if metric in one and metric in other else NOBODY


def _of_metric(metric: str, value: float, tested: np.ndarray, jointly: np.ndarray, n: int) -> Interval:
    """The interval of a metric; none where no interval is known to cover."""
    if metric in WITHOUT_INTERVAL:
        return NONE
    widening = widening_of(tested, jointly, n, COUNTED.get(metric, 0.5))
    if metric == "r2":
        return r2_interval(value, tested, widening, n)
    if metric in SHARES:
        of_share = precision_interval if metric == "auprc" else score_interval
        return of_share(value, float(np.nanstd(tested)) * widening, n)
    return percentile(tested, widening)


def _of_difference(metric: str, tested: np.ndarray, jointly: np.ndarray, n: int) -> Interval:
    """The interval of a paired difference; none where no interval is known to cover.

    Squares about a sample's own mean are too small by 1 / n, once for the sample and once more for its resample:
    differences of R2, which divide by them, are too large by as much.
    """
    if metric in WITHOUT_INTERVAL:
        return NONE
    unbiased = tested * (1 - 1 / n) ** 2 if metric == "r2" else tested
    return percentile(unbiased, widening_of(tested, jointly, n, COUNTED.get(metric, 0.5)))


def _between_shares(one: MetricRow, other: MetricRow) -> Interval:
    """The interval of a difference that all resamples agree on, as of a model that is always right from a guess.

    From the intervals of the two (Newcombe 1998, method 10), as if they were of different people, which is wider.
    """
    value = one.value - other.value
    low = value - np.hypot(one.value - one.interval.low, other.interval.high - other.value)
    high = value + np.hypot(one.interval.high - one.value, other.value - other.interval.low)
    return Interval(float(max(-1.0, low)), float(min(1.0, high)))


def _row(name: str, metric: str, observed: np.ndarray, interval: Interval, permuted: Scores) -> MetricRow:
    value, null = float(observed.mean()), permuted[metric]
    spread = float(observed.std(ddof=1)) if len(observed) > 1 else float("nan")
    p = p_value(metric, value, null)
    return MetricRow(name, metric, value, _within(metric, interval), spread, p, int(null.size))


def _within(metric: str, interval: Interval) -> Interval:
    """The interval within what the metric can be."""
    low, high = np.clip([interval.low, interval.high], LEAST.get(metric, 0.0), MOST.get(metric, 1.0))
    return Interval(float(low), float(high))
