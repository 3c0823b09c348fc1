"""The carpet of a run: time courses of some voxels, kept while the volumes pass, in memory that no length enlarges."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.template import icbm152

MOST_COLUMNS = 1000  # volumes are averaged beyond
ROWS = {"grey matter": 120, "white matter": 60, "other": 40}
LIMIT_SD = 2.0  # black and white lie this many standard deviations of a row from its mean


class Carpet:
    """Give ``add`` every kept volume of a run, then take ``picture``.

    Rows are voxels of the brain, evenly spaced in each tissue; a column is a volume, or the mean of as many
    successive ones as it takes to have at most ``MOST_COLUMNS``.
    """

    def __init__(self, grid: Grid, brain: np.ndarray, n_volumes: int) -> None:
        voxels, self.bands = _rows(grid, brain)
        self._voxels = np.unravel_index(voxels, grid.shape)
        self.volumes_per_column = max(1, -(-n_volumes // MOST_COLUMNS))
        self._columns = np.zeros((max(1, -(-n_volumes // self.volumes_per_column)), len(voxels)), np.float32)
        self.n_volumes = 0

    def add(self, volume: np.ndarray) -> None:
        """Count one volume.  # (X, Y, Z)"""
        column = self.n_volumes // self.volumes_per_column
        if column < len(self._columns):
            self._columns[column] += volume[self._voxels]
        self.n_volumes += 1

    def values(self) -> np.ndarray:
        """Time courses without their linear trend, in standard deviations of their own.  # (rows, columns) float64"""
        n_columns = -(-self.n_volumes // self.volumes_per_column)
        sums = self._columns[:n_columns].T.astype(np.float64)
        counts = np.full(sums.shape[1], self.volumes_per_column, float)
        if self.n_volumes % self.volumes_per_column:
            counts[-1] = self.n_volumes % self.volumes_per_column
        return _standardised(sums / counts)


def _standardised(courses: np.ndarray) -> np.ndarray:
    centred = courses - courses.mean(axis=1, keepdims=True)
    ramp = np.arange(courses.shape[1]) - (courses.shape[1] - 1) / 2
    if len(ramp) > 2:
        centred -= np.outer(centred @ ramp / (ramp @ ramp), ramp)
    spread = centred.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


def _rows(grid: Grid, brain: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Raster positions of the rows, and how many each tissue has."""
    voxels = np.flatnonzero(np.ascontiguousarray(brain))
    tissue = _tissue(grid).ravel()[voxels]
    chosen = [_spaced(voxels[tissue == number], most) for number, most in enumerate(ROWS.values())]
    bands = {name: len(rows) for name, rows in zip(ROWS, chosen, strict=True) if len(rows)}
    return np.concatenate(chosen), bands


def _spaced(voxels: np.ndarray, most: int) -> np.ndarray:
    if len(voxels) <= most:
        return voxels
    return voxels[np.linspace(0, len(voxels) - 1, most).round().astype(int)]


@lru_cache(maxsize=2)
def _tissue(grid: Grid) -> np.ndarray:
    """Tissue of each voxel by nilearn's bundled ICBM152 maps, a number into ``ROWS``.  # (X, Y, Z) int8"""
    tissue = np.full(grid.shape, 2, np.int8)
    tissue[icbm152("gm").on(grid, "nearest") > 0.5] = 0
    tissue[icbm152("wm").on(grid, "nearest") > 0.5] = 1
    return tissue
