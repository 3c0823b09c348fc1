"""Ridge regression and classification: one decomposition of a fold's features serves every permutation of its labels.

With X = U S V' (centred, each feature of SD 1 over the training rows) the prediction for penalty c is
``mean(y) + X_test V diag(S / (S^2 + c)) U' y``: only ``U' y`` depends on the labels, so a thousand permuted labels
are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from neurostorm_bids.evaluation.problem import Fold

PENALTIES = 10.0 ** np.arange(-3, 4.5, 0.75)  # in units of the mean squared singular value
LEAST_SLOPE = 1e-3  # of log odds on a score, by its SD
SMALLEST = 1e-10  # singular values below this share of the largest are rounding


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The training features of a fold, and the rows to predict in the same coordinates.

    ``left`` is U (n, r), ``singular`` S (r,), ``new`` X_test V (m, r).
    """

    left: np.ndarray
    singular: np.ndarray
    new: np.ndarray

    @classmethod
    def of(cls, train: np.ndarray, new: np.ndarray) -> Decomposition:
        """Decompose training rows; scaling is learnt from them alone.  # (n, d), (m, d)"""
        mean, spread = train.mean(axis=0), train.std(axis=0)
        varies = spread > 1e-12 * np.maximum(np.abs(mean), 1e-300)
        train = (train[:, varies] - mean[varies]) / spread[varies]
        new = (new[:, varies] - mean[varies]) / spread[varies]
        if not train.shape[1]:
            return cls(np.zeros((len(train), 0)), np.zeros(0), np.zeros((len(new), 0)))
        return cls._dual(train, new) if train.shape[1] > len(train) else cls._primal(train, new)

    @classmethod
    def _primal(cls, train: np.ndarray, new: np.ndarray) -> Decomposition:
        squares, right = np.linalg.eigh(train.T @ train)  # (d,), (d, d)
        kept = squares > SMALLEST * squares[-1]
        singular, right = np.sqrt(squares[kept]), right[:, kept]
        return cls(train @ right / singular, singular, new @ right)

    @classmethod
    def _dual(cls, train: np.ndarray, new: np.ndarray) -> Decomposition:
        squares, left = np.linalg.eigh(train @ train.T)  # (n,), (n, n)
        kept = squares > SMALLEST * squares[-1]
        singular, left = np.sqrt(squares[kept]), left[:, kept]
        return cls(left, singular, (new @ train.T) @ left / singular)

    def predictions(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        """Predictions of the new rows for every penalty in turn.  # (n, m) -> each (rows, m)"""
        projected = self.left.T @ labels  # (r, m); columns of U are orthogonal to the mean
        for penalty in self._penalties():
            yield self._predict(penalty, projected) + labels.mean(axis=0)

    def predict(self, labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Predictions of the new rows, each column with the penalty chosen for it.  # (n, m), (m,) -> (rows, m)"""
        projected, penalties = self.left.T @ labels, self._penalties()
        predicted = np.empty((len(self.new), labels.shape[1]))
        for number in np.unique(chosen):
            columns = chosen == number
            predicted[:, columns] = self._predict(penalties[number], projected[:, columns])
        return predicted + labels.mean(axis=0)

    def refitted(self, labels: np.ndarray, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Predictions of the new rows by models whose training rows count as often as stated.

        With K = X X', ``(K + c W^-1)^-1`` (labels, 1) gives the dual weights of the labels and of the free intercept;
        where features are fewer than rows, the same equations are solved among the features.

        Parameters
        ----------
        labels : ndarray of shape (n, k)
        weights : ndarray of shape (b, n)
        chosen : ndarray of shape (b,), int
            Number of the penalty of each.

        Returns
        -------
        ndarray of shape (b, m, k)
        """
        train = (self.left * self.singular).astype(np.float64)  # (n, r), the features in other coordinates
        penalties = self._penalties()[chosen]
        solve = self._solved_primal if train.shape[1] < len(train) / 2 else self._solved_dual(train)
        return np.stack([solve(train, labels, *of_one) for of_one in zip(weights, penalties, strict=True)])

    def _solved_primal(self, train: np.ndarray, labels: np.ndarray, w: np.ndarray, penalty: float) -> np.ndarray:
        total = w.sum()
        x_mean, y_mean = w @ train / total, w @ labels / total
        x = train - x_mean
        slopes = _positive_solve((x.T * w) @ x + penalty * np.eye(x.shape[1]), (x.T * w) @ (labels - y_mean))
        return (self.new - x_mean) @ slopes + y_mean

    def _solved_dual(self, train: np.ndarray) -> Callable[..., np.ndarray]:
        kernel, to_new = train @ train.T, self.new @ train.T  # (n, n), (m, n)

        def solve(train: np.ndarray, labels: np.ndarray, w: np.ndarray, penalty: float) -> np.ndarray:
            kept = np.flatnonzero(w > 0)
            inner = kernel[np.ix_(kept, kept)] + np.diag(penalty / w[kept])
            both = _positive_solve(inner, np.concatenate([labels[kept], np.ones((len(kept), 1))], axis=1))
            of_labels, of_one = both[:, :-1], both[:, -1:]
            intercept = of_labels.sum(axis=0) / of_one.sum()
            return to_new[:, kept] @ (of_labels - of_one * intercept) + intercept

        return solve

    def _penalties(self) -> np.ndarray:
        return PENALTIES * (np.mean(self.singular**2) if self.singular.size else 1.0)

    def _predict(self, penalty: float, projected: np.ndarray) -> np.ndarray:
        return (self.new * (self.singular / (self.singular**2 + penalty))) @ projected


def _positive_solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve with a positive definite matrix, which may be overwritten.  # (n, n), (n, k) -> (n, k)"""
    if not len(matrix):
        return np.zeros((0, right.shape[1]))
    return cho_solve(cho_factor(matrix, overwrite_a=True, check_finite=False), right, check_finite=False)


@dataclass(frozen=True, eq=False)
class Nested:
    """What a fold's model says.

    Attributes
    ----------
    predicted : ndarray of shape (test rows, p, k)
        Numbers, or probabilities of the k classes (of the second where there are two).
    inner : ndarray of shape (training rows, k)
        Of the observed labels (the first of p): predictions by models that did not see the row, to calibrate on.
    penalty : ndarray of shape (p,)
    refitted : ndarray of shape (b, test rows, k)
        Of the observed labels: predictions of models of resampled training rows; penalty and calibration are chosen by
        the same resample of what the inner folds held out.
    """

    predicted: np.ndarray
    inner: np.ndarray
    penalty: np.ndarray
    refitted: np.ndarray


@dataclass(frozen=True, eq=False)
class Held:
    """Sums over the inner folds' held-out predictions z of labels y, for every penalty and column.

    # (penalties, p k) each; ``observed`` (penalties, n, k) holds the predictions of the observed labels
    """

    z: np.ndarray
    zy: np.ndarray
    zz: np.ndarray
    observed: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, n_columns: int, fold: Fold) -> Held:
        """Train on the inner folds and predict what each holds out.  # (n, d), (n, p k)"""
        sums = np.zeros((3, len(PENALTIES), y.shape[1]))
        observed = np.zeros((len(PENALTIES), len(x), n_columns))
        for fit, held_out in fold.inner:
            parts = Decomposition.of(x[fit], x[held_out])
            labels = y[held_out]
            for number, predicted in enumerate(parts.predictions(y[fit])):
                sums[0, number] += predicted.sum(axis=0)
                sums[1, number] += np.einsum("ij,ij->j", predicted, labels)
                sums[2, number] += np.einsum("ij,ij->j", predicted, predicted)
                observed[number, held_out] = predicted[:, :n_columns]
        return cls(sums[0], sums[1], sums[2], observed)

    def best_penalty(self, y: np.ndarray, n_columns: int) -> np.ndarray:
        """The penalty of least squared error of each labelling.  # (n, p k) -> (p,)"""
        errors = self.zz - 2 * self.zy + (y**2).sum(axis=0)
        return _least(errors.reshape(len(PENALTIES), -1, n_columns).sum(axis=-1))

    def best_of_resamples(self, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The penalty of least squared error of the observed labels in each resample.  # (n, k), (b, n) -> (b,)"""
        return _least(((self.observed - y) ** 2).sum(axis=-1) @ weights.T)


def _least(errors: np.ndarray) -> np.ndarray:
    """Of equal errors the largest penalty: without any feature all are equal.  # (penalties, p) -> (p,)"""
    least = errors.min(axis=0) + 1e-12 * np.abs(errors).max(axis=0)
    return len(PENALTIES) - 1 - (errors <= least)[::-1].argmax(axis=0)


def nested_ridge(features: np.ndarray, labels: np.ndarray, fold: Fold, weights: np.ndarray | None = None) -> Nested:
    """Choose the penalty on inner folds of the training rows, train, and predict the test rows.

    Parameters
    ----------
    features : ndarray of shape (n, d)
    labels : ndarray of shape (n, p, k)
        p labellings of the rows, the observed one first, of k columns; the columns of one share their penalty.
    fold : Fold
    weights : ndarray of shape (b, n), optional
        How often each row counts in the trainings behind ``Nested.refitted``.

    Returns
    -------
    Nested
    """
    return _nested(features, labels, fold, weights)[0]


def nested_ridge_classifier(
    features: np.ndarray, labels: np.ndarray, fold: Fold, weights: np.ndarray | None = None
) -> Nested:
    """`nested_ridge` on indicators of the classes, whose scores become probabilities.

    Held-out scores of the inner folds say where a class lies and how far its rows scatter; two normal distributions of
    one variance then give the odds. Scores that are no higher in the class than outside give little but its share.
    """
    nested, held, chosen, parts = _nested(features, labels, fold, weights)
    n_columns, y = labels.shape[2], labels[fold.train]  # (n, p, k)
    columns = np.arange(y.shape[1] * n_columns).reshape(-1, n_columns)
    z, zy, zz = (sums[chosen[:, None], columns] for sums in (held.z, held.zy, held.zz))  # (p, k)
    odds = _Odds.of(z, zy, zz, y.sum(axis=0), len(y)).if_any(parts)
    inner = odds.of_observed().probabilities(nested.inner[:, None])[:, 0]
    refitted = nested.refitted
    if len(refitted) and weights is not None:
        w = weights[:, fold.train]
        resampled = _Odds.of_resamples(held.observed[held.best_of_resamples(y[:, 0], w)], y[:, 0], w)
        refitted = resampled.if_any(parts).probabilities(refitted.swapaxes(0, 1)).swapaxes(0, 1)
    return Nested(odds.probabilities(nested.predicted), inner, nested.penalty, refitted)


@dataclass(frozen=True, eq=False)
class _Odds:
    """Log odds of each class by its score: slope and middle, and the share of the class.  # (p, k) each"""

    slope: np.ndarray
    middle: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray, zy: np.ndarray, zz: np.ndarray, n_in: np.ndarray, n: int | np.ndarray) -> _Odds:
        """From sums over held-out scores z and labels y, and the number of rows in each class."""
        inside, outside = zy / np.maximum(n_in, 1), (z - zy) / np.maximum(n - n_in, 1)
        scatter = np.maximum((zz - n_in * inside**2 - (n - n_in) * outside**2) / n, 1e-9)
        # never flat: decisions stay those of the scores, and permuted labellings do not tie
        slope = np.maximum((inside - outside) / scatter, LEAST_SLOPE / np.sqrt(scatter))
        return cls(slope, (inside + outside) / 2, n_in / n)

    @classmethod
    def of_resamples(cls, z: np.ndarray, y: np.ndarray, weights: np.ndarray) -> _Odds:
        """Those of resampled held-out rows, whose models had the level of all rows.  # (b, n, k), (n, k), (b, n)"""
        n_in, n = weights @ y, weights.sum(axis=1, keepdims=True)
        total, inside, squares = (np.einsum("bn,bnk->bk", weights, of) for of in (z, z * y, z**2))
        found = cls.of(total, inside, squares, n_in, n)
        share = np.clip(found.share, 1e-3, 1 - 1e-3)
        return cls(found.slope, found.middle + found.share - y.mean(axis=0), share)

    def if_any(self, parts: Decomposition) -> _Odds:
        """Without any feature the share of the class, no score however close to it."""
        return self if parts.singular.size else replace(self, slope=np.zeros_like(self.slope))

    def of_observed(self) -> _Odds:
        """Those of the first labelling."""
        return _Odds(self.slope[:1], self.middle[:1], self.share[:1])

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probability of each class.  # (n, p, k)"""
        odds = self.share * np.exp(np.clip(self.slope * (scores - self.middle), -30, 30))
        return odds / (1 - self.share + odds)


def _nested(
    features: np.ndarray, labels: np.ndarray, fold: Fold, weights: np.ndarray | None
) -> tuple[Nested, Held, np.ndarray, Decomposition]:
    train, n_columns = fold.train, labels.shape[2]
    x, y = features[train], labels[train].reshape(len(train), -1)  # (n, p k)
    held = Held.of(x, y, n_columns, fold)
    chosen = held.best_penalty(y, n_columns)
    parts = Decomposition.of(x, features[fold.test])
    predicted = parts.predict(y, np.repeat(chosen, n_columns)).reshape(len(fold.test), -1, n_columns)
    refitted = np.zeros((0, len(fold.test), n_columns))
    if weights is not None and len(weights):
        observed = y[:, :n_columns]
        refitted = parts.refitted(observed, weights[:, train], held.best_of_resamples(observed, weights[:, train]))
    return Nested(predicted, held.observed[chosen[0]], PENALTIES[chosen], refitted), held, chosen, parts
