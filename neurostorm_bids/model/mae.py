"""Masked autoencoder: the pretraining of the encoder (arXiv 2506.11167).

Some tokens are replaced after the patch embedding, the encoder sees the rest, and a decoder of patch expanding and
window blocks draws the voxels of every patch. Names of parameters are those of the reference's checkpoints; the
encoder's are a subset of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from neurostorm_bids.model.config import EncoderConfig
from neurostorm_bids.model.draws import Keys
from neurostorm_bids.model.encoder import (
    Backbone,
    Blocks,
    check_clips,
    clips_from_patches,
    initialise,
    patches_of,
    stage_channels,
    stage_grids,
)
from neurostorm_bids.model.masks import Masking
from neurostorm_bids.model.strd import RedundancyDropout
from neurostorm_bids.model.windows import sizes_of

MASK_TOKENS = ("mask_token", "window_mask_token", "atlas_mask_token")
DECODER = ("first_patch_expanding.", "layers_up.", "norm_up.", "decoder_pred.")


@dataclass(frozen=True)
class Reconstruction:
    """What a masked autoencoder made of a batch.

    ``patches`` (n, x, y, z, t, voxels) are the voxels of each patch in the order X, Y, Z, T, channel; ``hidden``
    (n, x, y, z, t) says which of them the encoder did not see; ``latent`` (n, x, y, z, t, c) is the encoder's output.
    ``error_sum`` adds the mean squared error of each hidden patch, ``n_hidden`` counts them; apart, so that processes
    that share a batch can add both up before they divide.
    """

    patches: Tensor
    hidden: Tensor
    latent: Tensor
    error_sum: Tensor
    n_hidden: Tensor

    @property
    def loss(self) -> Tensor:
        """Mean squared error over hidden patches, each of equal weight."""
        return self.error_sum / self.n_hidden


class MaskedAutoencoder(Backbone):
    """Encoder and decoder around masked tokens.

    Parameters
    ----------
    config : EncoderConfig
        Of the encoder; any number of stages and channels, and windows that need not divide the grid.
    masking : Masking
    atlas : array, optional
        (x, y, z) integers: region of each patch of the first stage, 0 where none; for atlas masks.
    backend, strd, generator
        See `Encoder`.

    Raises
    ------
    ValueError
        For a configuration that describes no encoder.
    """

    atlas_map: Tensor

    def __init__(
        self,
        config: EncoderConfig,
        masking: Masking | None = None,
        *,
        atlas: np.ndarray | None = None,
        backend: str = "auto",
        strd: RedundancyDropout | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(config, strd)
        c, last = config.embed_dim, len(config.depths) - 1
        self.masking = masking or Masking()
        self.mask_token = nn.Parameter(torch.zeros(c))
        self.window_mask_token = nn.Parameter(torch.zeros(prod(config.window_size), c))
        self.atlas_mask_token = nn.Parameter(torch.zeros(c))
        for name in MASK_TOKENS:  # a parameter that never gets a gradient would stall training on several processes
            getattr(self, name).requires_grad_(name == mask_token_of(self.masking))
        if atlas is not None:
            self.register_buffer("atlas_map", torch.as_tensor(atlas, dtype=torch.int32))
        self.first_patch_expanding = expanding(config, last) if last else None
        self.layers_up = nn.ModuleList(DecoderStage(config, stage) for stage in range(last - 1, -1, -1))
        self.norm_up = nn.LayerNorm(c)
        self.decoder_pred = nn.Linear(c, prod(config.patch_size) * config.in_chans)
        self.use_backend(backend)
        initialise(self, generator)

    def forward(self, clips: Tensor, keys: Keys | None = None) -> Reconstruction:
        """Hide, encode, decode and compare.

        Parameters
        ----------
        clips : Tensor
            (n, ch, X, Y, Z, T).
        keys : sequence, optional
            One a clip, on which its mask and its dropped tokens depend. Without them the process-wide generators are
            used: numpy's for random and window masks, torch's for atlas masks and dropped tokens.

        Raises
        ------
        ClipsInvalid
            Clips of another shape than the model's.
        ValueError
            A mask that hides nothing, or an atlas mask without its atlas.
        """
        check_clips(clips, self.config)
        tokens = self.patch_embed(clips)  # (n, x, y, z, t, c)
        hidden = self.draw_mask(tokens, keys)  # (n, x, y, z, t)
        latent = self.encode_tokens(self.hide(tokens, hidden), keys)  # (n, x, y, z, t, c) of the last stage
        patches = self.decode(latent)  # (n, x, y, z, t, voxels)
        error = (patches - patches_of(clips, self.config.patch_size)).square().mean(-1)  # (n, x, y, z, t)
        return Reconstruction(patches, hidden, latent, (error * hidden).sum(), hidden.sum())

    def draw_mask(self, tokens: Tensor, keys: Keys | None = None) -> Tensor:
        """Which tokens to hide.  # (n, x, y, z, t, c) -> (n, x, y, z, t) bool"""
        n, *grid, _ = tokens.shape
        atlas = self.atlas_map.cpu().numpy() if hasattr(self, "atlas_map") else None
        return self.masking.draw(n, sizes_of(grid), self.config.window_size, atlas, keys).to(tokens.device)

    def hide(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Put the mask's own token in place of hidden ones.  # (n, x, y, z, t, c) -> the same"""
        return torch.where(hidden.unsqueeze(-1), self._substitute(tokens), tokens)

    def _substitute(self, tokens: Tensor) -> Tensor:
        """What stands for a hidden token at each place.  # (1, x, y, z, t, c) or (c)"""
        token = getattr(self, mask_token_of(self.masking))
        if token is not self.window_mask_token:
            return token
        window = self.config.window_size
        pieces = self.masking.pieces(sizes_of(tokens.shape[1:5]), window)
        block = self.window_mask_token.reshape(
            *window, -1
        )  # (x, y, z, t, c) of a window; cut where the grid is smaller
        block = block[tuple(slice(size) for size in pieces.window)].reshape(1, pieces.tokens, -1)
        return pieces.join(block.expand(prod(pieces.counts), -1, -1))

    def decode(self, latent: Tensor) -> Tensor:
        """Voxels of every patch.  # (n, x, y, z, t, c) of the last stage -> (n, x, y, z, t, voxels) of the first"""
        x = latent if self.first_patch_expanding is None else self.first_patch_expanding(latent)
        for stage in self.layers_up:
            x = stage(x)
        return self.decoder_pred(self.norm_up(x))

    def image(self, patches: Tensor) -> Tensor:
        """Patches as clips.  # (n, x, y, z, t, voxels) -> (n, ch, X, Y, Z, T)"""
        return clips_from_patches(patches, self.config.patch_size)

    def encoder_state(self) -> dict[str, Tensor]:
        """The weights that an `Encoder` of the same configuration has, by its names."""
        own = (*MASK_TOKENS, *DECODER, "atlas_map")
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(own)}


