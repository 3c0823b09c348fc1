"""The Mamba layer between its outer projections, on tensors and with its gradients.

Of a training step only the input and the rows of `project` are kept; convolution, steps and states are computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from neurostorm_bids.model.scan.fused import kernels
from neurostorm_bids.model.scan.fused.launch import ALIGNMENT, Launch, dot_precision, power_of_two, start
from neurostorm_bids.model.scan.fused.recurrence import ScanGradients, ScanInputs, scan_backward

TILE_CHANNELS = 32  # of a product's tile


@dataclass(frozen=True)
class MixerWeights:
    """The layer's parameters, float32 and contiguous; A is (d, s), negative."""

    conv_weight: Tensor  # (d, 1, taps)
    conv_bias: Tensor  # (d,)
    x_weight: Tensor  # (r + 2 s, d)
    dt_weight: Tensor  # (d, r)
    dt_bias: Tensor  # (d,)
    A: Tensor  # (d, s)
    D: Tensor  # (d,)

    @property
    def channels(self) -> int:
        """Channels of the layer's inside."""
        return len(self.D)

    @property
    def rank(self) -> int:
        """Numbers from which the steps are projected."""
        return self.dt_weight.shape[1]

    @property
    def states(self) -> int:
        """States of a channel."""
        return self.A.shape[1]

    @property
    def taps(self) -> int:
        """Length of the convolution."""
        return self.conv_weight.shape[-1]

    @cached_property
    def rates(self) -> Tensor:
        """A as the kernels read it.  # (s, d)"""
        return self.A.t().contiguous()

    @cached_property
    def dt_rows(self) -> Tensor:
        """The step projection as the kernels read it.  # (r, d)"""
        return self.dt_weight.t().contiguous()

    @property
    def row(self) -> int:
        """Length of a row of `project`: B, C, low-rank step, and zeros up to a multiple of `ALIGNMENT`."""
        return triton.cdiv(self.rank + 2 * self.states, ALIGNMENT) * ALIGNMENT


def mix(launch: Launch, xz: Tensor, weights: MixerWeights) -> tuple[Tensor, Tensor]:
    """The layer's inside, and the rows of `project`.  # (w, l, 2 d) -> (w, l, d) of xz's type, (w, l, row)"""
    rows = project(launch, xz, weights)
    windows, length, _ = xz.shape
    channels = weights.channels
    y = torch.empty(windows, length, channels, dtype=xz.dtype, device=xz.device)
    block, blocks = launch.blocks(channels)
    start(
        kernels.mix_forward,
        (windows, blocks),
        xz,
        xz[..., channels:],
        weights.conv_weight,
        weights.conv_bias,
        rows,
        weights.dt_rows,
        weights.dt_bias,
        weights.rates,
        weights.D,
        y,
        length,
        channels,
        *xz.stride()[:2],
        weights.row,
        RANK=weights.rank,
        R=power_of_two(weights.rank),
        STATES=weights.states,
        S=power_of_two(weights.states),
        TAPS=weights.taps,
        BLOCK=block,
        UNROLL=launch.unroll,
    )
    return y, rows


def project(launch: Launch, xz: Tensor, weights: MixerWeights) -> Tensor:
    """B, C, low-rank step and zeros of each token.  # (w, l, 2 d) -> (w, l, row) float32"""
    windows, length, _ = xz.shape
    rows = torch.empty(windows, length, weights.row, dtype=torch.float32, device=xz.device)
    tile = min(launch.rows, power_of_two(length, 16))
    start(
        kernels.project,
        (windows, triton.cdiv(length, tile)),
        xz,
        weights.conv_weight,
        weights.conv_bias,
        weights.x_weight.to(xz.dtype),
        rows,
        length,
        weights.channels,
        *xz.stride()[:2],
        weights.row,
        RANK=weights.rank,
        STATES=weights.states,
        TAPS=weights.taps,
        TILE=tile,
        BLOCK=TILE_CHANNELS,
        COLUMNS=power_of_two(weights.row),
        PRECISION=dot_precision(),
        num_warps=4,
    )
    return rows


def convolve(launch: Launch, xz: Tensor, weights: MixerWeights) -> Tensor:
    """The convolved x, after its SiLU.  # (w, l, 2 d) -> (w, l, d)"""
    windows, length, _ = xz.shape
    u = torch.empty(windows, length, weights.channels, dtype=xz.dtype, device=xz.device)
    tile = min(launch.rows, power_of_two(length, 16))
    start(
        kernels.convolve,
        (windows, triton.cdiv(length, tile), triton.cdiv(weights.channels, TILE_CHANNELS)),
        xz,
        weights.conv_weight,
        weights.conv_bias,
        u,
        length,
        weights.channels,
        *xz.stride()[:2],
        TAPS=weights.taps,
        TILE=tile,
        BLOCK=TILE_CHANNELS,
        num_warps=4,
    )
    return u


