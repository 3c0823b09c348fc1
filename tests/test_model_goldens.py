"""What the reference computes, we compute: every golden array within 1e-5, on both torch backends and in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_goldens import BACKENDS, SHIPPED, TOLERANCE, Recorder, config_of, differences, read_golden
from safetensors.torch import load_file
from torch import Tensor

from neurostorm_bids.model import Encoder, MaskedAutoencoder
from neurostorm_bids.model.heads import EmbeddingHead, classification_head, pool, regression_head
from neurostorm_bids.model.mamba import Mamba
from neurostorm_bids.model.masks import Masking
from neurostorm_bids.model.strd import RedundancyDropout, neighbourhoods

ENCODERS = ("A1_full", "A1_win", "A2_pad_full", "A2_pad_win", "A3_4stage_full", "A3_4stage_win")
PROMPTED = ("B1_prompt", "B2_prompt_pad_full")
HEADS = {
    "cls_v1_bin": lambda: classification_head(24, 2),
    "cls_v1_7": lambda: classification_head(24, 7),
    "cls_v2_bin": lambda: classification_head(24, 2, "v2"),
    "cls_v2_5": lambda: classification_head(24, 5, "v2"),
    "reg_v1": lambda: regression_head(24),
    "emb": lambda: EmbeddingHead(24),
}


def check_encoder(folder: Path, name: str, backend: str, dtype: torch.dtype) -> None:
    description, golden, weights = read_golden(folder, name)
    encoder = Encoder(config_of(description["config"]), backend=backend).eval()
    encoder.load_state_dict(weights, strict=True)
    encoder = encoder.to(dtype)
    recorder = Recorder(encoder)
    with torch.no_grad():
        if "input" in golden:
            output = encoder(torch.from_numpy(golden["input"]).to(dtype))
        else:  # a case that was cut to start behind the patch embedding
            tokens = torch.from_numpy(golden["patch_embed"]).to(dtype).movedim(1, -1)
            output = encoder.encode_tokens(tokens).movedim(-1, 1)
    seen = recorder.seen | {"output": output, "pooled": pool(output)}
    assert set(golden) - set(seen) <= {"input", "patch_embed"}
    found = differences(seen, golden)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.shared
@pytest.mark.parametrize("name", ENCODERS + PROMPTED)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_encoder(shared: Path, name: str, backend: str, dtype: torch.dtype):
    check_encoder(shared / "golden", name, backend, dtype)


@pytest.mark.parametrize("name", ["A1_win", "B2_prompt_pad_full"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_encoder_shipped(name: str, backend: str):
    check_encoder(SHIPPED, name, backend, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mamba(golden_folder: Path, backend: str):
    description, golden, weights = read_golden(golden_folder, "E_mamba")
    mamba = Mamba(description["d_model"], description["d_state"], description["d_conv"], description["expand"], backend)
    mamba.load_state_dict(weights, strict=True)
    lengths = [name.removeprefix("x_") for name in golden if name.startswith("x_")]
    assert lengths
    with torch.no_grad():
        seen = {f"y_{length}": mamba(torch.from_numpy(golden[f"x_{length}"])) for length in lengths}
    assert max(differences(seen, golden).values()) < TOLERANCE


@pytest.mark.parametrize("kind", HEADS)
def test_head(golden_folder: Path, kind: str):
    _, golden, weights = read_golden(golden_folder, "F_heads")
    head = HEADS[kind]().eval()
    own = {key.removeprefix(f"{kind}/"): value for key, value in weights.items() if key.startswith(f"{kind}/")}
    head.load_state_dict(own, strict=True)
    embedding = pool(torch.from_numpy(golden["x"]))
    seen: dict[str, Tensor] = {}
    if kind != "emb":
        head.head.head.register_forward_hook(lambda _m, inputs, _o: seen.update({f"feat_{kind}": inputs[0]}))
    with torch.no_grad():
        seen[f"y_{kind}"] = head(embedding)
    found = differences(seen, golden)
    assert f"y_{kind}" in found
    assert max(found.values()) < TOLERANCE, found


def test_redundancy_score(golden_folder: Path):
    description, golden, _ = read_golden(golden_folder, "D_strd")
    cases = [facts for facts in description["cases"] if f"h{facts['i']}" in golden]
    assert len(cases) >= 4
    for facts in cases:
        case, window = facts["i"], tuple(facts["window"])
        near = neighbourhoods(window, facts["l_spat"], facts["l_temp"])
        for mask, kind in zip(near, "st", strict=True):
            np.testing.assert_array_equal(np.packbits(mask.numpy()), golden[f"mask_{kind}{case}"])
            np.testing.assert_array_equal(mask.sum(1).numpy(), golden[f"card_{kind}{case}"])
        dropout = RedundancyDropout(facts["l_spat"], facts["l_temp"])
        score = dropout.score(torch.from_numpy(golden[f"h{case}"]), window)
        assert differences({f"score{case}": score}, golden)[f"score{case}"] < TOLERANCE


@pytest.mark.shared
@pytest.mark.parametrize("spatial", ["random", "window", "atlas"])
@pytest.mark.parametrize("temporal", ["random", "tube"])
@pytest.mark.parametrize("batch", [1, 2])
def test_masked_autoencoder(shared: Path, spatial: str, temporal: str, batch: int):
    folder = shared / "golden"
    description, golden, _ = read_golden(folder, f"C_{spatial}_{temporal}_b{batch}")
    clips = torch.from_numpy(np.load(folder / "C_mae_input.npz")["input"][:batch])
    model = mae_of(folder, description, golden)
    np.random.seed(description["numpy_seed"])
    torch.manual_seed(description["torch_seed"])
    with torch.no_grad():
        made = model(clips)
        masked = model.hide(model.patch_embed(clips), made.hidden)
    seen = {
        "masked": masked.movedim(-1, 1),
        "latent": made.latent.movedim(-1, 1),
        "pred": model.image(made.patches),
    }
    found = differences(seen, golden)
    assert {"masked", "latent"} <= set(found)
    assert max(found.values()) < TOLERANCE, found
    np.testing.assert_array_equal(made.hidden.numpy(), expand(golden["mask"], description, made.hidden.shape))
    right = description.get("derived_loss_mean_over_masked_windows", description.get("loss"))
    assert made.loss.item() == pytest.approx(right, abs=TOLERANCE)


def mae_of(folder: Path, description: dict, golden: dict[str, np.ndarray]) -> MaskedAutoencoder:
    masking = Masking(description["spatial_mask"], description["time_mask"], description["config"]["mask_ratio"])
    atlas = golden.get("atlas_map")
    model = MaskedAutoencoder(config_of(description["config"]), masking, atlas=atlas, backend="torch").eval()
    left = model.load_state_dict(load_file(folder / "C_mae.safetensors"), strict=False)
    assert not left.unexpected_keys
    assert left.missing_keys == ([] if atlas is None else ["atlas_map"])
    return model


def expand(mask: np.ndarray, description: dict, shape: torch.Size) -> np.ndarray:
    """A golden mask, an entry a piece, as a mask of tokens."""
    pieces = {
        ("random", "tube"): (1, 1, 1, 4),
        ("window", "random"): (4, 4, 4, 4),
        ("window", "tube"): (4, 4, 4, 8),
    }
    size = pieces.get((description["spatial_mask"], description["time_mask"]), (1, 1, 1, 1))
    counts = [total // part for total, part in zip(shape[1:], size, strict=True)]
    return np.kron(mask.reshape(-1, *counts), np.ones((1, *size), dtype=bool))


@pytest.fixture(params=["shipped", pytest.param("shared", marks=pytest.mark.shared)])
def golden_folder(request) -> Path:
    """The few goldens that ship with the tests, and all of them where they are at hand."""
    return SHIPPED if request.param == "shipped" else request.getfixturevalue("shared") / "golden"
