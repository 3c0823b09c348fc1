"""Whole blocks and the whole encoder, in inference; weights are cast and laid out once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional as F

from neurostorm_bids.model.mamba import Mamba
from neurostorm_bids.model.scan.fused import block_kernels
from neurostorm_bids.model.scan.fused.launch import Launch, dot_precision, power_of_two, start
from neurostorm_bids.model.scan.fused.mixer import MixerWeights, mix
from neurostorm_bids.model.scan.fused.recurrence import MOST_STATES
from neurostorm_bids.model.windows import WindowLayout, sizes_of

if TYPE_CHECKING:
    from neurostorm_bids.model.encoder import Block, Encoder, PatchMerging, PositionEmbedding, Stage

T = TypeVar("T")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_CHANNELS_OF_MLP = 128  # a token's channels and its sums stay in registers
NORM_ELEMENTS = 2048  # of a program that normalises rows


def serves(module: nn.Module, x: Tensor) -> bool:
    """Whether the kernels know a module's sizes and number types."""
    layers = [part for part in module.modules() if isinstance(part, Mamba)]
    known = all(layer.d_state <= MOST_STATES and layer.conv1d.weight.shape[-1] > 1 for layer in layers)
    return known and x.dtype in DTYPES and all(p.dtype == torch.float32 for p in module.parameters())


def mixer_parameters(mamba: Mamba) -> tuple[Tensor, ...]:
    """A layer's parameters in the order of `MixerWeights`."""
    conv, steps, A = mamba.conv1d, mamba.dt_proj, -torch.exp(mamba.A_log)
    return conv.weight, cast(Tensor, conv.bias), mamba.x_proj.weight, steps.weight, steps.bias, A, mamba.D


def mixer_weights(mamba: Mamba, dtype: torch.dtype) -> MixerWeights:
    """A layer's parameters for inference, the projection in the type it is multiplied in."""
    weights = MixerWeights(*(parameter.detach().contiguous() for parameter in mixer_parameters(mamba)))
    return replace(weights, x_weight=weights.x_weight.to(dtype))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that matrices are multiplied in: that of autocast where it is on, else float32."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


