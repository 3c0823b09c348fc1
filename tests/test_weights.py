"""Checkpoints and folders become models that compute what the reference computes, or say why not."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import load_file
from torch import Tensor

from neurostorm_bids.errors import (
    ArchitectureContradicted,
    ArchitectureUnstated,
    ClipsInvalid,
    DeviceUnavailable,
    ModelError,
    ModelFileUnreadable,
    ModelFolderExists,
    ModelFolderInvalid,
    ModelNotFound,
    ModelUntrained,
    PackMismatch,
    SelfTestFailed,
    TargetScalerInvalid,
    TargetUnstated,
    UnsupportedCheckpoint,
    WeightsMismatch,
    WeightsNotFinite,
)
from neurostorm_bids.model import Encoder, EncoderConfig, Target, load_model
from neurostorm_bids.model.checkpoint import Statements, read_checkpoint, reference_grid
from neurostorm_bids.model.folder import pack_weights_of, read_model_folder, weights_of, write_model_folder
from neurostorm_bids.model.heads import head_for
from neurostorm_bids.model.inference import Model
from neurostorm_bids.model.predict import class_probabilities, joined, predict, with_scaler
from neurostorm_bids.model.registry import find_model
from neurostorm_bids.model.weights import (
    check_scalers,
    convert_checkpoint,
    least_weights,
    verify_model,
)
from neurostorm_bids.space.grid import NEUROSTORM_2MM, Grid

HYPER_PARAMETERS: dict[str, Any] = {
    "img_size": [12, 12, 12, 4],
    "patch_size": [6, 6, 6, 1],
    "in_chans": 1,
    "embed_dim": 8,
    "depths": [1, 2],
    "c_multiplier": 2,
    "window_size": [2, 2, 2, 2],
    "first_window_size": [2, 2, 2, 2],
    "last_layer_full_MSA": True,
    "prompt_len": 50,
    "use_prompt_tuning": False,
    "sequence_length": 4,
    "model": "swin4d_mae",
    "num_heads": [3, 6],
}
CONFIG = EncoderConfig(
    img_size=(12, 12, 12, 4),
    embed_dim=8,
    depths=(1, 2),
    window_size=(2, 2, 2, 2),
    first_window_size=(2, 2, 2, 2),
)
CLIPS = np.random.default_rng(3).standard_normal((3, 1, 12, 12, 12, 4), dtype=np.float32)
AGE = {"downstream_task_type": "regression", "task_name": "age"}
SEX = {"downstream_task_type": "classification", "task_name": "sex", "num_classes": 2}


def perturbed(module: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A module's state with every float moved, so that no norm or bias is trivial."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }


def encoder_state(config: EncoderConfig = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    return perturbed(Encoder(config, generator=torch.Generator().manual_seed(seed)), seed)


def head_state(target: Target, channels: int = 16) -> dict[str, Tensor]:
    return perturbed(head_for(target, channels, torch.Generator().manual_seed(1)), 1)


def checkpoint(
    path: Path,
    encoder: dict[str, Tensor] | None = None,
    head: dict[str, Tensor] | None = None,
    extra: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    **parameters: Any,
) -> Path:
    """A checkpoint laid out as the reference writes it: no Lightning version, no global step."""
    encoder = encoder_state() if encoder is None else encoder
    state = {f"model.{name}": tensor for name, tensor in encoder.items()}
    state |= {f"output_head.{name}": tensor for name, tensor in (head or {}).items()} | (extra or {})
    known = {name: value for name, value in (HYPER_PARAMETERS | parameters).items() if name not in without}
    torch.save(
        {
            "epoch": 7,
            "state_dict": state,
            "hyper_parameters": known,
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}],
            "lr_schedulers": [{"last_epoch": 3}],
        },
        path,
    )
    return path


def embedding_of(state: dict[str, Tensor], config: EncoderConfig = CONFIG) -> np.ndarray:
    """What the encoder gives for CLIPS, built and run here, without the code under test."""
    encoder = Encoder(config, backend="torch-reference").eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        return encoder(torch.from_numpy(CLIPS)).flatten(2).mean(2).numpy()


# --- parity with the reference ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["A1_win", "A1_full", "A2_pad_full", "A3_4stage_win", "B1_prompt"])
def test_golden_encoders_through_a_checkpoint(case: str, shared: Path, tmp_path: Path):
    golden = shared / "golden"
    config = json.loads((golden / f"{case}.json").read_text())["config"]
    parameters = {"in_chans": 1, "prompt_len": 50, "use_prompt_tuning": "prompt_len" in config, **config}
    path = checkpoint(tmp_path / "a.ckpt", load_file(golden / f"{case}.safetensors"), **parameters)
    arrays = np.load(golden / f"{case}.npz")
    embedding = load_model(path, device="cpu").embed(arrays["input"])
    assert_allclose(embedding.numpy(), arrays["pooled"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("case", "parameters"),
    [
        ("cls_v1_bin", SEX),
        ("cls_v2_bin", SEX),
        ("cls_v1_7", SEX | {"num_classes": 7}),
        ("cls_v2_5", SEX | {"num_classes": 5}),
        ("reg_v1", AGE),
        ("emb", {}),
    ],
)
def test_golden_heads_through_a_checkpoint(case: str, parameters: dict[str, Any], shared: Path, tmp_path: Path):
    golden = shared / "golden"
    config = json.loads((golden / "A1_full.json").read_text())["config"]
    state, arrays = load_file(golden / "F_heads.safetensors"), np.load(golden / "F_heads.npz")
    head = {name.removeprefix(f"{case}/"): tensor for name, tensor in state.items() if name.startswith(f"{case}/")}
    encoder = load_file(golden / "A1_full.safetensors")
    model = load_model(checkpoint(tmp_path / "a.ckpt", encoder, head, **config, **parameters), device="cpu")
    pooled = arrays["x"].reshape(3, 24, -1).mean(2)
    (prediction,) = model.predict_from_embedding(pooled).values()
    outputs = arrays[f"y_{case}"].astype(float)
    if case == "reg_v1":
        assert_allclose(prediction.values, outputs[:, 0], atol=1e-5)
    elif case == "emb":
        assert_allclose(prediction.vectors, outputs, atol=1e-5)
    else:
        logits = np.hstack([np.zeros_like(outputs), outputs]) if outputs.shape[1] == 1 else outputs
        odds = np.exp(logits)
        assert_allclose(prediction.probabilities, odds / odds.sum(1, keepdims=True), atol=1e-5)


def test_a_full_size_pretraining_checkpoint_is_recognised_key_by_key(shared: Path, tmp_path: Path):
    rows = re.findall(
        r"^\| `([a-z_0-9A-Z.]+)` \| \[([\d, ]+)\] \|$", (shared / "checkpoint_format.md").read_text(), re.M
    )
    shapes = {name: tuple(map(int, shape.split(","))) for name, shape in rows}
    state = {n: torch.zeros(s) for n, s in shapes.items() if not n.endswith(".prompt") and "output_head" not in n}
    published = {"img_size": [96, 96, 96, 20], "embed_dim": 36, "depths": [2, 2, 6, 2], "sequence_length": 20}
    windows = {"window_size": [4, 4, 4, 4], "first_window_size": [4, 4, 4, 4]}
    model = load_model(checkpoint(tmp_path / "mae.ckpt", state, **published, **windows), device="cpu")
    assert {"223 encoder weights", "epoch 7", "no head: embeddings only"} <= set(model.notes)
    assert "186 weights of the masked autoencoder's decoder, not needed for embeddings" in model.notes
    assert sum(p.numel() for p in model.encoder.parameters()) == 5_173_020
    assert model.grid == NEUROSTORM_2MM and set(model.input.provenance.values()) == {"assumed", "stated"}


# --- what a checkpoint says -------------------------------------------------------------------------------------


def test_a_checkpoint_embeds_as_its_encoder_does(tmp_path: Path):
    model = load_model(checkpoint(tmp_path / "my-model_1.ckpt"), device="cpu")
    assert_allclose(model.embed(CLIPS).numpy(), embedding_of(encoder_state()), rtol=1e-5, atol=1e-6)
    assert (model.name, model.label, model.trained, model.targets) == ("my-model_1", "mymodel1", True, ())
    assert model.predict(CLIPS) == {}
    assert (model.config, model.n_features, model.device) == (CONFIG, 16, "cpu")


def test_loading_draws_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, before = checkpoint(tmp_path / "m.ckpt"), torch.get_rng_state()
    load_model(path, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)  # as if nothing were read into them
    with pytest.raises(ClipsInvalid, match="not finite"):
        load_model(path, device="cpu").embed(CLIPS)


def test_hyper_parameters_in_a_namespace(tmp_path: Path):
    path = tmp_path / "a.ckpt"
    values = torch.load(checkpoint(path), weights_only=True)
    torch.save(values | {"hyper_parameters": argparse.Namespace(**values["hyper_parameters"])}, path)
    assert load_model(path, device="cpu").config == CONFIG


def test_prompts_count_if_the_file_says_so_or_shows_them(tmp_path: Path):
    prompted = replace(CONFIG, prompt_len=3)
    state = encoder_state(prompted)
    said = checkpoint(tmp_path / "a.ckpt", state, prompt_len=3, use_prompt_tuning=True)
    shown = checkpoint(tmp_path / "b.ckpt", state, without=("use_prompt_tuning", "prompt_len"))
    for path in (said, shown):
        model = load_model(path, device="cpu")
        assert model.config == prompted
        assert_allclose(model.embed(CLIPS).numpy(), embedding_of(state, prompted), rtol=1e-5, atol=1e-6)
    with pytest.raises(WeightsMismatch, match="3 weights missing"):
        load_model(checkpoint(tmp_path / "c.ckpt", use_prompt_tuning=True), device="cpu")
    with pytest.raises(WeightsMismatch, match="3 weights unexpected"):
        load_model(checkpoint(tmp_path / "d.ckpt", state), device="cpu")


@pytest.mark.parametrize("name", ["window_size", "first_window_size", "last_layer_full_MSA", "img_size", "depths"])
def test_an_architecture_that_shapes_do_not_show_must_be_stated(name: str, tmp_path: Path):
    path = checkpoint(tmp_path / "a.ckpt", without=(name,))
    with pytest.raises(ArchitectureUnstated, match=rf"a\.ckpt: does not say {name}; .*convert CHECKPOINT FOLDER --"):
        load_model(path, device="cpu")
    value = HYPER_PARAMETERS[name]
    stated = Statements(architecture={name: tuple(value) if isinstance(value, list) else value})
    assert load_model(path, device="cpu", stated=stated).config == CONFIG


def test_a_bare_state_dict_of_an_encoder_with_everything_stated(tmp_path: Path):
    torch.save(encoder_state(), tmp_path / "neurostorm.pth")
    with pytest.raises(ArchitectureUnstated):
        load_model(tmp_path / "neurostorm.pth", device="cpu")
    names = ("window_size", "first_window_size", "last_layer_full_MSA", "img_size", "patch_size", "embed_dim", "depths")
    stated = Statements(architecture={name: HYPER_PARAMETERS[name] for name in names})
    model = load_model(tmp_path / "neurostorm.pth", device="cpu", stated=stated)
    assert_allclose(model.embed(CLIPS).numpy(), embedding_of(encoder_state()), rtol=1e-5, atol=1e-6)


def test_a_statement_that_contradicts_the_file_is_refused(tmp_path: Path):
    stated = Statements(architecture={"window_size": (4, 4, 4, 4)})
    with pytest.raises(ArchitectureContradicted, match=r"window_size \[2, 2, 2, 2\], and \[4, 4, 4, 4\] was stated"):
        load_model(checkpoint(tmp_path / "a.ckpt"), device="cpu", stated=stated)


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"depths": "2 2"}, r"hyper_parameters\.depths is 2 2"),
        ({"last_layer_full_MSA": "True"}, "last_layer_full_MSA is True. expected true or false"),
        ({"embed_dim": 10**9}, r"embed_dim is 1000000000"),
        ({"sequence_length": 0}, r"hyper_parameters\.sequence_length is 0"),
    ],
)
def test_impossible_hyper_parameters_are_named(parameters: dict[str, Any], fault: str, tmp_path: Path):
    with pytest.raises(ModelFolderInvalid, match=fault):
        load_model(checkpoint(tmp_path / "a.ckpt", **parameters), device="cpu")


def test_checkpoints_of_another_kind(tmp_path: Path):
    with pytest.raises(UnsupportedCheckpoint, match="with_voxel_norm"):
        load_model(checkpoint(tmp_path / "a.ckpt", with_voxel_norm=True))
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(UnsupportedCheckpoint, match="has no state_dict"):
        load_model(tmp_path / "b.ckpt")
    torch.save({"state_dict": {"model.a": torch.zeros(1)}, "hyper_parameters": [1]}, tmp_path / "c.ckpt")
    with pytest.raises(UnsupportedCheckpoint, match="hyper_parameters are a list"):
        load_model(tmp_path / "c.ckpt")


# --- keys and values --------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_weights_are_all_named(tmp_path: Path):
    state = encoder_state()
    state.pop("layers.0.blocks.0.norm1.bias")
    state["layers.1.blocks.1.mamba.D"] = torch.zeros(5)
    state["layers.0.blocks.0.attn.qkv.weight"] = torch.zeros(3)
    path = checkpoint(tmp_path / "a.ckpt", state, extra={"criterion.weight": torch.zeros(2)})
    with pytest.raises(WeightsMismatch) as caught:
        load_model(path, device="cpu")
    message = str(caught.value)
    assert "1 weights missing (encoder.layers.0.blocks.0.norm1.bias)" in message
    assert "2 weights unexpected (encoder.layers.0.blocks.0.attn.qkv.weight, criterion.weight)" in message
    assert "1 weights of another shape (encoder.layers.1.blocks.1.mamba.D (5,) for (32,))" in message


def test_another_architecture_with_the_same_keys_is_refused(tmp_path: Path):
    with pytest.raises(WeightsMismatch, match="of another shape"):
        load_model(checkpoint(tmp_path / "a.ckpt", embed_dim=12), device="cpu")


def test_an_architecture_far_larger_than_the_file_is_refused_before_it_is_built(tmp_path: Path):
    huge = {"depths": [64] * 8, "embed_dim": 32}
    with pytest.raises(WeightsMismatch, match=r"holds \d+ numbers. expected the 2\d{10} or more"):
        load_model(checkpoint(tmp_path / "a.ckpt", **huge), device="cpu")
    with pytest.raises(ModelFolderInvalid, match="expected at most 4096 channels in the last"):
        load_model(checkpoint(tmp_path / "b.ckpt", **huge | {"embed_dim": 1024}), device="cpu")


@pytest.mark.parametrize("config", [CONFIG, EncoderConfig(), EncoderConfig(in_chans=2, mlp_ratio=0.5, expand=1)])
def test_the_least_size_of_an_encoder_is_no_more_than_its_size(config: EncoderConfig):
    size = sum(p.numel() for p in Encoder(config).parameters())
    assert 0.5 * size < least_weights(config) <= size


def test_decoder_weights_and_the_atlas_buffer_are_recognised(tmp_path: Path):
    names = ("mask_token", "layers_up.0.x", "norm_up.bias")
    extra = {f"model.{name}": torch.zeros(8) for name in names}
    extra["model.atlas_map"] = torch.zeros(2, 2, 2, dtype=torch.int32)
    read = read_checkpoint(checkpoint(tmp_path / "a.ckpt", extra=extra))
    assert set(read.decoder) == set(names)
    assert "buffers left out: atlas_map" in read.notes
    assert not read.unexpected


def test_unexpected_keys_can_be_left_out_by_name(tmp_path: Path):
    path = checkpoint(tmp_path / "a.ckpt", extra={"criterion.weight": torch.zeros(2)})
    with pytest.raises(WeightsMismatch, match="1 weights unexpected"):
        load_model(path, device="cpu")
    model = load_model(path, device="cpu", stated=Statements(ignore=("criterion.",)))
    assert "1 keys left out as asked" in model.notes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path):
    state = encoder_state()
    state["layers.0.blocks.0.mamba.D"][3] = value
    with pytest.raises(WeightsNotFinite, match=r"first in encoder\.layers\.0\.blocks\.0\.mamba\.D.*earlier checkpoint"):
        load_model(checkpoint(tmp_path / "a.ckpt", state), device="cpu")


def test_truncated_checkpoints_are_refused(tmp_path: Path):
    path = checkpoint(tmp_path / "a.ckpt")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelFileUnreadable, match="truncated"):
        load_model(path, device="cpu")


# --- heads of checkpoints ---------------------------------------------------------------------------------------


def test_two_classes_with_one_logit(tmp_path: Path):
    target = Target("sex", "classification", classes=("class-0", "class-1"))
    head = head_state(target)
    model = load_model(checkpoint(tmp_path / "a.ckpt", head=head, **SEX), device="cpu")
    assert model.targets == (target,)
    logit = embedding_of(encoder_state()) @ head["head.head.weight"].numpy().T + head["head.head.bias"].numpy()
    prediction = model.predict(CLIPS)["sex"]
    assert_allclose(prediction.probabilities[:, [1]], 1 / (1 + np.exp(-logit)), atol=1e-5)
    assert_allclose(prediction.probabilities.sum(1), 1, atol=1e-12)
    assert len(np.unique(prediction.probabilities)) > 2  # not class 0 with certainty


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_several_classes(version: str, tmp_path: Path):
    target = Target("state", "classification", head=version, classes=("a", "b", "c"))
    path = checkpoint(tmp_path / "a.ckpt", head=head_state(target), **SEX | {"num_classes": 3})
    stated = Statements(target=replace(target, head="v1"))
    model = load_model(path, device="cpu", stated=stated)
    assert model.targets == (target,)
    assert model.predict(CLIPS)["state"].probabilities.shape == (3, 3)


def test_a_regression_without_its_scaler_says_standard_units(tmp_path: Path):
    head = head_state(Target("age", "regression"))
    path = checkpoint(tmp_path / "a.ckpt", head=head, **AGE)
    raw = load_model(path, device="cpu").predict(CLIPS)["age"]
    assert (raw.unit, raw.natural_units) == ("standard units", False)
    scaled = load_model(path, device="cpu", target_scaler={"age": (54.2, 7.6)}).predict(CLIPS)["age"]
    assert scaled.natural_units
    assert_allclose(scaled.values, 54.2 + 7.6 * raw.values, rtol=1e-12)


def test_a_min_max_scaled_target_takes_minimum_and_maximum(tmp_path: Path):
    head = head_state(Target("age", "regression"))
    path = checkpoint(tmp_path / "a.ckpt", head=head, label_scaling_method="minmax", **AGE)
    raw = load_model(path, device="cpu").predict(CLIPS)["age"]
    assert raw.unit == "fraction of the training range"
    stated = Statements(target=Target("age", "regression", unit="years", mean=20, std=80))
    for model in (
        load_model(path, device="cpu", target_scaler={"age": (20, 80)}),
        load_model(path, device="cpu", stated=stated),
    ):
        assert_allclose(model.predict(CLIPS)["age"].values, 20 + 60 * raw.values, rtol=1e-12)


def test_a_head_of_one_output_must_say_what_it_is(tmp_path: Path):
    head = head_state(Target("age", "regression"))
    path = checkpoint(tmp_path / "a.ckpt", head=head)
    with pytest.raises(TargetUnstated, match=r"value or the logit of two classes.*--target NAME:regression"):
        load_model(path, device="cpu")
    stated = Statements(target=Target("sex", "classification", classes=("female", "male")))
    assert load_model(path, device="cpu", stated=stated).targets[0].classes == ("female", "male")
    path = checkpoint(tmp_path / "b.ckpt", head=head, downstream_task_type="default")
    with pytest.raises(TargetUnstated):
        load_model(path, device="cpu")


def test_embedding_heads_give_vectors_of_unit_length(tmp_path: Path):
    head = head_state(Target("identity", "retrieval", head="emb"))
    head["bn1.running_var"] = head["bn1.running_var"].abs() + 0.5
    model = load_model(checkpoint(tmp_path / "a.ckpt", head=head), device="cpu")
    vectors = model.predict(CLIPS)["identity"].vectors
    assert vectors.shape == (3, 128)
    assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "parameters", "error", "fault"),
    [
        (Target("s", "classification", classes=("a", "b", "c")), AGE, UnsupportedCheckpoint, "of 3 outputs"),
        (Target("s", "classification", head="v2", classes=("a", "b")), AGE, UnsupportedCheckpoint, "head v2 of 1"),
        (
            Target("s", "classification", classes=("a", "b", "c")),
            SEX | {"num_classes": 4},
            ArchitectureContradicted,
            "say 4 classes and its head has 3",
        ),
    ],
)
def test_heads_that_contradict_the_hyper_parameters(target, parameters, error, fault: str, tmp_path: Path):
    with pytest.raises(error, match=fault):
        load_model(checkpoint(tmp_path / "a.ckpt", head=head_state(target), **parameters), device="cpu")


def test_statements_that_contradict_the_head(tmp_path: Path):
    three = Target("s", "classification", classes=("a", "b", "c"))
    path = checkpoint(tmp_path / "a.ckpt", head=head_state(three), **SEX | {"num_classes": 3})
    with pytest.raises(ArchitectureContradicted, match="classification of 3 classes; stated was classification of 2"):
        load_model(path, stated=Statements(target=replace(three, classes=("a", "b"))))
    with pytest.raises(UnsupportedCheckpoint, match="has no head, and the target s was stated"):
        load_model(checkpoint(tmp_path / "b.ckpt"), stated=Statements(target=three))


def test_an_unknown_head_is_refused_unless_left_out(tmp_path: Path):
    head = {"head.cls_token": torch.zeros(1, 1, 16), "head.head.weight": torch.zeros(3, 16)}
    path = checkpoint(tmp_path / "a.ckpt", head=head, **SEX)
    with pytest.raises(UnsupportedCheckpoint, match=r"head of an unknown kind \(head\.cls_token.*--ignore output_head"):
        load_model(path, device="cpu")
    model = load_model(path, device="cpu", stated=Statements(ignore=("output_head.",)))
    assert model.targets == () and "2 keys left out as asked" in model.notes


# --- grid -------------------------------------------------------------------------------------------------------


def test_the_assumed_grid_is_the_references_crop_and_pad():
    assert reference_grid((96, 96, 96)) == NEUROSTORM_2MM
    fsl = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    # by hand: a 91-voxel axis is padded by 3 before and 2 after; of a 109-voxel axis the voxels 6 to 101 are kept
    assert_array_equal(reference_grid((96, 96, 96)).matrix[:3, 3], (fsl @ [-3, 6, -3, 1])[:3])
    assert_array_equal(reference_grid((48, 48, 48)).matrix[:3, 3], (fsl @ [21, 30, 21, 1])[:3])
    ras = reference_grid((96, 96, 96), "RAS").matrix
    assert_array_equal(ras, [[2, 0, 0, -96], [0, 2, 0, -114], [0, 0, 2, -78], [0, 0, 0, 1]])


def test_what_is_stated_of_the_input_is_marked_so(tmp_path: Path):
    path = checkpoint(tmp_path / "a.ckpt", stride_within_seq=2)
    assumed = load_model(path, device="cpu").input
    assert assumed.t_r_s == 1.6 and assumed.provenance["t_r_s"] == assumed.provenance["grid"] == "assumed"
    assert assumed.provenance["clip_frames"] == "stated"
    grid = Grid.of((12, 12, 12), np.diag([4.0, 4, 4, 1]), "MNI152NLin2009cAsym")
    said = load_model(path, device="cpu", stated=Statements(grid=grid, t_r_s=0.72)).input
    assert (said.grid, said.t_r_s) == (grid, 0.72)
    assert said.provenance["t_r_s"] == said.provenance["grid"] == "stated"
    other = replace(grid, shape=(13, 12, 12))
    with pytest.raises(ModelFolderInvalid, match="the grid is"):
        load_model(path, device="cpu", stated=Statements(grid=other))


# --- folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A converted model with an age head."""
    stated = Statements(name="base", target=Target("age", "regression", unit="years", mean=54.2, std=7.6))
    head = head_state(Target("age", "regression"))
    convert_checkpoint(checkpoint(tmp_path / "base.ckpt", head=head, **AGE), tmp_path / "base", stated, "CC0")
    return tmp_path / "base"


