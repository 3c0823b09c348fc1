"""Metrics against scikit-learn, on the rows themselves and on resamples of them; bootstrap and p values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

from neurostorm_bids.evaluation.intervals import percentile, resamples
from neurostorm_bids.evaluation.metrics import (
    calibration_error,
    classification_scores,
    confusion,
    midranks,
    on_one_level,
    regression_scores,
)
from neurostorm_bids.evaluation.permutation import p_value, permutations
from neurostorm_bids.evaluation.problem import Problem

RNG = np.random.default_rng(3)


def counts(n: int, b: int) -> np.ndarray:
    return np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), size=b).astype(float)


def expand(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.repeat(values, weights.astype(int), axis=0)


def make_problem(families=None, participants=None, values=None, sites=None) -> Problem:
    n = len(families or participants)
    participants = participants or tuple(f"{i:02d}" for i in range(n))
    return Problem(
        name="score",
        kind="regression",
        participants=tuple(participants),
        values=np.arange(n, dtype=float) if values is None else np.asarray(values, float),
        families=tuple(families or participants),
        sites=tuple(sites or [""] * n),
    )


def test_regression_metrics_are_those_of_scikit_learn_on_every_resample():
    y = RNG.normal(size=60).round(1)  # ties
    predicted = (y + RNG.normal(size=60)).round(1)
    weights = np.concatenate([np.ones((1, 60)), counts(60, 20)])
    scores = regression_scores(y, predicted, weights)
    for number, w in enumerate(weights):
        a, b = expand(y, w), expand(predicted, w)
        assert scores["r2"][number] == pytest.approx(r2_score(a, b))
        assert scores["mae"][number] == pytest.approx(mean_absolute_error(a, b))
        assert scores["pearson"][number] == pytest.approx(pearsonr(a, b)[0])
        assert scores["spearman"][number] == pytest.approx(spearmanr(a, b)[0])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_classification_metrics_are_those_of_scikit_learn_on_every_resample(n_classes: int):
    y = RNG.integers(n_classes, size=80)
    probabilities = RNG.dirichlet(np.ones(n_classes), size=80).round(2) + 0.3 * np.eye(n_classes)[y]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    decided = probabilities.argmax(axis=1)
    weights = np.concatenate([np.ones((1, 80)), counts(80, 10)])
    scores = classification_scores(y, probabilities, decided, weights)
    for number, w in enumerate(weights):
        truth, p, d = expand(y, w), expand(probabilities, w), expand(decided, w)
        onehot = np.eye(n_classes)[truth]
        assert scores["balanced_accuracy"][number] == pytest.approx(balanced_accuracy_score(truth, d))
        assert scores["accuracy"][number] == pytest.approx(accuracy_score(truth, d))
        assert scores["brier"][number] == pytest.approx(((p - onehot) ** 2).sum(axis=1).mean())
        columns = range(n_classes) if n_classes > 2 else (1,)
        assert scores["auroc"][number] == pytest.approx(
            np.mean([roc_auc_score(onehot[:, k], p[:, k]) for k in columns])
        )
        assert scores["auprc"][number] == pytest.approx(
            np.mean([average_precision_score(onehot[:, k], p[:, k]) for k in columns])
        )


def test_calibration_error_of_known_gaps():
    # ten rows of confidence 0.75, of which six are right; ten of 0.95, all right
    probabilities = np.array([[0.25, 0.75]] * 10 + [[0.05, 0.95]] * 10)
    y = np.array([1] * 6 + [0] * 4 + [1] * 10)
    assert calibration_error(y, probabilities)[0] == pytest.approx((abs(0.6 - 0.75) + 0.05) / 2)


def test_what_is_not_defined_is_nan_and_no_number():
    y = np.arange(10.0)
    scores = regression_scores(y, np.full(10, 3.7))
    assert np.isnan(scores["pearson"][0]) and np.isnan(scores["spearman"][0])
    assert scores["r2"][0] < 0
    only = np.zeros((1, 10))
    only[0, :5] = 1  # a resample without the second class
    probabilities = np.full((10, 2), 0.5)
    resampled = classification_scores(np.repeat([0, 1], 5), probabilities, np.zeros(10, int), only)
    assert np.isnan(resampled["auroc"][0])
    assert resampled["balanced_accuracy"][0] == 1


def test_rows_of_two_models_are_not_compared():
    """Each model ranks its own rows rightly; their levels differ, and over all rows ranks would be wrong."""
    y, fold = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    second = np.array([0.1, 0.2, 0.7, 0.9])
    probabilities = np.stack([1 - second, second], axis=1)
    assert classification_scores(y, probabilities, y)["auroc"][0] == 0.75
    assert classification_scores(y, probabilities, y, None, fold)["auroc"][0] == 1.0
    values, centre = np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 3.5, 1.5, 1.5])
    assert regression_scores(values, centre)["pearson"][0] < 0  # the mean of the others is low where a fold is high
    assert np.isnan(regression_scores(values, centre, centre=centre)["pearson"][0])


def test_a_bold_model_counts_no_more_than_a_timid_one():
    """One model finds the reverse of what the other finds, and predicts ten times as far from the mean."""
    y, fold = np.tile(np.arange(8.0), 2), np.repeat([0, 1], 8)
    predicted = np.concatenate([-10 * (y[:8] - 3.5), y[8:] - 3.5])
    assert regression_scores(y, predicted, centre=np.zeros(16))["pearson"][0] < -0.6
    scores = regression_scores(y, predicted, None, fold, np.zeros(16))
    assert scores["pearson"][0] == pytest.approx(0) and scores["spearman"][0] == pytest.approx(0)
    assert np.array_equal(on_one_level(predicted, None), predicted)
    assert (on_one_level(np.zeros(3), np.array([0, 0, 1])) == 0).all()  # a model that says the same of everybody
    seconds = 1 / (1 + np.exp(-predicted))
    probabilities, shares = np.stack([1 - seconds, seconds], axis=1), np.full((16, 2), 0.5)
    classes = (y > 3.5).astype(int)
    bold = classification_scores(classes, probabilities, classes, shares=shares)["auprc"][0]
    assert bold < 0.5 < classification_scores(classes, probabilities, classes, None, fold, shares)["auprc"][0]


def test_average_precision_does_not_suffer_from_folds_that_hold_more_of_a_class():
    """Two folds whose models rank at random, one with many of a class, so that the other's model expects many."""
    rng = np.random.default_rng(3)
    y = np.concatenate([rng.random(2000) < 0.7, rng.random(2000) < 0.3]).astype(int)
    share = np.repeat([0.3, 0.7], 2000)
    second = 1 / (1 + np.exp(-(np.log(share / (1 - share)) + 0.3 * rng.normal(size=4000))))
    probabilities, shares = np.stack([1 - second, second], axis=1), np.stack([1 - share, share], axis=1)
    assert classification_scores(y, probabilities, y)["auprc"][0] < 0.42
    assert classification_scores(y, probabilities, y, shares=shares)["auprc"][0] == pytest.approx(y.mean(), abs=0.03)


