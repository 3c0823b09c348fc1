"""Windows over a 4D grid of tokens: effective size, shift, padding, and the way there and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Size: TypeAlias = tuple[int, int, int, int]


def sizes_of(values: Iterable[int]) -> Size:
    """Four sizes as a tuple of plain integers."""
    x, y, z, t = (int(value) for value in values)
    return x, y, z, t


@dataclass(frozen=True)
class WindowLayout:
    """How a grid is cut into windows.

    Parameters
    ----------
    grid, window : tuple of int
        Tokens along x, y, z, t; no window is larger than the grid.
    shift : tuple of int
        Tokens by which the windows are moved towards the end of each axis.
    wrap : bool
        Whether a shifted window goes on at the other end of the axis (as in the reference), or is filled with zeros.
    """

    grid: Size
    window: Size
    shift: Size = (0, 0, 0, 0)
    wrap: bool = True

    @classmethod
    def fitted(cls, grid: Size, window: Size, *, shifted: bool, wrap: bool = True) -> WindowLayout:
        """Windows no larger than the grid, shifted by half where asked and where there is more than one of them."""
        effective = sizes_of(min(pair) for pair in zip(grid, window, strict=True))
        half = sizes_of(w // 2 if shifted and g > w else 0 for g, w in zip(grid, window, strict=True))
        return cls(sizes_of(grid), effective, half, wrap)

    @property
    def before(self) -> Size:
        """Zeros put before each axis: none, or without wrapping what the first, shifted window lacks."""
        if self.wrap:
            return (0, 0, 0, 0)
        return sizes_of(w - s if s else 0 for w, s in zip(self.window, self.shift, strict=True))

    @property
    def after(self) -> Size:
        """Zeros put after each axis, up to whole windows."""
        axes = zip(self.grid, self.before, self.window, strict=True)
        return sizes_of(-(size + before) % window for size, before, window in axes)

    @property
    def padded(self) -> Size:
        """The grid with its zeros."""
        return sizes_of(sum(parts) for parts in zip(self.before, self.grid, self.after, strict=True))

    @property
    def counts(self) -> Size:
        """Windows along each axis."""
        return sizes_of(size // window for size, window in zip(self.padded, self.window, strict=True))

    @property
    def rolled(self) -> Size:
        """Tokens by which the padded grid is rolled towards its start."""
        return self.shift if self.wrap else (0, 0, 0, 0)

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return prod(self.window)

    @property
    def has_padding(self) -> bool:
        """Whether any window holds zeros that are no token."""
        return self.padded != self.grid

    def split(self, x: Tensor) -> Tensor:
        """Pad, roll and cut into windows, tokens in raster order with t fastest.  # (n, x, y, z, t, c) -> (w, l, c)"""
        if self.has_padding:
            pads = [amount for pair in zip(self.before, self.after, strict=True) for amount in pair[::-1]]
            x = F.pad(x, (0, 0, *pads[::-1]))  # (n, *padded, c)
        if any(self.rolled):
            x = torch.roll(x, [-shift for shift in self.rolled], dims=(1, 2, 3, 4))
        n, c = x.shape[0], x.shape[-1]
        (i, j, k, m), (a, b, d, e) = self.counts, self.window
        x = x.reshape(n, i, a, j, b, k, d, m, e, c).permute(0, 1, 3, 5, 7, 2, 4, 6, 8, 9)
        return x.reshape(n * i * j * k * m, self.tokens, c)

    def join(self, windows: Tensor) -> Tensor:
        """The way back: uncut, unroll, crop.  # (w, l, c) -> (n, x, y, z, t, c)"""
        (i, j, k, m), (a, b, d, e) = self.counts, self.window
        n, c = len(windows) // (i * j * k * m), windows.shape[-1]
        x = windows.reshape(n, i, j, k, m, a, b, d, e, c).permute(0, 1, 5, 2, 6, 3, 7, 4, 8, 9)
        x = x.reshape(n, *self.padded, c)
        if any(self.rolled):
            x = torch.roll(x, self.rolled, dims=(1, 2, 3, 4))
        if self.has_padding:
            cuts = (slice(before, before + size) for before, size in zip(self.before, self.grid, strict=True))
            x = x[(slice(None), *cuts)]
        return x

    def real_tokens(self) -> Tensor:
        """Which tokens of each window lie in the grid; False is padding.  # (w of one clip, l) bool"""
        return self.split(torch.ones(1, *self.grid, 1)).squeeze(-1) > 0