def test_a_converted_checkpoint_is_the_same_model(base: Path):
    stated = Statements(target=Target("age", "regression", unit="years", mean=54.2, std=7.6))
    original = load_model(base.with_suffix(".ckpt"), device="cpu", stated=stated)
    model = load_model(base, device="cpu")
    assert model.hash == original.hash and model.targets == original.targets and model.input == original.input
    assert_array_equal(model.embed(CLIPS).numpy(), original.embed(CLIPS).numpy())
    assert_array_equal(model.predict(CLIPS)["age"].values, original.predict(CLIPS)["age"].values)
    assert (model.predict(CLIPS)["age"].unit, model.description.licence) == ("years", "CC0")


def test_a_converted_model_outlives_its_checkpoint(tmp_path: Path):
    path = checkpoint(tmp_path / "a.ckpt")
    model = load_model(path, device="cpu")
    path.write_bytes(b"\0" * path.stat().st_size)  # a memory map would now hold zeros
    assert_allclose(model.embed(CLIPS).numpy(), embedding_of(encoder_state()), rtol=1e-5, atol=1e-6)


def test_converting_twice_or_a_folder_is_refused(base: Path, tmp_path: Path):
    with pytest.raises(ModelFolderExists):
        convert_checkpoint(base.with_suffix(".ckpt"), base, Statements(ignore=("output_head.",)))
    with pytest.raises(ModelFolderInvalid, match="is a model folder already"):
        convert_checkpoint(base, tmp_path / "x")
    with pytest.raises(ModelFolderInvalid, match="states its own input"):
        load_model(base, stated=Statements(t_r_s=2.0))