class PatchExpanding(nn.Module):
    """Every token becomes 2 x 2 x 2 of the stage before; what lies beyond that stage's odd grid is cut off."""

    def __init__(self, c: int, c_out: int, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.expand = nn.Linear(c, 8 * c_out, bias=False)
        self.norm = nn.LayerNorm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(n, x, y, z, t, c) -> (n, 2 x, 2 y, 2 z, t, c_out)"""
        n, X, Y, Z, t, _ = x.shape
        x = self.expand(x).reshape(n, X, Y, Z, t, 2, 2, 2, -1).permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
        x = x.reshape(n, 2 * X, 2 * Y, 2 * Z, t, -1)[:, : self.grid[0], : self.grid[1], : self.grid[2]]
        return self.norm(x)


class DecoderStage(Blocks):
    """Blocks at the resolution of an encoder stage and, but for the first, patch expanding behind them."""

    def __init__(self, config: EncoderConfig, stage: int) -> None:
        super().__init__(config, stage_channels(config, stage), config.depths[stage], config.window_size)
        self.upsample = expanding(config, stage) if stage else None

    def forward(self, x: Tensor, keys: Keys | None = None) -> Tensor:
        """(n, x, y, z, t, c) -> (n, 2 x, 2 y, 2 z, t, c / c_multiplier), or in the last stage the same"""
        x = super().forward(x, keys)
        return x if self.upsample is None else self.upsample(x)


def mask_token_of(masking: Masking) -> str:
    """Name of the parameter that stands for hidden tokens."""
    if masking.spatial == "atlas":
        return "atlas_mask_token"
    return "window_mask_token" if (masking.spatial, masking.temporal) == ("window", "random") else "mask_token"


def expanding(config: EncoderConfig, stage: int) -> PatchExpanding:
    """From the tokens of a stage to those of the one before."""
    return PatchExpanding(
        stage_channels(config, stage), stage_channels(config, stage - 1), stage_grids(config)[stage - 1]
    )
