"""Spatiotemporal redundancy dropout."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from neurostorm_bids.model.windows import WindowLayout


class RedundancyDropout(nn.Module):
    """Placeholder."""

    def forward(self, h: Tensor, layout: WindowLayout, *, keys: Sequence[int] | None, place: int) -> Tensor:
        raise NotImplementedError
