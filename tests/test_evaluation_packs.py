"""What a trained head takes along: calibration on validation participants, and marks by its training runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from training_cases import CONFIG

from neurostorm_bids.cli import main
from neurostorm_bids.evaluation.calibration import half_width
from neurostorm_bids.evaluation.packs import calibrated, calibration_record, distribution_of
from neurostorm_bids.evaluation.shift import Mark, QualityRanges
from neurostorm_bids.model.config import Target
from neurostorm_bids.model.description import ModelDescription
from neurostorm_bids.model.encoder import Encoder
from neurostorm_bids.outputs import read_tsv
from neurostorm_bids.simulate import Levels, write_dataset
from neurostorm_bids.training.course import Outcome
from neurostorm_bids.training.finetune import TrainedRun, Tuned
from neurostorm_bids.training.scores import ClipOutput

AGE = Target("age", "regression", unit="year", mean=50.0, std=10.0)
SEX = Target("sex", "classification", classes=("F", "M"))


def tuned_of(target: Target, validation=(), test=(), runs=()) -> Tuned:
    return Tuned(Encoder(CONFIG), nn.Identity(), target, Outcome(1, 1, 1, None, 0.0, True), tuple(test), 1, 1,
                 tuple(validation), tuple(runs))  # fmt: skip


def clips_of(n: int, value, output, *, runs: int = 2, clips: int = 3) -> list[ClipOutput]:
    """Clips of n people whose truth and outputs are drawn by functions of a generator."""
    found = []
    for person in range(n):
        rng = np.random.default_rng([n, person])
        truth = value(rng)
        for run in range(runs):
            made = output(rng, truth)
            found += [ClipOutput(f"{person:03d}", f"{person:03d}-{run}", 20 * i, truth, made) for i in range(clips)]
    return found


def aged(n: int) -> list[ClipOutput]:
    """Predictions 3 years off, as an SD; the outputs are in SDs of 10 years."""
    return clips_of(
        n, lambda rng: rng.uniform(20, 80), lambda rng, age: np.array([(age + rng.normal(0, 3.0) - 50) / 10])
    )


def test_each_participant_counts_once_and_too_few_give_no_interval():
    errors = np.arange(1.0, 20)
    assert half_width(errors) == 19.0  # the 19th of 19: (19 + 1) * 0.95
    assert half_width(errors[:18]) == np.inf
    copied = np.concatenate([errors, np.full(50, 2.0)])  # 51 rows of one person
    people = [*map(str, range(19)), *["1"] * 50]
    assert half_width(copied, people) == 19.0


def test_the_interval_of_a_calibrated_head_covers_new_runs():
    tuned = calibrated(tuned_of(AGE, aged(200), aged(300)), "participant")
    assert tuned.target.n_calibrated == 200
    assert tuned.target.half_width == pytest.approx(1.96 * 3, rel=0.12)
    record = calibration_record(tuned, "participant")
    assert 0.92 <= record["covered_test_runs"] <= 0.98
    few = calibrated(tuned_of(AGE, aged(18)), "participant")
    assert few.target == AGE and calibration_record(few, "participant")["participants"] == 0


def sexed(n: int) -> list[ClipOutput]:
    """Logits three times as sure as they may be."""

    def logit(rng, truth):
        return np.array([3 * (2 * rng.normal() * 0.7 + (1.0 if truth == "M" else -1.0))])

    return clips_of(n, lambda rng: str(rng.choice(["F", "M"])), logit, clips=1)


def test_the_temperature_of_a_calibrated_head_mends_probabilities():
    tuned = calibrated(tuned_of(SEX, sexed(300), sexed(301)), "participant")
    # log odds of two normals 2 apart, of SD 1.4: 2 x / 1.96; the logits are 3 x
    assert tuned.target.temperature == pytest.approx(3 * 1.96 / 2, rel=0.2)
    record = calibration_record(tuned, "participant")
    assert record["test_after"]["brier"] < record["test_before"]["brier"]
    assert record["test_after"]["ece"] < record["test_before"]["ece"]
    assert calibrated(tuned_of(SEX, sexed(9)), "participant").target == SEX


def test_a_perfect_validation_does_not_make_a_head_certain():
    perfect = clips_of(
        40, lambda rng: str(rng.choice(["F", "M"])), lambda rng, t: np.array([4.0 if t == "M" else -4.0])
    )
    target = calibrated(tuned_of(SEX, perfect), "participant").target
    sure = 1 / (1 + np.exp(-4.0 / target.temperature))
    assert 0.95 < sure < 0.99  # 41 of 42: one observation of each class more


def test_retrieval_and_nobody_to_validate_leave_a_head_as_it_is():
    identity = Target("identity", "retrieval", head="emb")
    assert calibrated(tuned_of(identity, aged(30)), "run").target == identity
    assert calibrated(tuned_of(AGE), "participant").target == AGE


def test_calibration_and_training_distribution_go_through_the_folder(tmp_path):
    from neurostorm_bids.model import load_model
    from neurostorm_bids.model.config import InputSpec
    from neurostorm_bids.model.folder import weights_of, write_model_folder
    from neurostorm_bids.model.heads import head_for
    from neurostorm_bids.space.grid import Grid

    rng = np.random.default_rng(0)
    runs = [TrainedRun(f"{i // 2}", rng.normal(size=16), {"quality": {"tsnr": rng.uniform(40, 60), "mean_fd": 0.2}})
            for i in range(80)]  # fmt: skip
    tuned = calibrated(tuned_of(AGE, aged(60), aged(60), runs), "participant")
    distribution = distribution_of(tuned)
    assert distribution is not None and (distribution["runs"], distribution["participants"]) == (80, 40)
    spec = InputSpec(grid=Grid.of((8, 8, 8), np.diag([24.0, 24, 24, 1]), "MNI152NLin6Asym"), clip_frames=6)
    description = ModelDescription(name="m", config=CONFIG, input=spec, targets=(tuned.target,),
                                   training_distribution=distribution)  # fmt: skip
    encoder, head = Encoder(CONFIG), head_for(AGE, 16, torch.Generator().manual_seed(0))
    write_model_folder(tmp_path / "m", description, weights_of(encoder, {"age": head}))
    model = load_model(tmp_path / "m", device="cpu")
    assert model.targets == (tuned.target,)
    assert "95 % interval of a run +- " in (tmp_path / "m" / "MODEL_CARD.md").read_text()
    read = model.description_of("age").training_distribution
    mark = Mark.of(read, rng.normal(size=16), {"tsnr": 50.0, "mean_fd": 0.2})
    assert mark.resembles is True
    far = Mark.of(read, rng.normal(size=16) + 20, {"tsnr": 50.0, "mean_fd": 0.2})
    assert far.resembles is False and "its embedding is " in far.sentence()
    noisy = Mark.of(read, rng.normal(size=16), {"tsnr": 5.0, "mean_fd": 0.2})
    assert noisy.resembles is False and "tsnr 5 (training runs " in noisy.sentence()
    assert distribution_of(replace(tuned, trained_on=tuned.trained_on[:20])) is None
    assert Mark.of(None, np.zeros(16), {}).resembles is None


def test_quality_ranges_hold_new_runs_like_the_old_ones():
    rng = np.random.default_rng(1)

    def run() -> dict[str, float]:
        return {"mean_fd": float(np.exp(rng.normal(-2, 0.4))), "tsnr": rng.normal(50, 5), "dice": 0.95}

    ranges = QualityRanges.from_json(QualityRanges.of([run() for _ in range(300)]).as_json())
    assert 0.94 <= np.mean([not ranges.odd(run()) for _ in range(1000)]) <= 0.995
    assert ranges.odd({"mean_fd": 2.0})[0].startswith("mean_fd 2 (training runs ")
    assert ranges.odd({"dice": 0.5}) and not ranges.odd({"unknown": 9.0})
    assert QualityRanges.of([run()] * 10) is None
    with pytest.raises(ValueError, match="belong together"):
        QualityRanges.from_json({**ranges.as_json(), "below": {}, "above": {"a": 1.0}})


AFFINE_16MM = [[-16, 0, 0, 89], [0, 16, 0, -107], [0, 0, 16, -71], [0, 0, 0, 1]]


def test_from_fine_tuning_to_marked_runs_and_calibrated_intervals(tmp_path, monkeypatch):
    """The command line: a probe of 48 people, then the participant level on people like them and on noisy scans."""
    from neurostorm_bids.model import EncoderConfig, InputSpec
    from neurostorm_bids.model.folder import weights_of, write_model_folder
    from neurostorm_bids.space.grid import Grid

    monkeypatch.chdir(tmp_path)  # models are named by paths from here, and workers stand elsewhere
    plan = {"tasks": ("rest",), "n_volumes": 24, "zoom_mm": 8.0}
    write_dataset("trained", n_subjects=48, runs=2, seed=4, **plan)
    write_dataset("alike", n_subjects=4, seed=5, **plan)
    write_dataset("noisy", n_subjects=1, seed=6, levels=Levels(noise=0.25, motion_mm=1.2), **plan)
    config = EncoderConfig(img_size=(12, 12, 12, 20), embed_dim=8, patch_size=(4, 4, 4, 1), depths=(1, 1))
    spec = InputSpec(grid=Grid.of((12, 12, 12), AFFINE_16MM, "MNI152NLin6Asym"))
    encoder = Encoder(config, generator=torch.Generator().manual_seed(0))
    write_model_folder("tiny", ModelDescription(name="tiny", config=config, input=spec), weights_of(encoder, {}))
    common = ("--model", "tiny", "--nprocs", "1", "--quiet", "--device", "cpu", "-w", "work")
    words = ("--target", "age", "--method", "linear", "--validation-share", "0.45")
    assert main(["trained", "out", "group", "--group-workflow", "finetune", *words, *common]) == 0
    pack = ("--packs", "out/models/tiny-age")
    for name in ("alike", "noisy"):
        assert main([name, f"out-{name}", "participant", *pack, *common]) == 0
    rows = {
        name: [read_tsv(path)[0] for path in sorted((tmp_path / f"out-{name}").glob("sub-*/func/*_predictions.tsv"))]
        for name in ("alike", "noisy")
    }
    assert sum(row["in_distribution"] == "true" for row in rows["alike"]) >= 3
    for row in rows["alike"]:
        if row["in_distribution"] == "true":
            assert float(row["interval_low"]) < float(row["value"]) < float(row["interval_high"])
    assert [row["in_distribution"] for row in rows["noisy"]] == ["false"]
    assert not any("interval_low" in row for row in rows["noisy"])
    sidecar = json.loads(next((tmp_path / "out-noisy").glob("sub-01/func/*_predictions.json")).read_text())
    assert any(text.startswith("tsnr ") for text in sidecar["Model"]["Shift"]["age"]["OddQuality"])