def test_a_folder_with_weights_of_another_architecture_is_refused(base: Path, tmp_path: Path):
    folder = read_model_folder(base)
    for weights in (
        {name: tensor for name, tensor in folder.weights.items() if name != "head.age.head.head.bias"},
        {**folder.weights, "head.sex.head.head.bias": torch.zeros(1)},
    ):
        write_model_folder(tmp_path / "other", folder.description, weights, overwrite=True)
        with pytest.raises(WeightsMismatch, match=r"weights (missing|unexpected) \(head\."):
            load_model(tmp_path / "other", device="cpu")


def test_verify_recomputes_the_recorded_embedding(base: Path):
    assert re.fullmatch(r"hashes match, embedding within \d\.\de[+-]\d\d of the recorded one", verify_model(base))
    values = json.loads((base / "model.json").read_text())
    values["self_test"]["embedding"][0] += 0.01
    (base / "model.json").write_text(json.dumps(values))
    with pytest.raises(SelfTestFailed, match=r"off by .*expected at most 1e-05"):
        verify_model(base)


def test_verify_says_what_it_could_not_check(base: Path, tmp_path: Path):
    assert "no test embedding is recorded" in verify_model(checkpoint(tmp_path / "a.ckpt"))


def test_a_folder_written_from_modules_is_those_modules(tmp_path: Path):
    model = load_model(checkpoint(tmp_path / "a.ckpt"), device="cpu")
    target = Target("age", "regression", unit="years", mean=50.0, std=10.0)
    head = head_for(target, 16)
    description = replace(model.description, name="trained", targets=(target,))
    sha256 = write_model_folder(tmp_path / "m", description, weights_of(model.encoder, {"age": head}))
    read = load_model(tmp_path / "m", device="cpu")
    assert read.hash == sha256 and read.backbone.sha256 == model.backbone.sha256
    outputs = head(model.embed(CLIPS)).detach().numpy()[:, 0].astype(float)
    assert_allclose(read.predict(CLIPS)["age"].values, 50 + 10 * outputs, rtol=1e-6)


