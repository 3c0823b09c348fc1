"""Pooling and figures of predictions, by analytic cases."""

from __future__ import annotations

import numpy as np
import pytest

from neurostorm_bids.model.config import Target
from neurostorm_bids.training.scores import ClipOutput, chance, figures, judged, retrieval_figures

AGE = Target("age", "regression", unit="years", mean=40.0, std=10.0)
SEX = Target("sex", "classification", classes=("F", "M"))
WHO = Target("identity", "retrieval", head="emb")


def clip(person: str, run: str, truth, *outputs: float) -> ClipOutput:
    return ClipOutput(person, run, 0, truth, np.array(outputs, np.float32))


def test_a_participant_pools_runs_not_clips():
    clips = [clip("1", "a", 50.0, 0.0), clip("1", "a", 50.0, 0.0), clip("1", "a", 50.0, 0.0), clip("1", "b", 50.0, 2.0)]
    (one,) = judged(AGE, clips, "participant")
    assert float(one.prediction.rows[0]) == 50.0 and one.n_clips == 4 and one.run is None
    assert [float(unit.prediction.rows[0]) for unit in judged(AGE, clips, "run")] == [40.0, 60.0]
    assert len(judged(AGE, clips, "clip")) == 4


def test_figures_of_a_regression_are_in_its_unit():
    clips = [clip(str(n), str(n), 40.0 + 10 * n, n + 0.5) for n in range(4)]
    found = figures(AGE, judged(AGE, clips, "participant"))
    assert found["mae"] == pytest.approx(5) and found["r"] == pytest.approx(1)
    assert found["r2"] == pytest.approx(1 - 4 * 25 / 500)


def test_balanced_accuracy_counts_classes_alike():
    clips = [clip(str(n), str(n), "F", -1.0) for n in range(3)] + [clip("3", "3", "M", -0.5)]
    found = figures(SEX, judged(SEX, clips, "participant"))
    assert found == {"accuracy": 0.75, "balanced_accuracy": 0.5, "auroc": 1.0}
    assert "auroc" not in figures(SEX, judged(SEX, clips[:3], "participant"))


def test_retrieval_looks_for_the_last_run_by_the_first():
    own = np.eye(3)
    clips = [clip(str(n), f"{n}a", str(n), *own[n]) for n in range(3)]
    clips += [clip(str(n), f"{n}b", str(n), *own[(n + (n > 0)) % 3 or n]) for n in range(3)]
    units = judged(WHO, clips, "run")
    found = retrieval_figures(units)
    assert found["gallery"] == 3 and found["rank1"] == pytest.approx(1 / 3)
    assert retrieval_figures(units[:3]) == {}


def test_vectors_that_are_all_alike_find_nobody():
    clips = [clip(str(n), f"{n}{part}", str(n), 1.0, 0.0) for n in range(4) for part in "ab"]
    found = retrieval_figures(judged(WHO, clips, "run"))
    assert found["rank1"] == 0 and found["map"] == pytest.approx(0.25)
    assert chance(WHO, judged(WHO, clips, "run")) == {"rank1": 0.25}
