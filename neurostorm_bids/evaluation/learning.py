"""Nested cross-validation of one set of features: observed and permuted labels go through the same folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from neurostorm_bids.evaluation.metrics import Scores, classification_scores, metrics_of, regression_scores
from neurostorm_bids.evaluation.problem import Fold, Problem
from neurostorm_bids.evaluation.ridge import Nested, nested_ridge, nested_ridge_classifier

Learner = Callable[[np.ndarray, np.ndarray, Fold, np.ndarray | None], Nested]
Progress = Callable[[str], None]
TIE = 1e-6  # odds closer than this share are equal
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
    fold : ndarray of shape (repeats, n), int
        Number of the row's fold.
    reference : ndarray of shape (repeats, n, k)
        What the row's model would say of anybody: mean, or share of each class, of the rows that it was trained on.
    inner : dict of (repeat, fold) to ndarray of shape (training rows, columns)
        Predictions of training rows by models that did not see them.
    permuted : dict of metric to ndarray of shape (p,)
        Mean over repeats, a value a permutation.
    interaction : dict of metric to ndarray of shape (b,)
        Mean over repeats, a value a resample: what a metric gains where the same resample trains and tests, over what
        it gains by either alone; empty where nothing was trained again.
    folds : list of (repeat, fold, penalty, n_train, n_test)
    """

    features: Features
    predicted: np.ndarray
    decided: np.ndarray
    fold: np.ndarray
    reference: np.ndarray
    inner: dict[tuple[int, str], np.ndarray]
    permuted: Scores
    folds: list[tuple[int, str, float, int, int]] = field(default_factory=list)
    interaction: Scores = field(default_factory=dict)