# --- packs ------------------------------------------------------------------------------------------------------


def make_pack(base: Path, folder: Path, target: Target, prompt_len: int, **change: Any) -> Path:
    """A pack over ``base`` with prompts (or none) and a head."""
    model = load_model(str(base), device="cpu")
    config = replace(model.config, prompt_len=prompt_len)
    encoder = Encoder(config)
    encoder.load_state_dict(encoder_state(config, seed=5))
    head = head_for(target, model.n_features)
    head.load_state_dict(head_state(target, model.n_features))
    description = replace(
        model.description, name=folder.name, config=config, targets=(target,), backbone=model.backbone, **change
    )
    write_model_folder(folder, description, pack_weights_of(encoder, {target.name: head}))
    return folder


SEX_TARGET = Target("sex", "classification", classes=("female", "male"))


def test_packs_predict_over_one_backbone(base: Path, tmp_path: Path):
    prompted = make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=3)
    linear = make_pack(base, tmp_path / "score", Target("score", "regression"), prompt_len=0)
    model = load_model(base, device="cpu", packs=[prompted, linear])
    assert [target.name for target in model.targets] == ["age", "sex", "score"]
    assert [name for name, _ in model.parts] == ["base", "sex", "score"]
    embedding, predictions = model.embed_and_predict(CLIPS)
    assert_array_equal(embedding.numpy(), load_model(base, device="cpu").embed(CLIPS).numpy())

    config = replace(CONFIG, prompt_len=3)
    prompts = {name: t for name, t in encoder_state(config, seed=5).items() if name.endswith(".prompt")}
    features = embedding_of({**encoder_state(), **prompts}, config)
    head = head_state(SEX_TARGET)
    logit = features @ head["head.head.weight"].numpy().T + head["head.head.bias"].numpy()
    assert_allclose(predictions["sex"].probabilities[:, [1]], 1 / (1 + np.exp(-logit)), atol=1e-5)
    head = head_state(Target("score", "regression"))
    score = embedding.numpy() @ head["head.head.weight"].numpy().T + head["head.head.bias"].numpy()
    assert_allclose(predictions["score"].values, score[:, 0], atol=1e-5)


