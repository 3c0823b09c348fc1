"""One Mamba layer: a gated, causal, selective state-space model over the tokens of a window."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurostorm_bids.model.scan import load_backend, resolve_backend, selective_scan

SMALLEST_STEP, LARGEST_STEP, STEP_FLOOR = 1e-3, 1e-1, 1e-4  # section 3.6 of the paper: softplus(dt_proj.bias)


class Mamba(nn.Module):
    """Mamba-1 (Gu and Dao 2023, arXiv 2312.00752, section 3.4), causal, one direction.

    Parameters
    ----------
    c : int
        Channels of a token.
    d_state, d_conv, expand : int
        States a channel, length of the causal convolution, inner channels over ``c``.
    backend : str
        See `neurostorm_bids.model.scan`.
    """

    def __init__(self, c: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, backend: str = "auto") -> None:
        super().__init__()
        d, r = expand * c, math.ceil(c / 16)
        self.rank, self.d_state, self.backend = r, d_state, backend
        self.in_proj = nn.Linear(c, 2 * d, bias=False)
        self.conv1d = nn.Conv1d(d, d, d_conv, groups=d, padding=d_conv - 1)
        self.x_proj = nn.Linear(d, r + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(r, d)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1.0)).repeat(d, 1))  # (d, s), S4D-real
        self.D = nn.Parameter(torch.ones(d))
        self.out_proj = nn.Linear(d, c, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix the tokens of each window.  # (w, l, c) -> (w, l, c)"""
        mixer = load_backend(resolve_backend(self.backend, tokens.device)).mixer
        if mixer is not None:
            return self.out_proj(mixer(self, self.in_proj(tokens)))  # (w, l, c)
        u, z = (F.linear(tokens, half) for half in self.in_proj.weight.chunk(2))  # (w, l, d) each, contiguous
        return self.out_proj(self.mix(u, z))  # (w, l, c)

    def mix(self, u: Tensor, z: Tensor) -> Tensor:
        """What lies between the outer projections, whatever the backend.  # (w, l, d) each -> (w, l, d)"""
        u = F.silu(self._causal_convolution(u))  # (w, l, d)
        delta, B, C = self.x_proj(u).split([self.rank, self.d_state, self.d_state], dim=-1)  # (w, l, r), (w, l, s) x 2
        delta = F.linear(delta, self.dt_proj.weight)  # (w, l, d); the scan adds the bias before its softplus
        A = -torch.exp(self.A_log)  # (d, s)
        return selective_scan(u, delta, A, B, C, self.D, z=z, delta_bias=self.dt_proj.bias, backend=self.backend)

    def _causal_convolution(self, u: Tensor) -> Tensor:
        """Each channel with its own few weights over this and earlier tokens.  # (w, l, d) -> (w, l, d)

        Shifted sums, since torch's depthwise convolution wants channels first and would transpose twice.
        """
        taps = self.conv1d.weight[:, 0].t().contiguous()  # (d_conv, d)
        padded = F.pad(u, (0, 0, len(taps) - 1, 0))  # (w, d_conv - 1 + l, d)
        out = torch.addcmul(cast(Tensor, self.conv1d.bias), padded[:, : u.shape[1]], taps[0])
        for shift, tap in enumerate(taps[1:], start=1):
            out.addcmul_(padded[:, shift : shift + u.shape[1]], tap)
        return out

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights (section 3.6 of the paper): steps log-uniform, A = -1 .. -s, D = 1, small linear layers."""
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02, generator=generator)
        for layer, inputs in ((self.conv1d, self.conv1d.kernel_size[0]), (self.dt_proj, self.rank)):
            layer.weight.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        cast(Tensor, self.conv1d.bias).zero_()
        low, high = math.log(SMALLEST_STEP), math.log(LARGEST_STEP)
        step = self.dt_proj.bias.uniform_(low, high, generator=generator).exp().clamp(min=STEP_FLOOR)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.A_log.copy_(torch.log(torch.arange(1, self.d_state + 1.0)).expand_as(self.A_log))
        self.D.fill_(1)
