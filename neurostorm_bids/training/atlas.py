"""An atlas on the patches of a model: which region each of them lies in."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from neurostorm_bids.errors import AtlasUnusable
from neurostorm_bids.space.grid import Grid, apply_affine


def patch_regions(path: Path, grid: Grid, patch: tuple[int, int, int, int]) -> np.ndarray:
    """The region at the centre of each patch, nearest voxel; 0 outside the atlas.  # (x, y, z) int32

    Parameters
    ----------
    path : Path
        Label image in the grid's template space, any resolution.
    grid : Grid
        Of the model.
    patch : tuple of int
        Voxels of a patch along x, y, z, t.

    Raises
    ------
    AtlasUnusable
        Not readable, not 3D, no whole numbers, or without a region within the grid.
    """
    try:
        image = nib.load(path)
        labels = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    except (OSError, nib.filebasedimages.ImageFileError, EOFError) as error:
        raise _unusable(path, f"cannot be read ({error})") from error
    if labels.ndim != 3 or not np.array_equal(labels, np.rint(labels)) or labels.min() < 0:
        raise _unusable(path, "is no 3D image of whole numbers from 0 on")
    counts = [size // p for size, p in zip(grid.shape, patch[:3], strict=True)]
    index = np.stack(np.meshgrid(*(np.arange(n) for n in counts), indexing="ij"), -1).reshape(-1, 3)  # (patches, 3)
    centres = apply_affine(np.asarray(grid.affine), index * patch[:3] + (np.array(patch[:3]) - 1) / 2)
    voxels = np.rint(apply_affine(np.linalg.inv(image.affine), centres)).astype(int)  # type: ignore[attr-defined]
    inside = ((voxels >= 0) & (voxels < labels.shape)).all(axis=1)
    regions = np.zeros(len(index), np.int32)
    regions[inside] = labels[tuple(voxels[inside].T)]
    if not regions.any():
        raise _unusable(path, "has no region within the model's grid")
    return regions.reshape(counts)


def _unusable(path: Path, fault: str) -> AtlasUnusable:
    return AtlasUnusable(
        fault, file=path, expected="a label image in the model's template space", remedy="Check --atlas"
    )
