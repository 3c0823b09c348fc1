"""Bootstrap intervals over participants (families as wholes), and paired differences from the same resamples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurostorm_bids.evaluation.problem import Problem

LEVEL = 0.95
Z = 1.959964  # of a normal distribution, 2.5 % lie above
N_REFITS = 100  # resamples on which everything is trained again


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


def percentile(values: np.ndarray, widening: float = 1.0) -> Interval:
    """The middle 95 % of resampled values, widened about their median; undefined ones aside.

    There is none where all resamples agree (every decision right, say): a width of 0 would cover nothing.
    """
    known = values[~np.isnan(values)]
    if len(known) < 0.5 * len(values) or not len(known) or np.ptp(known) <= 1e-12 * np.abs(known).max():
        return Interval(float("nan"), float("nan"))
    low, middle, high = np.quantile(known, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return Interval(float(middle + widening * (low - middle)), float(middle + widening * (high - middle)))


def score_interval(value: float, spread: float, n: int) -> Interval:
    """A 95 % interval (Wilson 1927) of a share, or of what lies between 0 and 1 like one.

    It counts as many rows as the spread is worth, and has a width where all rows agree and the spread is 0.

    Parameters
    ----------
    value : float
    spread : float
        Standard error.
    n : int
        Independent rows behind the value, for a spread of 0.
    """
    worth = value * (1 - value) / spread**2 if spread > 1e-9 and 0 < value < 1 else float(n)
    z2 = Z**2 / worth
    middle = (value + z2 / 2) / (1 + z2)
    half = float(np.sqrt(z2 * (value * (1 - value) + z2 / 4))) / (1 + z2)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def widening_of(tested: np.ndarray, refitted: np.ndarray) -> float:
    """How much wider a metric spreads when models are trained on the resamples that they are tested on.

    Resampled test rows alone leave out that training sets overlap with test sets and with one another (Bates 2024), and
    intervals from them are too narrow. The bootstrap of the whole cross-validation (bootstrap case cross-validation,
    Jiang 2008) has that spread, but a lower level, for want of different participants; so the one gives the place and
    shape of the interval, the other its width.

    Parameters
    ----------
    tested, refitted : ndarray of shape (b,), (b',)
        The metric over resampled test rows, and over resamples that were trained on too.
    """
    spread = float(np.nanstd(tested)) if np.isfinite(tested).any() else 0.0
    again = float(np.nanstd(refitted)) if np.isfinite(refitted).any() else 0.0
    return max(1.0, again / spread) if spread > 0 else 1.0
