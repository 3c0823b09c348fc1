"""Metrics of predictions, all at once for many resamples of the participants.

Every metric takes weights (b, n), how often each row counts in each of b resamples, and gives (b,) values. With weights
of 1 the values are those of scikit-learn; a bootstrap is one call. NaN where a metric is not defined (a constant
prediction has no correlation, a resample may lack a class).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Kind = Literal["regression", "classification"]
Scores = dict[str, np.ndarray]

REGRESSION = ("r2", "mae", "pearson", "spearman")
CLASSIFICATION = ("balanced_accuracy", "auroc", "auprc", "accuracy", "brier", "ece")
LOWER_IS_BETTER = frozenset({"mae", "brier", "ece"})
SHARES = frozenset({"balanced_accuracy", "auroc", "auprc", "accuracy"})
WITHOUT_INTERVAL = frozenset({"ece"})  # biased upwards in small samples: no interval covers what a large one shows
LEAST = {"r2": -np.inf, "mae": 0.0, "pearson": -1.0, "spearman": -1.0}  # 0 for all others
MOST = {"mae": np.inf, "brier": 2.0}  # 1 for all others
COUNTED = {"pearson": 1.0, "spearman": 1.0}  # 0.5 for all others: see `intervals.widening_of`
ROUNDING = 2.5e-7  # of a difference of two numbers of single precision, by their size
N_BINS = 10  # of the expected calibration error
OF_EACH_MODEL = "in units of the root mean square of each fold's model"
LEVEL_OF_NUMBERS = f"predictions less the mean of their training rows, {OF_EACH_MODEL}"
LEVEL_OF_CLASSES = f"log odds less those of their training rows, {OF_EACH_MODEL}"
DESCRIPTIONS = {
    "r2": "1 - sum of squared errors / sum of squares about the mean (not the squared correlation).",
    "mae": "Mean absolute error, in the unit of the target.",
    "pearson": f"Pearson correlation of observed values and {LEVEL_OF_NUMBERS}.",
    "spearman": f"Spearman rank correlation of observed values and {LEVEL_OF_NUMBERS}.",
    "balanced_accuracy": "Mean over classes of the share that was recognised.",
    "auroc": "Area under the receiver operating characteristic, one class against the rest, mean over classes; pairs "
    "of rows of one fold.",
    "auprc": "Average precision, one class against the rest, mean over classes (two classes: the second), ranked by "
    f"{LEVEL_OF_CLASSES}.",
    "accuracy": "Share of right decisions.",
    "brier": "Mean squared distance of the probabilities from what occurred, summed over classes.",
    "ece": f"Expected calibration error: gap between confidence and accuracy over {N_BINS} bins of confidence.",
}


def metrics_of(kind: Kind) -> tuple[str, ...]:
    """Names of the metrics of a kind of target; the first decides what the report says."""
    return REGRESSION if kind == "regression" else CLASSIFICATION


def _weights(weights: np.ndarray | None, n: int) -> np.ndarray:
    return np.ones((1, n)) if weights is None else weights


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


# --- regression -------------------------------------------------------------------------------------------------


def on_one_level(deviations: np.ndarray, fold: np.ndarray | None, least: float = 0.0) -> np.ndarray:
    """Predictions of several models in units that can be compared: the root mean square of each model's own.

    A model that finds much in its training rows predicts boldly, and has less to find in the others, for both come from
    one sample. Correlations over several folds that count bold predictions for more are therefore pulled down, to about
    -0.1 at 60 rows where there is nothing; a correlation of one model's predictions knows no such unit.

    Parameters
    ----------
    deviations : ndarray of shape (n, ...)
        From what each row's model would say of anybody.
    fold : ndarray of shape (n,), int, optional
        Number of the model of each row; one model for all unless stated.
    least : float
        What is no more than this is rounding: such a model says the same of everybody.
    """
    if fold is None:
        return deviations
    models, place = np.unique(fold, return_inverse=True)
    of_model = np.eye(len(models))[place] / np.bincount(place)[place][:, None]  # (n, models)
    unit = np.sqrt(np.tensordot(of_model, deviations**2, axes=(0, 0)))[place]  # (n, ...)
    return np.divide(deviations, unit, out=np.zeros_like(deviations), where=unit > least)


def regression_scores(
    y: np.ndarray,
    predicted: np.ndarray,
    weights: np.ndarray | None = None,
    fold: np.ndarray | None = None,
    centre: np.ndarray | None = None,
) -> Scores:
    """MAE, R2 by sums of squares, Pearson and Spearman.

    Parameters
    ----------
    y, predicted : ndarray of shape (n,)
    weights : ndarray of shape (b, n), optional
    fold : ndarray of shape (n,), int, optional
        Which model each row comes from: correlations are those of predictions in units of each model (`on_one_level`).
    centre : ndarray of shape (n,), optional
        Mean of the rows that each row's model was trained on, which correlations leave out of predictions: the mean of
        all others is low where a fold is high.

    Returns
    -------
    dict of name to ndarray of shape (b,)
    """
    w = _weights(weights, len(y))
    total = w.sum(axis=1)
    about = predicted
    if centre is not None:
        about = on_one_level(predicted - centre, fold, ROUNDING * float(np.abs(predicted).max(initial=0)))
    mean = w @ y / total
    around = np.maximum(w @ (y - y.mean()) ** 2 - total * (mean - y.mean()) ** 2, 0)
    return {
        "r2": 1 - _ratio(w @ (y - predicted) ** 2, around),
        "mae": w @ np.abs(y - predicted) / total,
        "pearson": _correlation(y[None], about[None], w),
        "spearman": _correlation(midranks(y, w), midranks(about, w), w),
    }


def _correlation(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation.  # (b or 1, n), (b or 1, n), (b, n) -> (b,)"""
    total = w.sum(axis=1, keepdims=True)
    scale = [max(float(np.abs(values).max()), 1e-300) for values in (x, y)]
    x = x - (w * x).sum(axis=1, keepdims=True) / total
    y = y - (w * y).sum(axis=1, keepdims=True) / total
    of_x, of_y = (w * x * x).sum(axis=1), (w * y * y).sum(axis=1)
    # what is left of a constant after taking its mean away is rounding, not variance
    varies = (of_x > total[:, 0] * (1e-12 * scale[0]) ** 2) & (of_y > total[:, 0] * (1e-12 * scale[1]) ** 2)
    return _ratio((w * x * y).sum(axis=1), np.where(varies, np.sqrt(of_x * of_y), 0.0))


def midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks of the rows in each resample, ties (copies of a row too) at their mean.  # (n,), (b, n) -> (b, n)"""
    below, mass, place = _steps(values, weights)
    return (below + (mass + 1) / 2)[:, place]


def _steps(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight below and at each distinct value, and which value each row has.  # (b, u), (b, u), (n,)"""
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    is_new = np.concatenate([[True], sorted_values[1:] > sorted_values[:-1]])
    mass = np.add.reduceat(weights[:, order], np.flatnonzero(is_new), axis=1)
    place = np.empty(len(values), int)
    place[order] = np.cumsum(is_new) - 1
    return np.cumsum(mass, axis=1) - mass, mass, place


# --- classification ---------------------------------------------------------------------------------------------


def classification_scores(
    y: np.ndarray,
    probabilities: np.ndarray,
    decided: np.ndarray,
    weights: np.ndarray | None = None,
    fold: np.ndarray | None = None,
    shares: np.ndarray | None = None,
) -> Scores:
    """Metrics of class probabilities and of the classes decided for.

    Parameters
    ----------
    y, decided : ndarray of shape (n,), int
        Class indices.
    probabilities : ndarray of shape (n, classes)
    weights : ndarray of shape (b, n), optional
    fold : ndarray of shape (n,), int, optional
        Which model each row comes from: the AUROC compares rows of one model with one another, never of two.
    shares : ndarray of shape (n, classes), optional
        Share of each class among the rows that each row's model was trained on. The AUPRC ranks log odds less these
        log odds, since the others hold fewer of a class where a fold holds more, in units of each model
        (`on_one_level`).

    Returns
    -------
    dict of name to ndarray of shape (b,)
    """
    w = _weights(weights, len(y))
    n_classes = probabilities.shape[1]
    occurred = np.eye(n_classes)[y]  # (n, k)
    right = (decided == y).astype(float)
    recalls = _ratio(w @ (occurred * right[:, None]), w @ occurred)  # (b, k)
    scored = scored_classes(n_classes)
    parts = [slice(None)] if fold is None else [fold == name for name in np.unique(fold)]
    levelled = probabilities
    if shares is not None:
        levelled = on_one_level(_log_odds(probabilities) - _log_odds(shares), fold, 10 * ROUNDING)
    squares = ((probabilities - occurred) ** 2).sum(axis=1)
    return {
        "balanced_accuracy": _mean(list(recalls.T)),
        "auroc": _mean([_concordance(probabilities[:, k], occurred[:, k], w, parts) for k in scored]),
        "auprc": _mean([_precision(levelled[:, k], occurred[:, k], w) for k in scored]),
        "accuracy": w @ right / w.sum(axis=1),
        "brier": w @ squares / w.sum(axis=1),
        "ece": calibration_error(y, probabilities, w),
    }


def scored_classes(n_classes: int) -> Sequence[int]:
    """The classes that AUROC and AUPRC are means over: all, of two the second."""
    return range(n_classes) if n_classes > 2 else (1,)


def _log_odds(shares: np.ndarray) -> np.ndarray:
    inside = np.clip(shares, 1e-6, 1 - 1e-6)
    return np.log(inside / (1 - inside))


def _mean(of_classes: list[np.ndarray]) -> np.ndarray:
    """Mean over the classes that occur; NaN where none does."""
    stacked = np.stack(of_classes)  # (k, b)
    known = ~np.isnan(stacked)
    return _ratio(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0))


