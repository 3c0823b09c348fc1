"""Spatiotemporal redundancy dropout (STRD, arXiv 2506.11167): in training, tokens that others repeat are zeroed.

Within a window with outputs h, A = softmax(h h' / sqrt(c)) says how alike tokens are. A token's spatial neighbours Os
lie within a cube at the same frame, its temporal neighbours Ot at the same place within some frames. With the likest
neighbour of each kind, f_s(i) and f_t(i), and sums over all tokens j of the window, token i is dropped with probability

    W_ij = clip(0.5 (f_t(i) A_ij / sum over Os of A_i. + f_s(i) A_ij / sum over Ot of A_i.), 0, 1)
    score(i) = clip(sum_j W_ij / max(|Os| + |Ot|, 1), 0, 1)
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from neurostorm_bids.model.draws import REDUNDANCY, Keys, uniform
from neurostorm_bids.model.windows import Size, WindowLayout

WINDOWS_AT_ONCE = 64  # likeness takes l * l numbers a window; this bounds its memory
EPSILON = 1e-8


class RedundancyDropout(nn.Module):
    """Zero each token with the probability that it is redundant; an identity outside training.

    Parameters
    ----------
    spatial_edge : int
        Edge of the cube of spatial neighbours, in tokens; an even edge equals the next odd one.
    temporal_edge : int
        Length of the stretch of temporal neighbours, in tokens.
    exclude_padding : bool
        Whether zeros of the padding are left out of likeness and neighbourhoods. The reference counts them.
    """

    def __init__(self, spatial_edge: int = 5, temporal_edge: int = 5, *, exclude_padding: bool = False) -> None:
        super().__init__()
        if spatial_edge < 1 or temporal_edge < 1:
            raise ValueError(f"neighbourhoods of {spatial_edge} and {temporal_edge} tokens; expected 1 or more")
        self.spatial_edge, self.temporal_edge = spatial_edge, temporal_edge
        self.exclude_padding = exclude_padding

    def forward(self, h: Tensor, layout: WindowLayout, *, keys: Keys | None = None, place: int = 0) -> Tensor:
        """Drop tokens.

        Parameters
        ----------
        h : Tensor
            (w, l, c): outputs of a Mamba layer, windows of a clip together.
        layout : WindowLayout
        keys : sequence, optional
            One a clip, for reproducible draws.
        place : int
            Which block this is.

        Returns
        -------
        Tensor
            (w, l, c), tokens whole or zero.
        """
        if not self.training:
            return h
        real = None
        if self.exclude_padding and layout.has_padding:
            real = layout.real_tokens().to(h.device)
            real = real.repeat(len(h) // len(real), 1)  # (w, l)
        score = self.score(h, layout.window, real)
        draw = uniform(keys, tuple(score.shape), REDUNDANCY, place).to(score)
        return h * (draw >= score).unsqueeze(-1)

    @torch.no_grad()
    def score(self, h: Tensor, window: Size, real: Tensor | None = None) -> Tensor:
        """Probability that each token is dropped.  # (w, l, c) -> (w, l)

        Parameters
        ----------
        h : Tensor
            (w, l, c).
        window : tuple of int
            Tokens of a window along x, y, z, t; their product is l.
        real : Tensor, optional
            (w, l) bool: tokens that count.
        """
        masks = neighbourhoods(window, self.spatial_edge, self.temporal_edge)
        spatial, temporal = (mask.to(h.device) for mask in masks)  # (l, l)
        parts = range(0, len(h), WINDOWS_AT_ONCE)
        scores = [
            _score(
                h[i : i + WINDOWS_AT_ONCE], spatial, temporal, None if real is None else real[i : i + WINDOWS_AT_ONCE]
            )
            for i in parts
        ]
        return torch.cat(scores) if scores else h.new_zeros(h.shape[:2])


def _score(h: Tensor, spatial: Tensor, temporal: Tensor, real: Tensor | None) -> Tensor:
    """The score of the module's docstring for some windows; a term whose neighbourhood is empty is 0."""
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    likeness = h @ h.transpose(1, 2) / h.shape[-1] ** 0.5  # (w, l, l)
    if real is not None:
        likeness = likeness.masked_fill(~real.unsqueeze(1), -torch.inf)
        spatial, temporal = spatial & real.unsqueeze(1), temporal & real.unsqueeze(1)  # (w, l, l)
    likeness = likeness.softmax(dim=-1)  # (w, l, l)
    near_s, near_t = likeness * spatial, likeness * temporal  # (w, l, l)
    twin_s, twin_t = near_s.amax(-1), near_t.amax(-1)  # (w, l); 0 where there is no neighbour
    n_s, n_t = spatial.sum(-1), temporal.sum(-1)  # (l) or (w, l)
    by_s = torch.where(n_s > 0, twin_t / (near_s.sum(-1) + EPSILON), 0)  # (w, l)
    by_t = torch.where(n_t > 0, twin_s / (near_t.sum(-1) + EPSILON), 0)
    repeated = (likeness * (0.5 * (by_s + by_t)).unsqueeze(-1)).clamp(0, 1)  # (w, l, l)
    score = (repeated.sum(-1) / (n_s + n_t).clamp(min=1)).clamp(0, 1)
    return score if real is None else score * real


@cache
def neighbourhoods(window: Size, spatial_edge: int, temporal_edge: int) -> tuple[Tensor, Tensor]:
    """Which tokens of a window are each other's spatial and temporal neighbours.  # (l, l) bool each"""
    places = torch.cartesian_prod(*(torch.arange(size) for size in window)).reshape(-1, 4)  # (l, 4), t fastest
    apart = (places.unsqueeze(1) - places).abs()  # (l, l, 4)
    near = (apart[..., :3] <= spatial_edge // 2).all(-1)
    same_place, same_time = (apart[..., :3] == 0).all(-1), apart[..., 3] == 0
    temporal = same_place & ~same_time & (apart[..., 3] <= temporal_edge // 2)
    return near & same_time & ~same_place, temporal
