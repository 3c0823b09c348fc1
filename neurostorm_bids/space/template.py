"""A template brain on the model's grid, to judge a run's placement by.

It is nilearn's bundled ICBM152 2009 template: symmetric, skull-stripped, and a millimetre or two off MNI152NLin6Asym.
The thresholds of ``quality`` allow for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from neurostorm_bids.settings import Interpolation
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.nifti import open_nifti
from neurostorm_bids.space.resample import sampler_in_space

SURROUND_MM = 12.0  # how far the region of comparison reaches beyond the brain
BRAIN_ABOVE = 0.2  # of the T1w's largest value, as nilearn's mask has it
FILE_ENDS = "_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True, eq=False)
class TemplateBrain:
    """The template on a grid.

    Attributes
    ----------
    image : np.ndarray
        T1-weighted intensities of the brain in [0, 1], 0 outside.  # (X, Y, Z) float32
    brain : np.ndarray
        Its brain mask.  # (X, Y, Z) bool
    region : np.ndarray
        The brain and 12 mm around it: where images are compared.  # (X, Y, Z) bool
    """

    image: np.ndarray
    brain: np.ndarray
    region: np.ndarray


@lru_cache(maxsize=2)
def template_brain(grid: Grid) -> TemplateBrain:
    """The template on a grid of any adult MNI space; read from nilearn's own files, no network."""
    t1 = icbm152("t1")
    brain = t1.on(grid, "nearest") > BRAIN_ABOVE
    return TemplateBrain(t1.on(grid, "linear"), brain, surround(brain, grid.zooms, SURROUND_MM))


def surround(mask: np.ndarray, zooms: Sequence[float], reach_mm: float) -> np.ndarray:
    """Voxels whose centres lie at most ``reach_mm`` from one of the mask's.

    Squared distances axis by axis (Saito & Toriwaki 1994), no further than is asked for: a distance transform takes
    several times as long.

    Parameters
    ----------
    mask : ndarray of bool, shape (X, Y, Z)
    zooms : sequence of float
        Size of a voxel along each axis, in mm.
    reach_mm : float

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)
    """
    squares = np.where(mask, np.float32(0), np.float32(np.inf))  # (X, Y, Z) mm^2
    for axis, zoom in enumerate(zooms):
        along, nearest = np.moveaxis(squares, axis, 0), squares.copy()
        found = np.moveaxis(nearest, axis, 0)
        for step in range(1, min(int(reach_mm / zoom + 1e-6), len(along) - 1) + 1):
            further = np.float32((step * zoom) ** 2)
            np.minimum(found[step:], along[:-step] + further, out=found[step:])
            np.minimum(found[:-step], along[step:] + further, out=found[:-step])
        squares = nearest
    return squares <= np.float32(reach_mm**2)


@dataclass(frozen=True, eq=False)
class Map:
    """An ICBM152 2009 map of 1 mm.  # (x, y, z) float32"""

    geometry: Grid
    voxels: np.ndarray

    def on(self, grid: Grid, kernel: Interpolation) -> np.ndarray:
        """The map on a grid, in units of its largest value; 0 outside.  # (X, Y, Z) float32"""
        return sampler_in_space(self.geometry, grid, kernel)(self.voxels) / self.voxels.max()


def icbm152(tissue: Literal["t1", "gm", "wm"]) -> Map:
    """One of nilearn's bundled maps of ICBM152 2009: the skull-stripped T1w, or the share of grey or white matter."""
    voxels, affine = _bundled(tissue)
    return Map(Grid.of(voxels.shape, affine, "MNI152NLin2009Sym"), voxels)


def _bundled(tissue: str) -> tuple[np.ndarray, np.ndarray]:
    """A map as nilearn stores it, without importing nilearn, which takes longer than all else that is done with it.

    Where the file has another name, nilearn is asked for it.
    """
    package = find_spec("nilearn")
    folders = package.submodule_search_locations if package else None
    path = Path(next(iter(folders or ["."]))) / "datasets" / "data" / f"mni_icbm152_{tissue}{FILE_ENDS}"
    if path.exists():
        image = open_nifti(path)
        return next(image.volumes()), image.header.get_best_affine()
    from nilearn import datasets

    load = {"t1": datasets.load_mni152_template, "gm": datasets.load_mni152_gm_template}
    shown = load.get(tissue, datasets.load_mni152_wm_template)(resolution=1)
    return np.asarray(shown.dataobj, dtype=np.float32), shown.affine
