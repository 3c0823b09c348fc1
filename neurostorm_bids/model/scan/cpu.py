"""The compiled backend: the scan as a torch function, and blocks and the encoder as a whole in inference.

The kernels send each window through LayerNorm, projections, convolution, scan, gate and MLP while it sits in a core's
cache (csrc/block.h). Weights are packed for them on first use and again when they change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neurostorm_bids.model.scan import Backend
from neurostorm_bids.model.scan.cpu_library import (
    BlockWeights,
    Kernels,
    LinearWeights,
    Packed,
    Patches,
    ScanArguments,
    ScanGradients,
    Step,
    Windows,
    default_isa,
    fingerprint,
)
from neurostorm_bids.model.scan.torch_scan import VECTORISED

if TYPE_CHECKING:
    from neurostorm_bids.model.encoder import Block, Encoder, PositionEmbedding, Stage
    from neurostorm_bids.model.windows import WindowLayout

Packing = TypeVar("Packing")
INPUTS = ("u", "delta", "a", "b", "c", "skip", "z", "delta_bias")  # of the scan, in the order of `selective_scan`
GRADIENTS = tuple(f"grad_{name}" for name in INPUTS)
MOST_STATES = 256  # of csrc/scan.h


class Compiled:
    """What the backend offers, on the kernels of one instruction set.

    Parameters
    ----------
    isa : str, optional
        See `Kernels`.
    """

    def __init__(self, isa: str | None = None) -> None:
        self.kernels = Kernels(isa)
        self._packed: WeakKeyDictionary[nn.Module, tuple[object, Any]] = WeakKeyDictionary()

    def scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        *,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
    ) -> Tensor:
        """The scan with its softplus, skip and gate; see `neurostorm_bids.model.scan.selective_scan`."""
        if A.dtype != torch.float32 or A.shape[1] > MOST_STATES:
            return VECTORISED.scan(u, delta, A, B, C, D, z=z, delta_bias=delta_bias)
        inputs = [None if tensor is None else tensor.float() for tensor in (u, delta, A, B, C, D, z, delta_bias)]
        return _CompiledScan.apply(self.kernels, *inputs)

    @torch.no_grad()
    def block(self, block: Block, x: Tensor) -> Tensor:
        """A block in inference.  # (n, x, y, z, t, c) -> the same"""
        packed = self._packed_once(block, x, _pack_block)
        if packed is None:
            return block.compute(x)
        tokens = x.clone(memory_format=torch.contiguous_format)
        self.kernels.block_forward(packed, _windows(block.layout(tuple(x.shape[1:5])), len(x)), tokens)
        return tokens

    @torch.no_grad()
    def encode(self, encoder: Encoder, clips: Tensor) -> Tensor:
        """The encoder in inference.  # (n, ch, X, Y, Z, T) -> (n, c, x, y, z, t)"""
        packed = self._packed_once(encoder, clips, _PackedEncoder)
        return encoder.compute(clips) if packed is None else packed.run(clips.contiguous())

    def _packed_once(
        self, module: nn.Module, x: Tensor, pack: Callable[[Kernels, nn.Module], Packing]
    ) -> Packing | None:
        """The weights of a module as the kernels want them, packed anew when they have changed.

        None where the kernels do not serve: another precision or device.
        """
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return None
        parameters = list(module.parameters())
        known = self._packed.get(module)
        if known is None or known[0] != fingerprint(parameters):
            if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters):
                return None
            known = self._packed[module] = (fingerprint(parameters), pack(self.kernels, module))
        return known[1]


