"""Calibration on inner folds: temperatures of probabilities, intervals of numbers, and the age bias of brain ages.

What is learnt here rests on predictions of training rows by models that did not see them; test rows are only judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from neurostorm_bids.evaluation.learning import Outcome, as_probabilities
from neurostorm_bids.evaluation.metrics import calibration_error, regression_scores
from neurostorm_bids.evaluation.problem import Fold, Problem

COVERAGE = 0.95


@dataclass(frozen=True)
class Calibration:
    """What calibration does to the test rows, mean over repeats.

    ``figures`` holds, for classes: Temperature, Brier and ExpectedCalibrationError before and after. For numbers:
    half width of the 95 % prediction interval, the share of test rows that it covers, and metrics with and without the
    correction of the dependence of the error on the value itself (age bias).
    """

    figures: dict[str, float]


def calibrate(problem: Problem, outcome: Outcome, folds: Sequence[Fold]) -> Calibration:
    """Learn from inner folds, judge on test rows."""
    each = _numbers if problem.kind == "regression" else _probabilities
    return Calibration(each(problem, outcome, folds))


# --- classes ----------------------------------------------------------------------------------------------------


def temperature_of(probabilities: np.ndarray, y: np.ndarray) -> float:
    """The temperature that makes held-out probabilities most likely: > 1 where they were too sure of themselves.

    Parameters
    ----------
    probabilities : ndarray of shape (n, classes)
    y : ndarray of shape (n,), int
    """
    logits = np.log(np.maximum(probabilities, 1e-12))

    def loss(log_temperature: float) -> float:
        scaled = with_temperature(probabilities, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(scaled[np.arange(len(y)), y], 1e-12)).mean())

    if not np.ptp(logits, axis=1).any():  # every class alike: any temperature is as good
        return 1.0
    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities whose logits were divided by a temperature.  # (n, k)"""
    logits = np.log(np.maximum(probabilities, 1e-12)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _probabilities(problem: Problem, outcome: Outcome, folds: Sequence[Fold]) -> dict[str, float]:
    temperatures = []
    after = np.full_like(outcome.predicted, np.nan)
    places = {repeat: number for number, repeat in enumerate(sorted({fold.repeat for fold in folds}))}
    for fold in folds:
        inner = outcome.inner[fold.repeat, fold.name]
        both = np.concatenate([1 - inner, inner], axis=1) if inner.shape[1] == 1 else inner
        temperature = temperature_of(as_probabilities(both), problem.values[fold.train])
        number = places[fold.repeat]
        after[number, fold.test] = with_temperature(outcome.predicted[number, fold.test], temperature)
        temperatures.append(temperature)
    return {
        "Temperature": float(np.median(temperatures)),
        **{f"{name}Before": value for name, value in _judged(problem, outcome.predicted).items()},
        **{f"{name}After": value for name, value in _judged(problem, after).items()},
    }


def _judged(problem: Problem, predicted: np.ndarray) -> dict[str, float]:
    brier, error = [], []
    for probabilities in predicted:
        tested = ~np.isnan(probabilities[:, 0])
        y = problem.values[tested]
        brier.append(((probabilities[tested] - np.eye(len(problem.classes))[y]) ** 2).sum(axis=1).mean())
        error.append(calibration_error(y, probabilities[tested])[0])
    return {"Brier": float(np.mean(brier)), "ExpectedCalibrationError": float(np.mean(error))}


# --- numbers ----------------------------------------------------------------------------------------------------


def _numbers(problem: Problem, outcome: Outcome, folds: Sequence[Fold]) -> dict[str, float]:
    places = {repeat: number for number, repeat in enumerate(sorted({fold.repeat for fold in folds}))}
    corrected = np.full(outcome.predicted.shape[:2], np.nan)
    widths, covered = [], []
    for fold in folds:
        inner, observed = outcome.inner[fold.repeat, fold.name][:, 0], problem.values[fold.train]
        predicted = outcome.predicted[places[fold.repeat], fold.test, 0]
        width = half_width(observed - inner, [problem.participants[row] for row in fold.train])
        widths.append(width)
        covered.append(np.abs(problem.values[fold.test] - predicted) <= width)
        slope, intercept = bias_of(observed, inner)
        corrected[places[fold.repeat], fold.test] = (predicted - intercept) / slope
    known = bool(np.isfinite(widths).all())  # too few participants give no interval
    return {
        "PredictionIntervalHalfWidth": float(np.mean(widths)) if known else np.nan,
        "PredictionIntervalCoverage": float(np.concatenate(covered).mean()) if known else np.nan,
        **_bias_figures(problem, outcome.predicted[..., 0], "Uncorrected"),
        **_bias_figures(problem, corrected, "BiasCorrected"),
    }


def half_width(errors: np.ndarray, people: Sequence[str] | None = None) -> float:
    """Half the width of an interval that covers a row of a new participant with 95 %.

    A conformal quantile of held-out errors in which each participant counts once, whatever the number of their rows.

    Parameters
    ----------
    errors : ndarray of shape (n,)
    people : sequence of str, optional
        Whose each row is.

    Returns
    -------
    float
        Infinite for fewer than 19 participants, from whom no such interval follows.
    """
    _, person = np.unique(np.arange(len(errors)).astype(str) if people is None else people, return_inverse=True)
    n = int(person.max()) + 1
    order = np.argsort(np.abs(errors), kind="stable")
    share = np.cumsum((1 / np.bincount(person))[person][order])
    enough = share >= (n + 1) * COVERAGE - 1e-9
    return float(np.abs(errors)[order][np.argmax(enough)]) if enough.any() else float("inf")


def bias_of(observed: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of predictions on observed values (Cole 2018); no slope below 0.05 is divided by."""
    spread = observed.var()
    slope = float(((observed - observed.mean()) * predicted).mean() / spread) if spread > 0 else 1.0
    slope = max(slope, 0.05)
    return slope, float(predicted.mean() - slope * observed.mean())


def _bias_figures(problem: Problem, predicted: np.ndarray, name: str) -> dict[str, float]:
    """Error, and how the error goes along with the value itself, mean over repeats.  # (repeats, n)"""
    figures: dict[str, list[float]] = {"MAE": [], "R2": [], "ErrorWithValue": []}
    for row in predicted:
        tested = ~np.isnan(row)
        y, p = problem.values[tested], row[tested]
        scores = regression_scores(y, p)
        figures["MAE"].append(float(scores["mae"][0]))
        figures["R2"].append(float(scores["r2"][0]))
        figures["ErrorWithValue"].append(float(np.corrcoef(p - y, y)[0, 1]) if (p - y).std() > 0 else 0.0)
    return {f"{key}{name}": float(np.mean(values)) for key, values in figures.items()}