def test_a_pack_is_kilobytes_and_shares_its_backbones_weights(base: Path, tmp_path: Path):
    pack = make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=3)
    assert (pack / "weights.safetensors").stat().st_size < 4000 < (base / "weights.safetensors").stat().st_size
    model = load_model(base, device="cpu", packs=[pack])
    one, two = (branch.encoder.state_dict()["patch_embed.fc.weight"] for branch in model._branches)
    assert one.data_ptr() == two.data_ptr()


def test_prompted_heads_do_not_read_plain_embeddings(base: Path, tmp_path: Path):
    model = load_model(base, device="cpu", packs=[make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=3)])
    with pytest.raises(PackMismatch, match="the heads of sex read prompted features"):
        model.predict_from_embedding(np.zeros((2, 16)))


def test_a_pack_fits_the_checkpoint_that_its_backbone_was_converted_from(base: Path, tmp_path: Path):
    pack = make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=3)
    assert len(load_model(base.with_suffix(".ckpt"), device="cpu", packs=[pack]).targets) == 2


def test_a_pack_for_another_backbone_is_refused(base: Path, tmp_path: Path):
    pack = make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=3)
    other = checkpoint(tmp_path / "other.ckpt", encoder_state(seed=9))
    with pytest.raises(PackMismatch, match=r"sex: belongs to the backbone base \(.*expected other.*give --model base"):
        load_model(other, device="cpu", packs=[pack])
    with pytest.raises(PackMismatch):  # the same weights for another orientation
        load_model(base.with_suffix(".ckpt"), device="cpu", packs=[pack], stated=Statements(orientation="RAS"))


