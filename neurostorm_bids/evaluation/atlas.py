"""Parcels of grey matter on any grid: compact pieces of about one size, computed from a bundled template, no download.

The parcels are k-means clusters of the coordinates of the ICBM152 grey matter mask that nilearn bundles. They follow no
anatomical or functional border; as a common yardstick that does no harm, and no licence or network stands in the way.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from threadpoolctl import threadpool_limits

from neurostorm_bids.space.grid import Grid, apply_affine

N_PARCELS = 100
SAMPLING_MM = 4
DESCRIPTION = (
    f"{N_PARCELS} compact parcels (k-means of coordinates) of the ICBM152 grey matter mask bundled with nilearn"
)


@lru_cache(maxsize=4)
def parcels_on(grid: Grid) -> np.ndarray:
    """The parcel of each voxel, from 1 on; 0 outside grey matter.  # (x, y, z) int"""
    mask, affine, centres = _template()
    points = grid.points()
    voxel = np.rint(apply_affine(np.linalg.inv(affine), points)).astype(int)  # (v, 3)
    inside = ((voxel >= 0) & (voxel < mask.shape)).all(axis=1)
    grey = np.zeros(len(points), bool)
    grey[inside] = mask[tuple(voxel[inside].T)]
    labels = np.zeros(len(points), int)
    labels[grey] = 1 + _nearest(points[grey], centres)
    return labels.reshape(grid.shape)


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey matter mask, its affine, and the centres of the parcels in mm."""
    from nilearn.datasets import load_mni152_gm_mask
    from sklearn.cluster import KMeans

    image = load_mni152_gm_mask(resolution=2)
    mask, affine = np.asarray(image.dataobj) > 0, image.affine
    step = SAMPLING_MM // 2
    voxels = np.argwhere(mask[::step, ::step, ::step]) * step
    with threadpool_limits(1):  # sums depend on how many threads share them, and parcels must not
        found = KMeans(N_PARCELS, n_init=1, random_state=0).fit(apply_affine(affine, voxels.astype(float)))
    return mask, affine, found.cluster_centers_


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(centres).query(points)[1]


class Parcellation:
    """Means over parcels of frames on a grid."""

    def __init__(self, grid: Grid) -> None:
        labels = parcels_on(grid).ravel()
        self._voxels = np.flatnonzero(labels)
        self._parcel = labels[self._voxels] - 1

    def courses(self, clip: np.ndarray, background: float) -> np.ndarray:
        """Mean of each parcel over its voxels inside the brain mask; 0 where there are none.

        Parameters
        ----------
        clip : ndarray of shape (1, x, y, z, t)
        background : float
            What voxels outside the mask hold.

        Returns
        -------
        ndarray of shape (t, parcels)
        """
        frames = clip.reshape(-1, clip.shape[-1])[self._voxels]  # (v, t)
        inside = (frames != np.float32(background)).any(axis=1)
        parcel, frames = self._parcel[inside], frames[inside]
        counts = np.bincount(parcel, minlength=N_PARCELS)
        sums = np.stack([np.bincount(parcel, frame, minlength=N_PARCELS) for frame in frames.T])  # (t, parcels)
        return sums / np.maximum(counts, 1)
