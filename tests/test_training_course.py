"""Trainings: the same command twice, interrupted and gone on with, diverging, too large, frozen where told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_cases import CONFIG, course, place, runs

from neurostorm_bids.errors import BackboneChanged, ResumeImpossible, SplitsOverlap, TrainingDiverged, UsageError
from neurostorm_bids.model.config import Target
from neurostorm_bids.model.encoder import Encoder
from neurostorm_bids.model.folder import tensor_digest
from neurostorm_bids.training import finetune
from neurostorm_bids.training.course import _require_work_for_all, advice, fitting_batch_size
from neurostorm_bids.training.finetune import Tuning, tune
from neurostorm_bids.training.linear import Embedded, fit_probe
from neurostorm_bids.training.modules import target_loss
from neurostorm_bids.training.pretrain import Pretraining, _samples, held_out_people, pretrain
from neurostorm_bids.training.splits import Split
from neurostorm_bids.training.targets import Label, Labels

PEOPLE = (("set", "04"), ("set", "05"))


class Interrupted(Exception):
    """Stands for a killed process: nothing is saved on the way out."""


def noisy(clip: np.ndarray, key: tuple[int, ...], background: float) -> np.ndarray:
    return clip + np.float32(0.1) * np.random.default_rng(key).standard_normal(clip.shape, dtype=np.float32)


def mae(folder: Path, *, resume: bool = False, augment=noisy, **changes) -> str:
    plan = Pretraining(config=CONFIG, augment=augment)
    folder.mkdir(exist_ok=True)
    encoder, _ = pretrain(plan, runs(folder), PEOPLE, course(**changes), place(folder, resume=resume))
    return tensor_digest(encoder.state_dict())


def test_the_same_training_twice_gives_the_same_weights_and_another_seed_others(tmp_path):
    first = mae(tmp_path / "a")
    assert first == mae(tmp_path / "b")
    assert first != mae(tmp_path / "c", seed=1)


@pytest.mark.parametrize(
    "n_clips", [26, 33, 65]
)  # 16 in a batch of 4 for 4 batches an epoch: inside, at its end, later
def test_an_interrupted_training_ends_with_the_weights_of_an_undisturbed_one(tmp_path, n_clips):
    seen = []

    def until(clip, key, background):
        seen.append(key)
        if len(seen) > n_clips:
            raise Interrupted
        return noisy(clip, key, background)

    with pytest.raises(Interrupted):
        mae(tmp_path / "broken", augment=until)
    assert mae(tmp_path / "broken", resume=True) == mae(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_training_course as cases
seen = []
def augment(clip, key, background):
    seen.append(key)
    if len(seen) > 44:
        os.kill(os.getpid(), signal.SIGKILL)
    return cases.noisy(clip, key, background)
cases.mae(Path(sys.argv[2]), augment=augment)
"""


def test_a_killed_training_goes_on(tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "killed")]
    # as many threads as here: torch's sums, and with them the last bits of the weights, depend on their number
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert mae(tmp_path / "killed", resume=True) == mae(tmp_path / "whole")


def test_another_training_is_not_gone_on_with(tmp_path):
    def stop(clip, key, background):
        if key[1] == 1:
            raise Interrupted
        return clip

    with pytest.raises(Interrupted):
        mae(tmp_path / "a", augment=stop)
    plan = Pretraining(config=CONFIG)
    with pytest.raises(ResumeImpossible, match=r"last\.ckpt: belongs to a training with other data"):
        pretrain(plan, runs(tmp_path), PEOPLE, course(), place(tmp_path / "a", resume=True, identity="other"))
    (tmp_path / "a" / "state" / "last.ckpt").write_bytes(b"half")
    with pytest.raises(ResumeImpossible, match="cannot be read"):
        mae(tmp_path / "a", resume=True)


def test_a_loss_that_is_not_finite_names_the_runs(tmp_path):
    def broken(clip, key, background):
        return clip * np.float32(np.nan)

    with pytest.raises(TrainingDiverged, match=r"the loss is nan in epoch 1, step 1 \(NaN.*sub-0\d_run-\d") as caught:
        mae(tmp_path / "a", augment=broken)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("spatial", "temporal"), [("random", "tube"), ("random", "random")])
def test_every_mask_trains(tmp_path, spatial, temporal):
    from neurostorm_bids.model.masks import Masking

    plan = Pretraining(config=CONFIG, masking=Masking(spatial, temporal, 0.5))
    _, outcome = pretrain(plan, runs(tmp_path, 4, 1), (), course(epochs=1), place(tmp_path))
    assert outcome.validation_loss is None and outcome.n_steps == 4


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path):
    """Atlas regions of unequal size hide unequal numbers of patches: means of means would not do."""
    from neurostorm_bids.model.masks import Masking

    atlas = np.arange(8).reshape(2, 2, 2) // 3  # 2 patches without region, 3 and 2 in the regions
    plan = Pretraining(config=CONFIG, masking=Masking("atlas", "random", 0.5), atlas=atlas)
    found = []
    for size, accumulate in ((4, 1), (1, 4)):
        folder = tmp_path / str(size)
        folder.mkdir()
        changes = {"epochs": 1, "batch_size": size, "accumulate": accumulate, "learning_rate": 1e-2, "warmup": 0.0}
        encoder, outcome = pretrain(plan, runs(folder, 4, 1), (), course(**changes), place(folder))
        assert outcome.n_steps == 4
        found.append(encoder.state_dict())
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=2e-5, rtol=1e-4, msg=name)


