"""Calibration, shift, retrieval, confounds, controls, parcels, sentences: each on a case with a known answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurostorm_bids.evaluation.atlas import N_PARCELS, Parcellation, parcels_on
from neurostorm_bids.evaluation.baselines import connectivity, table_features
from neurostorm_bids.evaluation.calibration import bias_of, calibrate, half_width, temperature_of, with_temperature
from neurostorm_bids.evaluation.confounds import associations
from neurostorm_bids.evaluation.controls import MeanImage, shuffled
from neurostorm_bids.evaluation.intervals import Interval
from neurostorm_bids.evaluation.learning import Features, cross_validate
from neurostorm_bids.evaluation.permutation import p_value
from neurostorm_bids.evaluation.problem import Problem, plan_folds
from neurostorm_bids.evaluation.retrieval import (
    Ranks,
    chance_of,
    difference_of,
    interval_of,
    permuted_scores,
    ranks,
    retrieval_scores,
)
from neurostorm_bids.evaluation.shift import TrainingDistribution
from neurostorm_bids.evaluation.statements import shown, statements, verdict_of
from neurostorm_bids.evaluation.summary import Difference, MetricRow, Summary, _between_shares
from neurostorm_bids.space.grid import Grid

NONE = np.zeros((100, 0), int)
AFFINE_8MM = np.array([[8.0, 0, 0, -92], [0, 8, 0, -124], [0, 0, 8, -76], [0, 0, 0, 1]])
GRID_8MM = Grid.of((24, 28, 24), AFFINE_8MM, "MNI152NLin6Asym")


def problem_of(values, classes=()) -> Problem:
    names = tuple(f"{i:03d}" for i in range(len(values)))
    kind = "classification" if classes else "regression"
    return Problem("t", kind, names, np.asarray(values), names, ("",) * len(names), classes, rows=names)


# --- calibration ------------------------------------------------------------------------------------------------


def test_the_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-logits))).astype(int)
    overconfident = 1 / (1 + np.exp(-3 * logits))
    probabilities = np.stack([1 - overconfident, overconfident], axis=1)
    assert temperature_of(probabilities, y) == pytest.approx(3, rel=0.1)
    right = with_temperature(probabilities, 3.0)
    assert np.allclose(right[:, 1], 1 / (1 + np.exp(-logits)))
    assert temperature_of(np.full((10, 2), 0.5), np.zeros(10, int)) == 1.0


def test_intervals_of_predictions_cover_what_they_say():
    rng = np.random.default_rng(1)
    assert half_width(np.arange(-49, 50.0)) == 47  # the 95th of 99 absolute errors: 0, 1, 1, 2, 2, ...
    values = rng.normal(size=100)
    outcome = cross_validate(problem_of(values), Features.fixed("x", "x", values[:, None] + rng.normal(size=(100, 3))),
                             folds := plan_folds(problem_of(values), repeats=3), NONE)  # fmt: skip
    figures = calibrate(problem_of(values), outcome, folds).figures
    assert 0.9 <= figures["PredictionIntervalCoverage"] <= 1
    assert figures["ErrorWithValueUncorrected"] < -0.3
    assert abs(figures["ErrorWithValueBiasCorrected"]) < 0.2 and figures["R2BiasCorrected"] < figures["R2Uncorrected"]


def test_the_age_bias_is_a_slope():
    age = np.linspace(20, 80, 50)
    assert bias_of(age, 0.4 * age + 30) == pytest.approx((0.4, 30))
    assert bias_of(age, -age)[0] == 0.05


# --- shift ------------------------------------------------------------------------------------------------------


def test_runs_like_the_training_runs_are_told_from_others():
    rng = np.random.default_rng(2)
    mixing = rng.normal(size=(6, 24))
    trained_on = TrainingDistribution.of(rng.normal(size=(300, 6)) @ mixing + 5 + 0.1 * rng.normal(size=(300, 24)))
    assert trained_on is not None
    again = TrainingDistribution.from_json(trained_on.as_json())
    fresh = rng.normal(size=(500, 6)) @ mixing + 5 + 0.1 * rng.normal(size=(500, 24))
    inside = np.mean([again.resembles(row) for row in fresh])
    assert 0.93 <= inside <= 1.0
    assert not again.resembles(5 + 12 * mixing[0])
    odd = rng.normal(size=24)  # in a direction in which training runs hardly differ
    assert not again.resembles(fresh[0] + odd)
    assert TrainingDistribution.of(fresh[:10]) is None
    with pytest.raises(ValueError, match="belong together"):
        TrainingDistribution.from_json({**trained_on.as_json(), "variance": [1.0]})


# --- retrieval --------------------------------------------------------------------------------------------------


def test_ranks_of_known_order():
    gallery = np.random.default_rng(3).normal(size=(8, 30))
    found = ranks(gallery * 2 + 1, gallery, tuple("abcdefgh"))
    scores = retrieval_scores(ranks(gallery, gallery, tuple("abcdefgh")))
    assert (ranks(gallery, gallery, tuple("abcdefgh")).rank == 1).all() and found.gallery == 8
    assert scores == {"rank1": 1, "rank5": 1, "map": 1}
    swapped = gallery.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert retrieval_scores(ranks(swapped, gallery, tuple("abcdefgh")))["rank1"] == 6 / 8
    # features that tell nobody apart: ties count against
    assert (ranks(np.ones((8, 4)), np.ones((8, 4)), tuple("abcdefgh")).rank == 8).all()
    assert chance_of(4) == {"rank1": 0.25, "rank5": 1.0, "map": pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)}


def test_intervals_and_p_values_of_people_found():
    found = interval_of(np.ones(15))  # 15 of 15: Wilson
    assert (found.low, found.high) == (pytest.approx(0.7961, abs=1e-4), 1.0)
    half = interval_of(np.repeat([0.0, 1.0], 50))
    assert (half.low, half.high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert interval_of(np.repeat([0.4, 0.6], 50)).low > half.low  # values that vary less tell more
    rng = np.random.default_rng(6)
    people = rng.normal(size=(20, 12))
    same = ranks(people + 0.3 * rng.normal(size=people.shape), people, tuple(map(str, range(20))))
    noise = ranks(rng.normal(size=people.shape), people, tuple(map(str, range(20))))
    for found, least, most in ((same, 0, 0.01), (noise, 0.05, 1)):
        permuted = permuted_scores(found, 199, seed=0)
        assert least <= p_value("map", retrieval_scores(found)["map"], permuted["map"]) <= most
        assert permuted["rank1"].mean() == pytest.approx(1 / 20, abs=0.02)
    value, interval = difference_of(same, noise, 200, seed=0)["map"]
    assert value == pytest.approx(retrieval_scores(same)["map"] - retrieval_scores(noise)["map"])
    assert 0 < interval.low < value < interval.high
    # everybody is found by the one and nobody by the other: all resamples agree, and it is no less certain for that
    lost, best = (Ranks(np.full((20, 20), rank), same.participants) for rank in (20, 1))
    value, interval = difference_of(best, lost, 200, seed=0)["rank1"]
    assert value == interval.high == 1.0 and interval.low == pytest.approx(2 * 0.8389 - 1, abs=1e-3)
    assert np.isnan(difference_of(best, best, 200, seed=0)["rank1"][1].low)
    assert shown(Interval(np.nan, np.nan), "+.3f") == "(resampling gives no interval)"


# --- controls and parcels ---------------------------------------------------------------------------------------


def test_controls_keep_what_they_should():
    rng = np.random.default_rng(4)
    clips = rng.normal(size=(3, 1, 2, 2, 2, 5)).astype(np.float32)
    mean = MeanImage()
    for clip in clips:
        mean.add(clip)
    still = mean.repeated(5)
    assert still.shape == (1, 2, 2, 2, 5) and still.dtype == np.float32
    assert np.allclose(still[..., 3], clips.mean(axis=(0, -1)), atol=1e-6) and (still[..., :1] == still).all()
    mixed = shuffled(clips[0], 0, 1)
    assert np.array_equal(np.sort(mixed, axis=-1), np.sort(clips[0], axis=-1))
    assert not np.array_equal(mixed, clips[0]) and np.array_equal(mixed, shuffled(clips[0], 0, 1))
    rows = mixed.reshape(8, 5)
    assert np.allclose(np.cov(rows), np.cov(clips[0].reshape(8, 5)), atol=1e-5)
    with pytest.raises(ValueError, match="no clip"):
        MeanImage().repeated(5)


def test_parcels_lie_in_the_brain_and_are_of_one_size():
    labels = parcels_on(GRID_8MM)
    counts = np.bincount(labels.ravel(), minlength=N_PARCELS + 1)
    assert labels.shape == GRID_8MM.shape and (counts[1:] > 0).mean() > 0.97
    assert 0.1 < (labels > 0).mean() < 0.4
    x = np.arange(24)[:, None, None]
    means = [np.broadcast_to(x, labels.shape)[labels == parcel].std() for parcel in range(1, 101) if counts[parcel]]
    assert max(means) < 3  # compact: 24 mm


def test_courses_are_means_over_the_voxels_inside_the_mask():
    labels = parcels_on(GRID_8MM)
    clip = np.full((1, *GRID_8MM.shape, 3), -2.0, np.float32)
    clip[0][labels == 7] = [1.0, 2.0, 3.0]
    first = np.argwhere(labels == 7)[0]
    clip[0][tuple(first)] = -2.0  # outside the brain mask of this run
    courses = Parcellation(GRID_8MM).courses(clip, -2.0)
    assert courses.shape == (3, N_PARCELS)
    assert courses[:, 6].tolist() == [1.0, 2.0, 3.0]
    assert (np.delete(courses, 6, axis=1) == 0).all()


def test_tangent_features_are_fitted_on_the_training_rows():
    rng = np.random.default_rng(5)
    courses = [[rng.normal(size=(60, 4))] for _ in range(12)]
    correlation, tangent = connectivity(courses)
    assert correlation.of_fold(np.arange(6)).shape == (12, 6)
    assert np.array_equal(correlation.of_fold(np.arange(6)), correlation.of_fold(np.arange(8)))
    assert not np.allclose(tangent.of_fold(np.arange(6)), tangent.of_fold(np.arange(6, 12)))


# --- tables -----------------------------------------------------------------------------------------------------


def test_missing_values_are_filled_from_training_rows():
    table = pd.DataFrame({"fd": [1.0, 3.0, np.nan, 9.0], "site": ["a", "b", "a", None], "same": [1, 1, 1, 1]})
    features = table_features("nuisance", ".", table)
    assert features is not None
    values = features.of_fold(np.array([0, 1]))
    assert values[:, 0].tolist() == [1.0, 3.0, 2.0, 9.0] and values[:, 1].tolist() == [0, 0, 1, 0]
    assert values.shape == (4, 5)  # value and its absence; two sites and none
    assert table_features("nuisance", ".", table[["same"]]) is None


def test_associations_with_numbers_and_categories():
    problem = problem_of(np.arange(40.0))
    outcome = cross_validate(
        problem, Features.fixed("x", "x", np.arange(40.0)[:, None]), plan_folds(problem), np.zeros((40, 0), int)
    )
    table = pd.DataFrame({"fd": np.arange(40.0), "site": ["a"] * 20 + ["b"] * 20, "same": ["x"] * 40})
    found = associations(problem, outcome, table)
    assert set(found) == {"fd", "site"}
    assert found["fd"]["WithPrediction"] == pytest.approx(1, abs=1e-3)
    assert found["site"]["Measure"] == "eta" and found["site"]["WithObserved"] == pytest.approx(np.sqrt(0.75), abs=0.01)


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [("r2", 0.1, 0.2, 1), ("r2", -0.2, -0.1, -1), ("r2", -0.1, 0.2, 0), ("mae", -2.0, -1.0, 1), ("mae", 1.0, 2.0, -1),
     ("r2", float("nan"), float("nan"), 0)],
)  # fmt: skip
def test_verdicts_follow_the_interval_and_the_direction_of_the_metric(metric, low, high, verdict):
    assert verdict_of(Difference("m", "fc", metric, 0.0, Interval(low, high)), metric) == verdict


def test_better_than_permuted_labels_is_not_yet_above_chance():
    """Pipelines that learn from permuted labels do worse than a mean: a low p alone says little of a negative R2."""
    nothing, problem = Interval(-0.1, 0.1), problem_of(np.arange(60.0))
    rows = tuple(
        MetricRow(name, "r2", value, nothing, 0.0, p, n)
        for name, value, p, n in (
            ("good", 0.3, 0.01, 99), ("poor", -0.02, 0.01, 99), ("idle", -0.05, 0.4, 99), ("chance", -0.01, np.nan, 0)
        )
    )  # fmt: skip
    differences = tuple(Difference("poor", name, "r2", -0.3, nothing) for name in ("good", "idle", "chance"))
    what = {"chance": "The mean of the training rows"}
    said = statements(problem, Summary(rows, differences), ["poor"], descriptions=what)
    assert said[0].startswith("good: above chance (r2 0.300")
    assert said[1].startswith(
        "poor: not above chance: better than with permuted labels, but no better than without any"
    )
    assert said[2].startswith("idle: not above chance (r2")
    assert said[3].endswith("(r2 -0.300 [-0.100, +0.100]).") and said[4].endswith(" Neither is above chance.")
    assert "it cannot be told apart from the mean of the training rows" in said[5]


def test_a_model_that_is_always_right_is_better_than_a_guess_in_every_resample():
    def row(name: str, value: float, low: float, high: float) -> MetricRow:
        return MetricRow(name, "balanced_accuracy", value, Interval(low, high), 0.0, 0.01, 99)

    interval = _between_shares(row("m", 1.0, 0.8, 1.0), row("chance", 0.5, 0.35, 0.65))
    assert interval.low == pytest.approx(0.5 - np.hypot(0.2, 0.15)) and interval.high == pytest.approx(0.65)
    swapped = _between_shares(row("chance", 0.5, 0.35, 0.65), row("m", 1.0, 0.8, 1.0))
    assert (swapped.low, swapped.high) == (pytest.approx(-interval.high), pytest.approx(-interval.low))
