"""The encoder: windows, shapes, prompts, what it refuses, and what must not change its output."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurostorm_bids.errors import BackendUnavailable, ClipsInvalid
from neurostorm_bids.model import Encoder, EncoderConfig
from neurostorm_bids.model.encoder import Block, PatchMerging, clips_from_patches, patches_of, stage_window
from neurostorm_bids.model.scan import Backend, load_backend
from neurostorm_bids.model.windows import WindowLayout

SMALL = EncoderConfig(
    img_size=(12, 12, 12, 6),
    embed_dim=4,
    patch_size=(2, 2, 2, 1),
    depths=(2, 2),
    window_size=(2, 2, 2, 2),
    first_window_size=(4, 4, 4, 4),
    d_state=4,
)
sizes = st.tuples(*[st.integers(1, 5)] * 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder_of(config: EncoderConfig = SMALL, **options) -> Encoder:
    return Encoder(config, generator=seeded(), **({"backend": "torch"} | options)).eval()


def clips_of(config: EncoderConfig = SMALL, n: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(n, config.in_chans, *config.img_size, generator=seeded(seed))


# --- windows ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(grid=sizes, window=sizes, shifted=st.booleans(), wrap=st.booleans())
def test_windows_go_there_and_back(grid, window, shifted, wrap):
    layout = WindowLayout.fitted(grid, window, shifted=shifted, wrap=wrap)
    x = torch.randn(2, *grid, 3, generator=seeded())
    windows = layout.split(x)
    assert torch.equal(layout.join(windows), x)
    assert windows.shape[1] == layout.tokens
    real = layout.real_tokens()  # (w of one clip, l)
    assert real.sum() == torch.tensor(grid).prod()
    assert windows[~real.repeat(2, 1)].abs().sum() == 0


def test_tokens_of_a_window_are_in_raster_order_with_time_fastest():
    x = torch.arange(16.0).reshape(1, 2, 2, 2, 2, 1)
    assert WindowLayout.fitted((2, 2, 2, 2), (2, 2, 2, 2), shifted=False).split(x).flatten().tolist() == list(range(16))


def test_shifted_windows_wrap_around_or_are_filled_with_zeros():
    x = torch.arange(1.0, 7).reshape(1, 1, 1, 1, 6, 1)  # frames 1 .. 6 at one place
    wrapped = WindowLayout.fitted((1, 1, 1, 6), (1, 1, 1, 4), shifted=True)
    assert wrapped.split(x).squeeze(-1).tolist() == [[3, 4, 5, 6], [0, 0, 1, 2]]
    apart = WindowLayout.fitted((1, 1, 1, 6), (1, 1, 1, 4), shifted=True, wrap=False)
    assert apart.split(x).squeeze(-1).tolist() == [[0, 0, 1, 2], [3, 4, 5, 6]]


def test_an_axis_no_longer_than_its_window_is_one_window_without_shift():
    layout = WindowLayout.fitted((3, 8, 4, 10), (4, 4, 4, 4), shifted=True)
    assert layout.window == (3, 4, 4, 4)
    assert layout.shift == (0, 2, 0, 2)
    assert layout.counts == (1, 2, 1, 3)


def test_without_wrapping_the_two_ends_of_an_axis_know_nothing_of_each_other():
    def touched(wrap: bool) -> Tensor:
        block = Block(replace(SMALL, wrap=wrap), 4, (1, 1, 1, 4), shifted=True).eval()
        torch.nn.init.normal_(block.mamba.out_proj.weight, generator=seeded())
        x = torch.randn(1, 1, 1, 1, 8, 4, generator=seeded()).requires_grad_()
        block.backend = block.mamba.backend = "torch"
        block(x)[0, 0, 0, 0, 0].sum().backward()  # the first frame
        return x.grad.abs().sum(-1).flatten() > 0  # (8)

    assert touched(wrap=True).tolist() == [True, False, False, False, False, False, True, True]
    assert touched(wrap=False).tolist() == [True] + [False] * 7


# --- patches and merging ----------------------------------------------------------------------------------------


def test_patches_hold_their_voxels_with_the_channel_fastest():
    clips = torch.arange(2 * 2 * 4 * 2 * 2 * 3.0).reshape(2, 2, 4, 2, 2, 3)
    patches = patches_of(clips, (2, 2, 2, 1))
    assert patches.shape == (2, 2, 1, 1, 3, 16)
    second = clips[1, :, 2:4, :, :, 2]  # (ch, 2, 2, 2) of the second patch along x, last frame
    assert torch.equal(patches[1, 1, 0, 0, 2], second.permute(1, 2, 3, 0).flatten())
    assert torch.equal(clips_from_patches(patches, (2, 2, 2, 1)), clips)


def test_merging_fills_an_odd_axis_with_zeros_at_its_end():
    merge = PatchMerging(3, 6)
    x = torch.randn(1, 3, 4, 5, 2, 3, generator=seeded())
    filled = torch.zeros(1, 4, 4, 6, 2, 3)
    filled[:, :3, :, :5] = x
    assert merge(x).shape == (1, 2, 2, 3, 2, 6)
    assert torch.equal(merge(x), merge(filled))


def test_merging_concatenates_neighbours_with_the_last_axis_fastest():
    merge = PatchMerging(1, 8)
    merge.norm = torch.nn.Identity()
    with torch.no_grad():
        merge.reduction.weight.copy_(torch.eye(8))
    x = torch.arange(8.0).reshape(1, 2, 2, 2, 1, 1)
    assert merge(x).flatten().tolist() == list(range(8))


# --- the whole --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    grid=st.tuples(*[st.integers(1, 5)] * 3),
    patch=st.tuples(*[st.integers(1, 3)] * 3, st.integers(1, 2)),
    frames=st.integers(1, 5),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    channels=st.integers(1, 2),
    window=sizes,
    first=sizes,
    full=st.booleans(),
    prompt=st.integers(0, 3),
    wrap=st.booleans(),
)
def test_shapes_of_any_configuration(grid, patch, frames, depths, channels, window, first, full, prompt, wrap):
    config = EncoderConfig(
        img_size=tuple(size * p for size, p in zip((*grid, frames), patch, strict=True)),
        in_chans=channels,
        embed_dim=3,
        patch_size=patch,
        depths=tuple(depths),
        window_size=window,
        first_window_size=first,
        last_layer_full_MSA=full,
        prompt_len=prompt,
        d_state=2,
        wrap=wrap,
    )
    encoder = encoder_of(config)
    with torch.no_grad():
        features = encoder(clips_of(config, n=1))
    halvings = 2 ** (len(depths) - 1)
    assert features.shape == (1, 3 * halvings, *(-(-size // halvings) for size in grid), frames)
    assert features.isfinite().all()


def test_published_configuration_has_the_published_shape():
    encoder = Encoder(EncoderConfig())
    assert sum(p.numel() for p in encoder.parameters()) == 5_173_020
    assert len(encoder.state_dict()) == 223
    grids = [(16, 16, 16, 20), (8, 8, 8, 20), (4, 4, 4, 20), (2, 2, 2, 20)]
    layouts = [s.blocks[1].layout(grid) for s, grid in zip(encoder.layers, grids, strict=True)]
    assert [torch.tensor(layout.counts).prod().item() for layout in layouts] == [320, 40, 5, 5]
    assert [layout.tokens for layout in layouts] == [256, 256, 256, 32]
    assert [layout.shift for layout in layouts] == [(2, 2, 2, 2), (2, 2, 2, 2), (0, 0, 0, 2), (0, 0, 0, 0)]
    prompted = Encoder(EncoderConfig(prompt_len=50))
    prompts = {name: p for name, p in prompted.named_parameters() if name.endswith(".prompt")}
    assert sum(p.numel() for p in prompts.values()) == 82_800
    assert prompts["layers.3.blocks.1.prompt"].shape == (1, 50, 288)


def test_the_last_stage_may_be_one_window_in_space():
    assert stage_window(EncoderConfig(), 3) == (2, 2, 2, 4)
    assert stage_window(replace(EncoderConfig(), last_layer_full_MSA=False), 3) == (4, 4, 4, 4)
    assert stage_window(replace(SMALL, depths=(1,)), 0) == (6, 6, 6, 2)
    assert stage_window(SMALL, 0) == (4, 4, 4, 4)


@pytest.mark.parametrize("backend", ["torch-reference", "torch", "auto"])
def test_output_does_not_depend_on_the_batch(backend: str):
    encoder, clips = encoder_of(backend=backend), clips_of(n=3)
    with torch.no_grad():
        together = encoder(clips)
        apart = torch.cat([encoder(clip[None]) for clip in clips])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)


def test_a_shorter_clip_uses_the_first_time_embeddings():
    encoder = encoder_of()
    short = replace(SMALL, img_size=(12, 12, 12, 4))
    weights = {k: v[..., :4] if k.endswith("time_embed") else v for k, v in encoder.state_dict().items()}
    other = encoder_of(short)
    other.load_state_dict(weights)
    clips = clips_of(short)
    with torch.no_grad():
        assert torch.equal(encoder(clips), other(clips))


def test_gradients_reach_every_parameter():
    config = replace(SMALL, prompt_len=2)
    encoder = encoder_of(config).train()
    encoder(clips_of(config)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_recomputing_blocks_changes_no_gradient():
    clips = clips_of()
    plain, frugal = encoder_of().train(), encoder_of().train().checkpoint_blocks()
    for encoder in (plain, frugal):
        encoder(clips).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_prompts_change_the_output_and_are_cut_off():
    config = replace(SMALL, prompt_len=3)
    encoder, clips = encoder_of(config), clips_of()
    with torch.no_grad():
        before = encoder(clips)
        encoder.layers[0].blocks[0].prompt.add_(1)
        after = encoder(clips)
    assert before.shape == after.shape == (2, 8, 3, 3, 3, 6)
    assert not torch.allclose(before, after)


def test_fresh_weights_depend_on_the_generator_alone():
    first, again = (Encoder(SMALL, generator=seeded(3)).state_dict() for _ in range(2))
    torch.manual_seed(11)
    third = Encoder(SMALL, generator=seeded(3)).state_dict()
    other = Encoder(SMALL, generator=seeded(4)).state_dict()
    assert all(torch.equal(first[name], values[name]) for values in (again, third) for name in first)
    assert not torch.equal(first["patch_embed.fc.weight"], other["patch_embed.fc.weight"])


def test_fresh_mamba_steps_are_those_of_the_paper():
    mamba = encoder_of(replace(SMALL, embed_dim=64)).layers[0].blocks[0].mamba
    steps = torch.nn.functional.softplus(mamba.dt_proj.bias)
    assert steps.min() >= 1e-3 * 0.999
    assert steps.max() <= 1e-1 * 1.001
    assert steps.max() / steps.min() > 10
    assert torch.allclose(mamba.A_log.exp(), torch.arange(1.0, 5).expand(128, 4))


# --- backends ---------------------------------------------------------------------------------------------------


def test_a_backend_may_take_the_encoder_or_a_block_in_inference_only(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    whole = Backend(
        "torch",
        load_backend("torch").scan,
        block=lambda block, x: calls.append("block") or block.compute(x),
        encode=lambda encoder, clips: calls.append("encode") or encoder.compute(clips),
    )
    monkeypatch.setattr("neurostorm_bids.model.encoder.load_backend", lambda name: whole)
    encoder, clips = encoder_of(), clips_of()
    encoder(clips)
    encoder.train()
    with torch.no_grad():
        encoder(clips)
    assert calls == []
    encoder.eval()
    with torch.no_grad():
        encoder(clips)
    assert calls == ["encode", *["block"] * 4]


def test_the_backend_of_every_layer_changes_at_once():
    encoder = encoder_of().use_backend("torch-reference")
    assert {m.backend for m in encoder.modules() if hasattr(m, "backend")} == {"torch-reference"}
    with pytest.raises(BackendUnavailable):
        encoder.use_backend("fast")


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(2, 1, 12, 12, 12, 7), (2, 1, 12, 12, 12, 0), (2, 1, 12, 12, 10, 6), (2, 2, 12, 12, 12, 6), (1, 12, 12, 12, 6)],
    ids=["too many frames", "no frame", "another volume", "another channel", "no batch"],
)
def test_clips_of_another_shape_are_refused(shape):
    with pytest.raises(ClipsInvalid, match=r"\(clips, 1, 12, 12, 12, frames\) with 1 to 6 frames") as caught:
        encoder_of()(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_half_a_patch_in_time_is_refused():
    config = replace(SMALL, patch_size=(2, 2, 2, 2))
    with pytest.raises(ClipsInvalid, match="2 to 6 in steps of 2 frames"):
        encoder_of(config)(torch.zeros(1, 1, 12, 12, 12, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": (12, 12, 12)}, r"img_size is \(12, 12, 12\); expected four sizes"),
        ({"window_size": (2, 2, 0, 2)}, r"window_size is \(2, 2, 0, 2\)"),
        ({"depths": ()}, r"depths is \(\)"),
        ({"depths": (2, 0)}, r"depths is \(2, 0\)"),
        ({"patch_size": (5, 2, 2, 1)}, r"no multiple of patch_size \(5, 2, 2, 1\)"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Encoder(replace(SMALL, **change))


def test_configuration_is_read_without_torch():
    code = (
        "import sys\nfrom neurostorm_bids.model import EncoderConfig, Target\n"
        "import neurostorm_bids.model as m\nassert not hasattr(m, 'nothing')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
