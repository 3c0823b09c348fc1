"""Pretraining and fine-tuning by the command line, from a simulated dataset to packs that predict."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from neurostorm_bids import learn
from neurostorm_bids.cli import main, parse_settings
from neurostorm_bids.errors import Stopped
from neurostorm_bids.inputs import find_runs
from neurostorm_bids.model import Encoder, EncoderConfig, InputSpec, load_model
from neurostorm_bids.model.description import INPUT_FIELDS, ModelDescription
from neurostorm_bids.model.folder import weights_of, write_model_folder
from neurostorm_bids.settings import to_toml
from neurostorm_bids.simulate import write_dataset
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.stored import normalised

AFFINE = [[-16, 0, 0, 89], [0, 16, 0, -107], [0, 0, 16, -71], [0, 0, 0, 1]]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


class Place:
    """A dataset, a backbone and an output folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.bids, self.out = root, root / "fmriprep", root / "out"

    def arguments(self, workflow: str, *words: str) -> list[str]:
        start = [str(self.bids), str(self.out), "group", "--group-workflow", workflow, "-w", str(self.root / "work")]
        return [*start, "--nprocs", "1", "--quiet", "--device", "cpu", *words]

    def call(self, workflow: str, *words: str) -> int:
        return main(self.arguments(workflow, *words))

    def training(self, name: str) -> dict:
        return json.loads((self.out / "models" / name / "training.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    root = tmp_path_factory.mktemp("group")
    write_dataset(root / "fmriprep", n_subjects=8, runs=2, tasks=("rest", "blocks"), n_volumes=60, seed=3)
    config = EncoderConfig(img_size=(12, 12, 12, 20), embed_dim=8, patch_size=(4, 4, 4, 1), depths=(1, 1))
    grid = Grid.of((12, 12, 12), AFFINE, "MNI152NLin6Asym")
    spec = InputSpec(grid=grid, provenance=dict.fromkeys(INPUT_FIELDS, "stated"))
    encoder = Encoder(config, generator=torch.Generator().manual_seed(0))
    description = ModelDescription(name="tiny", config=config, input=spec, trained=False)
    write_model_folder(root / "tiny", description, weights_of(encoder, {}))
    made = Place(root)
    words = ("--model", str(root / "tiny"), "--epochs", "1", "--name", "base", "-t", "rest")
    assert made.call("pretrain", *words) == 0
    return made


def tune(place: Place, *words: str) -> int:
    return place.call("finetune", "--model", str(place.out / "models" / "base"), *words)


def test_pretraining_writes_a_trained_model_with_its_subjects(place):
    model = load_model(place.out / "models" / "base")
    assert model.trained and not model.targets and model.name == "base"
    record = place.training("base")
    assert (record["n_participants"], record["n_runs"]) == (8, 16)
    assert len({run["content"] for run in record["runs"]}) == 16
    assert record["outcome"]["validation_loss"] > 0 and len(record["validation_participants"]) == 1
    assert not list((place.root / "work" / "training").glob("base/*"))  # nothing is left to resume


def test_packs_of_several_targets_predict_over_one_backbone(place):
    assert tune(place, "--target", "age", "sex", "--method", "linear", "--folds", "2", "-t", "rest") == 0
    assert tune(place, "--preset", "diagnosis", "--folds", "2", "--epochs", "1", "--prompt-length", "2",
                "--batch-size", "4", "-t", "rest") == 0  # fmt: skip
    packs = [place.out / "models" / f"base-{name}" for name in ("age", "sex", "diagnosis")]
    model = load_model(place.out / "models" / "base", packs=packs)
    found = model.embed_and_predict(torch.zeros(1, 1, 12, 12, 12, 20))[1]
    assert set(found) == {"age", "sex", "diagnosis"} and found["age"].unit == "year"
    scaler = next(target for target in model.targets if target.name == "age")
    truth = {row["participant_id"]: row["age"] for row in table(place.bids / "participants.tsv")}
    split = place.training("base-age")["split"]
    trained = [float(truth[f"sub-{label}"]) for label in split["train"]]
    assert scaler.mean == pytest.approx(sum(trained) / len(trained))
    assert sum(path.stat().st_size for path in packs[2].glob("*")) < 40_000


def test_figures_are_those_of_the_test_participants(place):
    assert (
        tune(place, "--target", "cognition", "--method", "linear", "--fold", "all", "--folds", "4", "-t", "rest") == 0
    )
    folder = place.out / "evaluation" / "base-cognition"
    rows = table(folder / "predictions.tsv")
    assert len(rows) == len({row["participant_id"] for row in rows}) == 8
    for row in rows:
        tested = {line["participant_id"] for line in table(folder / "splits.tsv")
                  if (line["fold"], line["split"]) == (row["fold"], "test")}  # fmt: skip
        assert row["participant_id"] in tested
    errors = [abs(float(row["truth"]) - float(row["predicted"])) for row in rows]
    pooled = {row["figure"]: row["value"] for row in table(folder / "metrics.tsv") if row["fold"] == "all"}
    assert float(pooled["mae"]) == pytest.approx(sum(errors) / 8)


def test_retrieval_and_states_have_units_of_their_own(place):
    assert tune(place, "--preset", "retrieval", "--method", "linear", "--folds", "2", "-t", "rest") == 0
    found = {row["figure"]: float(row["value"]) for row in table(place.out / "evaluation/base-identity/metrics.tsv")}
    assert found["gallery"] == 4 and 0.25 <= found["map"] <= 1
    assert tune(place, "--preset", "state", "--method", "linear", "--folds", "2") == 0
    rows = table(place.out / "evaluation" / "base-trial_type" / "predictions.tsv")
    assert {row["n_clips"] for row in rows} == {"1"} and len(rows) > 8


@pytest.mark.parametrize("background", ["minimum", "zero"])
def test_the_background_takes_what_the_model_states(place, background):
    settings = parse_settings(place.arguments("pretrain", "-t", "rest", "--participant-label", "01"))
    spec = InputSpec(grid=Grid.of((12, 12, 12), AFFINE, "MNI152NLin6Asym"), background=background)
    found = normalised(find_runs(settings).runs[0], spec, settings)
    frame = next(iter(found.frames()))
    assert (frame[~found.mask] == np.float32(found.background)).all() and (~found.mask).any()
    assert found.background == 0 if background == "zero" else found.background <= frame.min() < 0


def test_clips_that_moved_are_left_out(place):
    """All clips of one person and of one more run are above the threshold, and single ones of others."""
    words = ("--target", "age", "--method", "linear", "--folds", "2", "--fold", "all", "-t", "rest")
    assert tune(place, *words, "--name", "still", "--fd-threshold", "0.175") == 1
    clips = {row["participant_id"]: row["n_clips"] for row in table(place.out / "evaluation/still/predictions.tsv")}
    assert clips == {f"sub-0{person}": n for person, n in enumerate("6325646", start=2)}


@pytest.fixture(scope="module")
def atlas(place) -> Path:
    """Left and right, on the model's grid."""
    labels = np.ones((12, 12, 12), np.int16)
    labels[6:] = 2
    nib.save(nib.Nifti1Image(labels, np.array(AFFINE, float)), place.root / "atlas.nii.gz")
    return place.root / "atlas.nii.gz"


@pytest.mark.parametrize(
    "words",
    [
        ("--spatial-mask", "atlas", "--atlas", "ATLAS", "--gradient-checkpointing"),
        ("--spatial-mask", "random", "--temporal-mask", "tube", "--workers", "1"),
        ("--spatial-mask", "window", "--precision", "bf16", "--accumulate", "2", "--batch-size", "4", "--strd"),
        ("--objective", "contrastive", "--no-augmentation", "--batch-size", "4"),
    ],
)
def test_other_masks_objectives_and_ways_to_compute(place, atlas, tmp_path, words):
    words = tuple(str(atlas) if word == "ATLAS" else word for word in words)
    there = ("--model", str(place.root / "tiny"), "--epochs", "1", "--name", tmp_path.name, "-t", "rest")
    assert place.call("pretrain", *there, *words) == 0
    assert load_model(place.out / "models" / tmp_path.name).trained


def test_a_test_participant_who_was_pretrained_on_is_told(place, capsys):
    words = ("--target", "entity:run", "--method", "linear", "--folds", "2", "-t", "rest")
    command = place.arguments("finetune", "--model", str(place.out / "models" / "base"), *words)
    command.remove("--quiet")
    assert main(command) == 0
    assert "4 test participants were in the pretraining of base" in capsys.readouterr().err


def test_a_model_is_not_overwritten_and_a_resumed_one_is_left(place, capsys):
    words = ("--model", str(place.root / "tiny"), "--epochs", "1", "--name", "base", "-t", "rest")
    assert place.call("pretrain", *words) == 73
    assert "exists already" in capsys.readouterr().err
    before = (place.out / "models" / "base" / "model.json").read_bytes()
    assert place.call("pretrain", *words, "--resume") == 0
    assert (place.out / "models" / "base" / "model.json").read_bytes() == before


FOLDS = ("--target", "age", "--method", "linear", "--folds", "2", "--fold", "all", "-t", "rest")


def interrupted_before_its_figures(place, monkeypatch, name: str) -> None:
    def stop(*_arguments):
        raise Stopped("terminated", 143)

    with monkeypatch.context() as patched:
        patched.setattr(learn, "_write_figures", stop)
        assert tune(place, *FOLDS, "--name", name) == 143
    assert not (place.out / "evaluation" / name / "metrics.tsv").exists()


def test_figures_of_all_folds_need_no_work_folder(place, monkeypatch):
    interrupted_before_its_figures(place, monkeypatch, "cut")
    shutil.rmtree(place.root / "work")
    assert tune(place, *FOLDS, "--name", "cut", "--resume") == 0
    assert tune(place, *FOLDS, "--name", "whole") == 0
    for file in ("metrics.tsv", "predictions.tsv", "splits.tsv"):
        found = (place.out / "evaluation" / "cut" / file).read_bytes()
        assert found == (place.out / "evaluation" / "whole" / file).read_bytes()
    assert {row["fold"] for row in table(place.out / "evaluation" / "cut" / "metrics.tsv")} == {"1", "2", "all"}
    assert not list(place.out.rglob(learn.TESTED))
    assert tune(place, *FOLDS, "--name", "cut", "--resume") == 0  # there is nothing to do, and nothing is lost
    assert len(table(place.out / "evaluation" / "cut" / "predictions.tsv")) == 8


def test_a_fold_whose_predictions_are_gone_is_not_left_out_of_the_figures(place, monkeypatch, capsys):
    interrupted_before_its_figures(place, monkeypatch, "gone")
    (place.out / "logs" / "training" / "gone-fold1" / learn.TESTED).unlink()
    shutil.rmtree(place.out / "models" / "gone-fold2")
    before = (place.out / "evaluation" / "gone" / "splits.tsv").stat().st_mtime_ns
    assert tune(place, *FOLDS, "--name", "gone", "--resume") == 2
    said = capsys.readouterr().err
    assert "gone-fold1: is there, but not what it said of its test participants" in said and "Remove it" in said
    assert not (place.out / "models" / "gone-fold2").exists()  # nothing was trained, and nothing written
    assert (place.out / "evaluation" / "gone" / "splits.tsv").stat().st_mtime_ns == before
    shutil.rmtree(place.out / "models" / "gone-fold1")
    assert tune(place, *FOLDS, "--name", "gone", "--resume") == 0
    assert {row["fold"] for row in table(place.out / "evaluation" / "gone" / "metrics.tsv")} == {"1", "2", "all"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "fine-tuning without a target"),
        (("--preset", "phenotype"), 2, "--preset phenotype needs a --target"),
        (("--target", "height"), 2, "has no column 'height'"),
        (("--target", "age", "--fold", "9"), 2, "there is no fold 9"),
        (("--target", "age", "--group-by", "clan"), 2, "--group-by clan: there is no such column"),
        (("--target", "age", "--fd-threshold", "0.001"), 65, "mean framewise displacement above 0.001 mm"),
        (("--target", "age", "--spatial-mask", "atlas"), 2, "belong together"),
        (("--target", "age", "--folds", "40"), 2, "8 participants cannot be split into 40 folds"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(place, capsys, words, code, message):
    assert tune(place, "-t", "rest", *words) == code
    assert message in capsys.readouterr().err


def test_training_settings_read_back_equal(place, tmp_path):
    words = ("--target", "age", "sex", "--datasets", "more=/data/more", "--fold", "1", "2", "--strd", "--resume")
    words += ("--accumulate", "4", "--learning-rate", "0.002", "--splits", "/data/splits.tsv", "--patience", "3")
    settings = parse_settings(place.arguments("finetune", *words))
    saved = tmp_path / "saved.toml"
    saved.write_text(to_toml(settings))
    assert parse_settings([*place.arguments("finetune"), "--config-file", str(saved)]) == settings
