"""Bootstrap intervals over participants (families as wholes), and paired differences from the same resamples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurostorm_bids.evaluation.problem import Problem

LEVEL = 0.95
# Training sets of a cross-validation overlap with its test sets, so that its estimate varies more than resampled test
# rows tell (Bates 2024, Nadeau & Bengio 2003). The factor gives 95 % intervals the coverage that
# benchmarks/evaluation.py measures.
WIDENING = 1.25


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; NaN at both ends where it is not defined."""

    low: float
    high: float


def resamples(problem: Problem, n: int, seed: int) -> np.ndarray:
    """How often each row counts in each resample of families.  # (n, rows)"""
    rng = np.random.default_rng([seed, 99])
    names, family = np.unique(np.array(problem.families, dtype=str), return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n)  # (n, families)
    return counts[:, family].astype(float)


def percentile(values: np.ndarray, widening: float = WIDENING) -> Interval:
    """The middle 95 % of resampled values, widened about their median; undefined ones aside."""
    known = values[~np.isnan(values)]
    if len(known) < 0.5 * len(values) or not len(known):
        return Interval(float("nan"), float("nan"))
    low, middle, high = np.quantile(known, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return Interval(float(middle + widening * (low - middle)), float(middle + widening * (high - middle)))
