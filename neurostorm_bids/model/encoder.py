"""The shifted-window Mamba encoder of NeuroSTORM (arXiv 2506.11167): clips in, features of the whole brain out.

Tokens lie channels last, (n, x, y, z, t, c), everywhere but at the two ends. Names of modules and parameters are those
of the reference's checkpoints, whose state dict therefore loads as it is.
"""

from __future__ import annotations

from math import prod
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neurostorm_bids.errors import ClipsInvalid
from neurostorm_bids.model.config import EncoderConfig
from neurostorm_bids.model.draws import Keys
from neurostorm_bids.model.mamba import Mamba
from neurostorm_bids.model.scan import Backend, load_backend, resolve_backend
from neurostorm_bids.model.strd import RedundancyDropout
from neurostorm_bids.model.windows import Size, WindowLayout, sizes_of

ROWS_AT_ONCE = 2**14  # tokens that an MLP takes at a time


class Backbone(nn.Module):
    """Patch embedding, then stages of window blocks with patch merging between them: what all models share.

    Parameters
    ----------
    config : EncoderConfig
    strd : RedundancyDropout, optional
        Spatiotemporal redundancy dropout in every block, active in training only.

    Raises
    ------
    ValueError
        For a configuration that describes no encoder.
    """

    def __init__(self, config: EncoderConfig, strd: RedundancyDropout | None = None) -> None:
        super().__init__()
        check_config(config)
        self.config, self.backend = config, "auto"
        self.patch_embed = PatchEmbedding(config)
        self.pos_embeds = nn.ModuleList(
            PositionEmbedding(stage_channels(config, stage), grid, config.img_size[3])
            for stage, grid in enumerate(stage_grids(config))
        )
        self.layers = nn.ModuleList(Stage(config, stage, strd) for stage in range(len(config.depths)))

    def encode_tokens(self, tokens: Tensor, keys: Keys | None = None) -> Tensor:
        """All stages, from patch embeddings on.  # (n, x, y, z, t, c) -> (n, x, y, z, t, c) of the last stage"""
        for embed, stage in zip(self.pos_embeds, self.layers, strict=True):
            tokens = stage(embed(tokens), keys)
        return tokens

    def use_backend(self, name: str) -> Self:
        """Choose the scan backend of every layer; returns the model.

        Raises
        ------
        BackendUnavailable
        """
        if name != "auto":
            load_backend(name)
        for module in self.modules():
            if isinstance(module, Backbone | Block | Mamba):
                module.backend = name
        return self

    def checkpoint_blocks(self, enabled: bool = True) -> Self:
        """Keep only the input of each block for the backward and compute the rest again; returns the model."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.checkpointed = enabled
        return self


class Encoder(Backbone):
    """The encoder: clips in, features of the last stage out.

    Parameters
    ----------
    config : EncoderConfig
    backend : str
        Scan backend, see `neurostorm_bids.model.scan`; `use_backend` changes it.
    strd : RedundancyDropout, optional
        Spatiotemporal redundancy dropout, active in training only.
    generator : torch.Generator, optional
        Source of the fresh weights; torch's own if not given.

    Raises
    ------
    ValueError
        For a configuration that describes no encoder.
    BackendUnavailable
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        backend: str = "auto",
        strd: RedundancyDropout | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(config, strd)
        self.use_backend(backend)
        initialise(self, generator)

    def forward(self, clips: Tensor, keys: Keys | None = None) -> Tensor:
        """Features of a batch of clips.

        Parameters
        ----------
        clips : Tensor
            (n, ch, X, Y, Z, T); T may be shorter than the model's.
        keys : sequence, optional
            One a clip, on which its random draws in training depend (`neurostorm_bids.model.draws`). Without them
            torch's own generator is used.

        Returns
        -------
        Tensor
            (n, c, x, y, z, t) of the last stage.

        Raises
        ------
        ClipsInvalid
            Clips of another shape than the model's.
        """
        check_clips(clips, self.config)
        backend = backend_of(self, clips)
        if backend.encode is not None and in_inference(self):
            return backend.encode(self, clips)
        return self.compute(clips, keys)

    def compute(self, clips: Tensor, keys: Keys | None = None) -> Tensor:
        """The forward pass stage by stage, whatever the backend.  # (n, ch, X, Y, Z, T) -> (n, c, x, y, z, t)"""
        return self.encode_tokens(self.patch_embed(clips), keys).movedim(-1, 1).contiguous()


