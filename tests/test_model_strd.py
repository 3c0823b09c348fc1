"""Redundancy dropout: neighbourhoods, scores in analytic cases, draws, and padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurostorm_bids.model import Encoder, EncoderConfig
from neurostorm_bids.model.strd import RedundancyDropout, neighbourhoods
from neurostorm_bids.model.windows import WindowLayout

CONFIG = EncoderConfig(
    img_size=(6, 6, 6, 4),
    embed_dim=4,
    patch_size=(2, 2, 2, 1),
    depths=(2, 2),
    window_size=(2, 2, 2, 2),
    first_window_size=(2, 2, 2, 2),
    d_state=2,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def definition(h: Tensor, window, l_spat: int, l_temp: int) -> Tensor:
    """The score of one window by its definition, token by token.  # (l, c) -> (l)"""
    places = torch.cartesian_prod(*(torch.arange(size) for size in window)).reshape(-1, 4).tolist()
    A = torch.softmax(h @ h.T / h.shape[1] ** 0.5, dim=1)
    scores = []
    for i, p in enumerate(places):
        apart = [[abs(a - b) for a, b in zip(p, q, strict=True)] for q in places]
        Os = [j for j, a in enumerate(apart) if j != i and a[3] == 0 and max(a[:3]) <= l_spat // 2]
        Ot = [j for j, a in enumerate(apart) if j != i and max(a[:3]) == 0 and a[3] <= l_temp // 2]
        f_s, f_t = (max([A[i, j].item() for j in near], default=0.0) for near in (Os, Ot))
        by_s = f_t / (sum(A[i, j].item() for j in Os) + 1e-8) if Os else 0.0
        by_t = f_s / (sum(A[i, j].item() for j in Ot) + 1e-8) if Ot else 0.0
        W = [min(max(0.5 * (by_s + by_t) * A[i, j].item(), 0), 1) for j in range(len(places))]
        scores.append(min(max(sum(W) / max(len(Os) + len(Ot), 1), 0), 1))
    return torch.tensor(scores, dtype=h.dtype)


@settings(deadline=None, max_examples=25)
@given(
    window=st.tuples(*[st.integers(1, 3)] * 4),
    edges=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 1000),
)
def test_score_is_its_definition(window, edges, seed):
    l = int(torch.tensor(window).prod())  # noqa: E741
    h = torch.randn(2, l, 3, dtype=torch.float64, generator=seeded(seed))
    score = RedundancyDropout(*edges).score(h, window)
    torch.testing.assert_close(score, torch.stack([definition(row, window, *edges) for row in h]))


def test_equal_tokens_share_their_likeness():
    # four equal tokens along time: A = 1/4; no spatial neighbour, so the terms of either kind are 0
    dropout = RedundancyDropout()
    assert dropout.score(torch.ones(1, 4, 3), (1, 1, 1, 4)).abs().max() == 0
    # two places, two frames: f = 1/4, sums 1/4, W = 1/4 each, sum 1, over two neighbours
    torch.testing.assert_close(dropout.score(torch.ones(1, 4, 3), (2, 1, 1, 2)), torch.full((1, 4), 0.5))


def test_an_even_edge_equals_the_next_odd_one():
    assert torch.equal(neighbourhoods((4, 4, 1, 2), 2, 3)[0], neighbourhoods((4, 4, 1, 2), 3, 3)[0])
    assert not torch.equal(neighbourhoods((4, 4, 1, 2), 3, 3)[0], neighbourhoods((4, 4, 1, 2), 4, 3)[0])


def test_many_windows_are_scored_as_one_by_one():
    h = torch.randn(150, 8, 3, generator=seeded())
    dropout = RedundancyDropout()
    one_by_one = torch.cat([dropout.score(row[None], (2, 2, 1, 2)) for row in h])
    torch.testing.assert_close(dropout.score(h, (2, 2, 1, 2)), one_by_one)


def test_tokens_are_dropped_as_often_as_their_score_says():
    h = torch.randn(1, 8, 3, generator=seeded())
    dropout = RedundancyDropout()
    score = dropout.score(h, (2, 2, 1, 2))[0]
    layout = WindowLayout((2, 2, 1, 2), (2, 2, 1, 2))
    many = dropout(h.repeat(4000, 1, 1), layout, keys=range(4000))
    dropped = (many == 0).all(-1).double().mean(0)
    assert (dropped - score).abs().max() < 4 * (score * (1 - score) / 4000).sqrt().max()
    assert ((many == 0).all(-1) | (many == h).all(-1)).all()  # whole or zero, nothing between


def test_draws_depend_on_the_clip_and_the_block_alone():
    h = torch.randn(4, 8, 3, generator=seeded())  # two windows of each of two clips
    layout = WindowLayout((2, 2, 1, 4), (2, 2, 1, 2))
    dropout = RedundancyDropout()
    both = dropout(h, layout, keys=[(1, 0, 5), (1, 0, 9)], place=3)
    swapped = dropout(h.roll(2, 0), layout, keys=[(1, 0, 9), (1, 0, 5)], place=3)
    assert torch.equal(both, swapped.roll(2, 0))
    assert torch.equal(both[:2], dropout(h[:2], layout, keys=[(1, 0, 5)], place=3))
    assert not torch.equal(both, dropout(h, layout, keys=[(1, 0, 5), (1, 0, 9)], place=4))
    assert not torch.equal(both, dropout(h, layout, keys=[(1, 1, 5), (1, 1, 9)], place=3))


def test_padding_may_be_left_out():
    layout = WindowLayout.fitted((2, 1, 1, 3), (2, 1, 1, 2), shifted=False)  # the second window's last frame is padding
    h = torch.randn(2, 4, 3, generator=seeded())
    real = layout.real_tokens()
    assert real.tolist() == [[True] * 4, [True, False, True, False]]
    score = RedundancyDropout(exclude_padding=True).score(h, layout.window, real)
    counted = RedundancyDropout().score(h, layout.window)
    assert torch.equal(score[0], counted[0])
    assert score[1, [1, 3]].abs().max() == 0
    alone = RedundancyDropout().score(h[1:, [0, 2]], (2, 1, 1, 1))  # as if the window had one frame
    torch.testing.assert_close(score[1, [0, 2]], alone[0])


@pytest.mark.parametrize("exclude_padding", [False, True])
def test_every_stage_drops_in_training_and_none_outside(exclude_padding: bool):
    strd = RedundancyDropout(exclude_padding=exclude_padding)
    encoder = Encoder(CONFIG, strd=strd, generator=seeded(), backend="torch")  # grids 3 x 3 x 3 and 2 x 2 x 2
    plain = Encoder(CONFIG, generator=seeded(), backend="torch")
    clips = torch.randn(2, 1, 6, 6, 6, 4, generator=seeded())
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(encoder.eval()(clips), plain.eval()(clips))
        trained = encoder.train()(clips, keys=[1, 2])
        assert not torch.equal(trained, plain.train()(clips))
        assert torch.equal(trained, encoder(clips, keys=[1, 2]))
        apart = torch.cat([encoder(clips[i : i + 1], keys=[i + 1]) for i in range(2)])
    torch.testing.assert_close(trained, apart, atol=1e-6, rtol=0)


def test_recomputed_blocks_drop_the_same_tokens():
    clips = torch.randn(2, 1, 6, 6, 6, 4, generator=seeded())
    gradients = []
    for frugal in (False, True):
        encoder = Encoder(CONFIG, strd=RedundancyDropout(), generator=seeded(), backend="torch").checkpoint_blocks(
            frugal
        )
        encoder.train()(clips, keys=[3, 4]).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_unfit_arguments_are_refused():
    with pytest.raises(ValueError, match="neighbourhoods of 0 and 5 tokens"):
        RedundancyDropout(0)
    layout = WindowLayout((2, 1, 1, 2), (2, 1, 1, 2))
    with pytest.raises(ValueError, match="2 keys for 3 rows"):
        RedundancyDropout()(torch.ones(3, 4, 2), layout, keys=[1, 2])


def test_blocks_of_one_token_windows_are_left_alone():
    config = replace(CONFIG, window_size=(1, 1, 1, 1), first_window_size=(1, 1, 1, 1), last_layer_full_MSA=False)
    clips = torch.randn(1, 1, 6, 6, 6, 4, generator=seeded())
    with torch.no_grad():
        dropped = Encoder(config, strd=RedundancyDropout(), generator=seeded(), backend="torch").train()(
            clips, keys=[1]
        )
        plain = Encoder(config, generator=seeded(), backend="torch").train()(clips)
    assert torch.equal(dropped, plain)
