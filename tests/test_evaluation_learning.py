"""Nested cross-validation: against scikit-learn step by step, and what it must never see."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from neurostorm_bids.errors import EvaluationImpossible, SplitImpossible
from neurostorm_bids.evaluate_tuned import _assumed
from neurostorm_bids.evaluation.intervals import (
    N_REFITS,
    Z,
    percentile,
    precision_interval,
    r2_interval,
    resamples,
    score_interval,
    widening_of,
)
from neurostorm_bids.evaluation.learning import Features, cross_validate, each_repeat
from neurostorm_bids.evaluation.logistic import nested_logistic
from neurostorm_bids.evaluation.metrics import COUNTED
from neurostorm_bids.evaluation.permutation import p_value, permutations
from neurostorm_bids.evaluation.problem import Problem, plan_folds
from neurostorm_bids.evaluation.ridge import (
    PENALTIES,
    Decomposition,
    Held,
    Nested,
    nested_ridge,
    nested_ridge_classifier,
)
from neurostorm_bids.evaluation.statements import statements
from neurostorm_bids.evaluation.summary import by_repeat, independent, over_repeats, summarise


def problem_of(values: np.ndarray, *, classes: tuple[str, ...] = (), families=None) -> Problem:
    participants = tuple(f"{i:04d}" for i in range(len(values)))
    return Problem(
        name="target",
        kind="classification" if classes else "regression",
        participants=participants,
        values=np.asarray(values),
        families=tuple(families or participants),
        sites=("",) * len(values),
        classes=classes,
        rows=participants,
    )


@pytest.mark.parametrize("d", [8, 90])
def test_predictions_are_those_of_scikit_learns_ridge(d: int):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, size=(40, d)), rng.normal(size=(40, 2))
    x[:, 0] = 5.0  # constant
    found = Decomposition.of(x[:30], x[30:])
    scaler = StandardScaler().fit(x[:30])
    penalties = PENALTIES * np.mean(found.singular**2)
    for penalty, predicted in zip(penalties, found.predictions(y[:30]), strict=True):
        expected = Ridge(alpha=penalty).fit(scaler.transform(x[:30]), y[:30]).predict(scaler.transform(x[30:]))
        assert np.allclose(predicted, expected, atol=1e-6)
    chosen = np.array([2, 5])
    both = found.predict(y[:30], chosen)
    assert np.allclose(both[:, 0], list(found.predictions(y[:30]))[2][:, 0])
    assert np.allclose(both[:, 1], list(found.predictions(y[:30]))[5][:, 1])


@pytest.mark.parametrize("d", [8, 90])
def test_refits_are_those_of_scikit_learn_on_rows_that_count_as_often_as_stated(d: int):
    rng = np.random.default_rng(11)
    x, y = rng.normal(3, 2, size=(40, d)), rng.normal(size=(40, 2))
    parts = Decomposition.of(x[:30], x[30:])
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=3).astype(float)
    chosen = np.array([4, 4, 6])
    found = parts.refitted(y[:30], weights, chosen)
    scaler = StandardScaler().fit(x[:30])
    penalties = PENALTIES[chosen] * np.mean(parts.singular**2)
    for made, w, penalty in zip(found, weights, penalties, strict=True):
        rows = np.repeat(np.arange(30), w.astype(int))
        expected = Ridge(alpha=penalty).fit(scaler.transform(x[rows]), y[rows]).predict(scaler.transform(x[30:]))
        assert np.allclose(made, expected, atol=1e-6)
    ones = parts.refitted(y[:30], np.ones((1, 30)), chosen[:1])[0]
    assert np.allclose(ones, parts.predict(y[:30], np.array([4, 4])))


def test_a_resample_chooses_the_penalty_by_the_rows_that_it_holds():
    y = np.arange(10.0)[:, None]
    best = np.arange(10) % len(PENALTIES)  # row i is predicted well with penalty i alone
    observed = y + (np.arange(len(PENALTIES))[:, None] != best)[..., None]  # (penalties, n, 1)
    nothing = np.zeros((len(PENALTIES), 1))
    held = Held(nothing, nothing, nothing, observed)
    assert (held.best_of_resamples(y, 10 * np.eye(10)) == best).all()
    assert held.best_of_resamples(y, np.array([[0, 0, 0, 4, 0, 0, 0, 6.0, 0, 0]])) == [7]


def test_logistic_refits_choose_the_penalty_again(monkeypatch):
    rng = np.random.default_rng(15)
    problem = problem_of((rng.normal(size=40) > 0).astype(int), classes=("a", "b"))
    x, fold = rng.normal(size=(40, 4)), plan_folds(problem, folds=4, repeats=1)[0]
    columns = problem.columns(problem.values[:, None])
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=60).astype(float)
    several = nested_logistic(x, columns, fold, weights).refitted
    monkeypatch.setattr("neurostorm_bids.evaluation.logistic.STRENGTHS", (1e-4,))
    strongest = nested_logistic(x, columns, fold, weights).refitted
    same = np.isclose(several, strongest, atol=1e-9).all(axis=(1, 2))
    assert 0 < same.sum() < 60  # noise: some resamples choose the strongest penalty, others do not


@pytest.mark.parametrize("learner", [nested_ridge_classifier, nested_logistic])
def test_refits_on_every_row_once_are_the_models_themselves(learner):
    rng = np.random.default_rng(12)
    problem = problem_of(rng.integers(3, size=60), classes=("a", "b", "c"))
    x = rng.normal(size=(60, 5)) + np.eye(3, 5)[problem.values]
    fold = plan_folds(problem, folds=4, repeats=1)[0]
    nested = learner(x, problem.columns(problem.values[:, None]), fold, np.ones((1, 60)))
    assert np.allclose(nested.refitted[0], nested.predicted[:, 0], atol=1e-6)


def test_each_permutation_goes_through_what_it_would_go_through_alone():
    rng = np.random.default_rng(1)
    problem = problem_of(rng.normal(size=40))
    x = rng.normal(size=(40, 6)) + problem.values[:, None]
    folds = plan_folds(problem, folds=4, repeats=1)
    orders = permutations(problem, 5, seed=0)
    labels = problem.columns(np.concatenate([problem.values[:, None], problem.values[orders]], axis=1))
    together = nested_ridge(x, labels, folds[0])
    for number in range(6):
        alone = nested_ridge(x, labels[:, number : number + 1], folds[0])
        assert np.allclose(together.predicted[:, number], alone.predicted[:, 0])
        assert together.penalty[number] == alone.penalty[0]


@pytest.mark.parametrize("learner", [nested_ridge, nested_ridge_classifier, nested_logistic])
def test_labels_of_test_rows_change_no_prediction(learner):
    rng = np.random.default_rng(2)
    problem = problem_of(rng.integers(2, size=40), classes=("a", "b"))
    x = rng.normal(size=(40, 4)) + problem.values[:, None]
    fold = plan_folds(problem, folds=4, repeats=1)[0]
    labels = problem.columns(problem.values[:, None])
    flipped = labels.copy()
    flipped[fold.test] = 1 - flipped[fold.test]
    assert np.array_equal(learner(x, labels, fold).predicted, learner(x, flipped, fold).predicted)
    held = learner(x, labels, fold)
    assert held.predicted.shape == (len(fold.test), 1, 1) and held.inner.shape == (len(fold.train), 1)


def test_inner_predictions_come_from_models_that_did_not_see_the_row():
    rng = np.random.default_rng(3)
    problem = problem_of(rng.normal(size=30))
    fold = plan_folds(problem, folds=3, repeats=1)[0]
    # features that tell each row apart: a model could only learn rows by heart
    inner = nested_ridge(np.eye(30), problem.columns(problem.values[:, None]), fold).inner[:, 0]
    assert abs(np.corrcoef(inner, problem.values[fold.train])[0, 1] + 0.5) < 0.6
    assert not np.allclose(inner, problem.values[fold.train], atol=0.5)


def test_folds_keep_families_together_at_both_levels():
    families = [f"f{i // 3}" for i in range(60)]
    problem = problem_of(np.arange(60.0), families=families)
    folds = plan_folds(problem, folds=5, repeats=2, seed=1)
    assert len(folds) == 10
    for fold in folds:
        of = [{families[row] for row in rows} for rows in (fold.train, fold.test)]
        assert not of[0] & of[1]
        for fit, held_out in fold.inner:
            a, b = ({families[fold.train[row]] for row in rows} for rows in (fit, held_out))
            assert not a & b
            assert len(fit) + len(held_out) == len(fold.train)
    for repeat in (0, 1):
        tested = np.concatenate([fold.test for fold in folds if fold.repeat == repeat])
        assert sorted(tested) == list(range(60))


def test_sites_left_out_and_what_is_too_small():
    problem = problem_of(np.arange(20.0))
    site = {label: "ab"[int(label) % 2] for label in problem.labels}
    folds = plan_folds(problem, leave_out=site, repeats=5)
    assert [fold.name for fold in folds] == ["a", "b"]
    with pytest.raises(EvaluationImpossible, match="10 or more"):
        problem_of(np.arange(5.0))
    with pytest.raises(SplitImpossible):
        plan_folds(problem, folds=30)


def test_signal_is_found_and_its_difference_from_noise_has_an_interval():
    rng = np.random.default_rng(4)
    values = rng.normal(50, 10, size=120)
    problem = problem_of(values)
    signal = rng.normal(size=(120, 5))
    signal[:, 0] += (values - 50) / 5
    folds = plan_folds(problem, folds=5, repeats=2)
    orders = permutations(problem, 60, seed=0)
    told: list[str] = []
    outcomes = {
        name: cross_validate(problem, Features.fixed(name, name, x), folds, orders, progress=told.append)
        for name, x in (("model", signal), ("noise", rng.normal(size=(120, 5))), ("chance", np.zeros((120, 0))))
    }
    weights = rng.multinomial(120, np.full(120, 1 / 120), size=200).astype(float)
    summary = summarise(problem, outcomes, ["model"], weights)
    row = summary.row("model", "r2")
    assert row.p == pytest.approx(1 / 61) and 0.5 < row.interval.low < row.value < row.interval.high < 1
    assert row.repeat_sd < 0.1 and summary.row("noise", "r2").p > 0.02
    difference = summary.difference("model", "noise", "r2")
    assert difference is not None and difference.interval.low > 0.4
    assert difference.value == pytest.approx(row.value - summary.row("noise", "r2").value)
    assert len(told) == 30 and told[0] == "model: repeat 1 of 2, fold 1"
    assert abs(summary.row("chance", "r2").value) < 0.1


def test_unequal_classes_are_decided_at_equal_odds():
    rng = np.random.default_rng(5)
    y = (np.arange(200) < 30).astype(int)
    x = rng.normal(size=(200, 3)) + 1.5 * y[:, None]
    problem = problem_of(y, classes=("common", "rare"))
    outcome = cross_validate(
        problem, Features.fixed("x", "x", x), plan_folds(problem, repeats=1), np.zeros((200, 0), int)
    )
    scores = by_repeat(problem, outcome)
    assert scores["balanced_accuracy"][0] > 0.8
    assert np.allclose(outcome.predicted[0].sum(axis=1), 1) and (outcome.predicted > 0).all()


def test_without_features_nothing_is_decided_by_rounding():
    """Folds differ in their shares; whoever knows nothing must not do better than even by deciding by them."""
    rng = np.random.default_rng(2)
    for y in (rng.integers(0, 2, 60), rng.integers(0, 3, 60), (np.arange(60) < 9).astype(int)):
        classes = tuple("abc"[: y.max() + 1])
        problem = problem_of(y, classes=classes)
        for features in (np.zeros((60, 0)), np.ones((60, 3))):
            outcome = cross_validate(
                problem, Features.fixed("x", "x", features), plan_folds(problem, repeats=2), np.zeros((60, 0), int)
            )
            scores = by_repeat(problem, outcome)
            assert (outcome.decided == 0).all() and (scores["auroc"] == 0.5).all()
            assert scores["balanced_accuracy"] == pytest.approx(1 / len(classes))
            expected = (np.bincount(y) / 60)[1:].mean() if len(classes) == 2 else 1 / 3
            assert scores["auprc"] == pytest.approx(expected)
            assert np.allclose(outcome.predicted, outcome.reference, atol=1e-6)
    numbers = problem_of(1000 + rng.normal(size=60))
    for features in (np.zeros((60, 0)), np.ones((60, 3))):
        folds = plan_folds(numbers, repeats=2)
        outcome = cross_validate(numbers, Features.fixed("x", "x", features), folds, np.zeros((60, 0), int))
        assert np.isnan(by_repeat(numbers, outcome)["pearson"]).all()


@pytest.mark.parametrize(("metric", "counted"), [("r2", 0.5), ("mae", 0.5), ("pearson", 1.0), ("spearman", 1.0)])
def test_intervals_have_the_spread_of_models_that_are_trained_again(metric: str, counted: float):
    rng = np.random.default_rng(13)
    x = rng.normal(size=(60, 20))
    problem = problem_of(x[:, :5].sum(axis=1) / np.sqrt(5) + rng.normal(size=60))
    folds, weights = plan_folds(problem, repeats=2), resamples(problem, 300, seed=0)
    plain, again = (
        cross_validate(problem, Features.fixed("x", "x", x), folds, np.zeros((60, 0), int), weights=of)
        for of in (None, weights[:N_REFITS])
    )
    widths = []
    for outcome in (plain, again):
        interval = summarise(problem, {"x": outcome}, [], weights).row("x", metric).interval
        widths.append(interval.high - interval.low)
    spread = np.std(over_repeats(problem, plain, weights)[metric])
    expected = np.sqrt(1 + counted * (np.std(again.interaction[metric]) / spread) ** 2)
    assert widths[1] / widths[0] == pytest.approx(expected, rel=0.03)  # R2 is unbiased by a factor of its spread
    assert widths[1] > 1.05 * widths[0]
    assert np.allclose(plain.predicted, again.predicted)


def test_what_a_resample_changes_by_training_and_testing_at_once_is_the_sum_over_pairs():
    """A model whose prediction of i is the sum of K_ij over training rows j, and a metric that is linear in it."""
    rng = np.random.default_rng(16)
    kernel = rng.normal(size=(30, 30))
    problem = problem_of(100 + rng.normal(size=30))  # higher than all predictions: MAE is their mean less that of these

    def learner(features, labels, fold, weights):
        of_pairs = features[np.ix_(fold.test, fold.train)]
        refitted = (weights[:, fold.train] @ of_pairs.T)[..., None]
        return Nested(of_pairs.sum(axis=1)[:, None, None], np.zeros((len(fold.train), 1)), np.zeros(1), refitted)

    folds, weights = plan_folds(problem, folds=3, repeats=1), resamples(problem, 50, seed=0)
    features = Features.fixed("K", "K", kernel)
    outcome = cross_validate(problem, features, folds, np.zeros((30, 0), int), learner=learner, weights=weights)
    trained = np.zeros((30, 30))
    for fold in folds:
        trained[np.ix_(fold.test, fold.train)] = kernel[np.ix_(fold.test, fold.train)]
    expected = -np.einsum("bi,ij,bj->b", weights - 1, trained, weights - 1) / 30
    assert np.allclose(outcome.interaction["mae"], expected, atol=1e-5) and np.std(expected) > 0.1


@pytest.mark.parametrize("go_together", [True, False])
def test_resamples_know_the_error_that_pairs_of_people_add(go_together: bool):
    """A metric of single rows and of pairs, whose error is known: its value, since the truth is 0."""
    rng, n = np.random.default_rng(17), 40
    pairs = np.triu(rng.normal(size=(n, n)), 1)  # j trains what i is tested with, or i what j is as well
    pairs = (pairs + pairs.T) / np.sqrt(2) if go_together else pairs
    errors, estimates = [], []
    for _ in range(400):
        y, w = rng.normal(size=n), rng.multinomial(n, np.full(n, 1 / n), size=100) - 1.0  # (b, n), resamples less 1
        of_pairs = y[:, None] * pairs * y
        alone = 2 * y + of_pairs.sum(axis=1)  # what each row adds by being tested
        errors.append(alone.sum())
        tested, jointly = w @ alone, np.einsum("bi,ij,bj->b", w, of_pairs, w)
        estimates.append((np.std(tested) * widening_of(tested, jointly, 10**9, 0.5)) ** 2)
    assert np.mean(estimates) / np.var(errors) == pytest.approx(1.0 if go_together else 1.4, abs=0.17)


@pytest.mark.parametrize("metric", ["mae", "pearson"])
def test_a_fine_tuned_model_has_the_spread_that_training_sets_in_common_ask_for(metric: str):
    rng = np.random.default_rng(18)
    problem = problem_of(rng.normal(size=40))
    folds, weights = plan_folds(problem, folds=4, repeats=1), resamples(problem, 1000, seed=0)
    features = Features.fixed("x", "x", problem.values[:, None] + rng.normal(size=(40, 2)))
    outcome = cross_validate(problem, features, folds, np.zeros((40, 0), int))
    tested = over_repeats(problem, outcome, weights)[metric]
    jointly = _assumed(problem, outcome, folds, weights)[metric]
    widening = widening_of(tested, jointly, 10**9, COUNTED.get(metric, 0.5))
    assert widening == pytest.approx(np.sqrt(1 + 1 / 3))  # Nadeau & Bengio 2003: 10 tested by 30 trained on


def test_few_people_have_wider_intervals_and_none_an_undefined_one():
    ends = np.array([-1.0, 1.0])
    assert widening_of(ends, ends * np.sqrt(2), 10**9, 0.5) == pytest.approx(np.sqrt(2))
    assert widening_of(ends, ends, 10**9, 1.0) == pytest.approx(np.sqrt(2))
    assert widening_of(ends, np.zeros(0), 10, 0.5) == pytest.approx(np.sqrt(10 / 9) * 2.2622 / 1.96, rel=1e-4)
    assert widening_of(ends, np.full(2, np.nan), 10**9, 0.5) == pytest.approx(1.0)
    assert widening_of(np.ones(5), ends, 10, 0.5) == widening_of(np.full(5, np.nan), ends, 10, 0.5) == 1.0


def test_the_interval_of_r2_has_no_longer_side_on_the_scale_of_its_logarithm():
    scattered = 1 - np.exp(0.1 * np.tile([-1.0, 1.0], 50))  # log(1 - R2) has an SD of 0.1
    interval = r2_interval(0.5, scattered, 2.0, 20)
    assert np.log(1 - interval.low) == pytest.approx(np.log(0.5 * 0.95) + 0.2 * Z)
    assert np.log(1 - interval.high) == pytest.approx(np.log(0.5 * 0.95) - 0.2 * Z)
    some = np.concatenate([scattered, [1.0, np.nan]])  # of which the logarithm is not defined
    assert r2_interval(0.5, some, 2.0, 20) == interval
    for value, undefined in ((1.0, scattered), (0.5, np.full(9, 0.5)), (0.5, np.r_[scattered, np.full(101, np.nan)])):
        assert np.isnan(r2_interval(value, undefined, 1.0, 20).low)


def test_the_interval_of_the_auprc_has_no_longer_side_in_log_odds():
    interval = precision_interval(0.8, 0.05, 12)
    assert interval.low / (1 - interval.low) == pytest.approx(4 * np.exp(-Z * 0.05 / 0.16))
    assert interval.high / (1 - interval.high) == pytest.approx(4 * np.exp(Z * 0.05 / 0.16))
    for value, spread in ((1.0, 0.05), (0.0, 0.05), (0.8, 0.0)):
        assert precision_interval(value, spread, 12) == score_interval(value, spread, 12)


@pytest.mark.parametrize(
    ("classes", "values", "counted"),
    [
        (("a", "b"), np.repeat([0, 1], [48, 12]), 6),
        (("a", "b"), np.repeat([0, 1], [12, 48]), 24),
        (("a", "b", "c"), np.repeat([0, 1, 2], [8, 20, 32]), 4),
        (("a", "b", "c"), np.repeat([0, 1], [20, 40]), 10),  # nobody is of the third
        (("a", "b"), np.repeat([0, 1], [58, 2]), 2),  # no fewer: one has no spread
    ],
)
def test_the_auprc_counts_the_families_of_its_class(classes, values, counted):
    problem = problem_of(values, classes=classes, families=[f"f{i // 2}" for i in range(60)])
    assert independent(problem, "auprc") == counted
    assert independent(problem, "auroc") == 30


def test_the_auprc_and_differences_of_it_have_students_quantile_of_the_class():
    rng = np.random.default_rng(19)
    y = (np.arange(60) < 12).astype(int)
    problem = problem_of(y, classes=("a", "b"))
    folds, weights = plan_folds(problem, repeats=1), resamples(problem, 500, seed=0)
    outcomes = {
        name: cross_validate(
            problem, Features.fixed(name, name, y[:, None] + rng.normal(size=(60, 3))), folds, np.zeros((60, 0), int)
        )
        for name in ("m", "other")
    }
    summary = summarise(problem, outcomes, ["m"], weights)
    tested = {name: over_repeats(problem, outcome, weights)["auprc"] for name, outcome in outcomes.items()}
    widening = widening_of(tested["m"], np.zeros(0), 12, 0.5)
    row = summary.row("m", "auprc")
    assert row.interval == precision_interval(row.value, float(np.std(tested["m"])) * widening, 12)
    difference = summary.difference("m", "other", "auprc")
    assert difference is not None and difference.interval == percentile(tested["m"] - tested["other"], widening)


def test_differences_of_r2_are_without_the_bias_of_a_samples_own_mean():
    rng = np.random.default_rng(20)
    problem = problem_of(rng.normal(size=20))
    folds, weights = plan_folds(problem, repeats=1), resamples(problem, 500, seed=0)
    good = problem.values[:, None] + 0.5 * rng.normal(size=(20, 1))
    outcomes = {
        name: cross_validate(problem, Features.fixed(name, name, of), folds, np.zeros((20, 0), int))
        for name, of in {"m": good, "other": rng.normal(size=(20, 1))}.items()
    }
    tested = np.subtract(*(over_repeats(problem, outcome, weights)["r2"] for outcome in outcomes.values()))
    expected = percentile(tested * (19 / 20) ** 2, widening_of(tested, np.zeros(0), 20, 0.5))
    difference = summarise(problem, outcomes, ["m"], weights).difference("m", "other", "r2")
    assert difference is not None and difference.interval.low == pytest.approx(expected.low)
    assert difference.interval.high == pytest.approx(expected.high) and expected.low > 0


def test_what_no_interval_covers_has_none():
    rng = np.random.default_rng(14)
    y = np.arange(60) % 2
    problem = problem_of(y, classes=("a", "b"))
    x = rng.normal(size=(60, 2)) * 0.1 + 5.0 * y[:, None]  # no decision is wrong
    folds = plan_folds(problem, repeats=1)
    outcome = cross_validate(problem, Features.fixed("x", "x", x), folds, np.zeros((60, 0), int))
    summary = summarise(problem, {"x": outcome, "again": outcome}, ["x"], resamples(problem, 100, seed=0))
    for metric in ("balanced_accuracy", "accuracy", "auroc"):
        row, difference = summary.row("x", metric), summary.difference("x", "again", metric)
        assert row.value == 1 and (row.interval.low, row.interval.high) == (pytest.approx(0.94, abs=0.01), 1)
        assert difference is not None and np.isnan(difference.interval.low)  # no resample tells the two apart
    assert np.isnan(summary.row("x", "ece").interval.low)
    assert any("gives no interval" in line for line in statements(problem, summary, ["x"]))


def test_three_classes_and_a_class_that_a_fold_lacks():
    rng = np.random.default_rng(6)
    y = np.array([0, 1] * 20 + [2])
    problem = problem_of(y, classes=("a", "b", "c"))
    x = rng.normal(size=(41, 4)) + np.eye(3, 4)[y] * 4
    folds = plan_folds(problem, folds=4, repeats=1)
    for learner in (nested_ridge_classifier, nested_logistic):
        outcome = cross_validate(problem, Features.fixed("x", "x", x), folds, np.zeros((41, 0), int), learner=learner)
        assert by_repeat(problem, outcome)["accuracy"][0] > 0.8
        assert np.allclose(outcome.predicted.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("classes", [(), ("a", "b")])
def test_p_is_uniform_where_there_is_nothing_to_find(classes):
    """120 evaluations of noise; the benchmark does 200 of a larger one."""
    rng = np.random.default_rng(7)
    found: dict[str, list[float]] = {}
    for number in range(120):
        values = rng.integers(2, size=40) if classes else rng.normal(size=40)
        problem = problem_of(values, classes=classes)
        folds = plan_folds(problem, folds=4, repeats=1, seed=number)
        orders = permutations(problem, 39, seed=number)
        outcome = cross_validate(problem, Features.fixed("x", "x", rng.normal(size=(40, 5))), folds, orders)
        observed = each_repeat(problem, outcome)[0]
        for metric in ("balanced_accuracy", "auroc", "brier") if classes else ("r2", "mae", "pearson"):
            found.setdefault(metric, []).append(p_value(metric, float(observed[metric][0]), outcome.permuted[metric]))
    for metric, p in found.items():
        jittered = np.array(p) - rng.uniform(0, 1 / 40, size=len(p))  # p comes in steps of 1 / 40
        assert kstest(jittered, "uniform").pvalue > 0.01, metric


@pytest.mark.parametrize("d", [5, 120])
def test_logistic_models_are_those_of_scikit_learn_on_the_features(d: int):
    """Also where there are more features than rows, and coordinates among the rows take their place."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, d)), rng.integers(0, 3, 60)
    problem = problem_of(y, classes=("a", "b", "c"))
    fold = plan_folds(problem, repeats=1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of probabilities whose sum is 1 in single precision only, say
        nested = nested_logistic(x.astype(np.float32), problem.columns(y[:, None]), fold)
    scaler = StandardScaler().fit(x[fold.train])
    model = LogisticRegression(C=1 / nested.penalty[0], max_iter=1000).fit(
        scaler.transform(x[fold.train]), y[fold.train]
    )
    assert np.allclose(nested.predicted[:, 0], model.predict_proba(scaler.transform(x[fold.test])), atol=2e-3)
