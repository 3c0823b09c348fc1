"""Brain masks of a run, in the space of its image: the pipeline's own, or one computed from the mean image."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel
import numpy as np

from neurostorm_bids.errors import MaskUnusable
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.header import judged_affine
from neurostorm_bids.space.nifti import NiftiFile, open_nifti

REMOVE = "Remove it, and one is computed from the mean image"
SAME_GRID_VOXELS = 0.01  # how far a mask's corners may lie from the image's


def open_mask(path: Path, geometry: Grid, *, in_template: bool) -> NiftiFile:
    """A brain mask's header, which must give the grid of its run.

    Raises
    ------
    MaskUnusable
        When it is 4D, or lies on another grid.
    """
    image = open_nifti(path)
    if image.n_volumes != 1:
        raise MaskUnusable(
            f"the mask has {image.n_volumes} volumes", file=path, expected="one 3D volume", remedy=REMOVE
        )
    _check_grid(image, geometry, in_template)
    return image


def read_mask(image: NiftiFile) -> np.ndarray:
    """The voxels of a brain mask.  # (x, y, z) float32, in [0, 1]

    Raises
    ------
    MaskUnusable
        When it holds NaN, or is empty.
    """
    (mask,) = image.volumes()  # to its end, where the checksum is compared
    if not np.isfinite(mask).all():
        raise MaskUnusable("the mask holds NaN or infinity", file=image.path, expected="zeros and ones", remedy=REMOVE)
    if not (mask > 0).any():
        raise MaskUnusable("the mask is empty", file=image.path, remedy=REMOVE)
    return np.clip(mask, 0, 1)


def _check_grid(image: NiftiFile, geometry: Grid, in_template: bool) -> None:
    own = Grid.of(image.shape[:3], judged_affine(image, in_template=in_template), geometry.template)
    apart = np.inf if own.shape != geometry.shape else np.abs(own.corners() - geometry.corners()).max()
    if apart > SAME_GRID_VOXELS * geometry.zooms.min():
        raise MaskUnusable(
            f"the mask lies on another grid than its run: {_describe(own)} against {_describe(geometry)}",
            file=image.path,
            remedy="Resample the mask to the run, or remove it, and one is computed from the mean image",
        )


def _describe(grid: Grid) -> str:
    size = "x".join(str(n) for n in grid.shape)
    origin = ", ".join(f"{x:g}" for x in grid.matrix[:3, 3].round(2))
    return f"{size}, {grid.zooms.round(2).max():g} mm, origin ({origin})"


def computed_mask(image: NiftiFile, geometry: Grid) -> np.ndarray:
    """A brain mask from the mean over time, by nilearn's histogram method.  # (x, y, z) float32, 0 or 1

    Raises
    ------
    MaskUnusable
        When the mean image separates into no brain and background.
    """
    from nilearn.masking import compute_epi_mask

    mean = np.zeros(geometry.shape, dtype=np.float64, order="F")
    for volume in image.volumes():
        mean += np.nan_to_num(volume, copy=False, posinf=0.0, neginf=0.0)
    mean_image = nibabel.Nifti1Image((mean / image.n_volumes).astype(np.float32), geometry.matrix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nilearn warns of an empty mask, which is an error here
            mask = np.asarray(compute_epi_mask(mean_image).dataobj, dtype=np.float32)
    except (ValueError, IndexError) as error:
        raise _no_brain(image.path, str(error)) from None
    mask[mean == 0] = 0  # in a masked image the histogram's two modes may both lie inside the brain
    if not mask.any():
        raise _no_brain(image.path, "the computed mask is empty")
    return mask


def _no_brain(path: Path, reason: str) -> MaskUnusable:
    return MaskUnusable(
        f"there is no brain mask, and none can be computed from the mean image ({reason})",
        file=path,
        remedy="Give a desc-brain_mask beside the run",
    )