class _PackedEncoder:
    """An encoder whose weights are packed."""

    def __init__(self, kernels: Kernels, encoder: Encoder) -> None:
        self._kernels, self._patch = kernels, tuple(encoder.patch_embed.patch)
        fc = encoder.patch_embed.fc
        self._embed, self._channels = kernels.pack_linear(_linear_weights(fc, None)), fc.out_features
        self._embeddings = [_channels_last(embeddings) for embeddings in encoder.pos_embeds]
        self._workspace = _Workspace()
        self._stages = [_PackedStage(kernels, stage, self._workspace) for stage in encoder.layers]

    def run(self, clips: Tensor) -> Tensor:
        """(n, ch, X, Y, Z, T) -> (n, c, x, y, z, t)"""
        tokens = self._embed_patches(clips)  # (n, x, y, z, t, c)
        steps: list[Step] = []
        for stage, embeddings in zip(self._stages, [*self._embeddings[1:], None], strict=True):
            tokens = stage.add_steps(steps, tokens, embeddings)
        self._kernels.run_steps(steps)
        # numpy copies on one thread: after a parallel copy torch's threads would spin on beside the next clip
        return torch.from_numpy(np.moveaxis(tokens.numpy(), -1, 1).copy(order="C"))

    def _embed_patches(self, clips: Tensor) -> Tensor:
        n, channels, *image = clips.shape
        grid = [size // step for size, step in zip(image, self._patch, strict=True)]
        tokens = self._workspace.tensor("patches", (n, *grid, self._channels))
        patches = Patches(clips=n, channels=channels, image=tuple(image), patch=self._patch)
        self._kernels.patch_embed(self._embed, patches, clips, *self._embeddings[0], tokens)
        return tokens


class _Workspace(threading.local):
    """Tokens between the kernels, kept from clip to clip, for each thread its own.

    Tensors of this size that come and go among the volumes of a streamed run leave holes in the heap, which then grows
    with the length of the run.
    """

    def __init__(self) -> None:
        self._tensors: dict[Hashable, Tensor] = {}

    def tensor(self, owner: Hashable, shape: Sequence[int]) -> Tensor:
        """A contiguous float32 tensor with undefined values, valid until its owner asks again."""
        n = prod(shape)
        if owner not in self._tensors or self._tensors[owner].numel() < n:
            self._tensors[owner] = torch.empty(n)
        return self._tensors[owner][:n].view(*shape)


class _PackedStage:
    """The blocks of a stage and the merging behind them, which also adds the embeddings of the next stage, packed."""

    def __init__(self, kernels: Kernels, stage: Stage, workspace: _Workspace) -> None:
        self._workspace = workspace
        self._blocks = [(block.layout, _pack_block(kernels, block)) for block in stage.blocks]
        self._merging: Packed | None = None
        if stage.downsample is not None:
            reduction = stage.downsample.reduction
            self._merging = kernels.pack_linear(_linear_weights(reduction, stage.downsample.norm))
            self._channels = reduction.out_features

    def add_steps(self, steps: list[Step], tokens: Tensor, embeddings: tuple[Tensor, Tensor] | None) -> Tensor:
        """Add what this stage does to tokens, which it overwrites; returns where its result will be.

        # (n, x, y, z, t, c) -> (n, x / 2, y / 2, z / 2, t, c_out), or in the last stage the same
        """
        n, *grid, _ = tokens.shape
        for layout, packed in self._blocks:
            steps.append(Step(block=packed, windows=_windows(layout(tuple(grid)), n), tokens=tokens))
        if self._merging is None or embeddings is None:
            return tokens
        halved = [(size + 1) // 2 for size in grid[:3]]
        merged = self._workspace.tensor(self, (n, *halved, grid[3], self._channels))
        place, time = embeddings
        here = Windows(clips=n, grid=tuple(grid))
        steps.append(Step(merging=self._merging, windows=here, place=place, time=time, tokens=tokens, merged=merged))
        return merged


@lru_cache(maxsize=64)
def _windows(layout: WindowLayout, clips: int) -> Windows:
    origin = tuple(rolled - before for rolled, before in zip(layout.rolled, layout.before, strict=True))
    return Windows(clips=clips, grid=layout.grid, window=layout.window, count=layout.counts, origin=origin)


def _channels_last(embeddings: PositionEmbedding) -> tuple[Tensor, Tensor]:
    """Embeddings of places (x, y, z, c) and of frames (t, c)."""
    place, time = embeddings.pos_embed.detach(), embeddings.time_embed.detach()
    return place[0, ..., 0].movedim(0, -1).contiguous(), time[0, :, 0, 0, 0].t().contiguous()


def _pack_block(kernels: Kernels, block: Block) -> Packed:
    return kernels.pack_block(_block_weights(block))


class _CompiledScan(torch.autograd.Function):
    """Keeps its inputs and a state in 32; the kernel computes those between again in the backward."""

    @staticmethod
    def forward(ctx, kernels: Kernels, *inputs: Tensor | None) -> Tensor:
        contiguous = [None if tensor is None else tensor.contiguous() for tensor in inputs]
        u, states = contiguous[0], contiguous[2].shape[1]
        starts = kernels.scan_starts(*u.shape, states) if any(ctx.needs_input_grad) else None
        ctx.save_for_backward(*contiguous, starts)
        ctx.kernels = kernels
        y = torch.empty_like(u)  # (w, l, d)
        kernels.scan_forward(_scan_arguments(contiguous, y, starts))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        make = torch.empty_like if grad_y.numel() else torch.zeros_like
        grads = [None if tensor is None else make(tensor) for tensor in inputs]
        if grad_y.numel():
            gradients = ScanGradients(grad_y=grad_y.contiguous(), **dict(zip(GRADIENTS, grads, strict=True)))
            ctx.kernels.scan_backward(_scan_arguments(inputs, grad_y, starts), gradients)
        return None, *grads


def _scan_arguments(inputs: Sequence[Tensor | None], y: Tensor, starts: Tensor | None) -> ScanArguments:
    windows, length, channels = y.shape
    tensors = dict(zip(INPUTS, inputs, strict=True))
    y = y if y.is_contiguous() else None
    sizes = {"batch": windows, "length": length, "channels": channels, "states": inputs[2].shape[1]}
    return ScanArguments(**sizes, y=y, starts=starts, **tensors)


def _block_weights(block: Block) -> BlockWeights:
    mamba, mlp = block.mamba, block.mlp
    inner, states = mamba.A_log.shape
    names = {
        "norm1_weight": block.norm1.weight, "norm1_bias": block.norm1.bias, "in_proj": mamba.in_proj.weight,
        "conv_weight": mamba.conv1d.weight, "conv_bias": mamba.conv1d.bias, "x_proj": mamba.x_proj.weight,
        "dt_weight": mamba.dt_proj.weight, "dt_bias": mamba.dt_proj.bias, "a": -torch.exp(mamba.A_log),
        "skip": mamba.D, "out_proj": mamba.out_proj.weight, "norm2_weight": block.norm2.weight,
        "norm2_bias": block.norm2.bias, "fc1_weight": mlp.linear1.weight, "fc1_bias": mlp.linear1.bias,
        "fc2_weight": mlp.linear2.weight, "fc2_bias": mlp.linear2.bias, "prompt_tokens": block.prompt,
    }  # fmt: skip
    return BlockWeights(
        dim=block.norm1.weight.shape[0],
        inner=inner,
        rank=mamba.rank,
        states=states,
        taps=mamba.conv1d.weight.shape[-1],
        hidden=mlp.linear1.out_features,
        prompt=0 if block.prompt is None else block.prompt.shape[1],
        **{name: None if tensor is None else tensor.detach().contiguous() for name, tensor in names.items()},
    )


def _linear_weights(linear: nn.Linear, norm: nn.LayerNorm | None) -> LinearWeights:
    tensors = {"weight": linear.weight, "bias": linear.bias}
    if norm is not None:
        tensors |= {"norm_weight": norm.weight, "norm_bias": norm.bias}
    contiguous = {name: None if tensor is None else tensor.detach().contiguous() for name, tensor in tensors.items()}
    return LinearWeights(inputs=linear.in_features, outputs=linear.out_features, **contiguous)


def describe(compiled: Compiled) -> str:
    """The instruction set in use, for ``neurostorm --version -v``."""
    return f"compiled kernels, {compiled.kernels.isa}"


COMPILED = Compiled(default_isa())
BACKEND = Backend("cpu", COMPILED.scan, COMPILED.block, COMPILED.encode, devices=("cpu",), detail=describe(COMPILED))
