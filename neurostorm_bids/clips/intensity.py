"""``--intensity hcp``: bring fMRIPrep's intensities nearer to those of HCP volumes.

HCP's volumes are bias-corrected, scaled to a grand mean of 10,000, masked and thresholded at 0. Mask and threshold
are part of every normalisation here; this module gives the rest as one factor per voxel.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from neurostorm_bids.errors import ConstantSeries

GRAND_MEAN = 10_000.0
DEGREE = 3  # of the polynomial: receive fields are smooth over the head, anatomy is not
N_REWEIGHTINGS = 15
TUKEY = 4.685  # 95 % efficiency at a normal distribution
EDGE_VOXELS = 2
SMALLEST_INTERIOR = 0.2  # share of the mask
FIT_VOXELS = 20_000  # as many, evenly spread, pin twenty coefficients down
DARKEST = 0.1  # share of the median below which a voxel is dropout or edge and has no say
LARGEST_GAIN = 5.0


def hcp_gain(mean_image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Factor per foreground voxel: one over the bias field, scaled so that the mean image averages 10,000.

    The logarithm of the mean image is fitted by a polynomial of degree 3 in the voxel positions, by iteratively
    reweighted least squares with Tukey's biweight, so that bright fluid and signal loss do not bend the field; the
    outer two voxels, dark by partial volume, have no say. A stand-in for the structural receive field that HCP divides
    by, which fMRIPrep does not provide; it cannot tell a slow anatomical gradient from the coil's.

    Parameters
    ----------
    mean_image : ndarray of shape (v,)
        Mean over time of each foreground voxel, in raster order.
    mask : ndarray of shape (x, y, z)

    Returns
    -------
    ndarray of shape (v,), float32
    """
    positive = mean_image > 0
    if not positive.any():
        raise ConstantSeries("no voxel of the mean image is above 0", remedy="Check the image and its mask")
    usable = _interior(mask) & (mean_image > DARKEST * np.median(mean_image[positive]))
    basis = _polynomials(mask)  # (v, p)
    chosen = np.flatnonzero(usable)
    chosen = chosen[:: max(1, len(chosen) // FIT_VOXELS)]
    field = basis @ _robust_fit(basis[chosen], np.log(mean_image[chosen]))
    field -= np.median(field[usable])
    gain = np.exp(-np.clip(field, -np.log(LARGEST_GAIN), np.log(LARGEST_GAIN)))
    return (gain * (GRAND_MEAN / (np.maximum(mean_image, 0) * gain).mean())).astype(np.float32)


def _interior(mask: np.ndarray) -> np.ndarray:
    """Foreground voxels that lie ``EDGE_VOXELS`` deep; all of them where few do.  # (v,) bool"""
    inner = ndimage.binary_erosion(mask, iterations=EDGE_VOXELS)[mask]
    return inner if inner.mean() >= SMALLEST_INTERIOR else np.ones_like(inner)


def _polynomials(mask: np.ndarray) -> np.ndarray:
    """Products of Legendre polynomials of total degree up to ``DEGREE``, over the mask's extent.  # (v, p)"""
    axes = [2 * (at - at.min()) / max(np.ptp(at), 1) - 1 for at in np.nonzero(mask)]
    values = [np.polynomial.legendre.legvander(axis, DEGREE) for axis in axes]  # 3 x (v, degree + 1)
    degrees = [(i, j, k) for i, j, k in np.ndindex((DEGREE + 1,) * 3) if i + j + k <= DEGREE]
    return np.stack([values[0][:, i] * values[1][:, j] * values[2][:, k] for i, j, k in degrees], axis=1)


def _robust_fit(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Coefficients by iteratively reweighted least squares, Tukey's biweight.  # (p,)"""
    weights = np.ones_like(target)
    for _ in range(N_REWEIGHTINGS):
        weighted = basis * weights[:, None]
        # a ridge far below the data's scale: a mask one voxel thin leaves some polynomials undetermined
        normal = weighted.T @ basis + 1e-9 * len(target) * np.eye(basis.shape[1])
        coefficients = np.linalg.solve(normal, weighted.T @ target)
        residual = target - basis @ coefficients
        spread = 1.4826 * np.median(np.abs(residual)) + 1e-12
        weights = np.maximum(1 - (residual / (TUKEY * spread)) ** 2, 0) ** 2
    return coefficients