def test_a_mask_that_hides_nothing_is_refused(tmp_path):
    from neurostorm_bids.errors import TrainingError
    from neurostorm_bids.model.masks import Masking

    plan = Pretraining(config=CONFIG, masking=Masking("window", "tube", 0.5))  # one window holds the whole grid
    with pytest.raises(TrainingError, match="hides none of 1 pieces"):
        pretrain(plan, [], (), course(), place(tmp_path))


def test_contrast_learns_to_tell_people_apart(tmp_path):
    plan = Pretraining(config=CONFIG, objective="contrastive")
    _, outcome = pretrain(plan, runs(tmp_path, 8), (("set", "06"), ("set", "07")), course(epochs=4), place(tmp_path))
    assert outcome.validation_loss is not None and np.isfinite(outcome.validation_loss)


def test_clips_as_they_are_are_contrasted_across_runs_and_augmented_ones_also_within(tmp_path):
    from neurostorm_bids.model.contrastive import instance_loss, local_local_loss
    from neurostorm_bids.training.modules import contrast

    vectors = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    pairs, views = vectors.unflatten(0, (6, 2)), vectors.unflatten(0, (3, 2, 2))
    assert contrast(vectors, 2) == instance_loss(pairs[:, 0], pairs[:, 1])
    both = instance_loss(views[:, 0, 0], views[:, 0, 1]) + local_local_loss(views[:, 0], views[:, 1])
    assert contrast(vectors, 4) == both / 2
    files = []
    plan = Pretraining(config=CONFIG, objective="contrastive", augment=noisy)
    for augment, n_views in ((noisy, 4), (None, 2)):
        samples = _samples(replace(plan, augment=augment), runs(tmp_path, 3), 0)
        names = {view.run.name for view in samples.views(0, 0)}
        assert len(samples.views(0, 0)) == n_views
        files.append(len(names))
    assert files == [1, 2]


def test_people_are_held_out_of_every_dataset(tmp_path):
    both = [replace(run, dataset=name) for name in ("a", "b") for run in runs(tmp_path, 5, 1)]
    chosen = held_out_people(both, 0.2, 0)
    assert {dataset for dataset, _ in chosen} == {"a", "b"} and len(chosen) == 2
    assert held_out_people(both, 0.0, 0) == ()


# --- fine-tuning ------------------------------------------------------------------------------------------------

SPLIT = Split("1", ("00", "01", "02", "03"), ("04",), ("05",))