class PatchEmbedding(nn.Module):
    """Each patch as a row of its voxels, channel fastest, and a linear layer over it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.fc = nn.Linear(prod(config.patch_size) * config.in_chans, config.embed_dim)

    def forward(self, clips: Tensor) -> Tensor:
        """(n, ch, X, Y, Z, T) -> (n, x, y, z, t, c)"""
        return self.fc(patches_of(clips, self.patch))


def patches_of(clips: Tensor, patch: Size) -> Tensor:
    """The voxels of each patch in the order X, Y, Z, T, channel.  # (n, ch, X, Y, Z, T) -> (n, x, y, z, t, voxels)"""
    n, ch, *sizes = clips.shape
    x, y, z, t = (size // p for size, p in zip(sizes, patch, strict=True))
    a, b, d, e = patch
    cut = clips.reshape(n, ch, x, a, y, b, z, d, t, e).permute(0, 2, 4, 6, 8, 3, 5, 7, 9, 1)
    return cut.reshape(n, x, y, z, t, a * b * d * e * ch)


def clips_from_patches(patches: Tensor, patch: Size) -> Tensor:
    """The inverse of `patches_of`.  # (n, x, y, z, t, voxels) -> (n, ch, X, Y, Z, T)"""
    n, x, y, z, t, voxels = patches.shape
    a, b, d, e = patch
    ch = voxels // prod(patch)
    cut = patches.reshape(n, x, y, z, t, a, b, d, e, ch).permute(0, 9, 1, 5, 2, 6, 3, 7, 4, 8)
    return cut.reshape(n, ch, x * a, y * b, z * d, t * e)


class PositionEmbedding(nn.Module):
    """What each place and each frame adds to its tokens; frames beyond the clip's are left out."""

    def __init__(self, c: int, grid: tuple[int, int, int], frames: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, c, *grid, 1))
        self.time_embed = nn.Parameter(torch.zeros(1, c, 1, 1, 1, frames))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, x, y, z, t, c) -> the same"""
        time = self.time_embed[..., : tokens.shape[-2]]
        return tokens + self.pos_embed.movedim(1, -1) + time.movedim(1, -1)


class Block(nn.Module):
    """Mamba within windows, then an MLP, each after a LayerNorm and beside a residual path.

    Parameters
    ----------
    config : EncoderConfig
    c : int
        Channels.
    window : tuple of int
    shifted : bool
        Whether the windows are moved by half their size.
    strd : RedundancyDropout, optional
    place : int
        Which block of the model this is; its random draws depend on it.
    """

    def __init__(
        self,
        config: EncoderConfig,
        c: int,
        window: Size,
        *,
        shifted: bool,
        strd: RedundancyDropout | None = None,
        place: int = 0,
    ) -> None:
        super().__init__()
        self.window, self.shifted, self.wrap, self.place = window, shifted, config.wrap, place
        self.backend = "auto"
        self.norm1 = nn.LayerNorm(c)
        self.mamba = Mamba(c, config.d_state, config.d_conv, config.expand)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = Mlp(c, int(c * config.mlp_ratio))
        self.prompt = nn.Parameter(torch.zeros(1, config.prompt_len, c)) if config.prompt_len else None
        self.strd = strd

    def layout(self, grid: Size) -> WindowLayout:
        """The windows of this block over a grid of tokens."""
        return WindowLayout.fitted(grid, self.window, shifted=self.shifted, wrap=self.wrap)

    def forward(self, x: Tensor, keys: Keys | None = None) -> Tensor:
        """(n, x, y, z, t, c) -> the same"""
        backend = backend_of(self, x)
        if backend.block is not None and in_inference(self):
            return backend.block(self, x)
        return self.compute(x, keys)

    def compute(self, x: Tensor, keys: Keys | None = None) -> Tensor:
        """The block layer by layer, whatever the backend.  # (n, x, y, z, t, c) -> the same"""
        layout = self.layout(sizes_of(x.shape[1:5]))
        mixed = self.mix(layout.split(self.norm1(x)))  # (w, l, c); zeros of the padding are tokens of the scan
        if self.strd is not None and self.training:
            mixed = self.strd(mixed, layout, keys=keys, place=self.place)
        x = x + layout.join(mixed)
        return x + self.mlp(self.norm2(x))

    def mix(self, windows: Tensor) -> Tensor:
        """Mamba over each window, behind the prompts if there are any.  # (w, l, c) -> (w, l, c)"""
        if self.prompt is None:
            return self.mamba(windows)
        prompts = self.prompt.expand(len(windows), -1, -1)  # (w, k, c)
        return self.mamba(torch.cat([prompts, windows], dim=1))[:, self.prompt.shape[1] :]


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(c, hidden)
        self.linear2 = nn.Linear(hidden, c)

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) -> the same"""
        # in parts: the hidden layer is the widest tensor of the model, and whole it is far larger than any cache
        parts = x.flatten(0, -2).split(ROWS_AT_ONCE)
        return torch.cat([self.linear2(F.gelu(self.linear1(part))) for part in parts]).view(x.shape)


class PatchMerging(nn.Module):
    """Every 2 x 2 x 2 tokens of a frame become one; an odd axis is filled with zeros at its end."""

    def __init__(self, c: int, c_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * c)
        self.reduction = nn.Linear(8 * c, c_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, x, y, z, t, c) -> (n, x / 2, y / 2, z / 2, t, c_out)"""
        odd = [size % 2 for size in x.shape[1:4]]
        if any(odd):
            x = F.pad(x, (0, 0, 0, 0, 0, odd[2], 0, odd[1], 0, odd[0]))
        n, X, Y, Z, t, c = x.shape
        x = x.reshape(n, X // 2, 2, Y // 2, 2, Z // 2, 2, t, c).permute(0, 1, 3, 5, 7, 2, 4, 6, 8)
        return self.reduction(self.norm(x.reshape(n, X // 2, Y // 2, Z // 2, t, 8 * c)))


class Blocks(nn.Module):
    """Blocks at one resolution, every second one shifted; a base of encoder and decoder stages."""

    def __init__(
        self,
        config: EncoderConfig,
        c: int,
        depth: int,
        window: Size,
        *,
        shifts: bool = True,
        strd: RedundancyDropout | None = None,
        first_place: int = 0,
    ) -> None:
        super().__init__()
        self.checkpointed = False
        self.blocks = nn.ModuleList(
            Block(config, c, window, shifted=shifts and index % 2 == 1, strd=strd, place=first_place + index)
            for index in range(depth)
        )

    def forward(self, x: Tensor, keys: Keys | None = None) -> Tensor:
        """(n, x, y, z, t, c) -> the same"""
        for block in self.blocks:
            if self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, keys, use_reentrant=False)
            else:
                x = block(x, keys)
        return x


class Stage(Blocks):
    """Blocks and, but for the last stage, patch merging behind them."""

    def __init__(self, config: EncoderConfig, stage: int, strd: RedundancyDropout | None = None) -> None:
        c, last = stage_channels(config, stage), stage == len(config.depths) - 1
        whole_grid = last and config.last_layer_full_MSA
        place = sum(config.depths[:stage])
        window = stage_window(config, stage)
        super().__init__(config, c, config.depths[stage], window, shifts=not whole_grid, strd=strd, first_place=place)
        self.downsample = None if last else PatchMerging(c, c * config.c_multiplier)

    def forward(self, x: Tensor, keys: Keys | None = None) -> Tensor:
        """(n, x, y, z, t, c) -> (n, x / 2, y / 2, z / 2, t, c_multiplier c), or in the last stage the same"""
        x = super().forward(x, keys)
        return x if self.downsample is None else self.downsample(x)


# --- sizes ------------------------------------------------------------------------------------------------------


def stage_channels(config: EncoderConfig, stage: int) -> int:
    """Channels of the tokens of a stage."""
    return config.embed_dim * config.c_multiplier**stage


def stage_grids(config: EncoderConfig) -> list[tuple[int, int, int]]:
    """Tokens along x, y, z in each stage: halved from stage to stage, rounded up."""
    x, y, z = (size // patch for size, patch in zip(config.img_size[:3], config.patch_size[:3], strict=True))
    halves = [2**stage for stage in range(len(config.depths))]
    return [(-(-x // half), -(-y // half), -(-z // half)) for half in halves]


def stage_window(config: EncoderConfig, stage: int) -> Size:
    """Window of a stage before it is fitted to the grid; that of the last may be the whole grid, some frames deep."""
    if config.last_layer_full_MSA and stage == len(config.depths) - 1:
        return (*stage_grids(config)[stage], config.window_size[3])
    return config.first_window_size if stage == 0 else config.window_size


# --- backends ---------------------------------------------------------------------------------------------------


def in_inference(module: nn.Module) -> bool:
    """Whether a backend may compute the module as a whole: eval mode, and no gradient to keep."""
    return not (module.training or torch.is_grad_enabled())


def backend_of(module: Backbone | Block, x: Tensor) -> Backend:
    """The backend that a module's choice means on the device of its input."""
    return load_backend(resolve_backend(module.backend, x.device))


# --- fresh weights ----------------------------------------------------------------------------------------------


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Fresh weights for training from scratch: Mamba's own, truncated normal (SD 0.02) for the rest, biases 0."""
    if isinstance(module, Mamba):
        module.initialise(generator)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        if module.bias is not None:
            module.bias.zero_()
    elif not isinstance(module, nn.LayerNorm):  # what else holds parameters itself holds embeddings
        for embedding in module.parameters(recurse=False):
            nn.init.trunc_normal_(embedding, std=0.02, generator=generator)
        for child in module.children():
            initialise(child, generator)


# --- checks -----------------------------------------------------------------------------------------------------


def check_config(config: EncoderConfig) -> None:
    """Refuse a configuration that describes no encoder.

    Raises
    ------
    ValueError
    """
    for name in ("img_size", "patch_size", "window_size", "first_window_size"):
        sizes = getattr(config, name)
        if len(sizes) != 4 or any(size < 1 for size in sizes):
            raise ValueError(f"{name} is {tuple(sizes)}; expected four sizes of 1 or more (x, y, z, t)")
    if not config.depths or any(depth < 1 for depth in config.depths):
        raise ValueError(f"depths is {tuple(config.depths)}; expected the number of blocks of each stage, 1 or more")
    if any(size % patch for size, patch in zip(config.img_size, config.patch_size, strict=True)):
        raise ValueError(f"img_size {config.img_size} is no multiple of patch_size {config.patch_size}")


def check_clips(clips: Tensor, config: EncoderConfig) -> None:
    """Refuse clips of another shape than the model's.

    Raises
    ------
    ClipsInvalid
    """
    *space, frames = config.img_size
    step = config.patch_size[3]
    fits = clips.ndim == 6 and tuple(clips.shape[1:5]) == (config.in_chans, *space)
    if not fits or not 0 < clips.shape[5] <= frames or clips.shape[5] % step:
        count = f"1 to {frames}" if step == 1 else f"{step} to {frames} in steps of {step}"
        raise ClipsInvalid(
            f"the clips have the shape {tuple(clips.shape)}",
            expected=f"(clips, {config.in_chans}, {space[0]}, {space[1]}, {space[2]}, frames) with {count} frames",
        )