# --- backward -------------------------------------------------------------------------------------------------------


def mix_backward(launch: Launch, grad_y: Tensor, xz: Tensor, rows: Tensor, weights: MixerWeights) -> tuple[Tensor, ...]:
    """Gradients of xz and of the weights, in the order of `MixerWeights`."""
    d, s, r = weights.channels, weights.states, weights.rank
    grad_xz = torch.empty(xz.shape, dtype=xz.dtype, device=xz.device)
    u = convolve(launch, xz, weights)  # (w, l, d)
    low = rows[..., 2 * s : 2 * s + r]  # (w, l, r)
    delta = (low @ weights.dt_weight.t()).to(xz.dtype)  # (w, l, d)
    B, C = rows[..., :s], rows[..., s : 2 * s]  # (w, l, s)
    inputs = ScanInputs(u, delta, weights.A, B, C, weights.D, xz[..., d:], weights.dt_bias)
    grads = scan_backward(launch, inputs, grad_y, grad_xz[..., d:])
    grad_u, grad_x_weight, grad_dt_weight = _through_projections(grads, u, low, weights)
    grad_conv_weight, grad_conv_bias = _convolve_backward(launch, grad_u, xz, grad_xz, weights)
    of_steps = (grad_dt_weight, cast(Tensor, grads.delta_bias))
    return grad_xz, grad_conv_weight, grad_conv_bias, grad_x_weight, *of_steps, grads.A, grads.D


def _through_projections(
    grads: ScanGradients, u: Tensor, low: Tensor, weights: MixerWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, of the projection and of the step projection."""
    grad_delta = grads.delta.flatten(0, 1)  # (w l, d)
    grad_dt_weight = grad_delta.t() @ low.flatten(0, 1).to(u.dtype)  # (d, r)
    grad_low = grad_delta @ weights.dt_weight.to(u.dtype)  # (w l, r)
    grad_rows = torch.cat([grad_low, *(g.flatten(0, 1).to(u.dtype) for g in (grads.B, grads.C))], dim=1)
    grad_x_weight = grad_rows.t() @ u.flatten(0, 1)  # (r + 2 s, d)
    grad_u = torch.addmm(grads.u.flatten(0, 1), grad_rows, weights.x_weight.to(u.dtype)).view(u.shape)
    return grad_u, grad_x_weight, grad_dt_weight


def _convolve_backward(
    launch: Launch, grad_u: Tensor, xz: Tensor, grad_xz: Tensor, weights: MixerWeights
) -> tuple[Tensor, Tensor]:
    """Gradients of the convolution's weight and bias; that of x is written to the first half of ``grad_xz``."""
    windows, length, _ = xz.shape
    block, blocks = launch.blocks(weights.channels)
    of_weight = grad_u.new_empty(windows, weights.taps, weights.channels, dtype=torch.float32)
    of_bias = grad_u.new_empty(windows, weights.channels, dtype=torch.float32)
    start(
        kernels.convolve_backward,
        (windows, blocks),
        grad_u,
        xz,
        weights.conv_weight,
        weights.conv_bias,
        grad_xz,
        of_weight,
        of_bias,
        length,
        weights.channels,
        *xz.stride()[:2],
        *grad_xz.stride()[1:2],
        TAPS=weights.taps,
        BLOCK=block,
    )
    return of_weight.sum(0).t().reshape(weights.conv_weight.shape), of_bias.sum(0)


class Mixer(torch.autograd.Function):
    """`mix` for autograd."""

    @staticmethod
    def forward(ctx, launch: Launch, xz: Tensor, *weights: Tensor) -> Tensor:
        xz, weights = xz.contiguous(), tuple(weight.contiguous() for weight in weights)
        y, rows = mix(launch, xz, MixerWeights(*weights))
        ctx.save_for_backward(xz, rows, *weights)
        ctx.launch = launch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        xz, rows, *weights = ctx.saved_tensors
        with torch.autocast(xz.device.type, enabled=False):  # backward may be called where autocast is on
            grads = mix_backward(ctx.launch, grad_y.contiguous(), xz, rows, MixerWeights(*weights))
        return None, *(grad.to(tensor.dtype) for grad, tensor in zip(grads, (xz, *weights), strict=True))