def labels(kind: str) -> Labels:
    values = {"regression": [float(person) for person in range(6)], "classification": list("xyxyxy"),
              "retrieval": [f"{person:02d}" for person in range(6)]}[kind]  # fmt: skip
    classes = ("x", "y") if kind == "classification" else ()
    target = Target("it", kind, head="emb" if kind == "retrieval" else "v1", unit="years", classes=classes)  # type: ignore[arg-type]
    found = tuple(Label(run, f"{run // 2:02d}", values[run // 2]) for run in range(12))
    return Labels(target, found)


def tuned(folder: Path, method: str, kind: str = "regression", **changes):
    backbone = Encoder(CONFIG, generator=torch.Generator().manual_seed(3))
    plan = Tuning(method=method, config=CONFIG, backbone=backbone.state_dict(), prompt_length=3)  # type: ignore[arg-type]
    found = dict(enumerate(runs(folder)))
    return backbone, tune(plan, found, labels(kind), SPLIT, course(**changes), place(folder))


@pytest.mark.parametrize("kind", ["regression", "classification", "retrieval"])
@pytest.mark.parametrize("method", ["prompt", "linear", "full"])
def test_methods_train_what_they_say_and_test_what_was_held_out(tmp_path, method, kind):
    backbone, result = tuned(tmp_path, method, kind, epochs=1, batch_size=2)
    own = {name: weight for name, weight in result.encoder.state_dict().items() if not name.endswith(".prompt")}
    same = tensor_digest(own) == tensor_digest(backbone.state_dict())
    assert same == (method != "full")
    assert {clip.participant for clip in result.test} == {"05"} and len(result.test) == 8
    n_prompts = sum(w.numel() for name, w in result.encoder.named_parameters() if name.endswith(".prompt"))
    assert n_prompts == (3 * (8 + 16) if method == "prompt" else 0)


@pytest.mark.parametrize("kind", ["regression", "classification", "retrieval"])
def test_prompt_tuning_begins_with_the_probe_of_the_training_participants(tmp_path, monkeypatch, kind):
    found = []

    def kept(target, train, validation, weights):
        found.append((fit_probe(target, train, validation, weights)[0], len(train.labels), len(validation.labels)))
        return found[-1][0], 1.0, 0.0

    monkeypatch.setattr(finetune, "fit_probe", kept)
    _, result = tuned(tmp_path, "prompt", kind, epochs=1, batch_size=2, learning_rate=0.0)
    (head, n_train, n_validation), *more = found
    assert not more and (n_train, n_validation) == (32, 8)  # nobody of the test
    assert tensor_digest(dict(result.head.named_parameters())) == tensor_digest(dict(head.named_parameters()))


def test_a_retrieval_probe_says_the_same_when_it_normalises_over_the_batch():
    draw = np.random.default_rng(0)
    people = np.repeat(np.arange(8), 6)
    features = (draw.standard_normal((8, 5))[people] + draw.standard_normal((48, 5))) * [1, 9, 0.1, 3, 1] + 7
    data = Embedded(features.astype(np.float32), people, people)
    head, *_ = fit_probe(Target("who", "retrieval", head="emb"), data, data, None)
    clips = torch.from_numpy(data.features)
    kept = head.eval()(clips)
    torch.testing.assert_close(head.train()(clips), kept, atol=1e-3, rtol=0)
    assert kept.std(0).count_nonzero() == 5


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_probe_is_shrunk_as_is_best_for_other_people_not_for_their_clips(kind):
    """Clips of a person hardly differ and traits are noise: whoever judged by clips would not shrink at all."""
    draw = np.random.default_rng(1)
    people = np.repeat(np.arange(20), 6)
    traits = draw.standard_normal(20) if kind == "regression" else np.arange(20) % 2.0
    features = draw.standard_normal((20, 15))[people] + 0.01 * draw.standard_normal((120, 15))
    data = Embedded(features.astype(np.float32), traits[people], people)
    target = Target("it", kind, mean=0.0, std=1.0, classes=("x", "y") if kind == "classification" else ())  # type: ignore[arg-type]
    assert fit_probe(target, data, None, None)[1] >= 100


def test_a_probe_of_too_few_people_to_decide_is_shrunk_by_the_middle_strength():
    alone = Embedded(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    target = Target("it", "classification", classes=("x", "y"))
    head, strength, loss = fit_probe(target, alone, None, None)
    assert (strength, loss) == (10.0, None) and head(torch.eye(4)).shape == (4, 1)


def test_the_scaler_is_that_of_the_training_participants(tmp_path):
    _, result = tuned(tmp_path, "linear")
    assert (result.target.mean, result.target.std) == (1.5, pytest.approx(np.std([0, 1, 2, 3])))


def test_a_changed_backbone_is_refused(tmp_path, monkeypatch):
    digests = iter("ab")
    monkeypatch.setattr(finetune, "backbone_digest", lambda encoder: next(digests))
    with pytest.raises(BackboneChanged, match="the frozen backbone changed"):
        tuned(tmp_path, "linear")


def test_overlapping_sides_are_refused_when_training_begins(tmp_path):
    backbone = Encoder(CONFIG)
    plan = Tuning(method="linear", config=CONFIG, backbone=backbone.state_dict())
    with pytest.raises(SplitsOverlap):
        tune(plan, {}, labels("regression"), replace(SPLIT, test=("00",)), course(), place(tmp_path))


def test_full_size_prompts_are_less_than_two_percent():
    from neurostorm_bids.model.config import EncoderConfig

    encoder = Encoder(EncoderConfig(prompt_len=50))
    prompts = sum(weight.numel() for name, weight in encoder.named_parameters() if name.endswith(".prompt"))
    assert prompts == 82_800
    assert prompts / sum(weight.numel() for weight in encoder.parameters()) < 0.02


def test_class_weights_are_those_of_the_data_not_of_the_batch():
    target = Target("it", "classification", classes=("x", "y"))
    outputs, truth = torch.tensor([[0.3], [-0.2]]), torch.tensor([0.0, 1.0])
    weights = torch.tensor([0.5, 2.0])
    each = torch.stack([torch.log1p(torch.exp(torch.tensor(0.3))), torch.log1p(torch.exp(torch.tensor(0.2)))])
    assert target_loss(target, outputs, truth, weights) == pytest.approx(float((each * weights).mean()))


def test_no_process_waits_for_one_without_validation_clips():
    _require_work_for_all(None, 8)
    _require_work_for_all([0, 1], 2)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"1 validation clips for 2 processes.*fewer processes"):
        _require_work_for_all([0], 2)  # type: ignore[arg-type]


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "fits"), [(3, 2), (8, 8), (0, 0)])
def test_the_batch_size_that_fits_is_found_by_trying(largest, fits):
    def attempt(size: int) -> None:
        if size > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert fitting_batch_size(attempt, 16) == fits
    wanted = f"--batch-size {fits} --accumulate {16 // fits}" if fits else "--gradient-checkpointing"
    assert wanted in advice(fits, 16)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def attempt(size: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fitting_batch_size(attempt, 4)
