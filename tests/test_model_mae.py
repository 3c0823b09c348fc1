"""Masked autoencoder: what is hidden, what stands for it, what the loss counts, and models of any shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurostorm_bids.errors import ClipsInvalid
from neurostorm_bids.model import Encoder, EncoderConfig, MaskedAutoencoder
from neurostorm_bids.model.encoder import patches_of
from neurostorm_bids.model.masks import Masking
from neurostorm_bids.model.strd import RedundancyDropout

CONFIG = EncoderConfig(
    img_size=(10, 12, 12, 6),
    in_chans=2,
    embed_dim=4,
    patch_size=(2, 2, 2, 1),
    depths=(1, 2),
    window_size=(2, 3, 4, 4),
    first_window_size=(2, 2, 2, 2),
    d_state=2,
)
GRID = (5, 6, 6, 6)
ATLAS = np.arange(5 * 6 * 6).reshape(5, 6, 6) // 20  # regions 1 .. 8, and 0 where none
COMBINATIONS = [(spatial, temporal) for spatial in ("random", "window", "atlas") for temporal in ("random", "tube")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(spatial="window", temporal="random", ratio: float = 0.5, config: EncoderConfig = CONFIG, **options):
    atlas = ATLAS if spatial == "atlas" else None
    masking = Masking(spatial, temporal, ratio)
    return MaskedAutoencoder(config, masking, atlas=atlas, backend="torch", generator=seeded(), **options)


def clips_of(config: EncoderConfig = CONFIG, n: int = 2) -> Tensor:
    return torch.randn(n, config.in_chans, *config.img_size, generator=seeded(1))


@pytest.mark.parametrize(("spatial", "temporal"), COMBINATIONS)
def test_loss_is_the_mean_error_of_hidden_patches(spatial: str, temporal: str):
    model, clips = model_of(spatial, temporal).eval(), clips_of()
    made = model(clips, keys=[5, 6])
    assert made.patches.shape == (2, *GRID, 16)
    assert made.latent.shape == (2, 3, 3, 3, 6, 8)
    error = (made.patches - patches_of(clips, CONFIG.patch_size)).square()
    torch.testing.assert_close(made.loss, error[made.hidden].mean())
    assert made.n_hidden == made.hidden.sum() > 0
    assert model.image(made.patches).shape == clips.shape


@pytest.mark.parametrize(("spatial", "temporal"), COMBINATIONS)
def test_the_encoder_sees_nothing_of_hidden_patches(spatial: str, temporal: str):
    model, clips = model_of(spatial, temporal).eval(), clips_of()
    before = model(clips, keys=[5, 6])
    other = patches_of(clips, CONFIG.patch_size)
    other = torch.where(before.hidden.unsqueeze(-1), torch.randn(other.shape), other)
    after = model(model.image(other), keys=[5, 6])
    assert torch.equal(before.hidden, after.hidden)
    assert torch.equal(before.patches, after.patches)
    assert before.loss != after.loss


def hidden(spatial: str, temporal: str, ratio: float = 0.5, key: int = 0) -> Tensor:
    """(x, y, z, t) of one clip."""
    atlas = ATLAS if spatial == "atlas" else None
    return Masking(spatial, temporal, ratio).draw(1, GRID, (2, 3, 4, 4), atlas, [key])[0]


def test_random_masks_hide_single_tokens():
    mask = hidden("random", "random", 0.3)
    assert mask.sum() == int(mask.numel() * 0.3)
    assert (mask.any(-1) & ~mask.all(-1)).any()


def test_random_tubes_hide_a_windows_number_of_frames():
    mask = hidden("random", "tube")
    for frames in (slice(0, 4), slice(4, 6)):  # the last tube is cut at the clip's end
        assert torch.equal(mask[..., frames].any(-1), mask[..., frames].all(-1))
    assert not torch.equal(mask[..., 0], mask[..., 4])


@pytest.mark.parametrize(("temporal", "frames"), [("random", 4), ("tube", 6)])
def test_window_masks_hide_whole_windows_even_where_they_are_cut(temporal: str, frames: int):
    mask = hidden("window", temporal)
    pieces = [
        mask[x : x + 2, y : y + 3, z : z + 4, t : t + frames]
        for x in (0, 2, 4)
        for y in (0, 3)
        for z in (0, 4)
        for t in range(0, 6, frames)
    ]
    assert all(piece.any() == piece.all() for piece in pieces)
    assert sum(bool(piece.all()) for piece in pieces) == len(pieces) // 2


@pytest.mark.parametrize("temporal", ["random", "tube"])
def test_atlas_masks_hide_regions_for_the_whole_clip_and_nothing_outside_the_atlas(temporal: str):
    mask = hidden("atlas", temporal, 0.4).numpy()
    regions = np.unique(ATLAS[mask.any(-1)])
    assert len(regions) == 3  # int(8 * 0.4)
    np.testing.assert_array_equal(mask, (np.isin(ATLAS, regions) & (ATLAS > 0))[..., None] & np.ones(6, dtype=bool))
    assert len(np.unique(ATLAS[hidden("atlas", temporal, 0.01).numpy().any(-1)])) == 1


@pytest.mark.parametrize(("spatial", "temporal"), COMBINATIONS)
def test_masks_depend_on_the_clip_alone(spatial: str, temporal: str):
    masking, atlas = Masking(spatial, temporal), ATLAS if spatial == "atlas" else None
    both = masking.draw(2, GRID, (2, 3, 4, 4), atlas, [(0, 1, 7), (0, 1, 8)])
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(both[1:], masking.draw(1, GRID, (2, 3, 4, 4), atlas, [(0, 1, 8)]))
    later = masking.draw(2, GRID, (2, 3, 4, 4), atlas, [(0, 2, 7), (0, 2, 8)])
    assert not torch.equal(both, later)


def test_window_masks_put_the_windows_own_tokens():
    model = model_of("window", "random")
    tokens = torch.randn(1, *GRID, 4)
    mask = torch.zeros(1, *GRID, dtype=torch.bool)
    mask[0, 2:4, 3:6, 0:4, 4:6] = True  # a window that the clip's end cuts
    seen = model.hide(tokens, mask)
    own = model.window_mask_token.reshape(2, 3, 4, 4, 4)[:, :, :, :2]
    assert torch.equal(seen[0, 2:4, 3:6, 0:4, 4:6], own)
    assert torch.equal(seen[~mask], tokens[~mask])


@pytest.mark.parametrize(
    ("spatial", "temporal", "token"),
    [("random", "random", "mask"), ("window", "tube", "mask"), ("atlas", "random", "atlas_mask")],
)
def test_other_masks_put_one_token(spatial: str, temporal: str, token: str):
    model = model_of(spatial, temporal)
    tokens = torch.randn(1, *GRID, 4)
    mask = model.draw_mask(tokens, keys=[3])
    own = getattr(model, f"{token}_token")
    assert torch.equal(model.hide(tokens, mask)[mask], own.expand(int(mask.sum()), -1))


@settings(deadline=None, max_examples=15)
@given(
    grid=st.tuples(*[st.integers(1, 5)] * 3, st.integers(2, 5)),
    patch=st.tuples(*[st.integers(1, 2)] * 4),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=4),
    channels=st.integers(1, 2),
    window=st.tuples(*[st.integers(1, 4)] * 4),
    mask=st.sampled_from(["random", "window"]),
)
def test_models_of_any_shape_train(grid, patch, depths, channels, window, mask):
    config = EncoderConfig(
        img_size=tuple(size * p for size, p in zip(grid, patch, strict=True)),
        in_chans=channels,
        embed_dim=2,
        patch_size=patch,
        depths=tuple(depths),
        window_size=window,
        first_window_size=window,
        d_state=2,
    )
    masking = Masking(mask, "random", 0.99)
    model = MaskedAutoencoder(config, masking, backend="torch", generator=seeded())
    if int(np.prod([-(-g // min(g, w)) for g, w in zip(grid, window, strict=True)]) * 0.99) == 0 and mask == "window":
        with pytest.raises(ValueError, match="hides none of 1 pieces"):
            model(clips_of(config))
        return
    made = model(clips_of(config))
    made.loss.backward()
    assert model.image(made.patches).shape == (2, channels, *config.img_size)
    assert made.loss.isfinite()
    assert model.decoder_pred.weight.grad.abs().sum() > 0


def test_a_few_steps_lower_the_loss():
    model = model_of("random", "random", strd=RedundancyDropout()).train()
    clips = torch.ones_like(clips_of()) + 0.1 * clips_of()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        loss = model(clips, keys=[(0, step, 0), (0, step, 1)]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("spatial", "temporal"), COMBINATIONS)
def test_gradients_reach_every_trainable_parameter(spatial: str, temporal: str):
    model = model_of(spatial, temporal).train()
    model(clips_of(), keys=[1, 2]).loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert len([name for name, p in model.named_parameters() if not p.requires_grad]) == 2  # tokens of other masks


def test_published_size():
    model = MaskedAutoencoder(EncoderConfig())
    assert sum(p.numel() for p in model.parameters()) == 7_712_964
    assert len(model.state_dict()) == 409


def test_its_encoder_is_an_encoder():
    model, clips = model_of().eval(), clips_of()
    encoder = Encoder(CONFIG, backend="torch").eval()
    encoder.load_state_dict(model.encoder_state(), strict=True)
    with torch.no_grad():
        latent = model.encode_tokens(model.patch_embed(clips)).movedim(-1, 1)
        torch.testing.assert_close(encoder(clips), latent)
    with_atlas = model_of("atlas")
    assert "atlas_map" in with_atlas.state_dict()
    assert with_atlas.encoder_state().keys() == encoder.state_dict().keys()


def test_unfit_masks_are_refused():
    with pytest.raises(ValueError, match="no mask is called cube/tube"):
        Masking("cube", "tube")
    with pytest.raises(ValueError, match="mask ratio is 1"):
        Masking(ratio=1)
    with pytest.raises(ValueError, match=r"0.01 hides none of 24 pieces \(window, random\)"):
        model_of(ratio=0.01)(clips_of())
    with pytest.raises(ValueError, match="no atlas for an atlas mask"):
        MaskedAutoencoder(CONFIG, Masking("atlas"))(clips_of())
    with pytest.raises(ValueError, match=r"an atlas of \(2, 6, 6\)"):
        MaskedAutoencoder(CONFIG, Masking("atlas"), atlas=ATLAS[:2])(clips_of())
    with pytest.raises(ValueError, match="the atlas has no region"):
        MaskedAutoencoder(CONFIG, Masking("atlas"), atlas=0 * ATLAS)(clips_of())
    with pytest.raises(ValueError, match="1 keys for 2 clips"):
        model_of()(clips_of(), keys=[1])


def test_clips_of_another_shape_are_refused():
    with pytest.raises(ClipsInvalid):
        model_of()(clips_of(replace(CONFIG, in_chans=1)))