def cross_validate(
    problem: Problem,
    features: Features,
    folds: Sequence[Fold],
    orders: np.ndarray,
    *,
    learner: Learner | None = None,
    weights: np.ndarray | None = None,
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
    weights : ndarray of shape (b, n), optional
        Resamples (`intervals.resamples`) on which every fold's model is trained and tested again.
    progress : callable
        Told of each fold that is done.
    """
    learner = learner or (nested_ridge if problem.kind == "regression" else nested_ridge_classifier)
    values = np.concatenate([problem.values[:, None], problem.values[orders]], axis=1)  # (n, 1 + p)
    labels = problem.columns(values)  # (n, 1 + p, k)
    repeats = sorted({fold.repeat for fold in folds})
    outcome = _blank(problem, features, len(repeats))
    scores: list[list[Scores]] = []
    again: list[list[Scores]] = []
    for number, repeat in enumerate(repeats):
        made = _Made.empty(problem, values.shape[1])
        anew = _Made.empty(problem, 0 if weights is None else len(weights))
        for place, fold in enumerate(fold for fold in folds if fold.repeat == repeat):
            nested = learner(features.of_fold(fold.train), labels, fold, weights)
            made.take(problem, fold, nested.predicted, values, place)
            if weights is not None and len(weights):
                anew.take_refitted(problem, fold, nested.refitted, weights, place)
            outcome.inner[repeat, fold.name] = nested.inner
            row = (repeat, fold.name, float(nested.penalty[0]), len(fold.train), len(fold.test))
            outcome.folds.append(row)
            progress(f"{features.name}: repeat {number + 1} of {len(repeats)}, fold {fold.name}")
        outcome.predicted[number], outcome.decided[number] = made.predicted[:, 0], made.decided[:, 0]
        outcome.fold[number], outcome.reference[number] = made.fold, made.reference[:, 0]
        scores.append([made.scores(problem, i, values=values[:, i]) for i in range(1, values.shape[1])])
        if weights is not None and len(weights):
            again.append(_interactions(problem, made, anew, weights))
    outcome.permuted.update(_mean_over_repeats(problem, scores))
    outcome.interaction.update(_mean_over_repeats(problem, again) if again else {})
    return outcome


@dataclass(frozen=True, eq=False)
class _Made:
    """Predictions of all rows under several labellings, or of several trainings, as folds give them."""

    predicted: np.ndarray  # (n, p, k)
    decided: np.ndarray  # (n, p)
    fold: np.ndarray  # (n,)
    reference: np.ndarray  # (n, p, k)

    @classmethod
    def empty(cls, problem: Problem, n_labellings: int) -> _Made:
        shape = (problem.n_rows, n_labellings)
        columns = (*shape, problem.n_predicted)
        fold = np.zeros(problem.n_rows, int)
        return cls(np.full(columns, np.nan, np.float32), np.zeros(shape, np.int16), fold, np.zeros(columns, np.float32))

    def take(self, problem: Problem, fold: Fold, raw: np.ndarray, values: np.ndarray, place: int) -> None:
        """The rows of a fold, under each labelling.  # (m, p, columns), (n, p)"""
        self._take(problem, fold, raw, problem.columns(values[fold.train]).mean(axis=0), place)

    def take_refitted(self, problem: Problem, fold: Fold, raw: np.ndarray, weights: np.ndarray, place: int) -> None:
        """The rows of a fold, by each model that was trained again.  # (b, m, columns), (b, n)"""
        of_train = weights[:, fold.train] / weights[:, fold.train].sum(axis=1, keepdims=True)  # (b, n train)
        shares = of_train @ problem.columns(problem.values[fold.train, None])[:, 0]  # (b, columns)
        self._take(problem, fold, raw.swapaxes(0, 1), shares, place)

    def _take(self, problem: Problem, fold: Fold, raw: np.ndarray, means: np.ndarray, place: int) -> None:
        """Predictions of a fold, and the means of what they were trained on.  # (m, p, columns), (p, columns)"""
        self.fold[fold.test] = place
        if len(problem.classes) == 2:
            raw, means = (np.concatenate([1 - values, values], axis=-1) for values in (raw, means))
        self.reference[fold.test] = means
        if problem.kind == "regression":
            self.predicted[fold.test] = raw
            return
        self.predicted[fold.test] = probabilities = as_probabilities(raw)
        # of equal odds the first class, whatever the rounding: who says nothing of anybody must not decide by it
        odds = probabilities / np.maximum(means, FLOOR)
        self.decided[fold.test] = (odds >= (1 - TIE) * odds.max(axis=-1, keepdims=True)).argmax(axis=-1)

    def scores(self, problem: Problem, number: int, **given: np.ndarray) -> Scores:
        """Metrics of one labelling or training."""
        predicted, decided, reference = (part[:, number] for part in (self.predicted, self.decided, self.reference))
        return scores_of(problem, predicted, decided, self.fold, reference, **given)


def _interactions(problem: Problem, made: _Made, anew: _Made, weights: np.ndarray) -> list[Scores]:
    """What each resample changes by training and testing at once, beyond what it changes by either alone."""
    everybody = np.ones((1, problem.n_rows))
    first = made.scores(problem, 0, weights=np.concatenate([everybody, weights]))
    tested = {name: scores[1:] - scores[0] for name, scores in first.items()}  # (b,)
    found = []
    for number, w in enumerate(weights):
        scores = anew.scores(problem, number, weights=np.concatenate([everybody, w[None]]))
        found.append({name: np.diff(both) - tested[name][number] for name, both in scores.items()})
    return found


def _blank(problem: Problem, features: Features, n_repeats: int) -> Outcome:
    shape = (n_repeats, problem.n_rows)
    columns = (*shape, problem.n_predicted)
    decided, fold = np.zeros(shape, int), np.zeros(shape, int)
    return Outcome(features, np.full(columns, np.nan), decided, fold, np.zeros(columns), {}, {})


def as_probabilities(raw: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, none below a floor, of sum 1.  # (..., k)"""
    clipped = np.clip(raw, FLOOR, 1.0)
    return clipped / clipped.sum(axis=-1, keepdims=True)


def scores_of(
    problem: Problem,
    predicted: np.ndarray,
    decided: np.ndarray,
    fold: np.ndarray,
    reference: np.ndarray,
    weights: np.ndarray | None = None,
    values: np.ndarray | None = None,
) -> Scores:
    """Metrics of one repeat, over the rows that were tested.

    # (n, k), (n,), (n,), (n, k), (b, n) -> (b,) each
    """
    tested = ~np.isnan(predicted[:, 0])
    y, fold = (problem.values if values is None else values)[tested], fold[tested]
    w = None if weights is None else weights[:, tested]
    said, reference = predicted[tested].astype(float), reference[tested].astype(float)
    if problem.kind == "regression":
        return regression_scores(y, said[:, 0], w, fold, reference[:, 0])
    return classification_scores(y, said, decided[tested], w, fold, reference)


def each_repeat(
    problem: Problem, outcome: Outcome, weights: np.ndarray | None = None, values: np.ndarray | None = None
) -> list[Scores]:
    """Metrics of every repeat, against other values where they are given.  # (b, n), (n,) -> (b,) each"""
    repeats = zip(outcome.predicted, outcome.decided, outcome.fold, outcome.reference, strict=True)
    return [scores_of(problem, *repeat, weights, values) for repeat in repeats]


def _mean_over_repeats(problem: Problem, scores: list[list[Scores]]) -> Scores:
    return {
        name: np.mean([[float(score[name][0]) for score in of_repeat] for of_repeat in scores], axis=0)
        for name in metrics_of(problem.kind)
    }