def test_packs_and_models_are_not_taken_for_each_other(base: Path, tmp_path: Path):
    pack = make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=3)
    with pytest.raises(PackMismatch, match=r"is a pack. give it with --packs, and --model base"):
        load_model(pack, device="cpu")
    with pytest.raises(PackMismatch, match="is a whole model, not a pack"):
        load_model(base, device="cpu", packs=[base])
    with pytest.raises(PackMismatch, match="two packs predict one target"):
        load_model(base, device="cpu", packs=[pack, pack])


def test_verify_checks_a_pack_over_its_backbone(base: Path, tmp_path: Path):
    pack = make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=3)
    assert "name its --backbone" in verify_model(pack)
    assert "embedding within" in verify_model(pack, backbone=str(base))


def test_a_backbone_with_another_name_in_model_json_still_fits(base: Path, tmp_path: Path):
    pack = make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=3)
    folder = read_model_folder(base)
    write_model_folder(tmp_path / "renamed", replace(folder.description, name="renamed"), folder.weights)
    assert load_model(tmp_path / "renamed", device="cpu", packs=[pack]).name == "renamed"


# --- scalers, devices, clips ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaler", "fault"),
    [
        ({"aeg": (54.2, 7.6)}, "no target aeg. expected one of age, sex"),
        ({"sex": (0, 1)}, "sex is a classification. expected a regression"),
        ({"age": (50, 7.6)}, "has a scaler for age already"),
    ],
)
def test_scalers_that_make_no_sense(scaler, fault: str, base: Path, tmp_path: Path):
    pack = make_pack(base, tmp_path / "sex", SEX_TARGET, prompt_len=0)
    with pytest.raises(TargetScalerInvalid, match=fault):
        load_model(base, device="cpu", packs=[pack], target_scaler=scaler)