def test_midranks_of_copies_and_ties():
    assert midranks(np.array([5.0, 1.0, 5.0]), np.array([[1.0, 2.0, 1.0]])).tolist() == [[3.5, 1.5, 3.5]]


def test_confusion_counts_observed_in_rows():
    assert confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]


def test_p_values_count_the_observed_labelling_and_mind_the_direction():
    permuted = np.array([0.1, 0.2, 0.3, np.nan])
    assert p_value("r2", 0.25, permuted) == pytest.approx(2 / 5)
    assert p_value("mae", 0.15, permuted) == pytest.approx(2 / 5)
    assert p_value("r2", 0.3, permuted) == pytest.approx(2 / 5)  # a tie counts
    assert np.isnan(p_value("r2", 0.3, np.zeros(0)))
    assert np.isnan(p_value("r2", float("nan"), permuted))


def test_families_trade_places_as_wholes_and_within_their_site():
    families = [f"f{i // 2}" for i in range(24)] + [f"single{i}" for i in range(12)]
    sites = ["a", "a", "b", "b"] * 9
    problem = make_problem(families, sites=sites)
    orders = permutations(problem, 200, seed=0)
    assert (np.sort(orders, axis=0) == np.arange(36)[:, None]).all()
    assert all(sites[row] == sites[giver] for row, of_row in enumerate(orders) for giver in of_row)
    pairs = orders[:24].reshape(12, 2, -1)
    assert (pairs[:, 0] // 2 == pairs[:, 1] // 2).all() and (pairs < 24).all()
    assert len(np.unique(orders[0])) > 6


def test_values_that_differ_within_a_person_are_permuted_within():
    participants = [f"{i // 2:02d}" for i in range(24)]
    problem = make_problem(participants=participants, values=[0, 1] * 12)
    orders = permutations(problem, 50, seed=0)
    assert (orders // 2 == (np.arange(24) // 2)[:, None]).all()
    assert (orders != np.arange(24)[:, None]).any()


def test_rows_of_one_person_keep_one_value():
    participants = [f"{i // 2:02d}" for i in range(24)]
    problem = make_problem(participants=participants, values=np.repeat(np.arange(12.0), 2))
    permuted = problem.values[permutations(problem, 50, seed=0)]
    assert (permuted[::2] == permuted[1::2]).all()


def test_resamples_draw_families():
    problem = make_problem([f"f{i // 3}" for i in range(36)])
    weights = resamples(problem, 500, seed=0)
    assert (weights.reshape(500, 12, 3) == weights.reshape(500, 12, 3)[:, :, :1]).all()
    assert (weights.sum(axis=1) == 36).all()
    mean = percentile(weights @ problem.values / 36, widening=1.0)
    analytic = np.arange(12).std() * 3 / np.sqrt(12) * 1.96
    assert (mean.high - mean.low) / 2 == pytest.approx(analytic, rel=0.15)
    assert np.isnan(percentile(np.full(10, np.nan)).low)
