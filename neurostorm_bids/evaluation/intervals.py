"""Bootstrap intervals over participants (families as wholes), and paired differences from the same resamples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, stdtrit

from neurostorm_bids.evaluation.problem import Problem

LEVEL = 0.95
Z = 1.959964  # of a normal distribution, 2.5 % lie above
N_REFITS = 100  # resamples on which everything is trained again


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; NaN at both ends where it is not defined."""

    low: float
    high: float


NONE = Interval(float("nan"), float("nan"))


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
    if _tell_nothing(known, len(values)):
        return NONE
    low, middle, high = np.quantile(known, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return Interval(float(middle + widening * (low - middle)), float(middle + widening * (high - middle)))


def _tell_nothing(known: np.ndarray, n: int) -> bool:
    """Whether most of n resamples have no value, or all have the same."""
    return len(known) < 0.5 * n or not len(known) or bool(np.ptp(known) <= 1e-12 * np.abs(known).max())


def r2_interval(value: float, resampled: np.ndarray, widening: float, n: int) -> Interval:
    """A 95 % interval of R2, symmetric for the logarithm of the ratio of two sums of squares that 1 - R2 is.

    R2 ends at 1 and has no least value, so that resamples scatter further down than up. Percentiles have their longer
    side where resamples have it, below; yet it is a value far below what the models reach that asks for a longer side,
    above: what they miss lies above them. The logarithm of a ratio has no longer side to speak of. Squares about the
    sample's own mean are too small by 1 / n, which is corrected for.

    Parameters
    ----------
    value : float
    resampled : ndarray of shape (b,)
        R2 over resampled test rows.
    widening : float
        `widening_of` these.
    n : int
        Independent rows.
    """
    known = resampled[resampled < 1]
    if _tell_nothing(known, len(resampled)) or not value < 1:
        return NONE
    middle = np.log((1 - value) * (1 - 1 / n))
    half = Z * widening * np.std(np.log(1 - known))
    return Interval(float(1 - np.exp(middle + half)), float(1 - np.exp(middle - half)))


def precision_interval(value: float, spread: float, n: int) -> Interval:
    """A 95 % interval of the AUPRC, symmetric for its log odds (Boyd 2013).

    Parameters
    ----------
    value : float
    spread : float
        Standard error.
    n : int
        Independent rows of the class, for an AUPRC of 0 or 1: then a score interval.
    """
    if not (0 < value < 1 and spread > 1e-9):
        return score_interval(value, spread, n)
    half = Z * spread / (value * (1 - value))
    return Interval(float(expit(logit(value) - half)), float(expit(logit(value) + half)))


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


def widening_of(tested: np.ndarray, interaction: np.ndarray, n: int, counted: float) -> float:
    """How much wider the error of a cross-validated metric spreads than resampled test rows.

    Let everybody add a_i to the metric by being tested, and each pair c_ij, by i being tested with a model that j
    trained. What the trained models reach on other people holds neither, so the error is the sum of both; what training
    alone changes (b_j, of the metric and of what the models reach alike) is no part of it. c_ij and c_ji are of the
    same two people and go together, which resampled test rows leave out: they spread as a_i + sum_j c_ij alone, and
    intervals from them are too narrow (Bates 2024). What resamples change by training and testing at once spreads as
    the sum over pairs of c_ij + c_ji. Half of that variance, or more of it where the two do not go together, is in the
    spread over test rows; the other half is added.

    Correlations divide by how boldly a model predicts. A model of resampled rows has twice the noise, so that where
    nothing is told they show half of the variance above: all of it is counted of them.

    Parameters
    ----------
    tested : ndarray of shape (b,)
        The metric over resampled test rows.
    interaction : ndarray of shape (b',)
        `learning.Outcome.interaction`; empty where nothing was trained again.
    n : int
        Independent rows. Few spread less in resamples than in samples, and need Student's quantile (Hesterberg 2015).
    counted : float
        Share of the variance of the interaction that is added (`metrics.COUNTED`).
    """
    spread, jointly = (float(np.nanstd(of)) if np.isfinite(of).any() else 0.0 for of in (tested, interaction))
    if not spread > 0:
        return 1.0
    of_few = np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + LEVEL) / 2) / Z
    return float(of_few * np.sqrt(1 + counted * (jointly / spread) ** 2))
