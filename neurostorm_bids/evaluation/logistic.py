"""Nested logistic regression (scikit-learn): the same interface as `ridge`, one fit a permutation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from neurostorm_bids.evaluation.problem import Fold
from neurostorm_bids.evaluation.ridge import Decomposition, Nested

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # inverse penalty; features of SD 1


def nested_logistic(features: np.ndarray, labels: np.ndarray, fold: Fold, weights: np.ndarray | None = None) -> Nested:
    """Choose the penalty on inner folds by log loss, train, predict: for every labelling and resample anew.

    The penalty is of squares, so that models of the features are models of their coordinates among the training rows:
    never more than rows, and the same for all labellings.

    Parameters and result are those of `ridge.nested_ridge`.
    """
    n_labellings, n_columns = labels.shape[1:]
    train, test = features[fold.train], features[fold.test]
    whole, halves = Decomposition.of(train, test), [Decomposition.of(train[fit], train[new]) for fit, new in fold.inner]
    predicted = np.empty((len(test), n_labellings, n_columns))
    penalty = np.empty(n_labellings)
    inner, of_observed = np.empty((len(train), n_columns)), np.empty((len(STRENGTHS), len(train)))
    for number in range(n_labellings):
        y = _classes(labels[fold.train, number])
        held_out = _held_out(halves, y, n_columns, fold)
        losses = _losses(y, held_out)
        best = int(losses.sum(axis=1).argmin())
        penalty[number] = 1 / STRENGTHS[best]
        if number == 0:
            inner, of_observed = held_out[best], losses
        predicted[:, number] = _fitted(whole, y, n_columns, STRENGTHS[best])
    y, refits = _classes(labels[fold.train, 0]), []
    for w in () if weights is None else weights[:, fold.train]:
        parts, strength = Decomposition.of(train[w > 0], test), STRENGTHS[int((of_observed @ w).argmin())]
        refits.append(_fitted(parts, y[w > 0], n_columns, strength, w[w > 0]))
    refitted = np.stack(refits) if refits else np.zeros((0, len(test), n_columns))
    return Nested(predicted, inner, penalty, refitted)


def _classes(columns: np.ndarray) -> np.ndarray:
    """Class indices of indicators.  # (n, columns) -> (n,)"""
    return columns[:, 0].astype(int) if columns.shape[1] == 1 else columns.argmax(axis=1)


def _held_out(halves: Sequence[Decomposition], y: np.ndarray, n_columns: int, fold: Fold) -> np.ndarray:
    """Predictions of training rows by models that did not see them.  # (strengths, n, columns)"""
    predictions = np.empty((len(STRENGTHS), len(y), n_columns))
    for number, strength in enumerate(STRENGTHS):
        for parts, (fit, validate) in zip(halves, fold.inner, strict=True):
            predictions[number, validate] = _fitted(parts, y[fit], n_columns, strength)
    return predictions


def _losses(y: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Log loss of each row.  # (n,), (strengths, n, columns) -> (strengths, n)"""
    of_class = np.concatenate([1 - columns, columns], axis=-1) if columns.shape[-1] == 1 else columns
    occurred = np.take_along_axis(of_class, y[None, :, None], axis=-1)[..., 0]
    return -np.log(np.maximum(occurred, np.finfo(float).eps))


def _fitted(
    parts: Decomposition, y: np.ndarray, n_columns: int, strength: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Probabilities of the new rows, of the second class where there are two.  # (m, columns)"""
    probabilities = np.zeros((len(parts.new), max(2, n_columns)))
    present = np.unique(y)
    if len(present) == 1 or not parts.singular.size:
        probabilities[:] = np.bincount(y, weights, minlength=probabilities.shape[1])
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    else:
        model = LogisticRegression(C=strength, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of weak penalties, which inner folds do not choose
            model.fit(parts.left * parts.singular, y, sample_weight=weights)
        probabilities[:, present] = model.predict_proba(parts.new)
        probabilities /= probabilities.sum(axis=1, keepdims=True)  # of sum 1 in float32 until here
    return probabilities[:, 1:] if n_columns == 1 else probabilities