@pytest.mark.parametrize("pair", [(0, 0), (0, -1), (float("nan"), 1), (0, float("inf"))])
def test_scalers_that_scale_nothing(pair: tuple[float, float]):
    with pytest.raises(TargetScalerInvalid, match=r"scales nothing\. expected MEAN,SD"):
        with_scaler(Target("age", "regression"), *pair)
    with pytest.raises(TargetScalerInvalid, match="expected MINIMUM,MAXIMUM"):
        with_scaler(Target("age", "regression", scaling="minmax"), 5, 5)


def test_a_scaler_goes_to_the_model_that_has_its_target(base: Path, tmp_path: Path):
    plain = load_model(checkpoint(tmp_path / "plain.ckpt"), device="cpu")
    both = (plain, load_model(base, device="cpu"))
    check_scalers(both, {"age": (54.2, 7.6)})
    with pytest.raises(TargetScalerInvalid, match=r"no target iq\. expected one of age"):
        check_scalers(both, {"iq": (100, 15)})
    with pytest.raises(TargetScalerInvalid, match="the model has no target"):
        check_scalers([plain], {"iq": (100, 15)})
    assert plain.with_scalers({"age": (54.2, 7.6)}).hash == plain.hash


def test_a_stated_scaler_changes_the_hash(tmp_path: Path):
    path = checkpoint(tmp_path / "a.ckpt", head=head_state(Target("age", "regression")), **AGE)
    plain = load_model(path, device="cpu")
    one, two = (load_model(path, device="cpu", target_scaler={"age": (54.2, sd)}) for sd in (7.6, 7.7))
    assert len({plain.hash, one.hash, two.hash}) == 3


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "-1", ""])
def test_unknown_devices(device: str, base: Path):
    with pytest.raises(DeviceUnavailable, match="expected auto, cpu, cuda or the number of a GPU"):
        load_model(base, device=device)


def test_absent_devices(base: Path):
    absent = torch.cuda.device_count() + 1
    with pytest.raises(DeviceUnavailable, match=rf"this machine has {absent - 1} GPUs.*--device cpu"):
        load_model(base, device=str(absent))


@pytest.mark.parametrize(
    "shape", [(1, 12, 12, 12, 4), (1, 2, 12, 12, 12, 4), (1, 1, 12, 12, 13, 4), (1, 1, 12, 12, 12, 5)]
)
def test_clips_of_another_shape_are_refused(shape: tuple[int, ...], base: Path):
    with pytest.raises(ClipsInvalid):
        load_model(base, device="cpu").embed(np.zeros(shape, np.float32))


def test_clips_with_nan_give_no_embedding(base: Path):
    clips = CLIPS.copy()
    clips[1, 0, 3, 3, 3, 2] = np.nan
    with pytest.raises(ClipsInvalid, match="the clips hold NaN or infinity"):
        load_model(base, device="cpu").embed(clips)


def test_features_of_another_length_are_refused(base: Path):
    with pytest.raises(ClipsInvalid, match=r"features of shape \(2, 15\). expected \(n, 16\)"):
        load_model(base, device="cpu").predict_from_embedding(np.zeros((2, 15)))


def test_clips_may_be_tensors_read_only_arrays_shorter_and_none(base: Path):
    model = load_model(base, device="cpu")
    embedding = model.embed(CLIPS)
    frozen = CLIPS.copy()
    frozen.setflags(write=False)
    assert torch.equal(model.embed(frozen), embedding) and torch.equal(model.embed(torch.from_numpy(CLIPS)), embedding)
    assert model.embed(CLIPS[..., :3]).shape == (3, 16)
    assert model.embed(CLIPS[:0]).shape == (0, 16)
    assert not embedding.requires_grad and not embedding.is_inference()  # usable in training a head


def test_the_embedding_does_not_depend_on_the_batch(base: Path):
    one, three = (load_model(base, device="cpu", batch_size=size).embed(CLIPS).numpy() for size in (1, 3))
    assert np.abs(one - three).max() <= 1e-5 * np.abs(one).max()


