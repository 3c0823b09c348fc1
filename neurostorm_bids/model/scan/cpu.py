"""The compiled backend: the scan as a torch function, and blocks and the encoder as a whole in inference.

The kernels send each window through LayerNorm, projections, convolution, scan, gate and MLP while it sits in a core's
cache (csrc/block.h). Weights are packed for them on first use and again when they change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neurostorm_bids.model.scan import Backend
from neurostorm_bids.model.scan.cpu_library import (
    BlockWeights,
    Kernels,
    LinearWeights,
    Patches,
    ScanArguments,
    ScanGradients,
    Windows,
    default_isa,
)
from neurostorm_bids.model.scan.torch_scan import VECTORISED

if TYPE_CHECKING:
    from neurostorm_bids.model.encoder import Block, Encoder, PositionEmbedding

T = TypeVar("T")
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
        if not _serves(block, x):
            return block.compute(x)
        tokens = x.clone(memory_format=torch.contiguous_format)
        self._run_block(block, tokens)
        return tokens

    @torch.no_grad()
    def encode(self, encoder: Encoder, clips: Tensor) -> Tensor:
        """The encoder in inference.  # (n, ch, X, Y, Z, T) -> (n, c, x, y, z, t)"""
        if not _serves(encoder, clips):
            return encoder.compute(clips)
        tokens = self._embed_patches(encoder, clips.contiguous())  # (n, x, y, z, t, c), embeddings added
        for stage, embeddings in zip(encoder.layers, [*encoder.pos_embeds[1:], None], strict=True):
            for block in stage.blocks:
                self._run_block(block, tokens)
            if embeddings is not None:
                tokens = self._merge(stage.downsample, embeddings, tokens)
        return tokens.movedim(-1, 1).contiguous()

    def _run_block(self, block: Block, tokens: Tensor) -> None:
        packed = self._once(block, lambda: self.kernels.pack_block(_block_weights(block)))
        layout = block.layout(tuple(tokens.shape[1:5]))
        origin = tuple(rolled - before for rolled, before in zip(layout.rolled, layout.before, strict=True))
        windows = Windows(clips=len(tokens), grid=layout.grid, window=layout.window, count=layout.counts, origin=origin)
        self.kernels.block_forward(packed, windows, tokens)

    def _embed_patches(self, encoder: Encoder, clips: Tensor) -> Tensor:
        embed, patch = encoder.patch_embed, tuple(encoder.patch_embed.patch)
        packed = self._once(embed, lambda: self.kernels.pack_linear(_linear_weights(embed.fc, None)))
        n, channels, *image = clips.shape
        grid = [size // step for size, step in zip(image, patch, strict=True)]
        tokens = clips.new_empty(n, *grid, embed.fc.out_features)
        place, time = self._embeddings(encoder.pos_embeds[0])
        patches = Patches(clips=n, channels=channels, image=tuple(image), patch=patch)
        self.kernels.patch_embed(packed, patches, clips, place, time, tokens)
        return tokens

    def _merge(self, merging: nn.Module, embeddings: PositionEmbedding, tokens: Tensor) -> Tensor:
        packed = self._once(merging, lambda: self.kernels.pack_linear(_linear_weights(merging.reduction, merging.norm)))
        n, *grid, frames, _ = tokens.shape
        halves = [(size + 1) // 2 for size in grid]
        merged = tokens.new_empty(n, *halves, frames, merging.reduction.out_features)
        self.kernels.merge(packed, tokens, *self._embeddings(embeddings), merged)
        return merged

    def _embeddings(self, embeddings: PositionEmbedding) -> tuple[Tensor, Tensor]:
        """Channels last: (x, y, z, c) and (t, c)."""
        return self._once(
            embeddings,
            lambda: (
                embeddings.pos_embed[0, ..., 0].movedim(0, -1).contiguous(),
                embeddings.time_embed[0, :, 0, 0, 0].t().contiguous(),
            ),
        )

    def _once(self, module: nn.Module, build: Callable[[], T]) -> T:
        """What `build` makes of a module's weights, made anew only when they have changed."""
        state = tuple((id(p), p.data_ptr(), p._version) for p in module.parameters())
        known = self._packed.get(module)
        if known is None or known[0] != state:
            known = self._packed[module] = (state, build())
        return known[1]


class _CompiledScan(torch.autograd.Function):
    """Keeps only its inputs; the kernel computes the states again in the backward."""

    @staticmethod
    def forward(ctx, kernels: Kernels, *inputs: Tensor | None) -> Tensor:
        contiguous = [None if tensor is None else tensor.contiguous() for tensor in inputs]
        ctx.save_for_backward(*contiguous)
        ctx.kernels = kernels
        y = torch.empty_like(contiguous[0])  # (w, l, d)
        kernels.scan_forward(_scan_arguments(contiguous, y))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        make = torch.empty_like if grad_y.numel() else torch.zeros_like
        grads = [None if tensor is None else make(tensor) for tensor in inputs]
        if grad_y.numel():
            gradients = ScanGradients(grad_y=grad_y.contiguous(), **dict(zip(GRADIENTS, grads, strict=True)))
            ctx.kernels.scan_backward(_scan_arguments(inputs, grad_y), gradients)
        return None, *grads


def _scan_arguments(inputs: Sequence[Tensor | None], y: Tensor) -> ScanArguments:
    windows, length, channels = y.shape
    tensors = dict(zip(INPUTS, inputs, strict=True))
    y = y if y.is_contiguous() else None
    return ScanArguments(batch=windows, length=length, channels=channels, states=inputs[2].shape[1], y=y, **tensors)


def _serves(module: nn.Module, x: Tensor) -> bool:
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, *module.parameters()))


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


def describe() -> str:
    """The instruction set in use, for ``neurostorm --version -v``."""
    return f"compiled kernels ({COMPILED.kernels.isa})"


COMPILED = Compiled(default_isa())
BACKEND = Backend("cpu", COMPILED.scan, COMPILED.block, COMPILED.encode)
