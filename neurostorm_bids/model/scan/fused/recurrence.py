"""The scan on tensors, with its gradients; states are computed again in the backward, and sums have a fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from neurostorm_bids.model.scan.fused import kernels
from neurostorm_bids.model.scan.fused.launch import Launch, power_of_two, start, strides, with_aligned_rows, with_rows

MOST_STATES = 64  # of a channel; more do not fit in registers


@dataclass(frozen=True)
class ScanInputs:
    """The scan's tensors as `neurostorm_bids.model.scan.selective_scan` names them, each with contiguous rows."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None = None
    delta_bias: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Windows, tokens of each, channels, states."""
        windows, length, channels = self.u.shape
        return windows, length, channels, self.A.shape[1]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All, in the order of the kernels, with A as (s, d)."""
        rates = self.A.t().contiguous()
        return self.u, self.delta, rates, self.B, self.C, self.D, self.z, self.delta_bias

    @property
    def strides(self) -> list[int]:
        """In the order of the kernels."""
        return strides(self.u, self.delta, self.B, self.C, self.z)

    def windows(self, part: slice) -> ScanInputs:
        """Some of the windows."""
        u, delta, B, C = (tensor[part] for tensor in (self.u, self.delta, self.B, self.C))
        z = None if self.z is None else self.z[part]
        return ScanInputs(u, delta, self.A, B, C, self.D, z, self.delta_bias)


@dataclass(frozen=True)
class ScanGradients:
    """Gradients of the scan's inputs; None for those that are not there."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None
    delta_bias: Tensor | None


def scan_forward(launch: Launch, inputs: ScanInputs) -> Tensor:
    """The scan.  # (w, l, d) of A's type"""
    windows, length, channels, states = inputs.sizes
    y = torch.empty(inputs.u.shape, dtype=inputs.A.dtype, device=inputs.u.device)
    block, blocks = launch.blocks(channels)
    start(
        kernels.scan_forward,
        (windows, blocks),
        *inputs.tensors,
        y,
        length,
        channels,
        *inputs.strides,
        STATES=states,
        S=power_of_two(states),
        BLOCK=block,
        UNROLL=launch.unroll,
    )
    return y


def scan_backward(launch: Launch, inputs: ScanInputs, grad_y: Tensor, grad_z: Tensor | None) -> ScanGradients:
    """Gradients of `scan_forward`, those of B and C in float32; that of z is written to ``grad_z`` (w, l, d)."""
    windows, length, channels, states = inputs.sizes
    empty = partial(torch.empty, device=grad_y.device)
    zeros = partial(torch.zeros, dtype=torch.float32, device=grad_y.device)
    of_rates, of_skip, of_bias = zeros(states, channels), zeros(channels), zeros(channels)
    grads = ScanGradients(
        u=empty(inputs.u.shape, dtype=inputs.u.dtype),
        delta=empty(inputs.u.shape, dtype=inputs.delta.dtype),
        A=of_rates.t(),
        B=empty(inputs.B.shape, dtype=torch.float32),
        C=empty(inputs.C.shape, dtype=torch.float32),
        D=of_skip,
        z=grad_z,
        delta_bias=None if inputs.delta_bias is None else of_bias,
    )
    bytes_each = 4 * states * channels * triton.cdiv(length, launch.chunk)
    at_once = max(1, launch.scratch_mb * 2**20 // max(bytes_each, 1))
    for first in range(0, windows, at_once):
        _add_windows(launch, inputs, slice(first, first + at_once), grad_y, grads)
    return grads


def _add_windows(launch: Launch, inputs: ScanInputs, part: slice, grad_y: Tensor, grads: ScanGradients) -> None:
    """Fill in the gradients of some windows, and add their share of those that all windows share."""
    inputs = inputs.windows(part)
    windows, length, channels, states = inputs.sizes
    block, blocks = launch.blocks(channels)
    empty = partial(torch.empty, dtype=torch.float32, device=grad_y.device)
    starts = _starts(launch, inputs)
    of_rates, of_skip, of_bias = empty(windows, states, channels), empty(windows, channels), empty(windows, channels)
    of_B, of_C = empty(blocks, *inputs.B.shape), empty(blocks, *inputs.C.shape)
    grad_z = None if grads.z is None else grads.z[part]
    start(
        kernels.scan_backward,
        (windows, blocks),
        grad_y[part],
        *inputs.tensors,
        starts,
        grads.u[part],
        grads.delta[part],
        of_rates,
        of_B,
        of_C,
        of_skip,
        grad_z,
        of_bias,
        length,
        channels,
        *inputs.strides,
        *strides(grad_z),
        STATES=states,
        S=power_of_two(states),
        BLOCK=block,
        CHUNK=launch.chunk,
    )
    torch.sum(of_B, 0, out=grads.B[part])
    torch.sum(of_C, 0, out=grads.C[part])
    grads.A.add_(of_rates.sum(0).t())
    grads.D.add_(of_skip.sum(0))
    if grads.delta_bias is not None:
        grads.delta_bias.add_(of_bias.sum(0))


def _starts(launch: Launch, inputs: ScanInputs) -> Tensor:
    """The states before each chunk.  # (w, chunks, s, d)"""
    windows, length, channels, states = inputs.sizes
    block, blocks = launch.blocks(channels)
    chunks = triton.cdiv(length, launch.chunk)
    starts = torch.empty(windows, chunks, states, channels, dtype=torch.float32, device=inputs.u.device)
    u, delta, rates, B, _, _, _, bias = inputs.tensors
    start(
        kernels.scan_starts,
        (windows, blocks),
        u,
        delta,
        rates,
        B,
        bias,
        starts,
        length,
        channels,
        *strides(u, delta, B),
        STATES=states,
        S=power_of_two(states),
        BLOCK=block,
        CHUNK=launch.chunk,
    )
    return starts


class Scan(torch.autograd.Function):
    """The scan for autograd; keeps only its inputs."""

    @staticmethod
    def forward(ctx, launch: Launch, u, delta, A, B, C, D, z, delta_bias) -> Tensor:
        B, C = with_aligned_rows(B), with_aligned_rows(C)
        u, delta, D, z, delta_bias = (None if t is None else with_rows(t) for t in (u, delta, D, z, delta_bias))
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias)
        ctx.launch = launch
        return scan_forward(launch, ScanInputs(u, delta, A, B, C, D, z, delta_bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs = ScanInputs(*tensors)
        grad_z = None if inputs.z is None else torch.empty(inputs.u.shape, dtype=inputs.z.dtype, device=grad_y.device)
        grads = scan_backward(ctx.launch, inputs, grad_y.contiguous(), grad_z)
        found = (grads.u, grads.delta, grads.A, grads.B, grads.C, grads.D, grads.z, grads.delta_bias)
        return None, *(None if grad is None else grad.to(t.dtype) for grad, t in zip(found, tensors, strict=True))
