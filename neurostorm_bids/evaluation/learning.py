"""Nested cross-validation of one set of features: observed and permuted labels go through the same folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from neurostorm_bids.evaluation.metrics import Scores, classification_scores, metrics_of, regression_scores
from neurostorm_bids.evaluation.problem import Fold, Problem
from neurostorm_bids.evaluation.ridge import Nested, nested_ridge, nested_ridge_classifier

Learner = Callable[[np.ndarray, np.ndarray, Fold], Nested]
Progress = Callable[[str], None]
FLOOR = 1e-3  # least probability that is given to a class


@dataclass(frozen=True, eq=False)
class Features:
    """What a prediction may rest on.

    ``of_fold`` gives all rows from the positions of the training rows, for features that are learnt themselves.
    """

    name: str
    description: str
    of_fold: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def fixed(cls, name: str, description: str, values: np.ndarray) -> Features:
        """Features that do not depend on the fold.  # (n, d)"""
        return cls(name, description, lambda train: values)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Out-of-fold predictions of one set of features.

    Attributes
    ----------
    predicted : ndarray of shape (repeats, n, k)
        Regression: k = 1, in the target's unit. Classification: probabilities of the k classes. NaN where a row was
        in no test fold (stated splits).
    decided : ndarray of shape (repeats, n), int
        Classification: the class decided for, at equal odds of the classes. Regression: zeros.
    reference : ndarray of shape (repeats, n)
        Regression: mean of the rows that the row's model was trained on. Classification: number of its fold.
    inner : dict of (repeat, fold) to ndarray of shape (training rows, columns)
        Predictions of training rows by models that did not see them.
    permuted : dict of metric to ndarray of shape (p,)
        Mean over repeats, a value a permutation.
    folds : list of (repeat, fold, penalty, n_train, n_test)
    """

    features: Features
    predicted: np.ndarray
    decided: np.ndarray
    reference: np.ndarray
    inner: dict[tuple[int, str], np.ndarray]
    permuted: Scores
    folds: list[tuple[int, str, float, int, int]] = field(default_factory=list)


def cross_validate(
    problem: Problem,
    features: Features,
    folds: Sequence[Fold],
    orders: np.ndarray,
    *,
    learner: Learner | None = None,
    progress: Progress = lambda text: None,
) -> Outcome:
    """Train and test on every fold, with the observed labels and with each permutation of them.

    Parameters
    ----------
    problem : Problem
    features : Features
    folds : sequence of Fold
    orders : ndarray of shape (n, p), int
        Permutations of the rows (`permutation.permutations`); p may be 0.
    learner : callable, optional
        Ridge regression, or ridge classification, unless stated.
    progress : callable
        Told of each fold that is done.
    """
    learner = learner or (nested_ridge if problem.kind == "regression" else nested_ridge_classifier)
    values = np.concatenate([problem.values[:, None], problem.values[orders]], axis=1)  # (n, 1 + p)
    labels = problem.columns(values)  # (n, 1 + p, k)
    repeats = sorted({fold.repeat for fold in folds})
    outcome = _blank(problem, features, len(repeats))
    scores: list[list[Scores]] = []
    for number, repeat in enumerate(repeats):
        predicted, decided, reference = _empty(problem, values.shape[1])
        for place, fold in enumerate(fold for fold in folds if fold.repeat == repeat):
            nested = learner(features.of_fold(fold.train), labels, fold)
            predicted[fold.test], decided[fold.test] = _as_said(problem, nested.predicted, labels[fold.train])
            reference[fold.test] = values[fold.train].mean(axis=0) if problem.kind == "regression" else place
            outcome.inner[repeat, fold.name] = nested.inner
            row = (repeat, fold.name, float(nested.penalty[0]), len(fold.train), len(fold.test))
            outcome.folds.append(row)
            progress(f"{features.name}: repeat {number + 1} of {len(repeats)}, fold {fold.name}")
        outcome.predicted[number], outcome.decided[number] = predicted[:, 0], decided[:, 0]
        outcome.reference[number] = reference[:, 0]
        scores.append(
            [
                scores_of(problem, predicted[:, i], decided[:, i], reference[:, i], values=values[:, i])
                for i in range(1, values.shape[1])
            ]
        )
    outcome.permuted.update(_mean_over_repeats(problem, scores))
    return outcome


def _blank(problem: Problem, features: Features, n_repeats: int) -> Outcome:
    n_columns = 1 if problem.kind == "regression" else len(problem.classes)
    predicted = np.full((n_repeats, problem.n_rows, n_columns), np.nan)
    shape = (n_repeats, problem.n_rows)
    return Outcome(features, predicted, np.zeros(shape, int), np.zeros(shape), {}, {})


def _empty(problem: Problem, n_labellings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n_columns = 1 if problem.kind == "regression" else len(problem.classes)
    shape = (problem.n_rows, n_labellings)
    return np.full((*shape, n_columns), np.nan, np.float32), np.zeros(shape, np.int16), np.zeros(shape)


def _as_said(problem: Problem, raw: np.ndarray, trained_on: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, or probabilities and decisions.  # (m, p, columns), (n, p, columns) -> (m, p, k), (m, p)"""
    if problem.kind == "regression":
        return raw, np.zeros(raw.shape[:2], int)
    shares = trained_on.mean(axis=0)  # (p, columns)
    if len(problem.classes) == 2:
        raw, shares = (np.concatenate([1 - values, values], axis=-1) for values in (raw, shares))
    probabilities = as_probabilities(raw)
    return probabilities, (probabilities / np.maximum(shares, FLOOR)).argmax(axis=-1)


def as_probabilities(raw: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, none below a floor, of sum 1.  # (..., k)"""
    clipped = np.clip(raw, FLOOR, 1.0)
    return clipped / clipped.sum(axis=-1, keepdims=True)


def scores_of(
    problem: Problem,
    predicted: np.ndarray,
    decided: np.ndarray,
    reference: np.ndarray,
    weights: np.ndarray | None = None,
    values: np.ndarray | None = None,
) -> Scores:
    """Metrics of one repeat, over the rows that were tested.  # (n, k), (n,), (n,), (b, n) -> (b,) each"""
    values = problem.values if values is None else values
    tested = ~np.isnan(predicted[:, 0])
    w = None if weights is None else weights[:, tested]
    if problem.kind == "regression":
        return regression_scores(values[tested], predicted[tested, 0].astype(float), w, reference[tested])
    return classification_scores(values[tested], predicted[tested].astype(float), decided[tested], w, reference[tested])


def each_repeat(
    problem: Problem, outcome: Outcome, weights: np.ndarray | None = None, values: np.ndarray | None = None
) -> list[Scores]:
    """Metrics of every repeat, against other values where they are given.  # (b, n), (n,) -> (b,) each"""
    repeats = zip(outcome.predicted, outcome.decided, outcome.reference, strict=True)
    return [scores_of(problem, *repeat, weights, values) for repeat in repeats]


def _mean_over_repeats(problem: Problem, scores: list[list[Scores]]) -> Scores:
    return {
        name: np.mean([[float(score[name][0]) for score in of_repeat] for of_repeat in scores], axis=0)
        for name in metrics_of(problem.kind)
    }
