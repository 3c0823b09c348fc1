"""Which tokens a masked autoencoder hides: spatially random, window or atlas region, temporally random or tube.

=======  ========  =====================================================================================
spatial  temporal  hidden together
=======  ========  =====================================================================================
random   random    one token
random   tube      one place for a window's number of frames
window   random    one window
window   tube      one window's places for the whole clip
atlas    either    all places of a region of an atlas, for the whole clip
=======  ========  =====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from neurostorm_bids.model.draws import MASK, Keys, keyed_generator
from neurostorm_bids.model.windows import Size, WindowLayout

SpatialMask = Literal["random", "window", "atlas"]
TemporalMask = Literal["random", "tube"]


class Draws(Protocol):
    """What masks are drawn with."""

    def shuffle(self, values: np.ndarray) -> None:
        """Shuffle in place."""

    def permutation(self, count: int) -> np.ndarray:
        """The numbers below ``count`` in random order."""


class GlobalDraws:
    """The process-wide generators, used as the reference uses them: numpy's for shuffles, torch's for permutations."""

    def shuffle(self, values: np.ndarray) -> None:
        """Shuffle in place."""
        np.random.shuffle(values)

    def permutation(self, count: int) -> np.ndarray:
        """The numbers below ``count`` in random order."""
        return torch.randperm(count).numpy()


@dataclass(frozen=True)
class KeyedDraws:
    """Draws from a generator of one clip."""

    generator: np.random.Generator

    def shuffle(self, values: np.ndarray) -> None:
        """Shuffle in place."""
        self.generator.shuffle(values)

    def permutation(self, count: int) -> np.ndarray:
        """The numbers below ``count`` in random order."""
        return self.generator.permutation(count)


@dataclass(frozen=True)
class Masking:
    """How much is hidden, and in which pieces.

    Parameters
    ----------
    spatial : {"random", "window", "atlas"}
    temporal : {"random", "tube"}
    ratio : float
        Share of the pieces that is hidden, between 0 and 1.
    """

    spatial: SpatialMask = "window"
    temporal: TemporalMask = "random"
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.spatial not in ("random", "window", "atlas") or self.temporal not in ("random", "tube"):
            raise ValueError(
                f"no mask is called {self.spatial}/{self.temporal}; expected random, window or atlas in space, "
                "random or tube in time"
            )
        if not 0 < self.ratio < 1:
            raise ValueError(f"the mask ratio is {self.ratio}; expected a share between 0 and 1")

    def pieces(self, grid: Size, window: Size) -> WindowLayout:
        """The pieces of a random or window mask; those at the end of an axis may be smaller."""
        tube = self.temporal == "tube"
        if self.spatial == "random":
            size = (1, 1, 1, window[3] if tube else 1)
        else:
            size = (*window[:3], grid[3] if tube else window[3])
        return WindowLayout.fitted(grid, size, shifted=False)

    def draw(
        self, n: int, grid: Size, window: Size, atlas: np.ndarray | None = None, keys: Keys | None = None
    ) -> Tensor:
        """Choose the tokens to hide.

        Parameters
        ----------
        n : int
            Clips.
        grid, window : tuple of int
            Tokens along x, y, z, t.
        atlas : ndarray, optional
            (x, y, z) integers: region of each place, 0 where none; for atlas masks.
        keys : sequence, optional
            One a clip. Without them the process-wide generators are used.

        Returns
        -------
        Tensor
            (n, x, y, z, t) bool, True where hidden.

        Raises
        ------
        ValueError
            Where the ratio hides nothing, or the atlas is missing, empty or of another grid.
        """
        draws: list[Draws] = (
            [GlobalDraws()] * n if keys is None else [KeyedDraws(keyed_generator(k, MASK)) for k in keys]
        )
        if len(draws) != n:
            raise ValueError(f"{len(draws)} keys for {n} clips; expected one a clip")
        if self.spatial == "atlas":
            return torch.stack([self._regions(grid, atlas, draw) for draw in draws])
        pieces = self.pieces(grid, window)
        hidden = torch.stack([self._pieces(prod(pieces.counts), draw) for draw in draws])  # (n, pieces)
        return pieces.join(hidden.reshape(-1, 1, 1).expand(-1, pieces.tokens, 1)).squeeze(-1)

    def _pieces(self, count: int, draws: Draws) -> Tensor:
        n_hidden = int(count * self.ratio)
        if n_hidden == 0:
            raise ValueError(
                f"a mask ratio of {self.ratio} hides none of {count} pieces ({self.spatial}, {self.temporal})"
            )
        hidden = np.hstack([np.zeros(count - n_hidden), np.ones(n_hidden)])
        draws.shuffle(hidden)
        return torch.from_numpy(hidden > 0)

    def _regions(self, grid: Size, atlas: np.ndarray | None, draws: Draws) -> Tensor:
        if atlas is None or atlas.shape != grid[:3]:
            found = "no atlas" if atlas is None else f"an atlas of {atlas.shape}"
            raise ValueError(f"{found} for an atlas mask; expected one region a patch, {grid[:3]}")
        regions = np.unique(atlas[atlas != 0])
        if not len(regions):
            raise ValueError("the atlas has no region; expected numbers above 0")
        chosen = draws.permutation(len(regions))[: max(1, int(len(regions) * self.ratio))]
        hidden = torch.from_numpy(np.isin(atlas, regions[chosen]))  # (x, y, z)
        return hidden.unsqueeze(-1).expand(grid)
