"""The volumes of a run: mean image, networks, motion artefact and noise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from scipy.sparse import csr_array

from neurostorm_bids.simulate.brain import Brain, brain_on
from neurostorm_bids.simulate.runs import Run, Stream
from neurostorm_bids.space.grid import Grid, apply_affine

STEADY_STATE_EXCESS = 0.5  # how much brighter the first dummy volume is; each following one half of that
BLOCK = 64  # volumes made at a time


def series(run: Run, brain: Brain) -> np.ndarray:
    """The brain's voxels over time, not rounded.  # (v, t) float32"""
    plan, levels = run.simulation, run.simulation.levels
    mean = mean_image(run, brain)[:, None]  # (v, 1)
    signal = brain.networks @ run.courses.astype(np.float32)  # (v, t)
    signal *= levels.fluctuation
    fd_mm = np.nan_to_num(run.fd_mm).astype(np.float32)
    signal += levels.motion_artefact * np.outer(brain.edge, fd_mm)
    rng, noise = run.rng(Stream.NOISE), np.float32(run.noise_level)
    for start in range(0, plan.n_volumes, BLOCK):
        part = signal[:, start : start + BLOCK]
        part += noise * rng.standard_normal(part.shape[::-1], dtype=np.float32).T
    signal += 1
    signal[:, : plan.n_dummies] += STEADY_STATE_EXCESS * 0.5 ** np.arange(plan.n_dummies, dtype=np.float32)
    signal *= mean
    return np.maximum(signal, 0, out=signal)


def mean_image(run: Run, brain: Brain) -> np.ndarray:
    """Mean image of a run.  # (v,) float32"""
    levels = run.simulation.levels
    share = levels.tissue_contrast * brain.tissue + brain.fields @ run.field_coefficients.astype(np.float32)
    if run.trait_coefficients.any():
        share = share + brain.trait_maps @ run.trait_coefficients.astype(np.float32)
    return (levels.intensity * (1 + share)).astype(np.float32)


@lru_cache(maxsize=4)
def interpolation(source: Grid, target: Grid) -> csr_array:
    """Trilinear interpolation among the brain's voxels of two grids.  # (v of target, v of source)"""
    index = np.full(source.shape, -1)
    index[brain_on(source).mask] = np.arange(brain_on(source).mask.sum())
    points = target.points()[brain_on(target).mask.ravel()]
    position = apply_affine(np.linalg.inv(source.matrix), points)  # (v, 3)
    low = np.floor(position).astype(int)
    rows, columns, weights = [], [], []
    for corner in np.ndindex(2, 2, 2):
        place = np.clip(low + corner, 0, np.array(source.shape) - 1)
        weight = np.prod(np.where(corner, position - low, 1 - (position - low)), axis=1)
        voxel = index[tuple(place.T)]
        known = (voxel >= 0) & (weight > 0)
        rows.append(np.flatnonzero(known))
        columns.append(voxel[known])
        weights.append(weight[known])
    matrix = csr_array(
        (np.concatenate(weights).astype(np.float32), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(points), int((index >= 0).sum())),
    )
    total = np.asarray(matrix.sum(axis=1)).ravel()
    return csr_array(matrix.multiply(1 / np.maximum(total, 1e-6)[:, None]).astype(np.float32))


# --- files --------------------------------------------------------------------------------------------------------


def nifti(values: np.ndarray, brain: Brain, dtype: type, t_r_s: float | None = None) -> bytes:
    """A compressed NIfTI of the brain's voxels, zero elsewhere: equal values give equal bytes.

    Parameters
    ----------
    values : ndarray of shape (v,) or (v, t)
        Rounded when ``dtype`` is an integer.
    brain : Brain
    dtype : type
    t_r_s : float, optional
        Repetition time of a series.
    """
    shape = (*brain.grid.shape, *values.shape[1:])
    array = np.zeros(shape, dtype, order="F")
    array[brain.mask] = np.rint(values) if np.issubdtype(dtype, np.integer) else values
    image = Nifti1Image(array, brain.grid.matrix, _header(dtype, shape, t_r_s))
    image.set_sform(brain.grid.matrix, "mni")
    image.set_qform(brain.grid.matrix, "mni")
    return igzip.compress(image.to_bytes(), 1, mtime=0)


def _header(dtype: type, shape: tuple[int, ...], t_r_s: float | None) -> Nifti1Header:
    header = Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(1, 0)
    if t_r_s is not None:
        header["pixdim"][4] = t_r_s
    return header