def _concordance(
    score: np.ndarray, positive: np.ndarray, w: np.ndarray, parts: Sequence[slice | np.ndarray]
) -> np.ndarray:
    """Share of pairs within a part whose positive row has the higher score, ties half.  # (n,), (n,), (b, n) -> (b,)"""
    won, pairs = np.zeros(len(w)), np.zeros(len(w))
    for part in parts:
        below, mass, place = _steps(score[part], w[:, part] * (1 - positive[part]))
        of_positive = w[:, part] * positive[part]
        won += (of_positive * (below + mass / 2)[:, place]).sum(axis=1)
        pairs += of_positive.sum(axis=1) * mass.sum(axis=1)
    return _ratio(won, pairs)


def _precision(score: np.ndarray, positive: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Average precision.  # (n,), (n,), (b, n) -> (b,)"""
    _, of_positive, _ = _steps(-score, w * positive)
    _, of_all, _ = _steps(-score, w)
    above = np.cumsum(of_all, axis=1)
    precision = np.divide(np.cumsum(of_positive, axis=1), above, out=np.zeros_like(above), where=above > 0)
    return _ratio((precision * of_positive).sum(axis=1), of_positive.sum(axis=1))


def calibration_error(y: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error of the most probable class.  # (n,), (n, k), (b, n) -> (b,)"""
    w = _weights(weights, len(y))
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    gap = w @ (np.eye(N_BINS)[bins] * (hit - confidence)[:, None])  # (b, bins): sum of accuracy less confidence
    return np.abs(gap).sum(axis=1) / w.sum(axis=1)


def confusion(y: np.ndarray, decided: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts of observed (rows) and decided (columns) classes.  # (k, k)"""
    counts = np.zeros((n_classes, n_classes), int)
    np.add.at(counts, (y, decided), 1)
    return counts
