"""Grey pictures of volumes: slices in three planes as the viewer stands before them, left on the left."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import nibabel as nib
import numpy as np

from neurostorm_bids.space.grid import Grid, apply_affine

N_SLICES = 6
MARGIN = 2  # voxels around what is shown
QUALITY = 80  # of the WebP encoder: a mosaic of 20 slices in about 20 kB
PLANES = ("axial", "coronal", "sagittal")
_SHOWN = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # across, up, through


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Where the slices of a grid lie in one picture: a row a plane, a column a slice.

    Attributes
    ----------
    grid : Grid
    low, high : tuple of int
        Corners of the shown box in voxels of the grid turned to RAS; ``high`` is not in it.
    """

    grid: Grid
    low: tuple[int, int, int]
    high: tuple[int, int, int]

    @classmethod
    def around(cls, grid: Grid, shown: np.ndarray) -> Mosaic:
        """The mosaic that shows all of a mask.  # (X, Y, Z) bool"""
        turned = _ras(grid, shown)
        where = np.argwhere(turned) if turned.any() else np.array([[0, 0, 0], np.array(turned.shape) - 1])
        low = np.maximum(where.min(axis=0) - MARGIN, 0).tolist()
        high = np.minimum(where.max(axis=0) + 1 + MARGIN, turned.shape).tolist()
        return cls(grid, (low[0], low[1], low[2]), (high[0], high[1], high[2]))

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels of the box, from left to right, from back to front, from below up."""
        return self.high[0] - self.low[0], self.high[1] - self.low[1], self.high[2] - self.low[2]

    @property
    def tile_width(self) -> int:
        """Pixels from one column to the next."""
        return max(self.size[:2])

    @property
    def width(self) -> int:
        """Pixels."""
        return N_SLICES * self.tile_width

    @property
    def height(self) -> int:
        """Pixels."""
        return sum(self.size[_SHOWN[plane][1]] for plane in PLANES)

    def slices(self, plane: str) -> list[int]:
        """Which slices of the box a row shows: evenly spaced, the outermost eighths left out."""
        n = self.size[_SHOWN[plane][2]]
        return [round(n * (0.15 + 0.7 * (number + 0.5) / N_SLICES)) for number in range(N_SLICES)]

    def positions_mm(self, plane: str) -> list[int]:
        """World coordinates of the slices, to the millimetre."""
        axis = _SHOWN[plane][2]
        canonical = _ras_affine(self.grid)
        points = np.zeros((N_SLICES, 3))
        points[:, axis] = np.array(self.slices(plane)) + self.low[axis]
        return [round(float(x)) for x in apply_affine(canonical, points)[:, axis]]

    def of(self, volume: np.ndarray) -> np.ndarray:
        """The picture of a volume, upper row first.  # (X, Y, Z) -> (height, width)"""
        box = _ras(self.grid, volume)[tuple(slice(a, b) for a, b in zip(self.low, self.high, strict=True))]
        return np.concatenate([self._row(box, plane) for plane in PLANES])

    def _row(self, box: np.ndarray, plane: str) -> np.ndarray:
        across, _, through = _SHOWN[plane]
        tiles = [np.take(box, index, axis=through) for index in self.slices(plane)]  # (across, up)
        left = (self.tile_width - box.shape[across]) // 2
        right = self.tile_width - box.shape[across] - left
        return np.concatenate([np.pad(tile.T[::-1], ((0, 0), (left, right))) for tile in tiles], axis=1)


def _orientation(grid: Grid) -> np.ndarray:
    return nib.orientations.io_orientation(grid.matrix)


def _ras(grid: Grid, volume: np.ndarray) -> np.ndarray:
    return nib.orientations.apply_orientation(volume, _orientation(grid))


def _ras_affine(grid: Grid) -> np.ndarray:
    return grid.matrix @ nib.orientations.inv_ornt_aff(_orientation(grid), grid.shape)


def greys(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as 8-bit greys, black at ``low`` and white at ``high``."""
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def webp(picture: np.ndarray) -> bytes:
    """A grey picture as WebP; the same bytes for the same picture.  # (height, width) uint8"""
    from PIL import Image

    import_module("PIL.WebPImagePlugin")  # else Pillow imports all formats that it knows
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def outline(mask: np.ndarray) -> str:
    """The border of a mask as an SVG path along the edges of its pixels.  # (height, width) bool"""
    padded = np.pad(mask, 1)
    upright = padded[1:-1, 1:] != padded[1:-1, :-1]  # edge left of pixel j  # (height, width + 1)
    level = padded[1:, 1:-1] != padded[:-1, 1:-1]  # edge above pixel i  # (height + 1, width)
    lines = [f"M{start} {row}h{end - start}" for row, start, end in _stretches(level)]
    lines += [f"M{column} {start}v{end - start}" for column, start, end in _stretches(upright.T)]
    return "".join(lines)


def _stretches(edges: np.ndarray) -> Sequence[tuple[int, int, int]]:
    """Unbroken stretches of each row: row, first, one after the last.  # (rows, columns) bool"""
    steps = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
