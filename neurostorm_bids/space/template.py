"""A template brain on the model's grid, to judge a run's placement by.

It is nilearn's bundled ICBM152 2009 template: symmetric, skull-stripped, and a millimetre or two off MNI152NLin6Asym.
The thresholds of ``quality`` allow for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import nibabel
import numpy as np
from scipy.ndimage import binary_dilation

from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.resample import sampler

SURROUND_MM = 12.0  # how far the region of comparison reaches beyond the brain


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
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    brain = _on(grid, load_mni152_brain_mask(resolution=1), "nearest") > 0
    ball = _ball(SURROUND_MM / grid.zooms)
    return TemplateBrain(
        _on(grid, load_mni152_template(resolution=1), "linear"), brain, binary_dilation(brain, structure=ball)
    )


def _on(grid: Grid, image: nibabel.Nifti1Image, kernel: str) -> np.ndarray:
    geometry = Grid.of(image.shape[:3], image.affine, grid.template)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    return sampler(geometry, grid, grid.points(), kernel)(voxels)


def _ball(radii: np.ndarray) -> np.ndarray:
    """An ellipsoid of the given radii in voxels."""
    reach = np.ceil(radii).astype(int)
    offsets = np.indices(2 * reach + 1).T - reach
    return ((offsets / radii) ** 2).sum(axis=-1).T <= 1