def test_loading_leaves_the_random_state_alone(base: Path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_model(base, device="cpu")
    assert torch.equal(torch.rand(3), expected)


# --- predictions ------------------------------------------------------------------------------------------------


def test_pooling_clips():
    age = predict(Target("age", "regression", mean=50.0, std=10.0), torch.tensor([[-1.0], [0.0], [4.0]]))
    assert_allclose(age.pooled().values, [60.0])
    assert_allclose(age.clip_sd(), [np.std([40, 50, 90], ddof=1)])
    assert age.pooled().clip_sd() is None and age.n_clips == 3
    sex = predict(SEX_TARGET, torch.tensor([[0.0], [np.log(3.0)]]))
    assert_allclose(sex.probabilities, [[0.5, 0.5], [0.25, 0.75]])
    assert_allclose(sex.pooled().probabilities, [[0.375, 0.625]])
    assert sex.classes() == ("female", "male") and age.classes() == ()
    vectors = predict(Target("identity", "retrieval", head="emb"), torch.eye(2))
    assert_allclose(vectors.pooled().vectors, [[np.sqrt(0.5), np.sqrt(0.5)]])
    assert vectors.clip_sd() is None


def test_joining_batches_is_predicting_at_once(base: Path):
    model = load_model(base, device="cpu")
    parts = [model.predict(CLIPS[:2])["age"], model.predict(CLIPS[2:])["age"]]
    assert_array_equal(joined(parts).values, model.predict(CLIPS)["age"].values)


def test_temperature_softens():
    assert_allclose(class_probabilities(torch.tensor([[2.0]]), 2.0)[:, 1], torch.sigmoid(torch.tensor([1.0])))


def untrained(folder: Path) -> Path:
    """The demo model's architecture, untrained."""
    found = load_model("demo", device="cpu")
    write_model_folder(folder, replace(found.description, name="start", trained=False), weights_of(found.encoder, {}))
    return folder


def test_the_demo_model_predicts_with_its_packs_and_says_what_it_was_trained_on():
    packs = ["demo-age", "demo-sex", "demo-diagnosis"]
    model = load_model("demo", device="cpu", packs=packs, offline=True)
    assert model.trained and {target.name for target in model.targets} == {"age", "sex", "diagnosis"}
    for name in ("demo", *packs):
        assert "simulated" in read_model_folder(find_model(name, offline=True).path).description.summary


def test_an_untrained_model_embeds_and_predicts_nothing(tmp_path: Path):
    model = load_model(untrained(tmp_path / "start"), device="cpu")
    assert (model.name, model.trained, model.targets) == ("start", False, ())
    clips = np.random.default_rng(0).standard_normal((1, 1, 48, 48, 48, 20), dtype=np.float32)
    embedding, predictions = model.embed_and_predict(clips)
    assert embedding.shape == (1, model.n_features) and predictions == {}
    with pytest.raises(ModelUntrained, match="start is untrained"):
        model.predict(clips)


def test_an_unverified_file_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setenv("NEUROSTORM_MODELS", str(tmp_path))
    path = checkpoint(tmp_path / "neurostorm-mae-0.5.ckpt")
    load_model("neurostorm-mae-0.5", device="cpu")
    assert "neurostorm-mae-0.5: unverified" in caplog.text
    caplog.clear()
    convert_checkpoint(path, tmp_path / "neurostorm-mae-0.8", Statements(name="converted"))
    load_model("neurostorm-mae-0.8", device="cpu")  # a folder is verified by its own hashes
    assert not caplog.text


def test_a_pack_over_a_random_start_predicts(tmp_path: Path):
    start = untrained(tmp_path / "start")
    pack = make_pack(start, tmp_path / "sex", SEX_TARGET, prompt_len=0, trained=True)
    model = load_model(start, device="cpu", packs=[pack])
    clips = np.random.default_rng(0).standard_normal((1, 1, 48, 48, 48, 20), dtype=np.float32)
    assert model.predict(clips)["sex"].probabilities.shape == (1, 2) and not model.trained


def test_the_demo_grid_spans_the_box_of_the_full_grid():
    grid = load_model("demo", device="cpu").grid

    def corners(g: Grid) -> np.ndarray:
        edges = np.array([[-0.5] * 3, [n - 0.5 for n in g.shape]])
        return np.sort(edges @ g.matrix[:3, :3].T + g.matrix[:3, 3], axis=0)

    assert_array_equal(corners(grid), corners(NEUROSTORM_2MM))
    assert grid.template == NEUROSTORM_2MM.template


def test_the_demo_model_begins_as_its_script_builds(tmp_path: Path):
    import runpy

    script = Path(__file__).resolve().parents[1] / "scripts" / "build_demo_model.py"
    if not script.is_file():
        pytest.skip("the script is not part of an installed package")
    build = runpy.run_path(str(script))["build"]
    assert build(tmp_path / "a") == build(tmp_path / "b")
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()
    rebuilt, bundled = read_model_folder(tmp_path / "a"), load_model("demo", device="cpu")
    assert not rebuilt.description.trained and rebuilt.description.config == bundled.description.config
    assert rebuilt.description.input.grid == bundled.description.input.grid


def test_unknown_sources_are_errors_of_this_program(tmp_path: Path):
    (tmp_path / "x.ckpt").write_text("hello")
    for source, error in (
        ("no-such-model", ModelNotFound),
        (tmp_path / "x.ckpt", ModelFileUnreadable),
        (tmp_path, ModelError),
    ):
        with pytest.raises(error):
            load_model(source, device="cpu")


def test_model_is_exported():
    from neurostorm_bids import model

    assert model.Model is Model and model.load_model is load_model