class FusedBlocks:
    """Inference of blocks and encoders.

    Tokens stay float32; what is multiplied is cast to the type of autocast.

    Parameters
    ----------
    launch : Launch
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._known: WeakKeyDictionary[nn.Module, tuple[object, Any]] = WeakKeyDictionary()

    @torch.no_grad()
    def block(self, block: Block, x: Tensor) -> Tensor:
        """A block.  # (n, x, y, z, t, c) -> the same, float32"""
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            self._run_block(block, tokens, dtype)
        return tokens

    @torch.no_grad()
    def encode(self, encoder: Encoder, clips: Tensor) -> Tensor:
        """The encoder.  # (n, ch, X, Y, Z, T) -> (n, c, x, y, z, t) float32"""
        dtype = compute_dtype(clips)
        with torch.autocast(clips.device.type, enabled=False):
            tokens = self._embed(encoder, clips.contiguous(), dtype)  # (n, x, y, z, t, c)
            embeddings = cast("list[PositionEmbedding]", list(encoder.pos_embeds))
            for number, stage in enumerate(cast("list[Stage]", list(encoder.layers)), start=1):
                for block in cast("list[Block]", list(stage.blocks)):
                    self._run_block(block, tokens, dtype)
                if stage.downsample is not None:
                    tokens = self._merge(stage.downsample, embeddings[number], tokens, dtype)
        return tokens.movedim(-1, 1).contiguous()

    # the steps

    def _run_block(self, block: Block, tokens: Tensor, dtype: torch.dtype) -> None:
        """A block on tokens (n, x, y, z, t, c), in place."""
        weights = self._once(block, dtype, lambda: BlockWeights(block, dtype))
        layout = block.layout(sizes_of(tokens.shape[1:5]))
        windows = self._norm_windows(tokens, layout, weights)  # (w, k + l, c)
        mixed, _ = mix(self.launch, F.linear(windows, weights.in_proj), weights.mixer)  # (w, k + l, d)
        mixed = F.linear(mixed, weights.out_proj)  # (w, k + l, c)
        # plain float32 products do not run on matrix units, where a tile as wide as a token is no gain but spills
        on_matrix_units = dtype != torch.float32 or dot_precision() != "ieee"
        if on_matrix_units and tokens.shape[-1] <= MOST_CHANNELS_OF_MLP:
            self._join_mlp(tokens, mixed, layout, weights)
            return
        normed = self._join_norm(tokens, mixed, layout, weights)
        hidden = F.gelu(F.linear(normed, weights.up, weights.up_bias_cast))
        tokens += F.linear(hidden, weights.down, weights.down_bias_cast)

    def _norm_windows(self, tokens: Tensor, layout: WindowLayout, weights: BlockWeights) -> Tensor:
        n, c = len(tokens), tokens.shape[-1]
        n_windows, length = n * _product(layout.counts), layout.tokens + weights.prompt_length
        windows = torch.empty(n_windows, length, c, dtype=weights.dtype, device=tokens.device)
        rows = max(1, NORM_ELEMENTS // power_of_two(c))
        start(
            block_kernels.norm_windows,
            (triton.cdiv(n_windows * length, rows),),
            tokens,
            *weights.norm1,
            weights.prompt,
            windows,
            n_windows * length,
            weights.eps1,
            ROWS=rows,
            **_sizes(layout, weights),
            num_warps=4,
        )
        return windows

    def _join_norm(self, tokens: Tensor, mixed: Tensor, layout: WindowLayout, weights: BlockWeights) -> Tensor:
        normed = torch.empty(tokens.shape, dtype=weights.dtype, device=tokens.device)
        n_tokens, rows = tokens[..., 0].numel(), max(1, NORM_ELEMENTS // power_of_two(tokens.shape[-1]))
        start(
            block_kernels.join_norm,
            (triton.cdiv(n_tokens, rows),),
            tokens,
            mixed,
            *weights.norm2,
            normed,
            n_tokens,
            weights.eps2,
            ROWS=rows,
            **_sizes(layout, weights),
            num_warps=4,
        )
        return normed

    def _join_mlp(self, tokens: Tensor, mixed: Tensor, layout: WindowLayout, weights: BlockWeights) -> None:
        n_tokens = tokens[..., 0].numel()
        start(
            block_kernels.join_mlp,
            (triton.cdiv(n_tokens, self.launch.rows),),
            tokens,
            mixed,
            *weights.norm2,
            weights.up,
            weights.up_bias,
            weights.down,
            weights.down_bias,
            n_tokens,
            weights.eps2,
            HIDDEN=len(weights.up),
            BLOCK=32,
            PRECISION=dot_precision(),
            ROWS=self.launch.rows,
            **_sizes(layout, weights),
            num_warps=4,
        )

    def _embed(self, encoder: Encoder, clips: Tensor, dtype: torch.dtype) -> Tensor:
        embed, (n, channels, *image) = encoder.patch_embed, clips.shape
        patch = tuple(embed.patch)
        weight = self._once(embed, dtype, lambda: embed.fc.weight.to(dtype))
        grid = [size // step for size, step in zip(image, patch, strict=True)]
        tokens = torch.empty(n, *grid, len(weight), dtype=torch.float32, device=clips.device)
        n_tokens = tokens[..., 0].numel()
        start(
            block_kernels.embed_patches,
            (triton.cdiv(n_tokens, self.launch.rows),),
            clips,
            weight,
            embed.fc.bias,
            *self._embeddings(cast("PositionEmbedding", encoder.pos_embeds[0])),
            tokens,
            n_tokens,
            CHANNELS=channels,
            IMAGE=tuple(image),
            PATCH=patch,
            C=len(weight),
            COLUMNS=power_of_two(len(weight), 16),
            ROWS=self.launch.rows,
            BLOCK=32,
            PRECISION=dot_precision(),
            num_warps=4,
        )
        return tokens

    def _merge(
        self, merging: PatchMerging, embeddings: PositionEmbedding, tokens: Tensor, dtype: torch.dtype
    ) -> Tensor:
        weight = self._once(merging, dtype, lambda: merging.reduction.weight.to(dtype))
        n, *grid, c = tokens.shape
        halves = [*((size + 1) // 2 for size in grid[:3]), grid[3]]
        rows = torch.empty(n, *halves, 8 * c, dtype=dtype, device=tokens.device)
        n_rows, at_once = rows[..., 0].numel(), max(1, NORM_ELEMENTS // power_of_two(8 * c))
        start(
            block_kernels.merge_norm,
            (triton.cdiv(n_rows, at_once),),
            tokens,
            merging.norm.weight,
            merging.norm.bias,
            rows,
            n_rows,
            merging.norm.eps,
            C=c,
            COLUMNS=power_of_two(8 * c),
            ROWS=at_once,
            GRID=tuple(grid),
            num_warps=4,
        )
        place, time = self._embeddings(embeddings)
        return F.linear(rows, weight) + place.unsqueeze(-2) + time[: grid[3]]

    def _embeddings(self, embeddings: PositionEmbedding) -> tuple[Tensor, Tensor]:
        """Channels last: (x, y, z, c) and (t, c)."""
        return self._once(
            embeddings,
            torch.float32,
            lambda: (
                embeddings.pos_embed[0, ..., 0].movedim(0, -1).contiguous(),
                embeddings.time_embed[0, :, 0, 0, 0].t().contiguous(),
            ),
        )

    def _once(self, module: nn.Module, dtype: torch.dtype, build: Callable[[], T]) -> T:
        """What `build` makes of a module's weights, made anew only when they or the type have changed."""
        state = (dtype, *((id(p), p.data_ptr(), p._version) for p in module.parameters()))
        known = self._known.get(module)
        if known is None or known[0] != state:
            known = self._known[module] = (state, build())
        return known[1]


class BlockWeights:
    """A block's weights; matrices in the type they are multiplied in."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        mamba, mlp = block.mamba, block.mlp
        self.dtype = dtype
        self.norm1, self.eps1 = (block.norm1.weight, block.norm1.bias), block.norm1.eps
        self.norm2, self.eps2 = (block.norm2.weight, block.norm2.bias), block.norm2.eps
        self.in_proj, self.out_proj = mamba.in_proj.weight.to(dtype), mamba.out_proj.weight.to(dtype)
        self.mixer = mixer_weights(mamba, dtype)
        self.up, self.up_bias = mlp.linear1.weight.to(dtype), mlp.linear1.bias
        self.down, self.down_bias = mlp.linear2.weight.to(dtype), mlp.linear2.bias
        self.up_bias_cast, self.down_bias_cast = self.up_bias.to(dtype), self.down_bias.to(dtype)
        self.prompt_length = 0 if block.prompt is None else block.prompt.shape[1]
        self.prompt = (
            self.norm1[0] if block.prompt is None else block.prompt
        )  # a pointer that nobody follows, or (k, c)


def _sizes(layout: WindowLayout, weights: BlockWeights) -> dict[str, Any]:
    """What the kernels must know of windows and channels when they are compiled."""
    c = len(weights.norm1[0])
    return {
        "C": c,
        "COLUMNS": power_of_two(c, 16),
        "PROMPT": weights.prompt_length,
        "GRID": layout.grid,
        "WINDOW": layout.window,
        "COUNT": layout.counts,
        "ROLLED": layout.rolled,
        "BEFORE": layout.before,
    }


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
