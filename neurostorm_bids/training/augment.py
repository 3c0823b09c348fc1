"""Augmentation: a random affine, noise and smoothing, the same for all frames of a clip.

Each clip is changed as its key says (seed, epoch, sample, view): neither its batch nor the process that computes it
matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from neurostorm_bids.model.draws import Key, keyed_generator

AUGMENT = 18  # purpose of the draws, beside those of the model and of the samples
TRUNCATE = 4.0  # a smoothing kernel reaches this many SDs


@dataclass(frozen=True)
class Augmentation:
    """How clips are changed in training.

    Parameters
    ----------
    degrees : float
        Largest rotation about each axis.
    scale : float
        Largest change of size along each axis, as a share.
    noise_sd, noise_probability : float
        SD (in units of the normalised run) and probability of Gaussian noise in the foreground.
    smooth_voxels, smooth_probability : float
        Largest SD (in voxels) and probability of Gaussian smoothing.
    """

    degrees: float = 10.0
    scale: float = 0.1
    noise_sd: float = 0.1
    noise_probability: float = 0.3
    smooth_voxels: float = 0.5
    smooth_probability: float = 0.1

    def __call__(self, clip: np.ndarray, key: Key, background: float) -> np.ndarray:
        """A changed copy of a clip.

        Parameters
        ----------
        clip : ndarray of shape (ch, X, Y, Z, T), float32
        key : int or tuple of int
        background : float
            Value outside the brain. What moves in from outside takes it.

        Returns
        -------
        ndarray of shape (ch, X, Y, Z, T), float32
        """
        draw = keyed_generator(key, AUGMENT)
        matrix = _matrix(draw.uniform(-1, 1, 3) * np.deg2rad(self.degrees), 1 + draw.uniform(-1, 1, 3) * self.scale)
        noisy, smooth = draw.random(2) < (self.noise_probability, self.smooth_probability)
        sds = draw.uniform(0, self.smooth_voxels, 3)
        volumes = torch.from_numpy(clip).movedim(-1, 1).flatten(0, 1) - background  # (ch T, X, Y, Z), 0 outside
        volumes = moved(volumes, matrix)
        if smooth:
            volumes = smoothed(volumes, sds.tolist())
        if noisy:
            noise = draw.standard_normal(volumes.shape[1:], dtype=np.float32) * np.float32(self.noise_sd)
            volumes = torch.where(volumes != 0, volumes + torch.from_numpy(noise), volumes)
        ch, *_, frames = clip.shape
        return (volumes + background).unflatten(0, (ch, frames)).movedim(1, -1).contiguous().numpy()


def _matrix(radians: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z, after scaling; maps places of the result to places of the input.  # (3, 3)"""
    (cx, cy, cz), (sx, sy, sz) = np.cos(radians), np.sin(radians)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x @ np.diag(scales)


def moved(volumes: Tensor, matrix: np.ndarray) -> Tensor:
    """Volumes turned and scaled about their centre, trilinear, 0 from outside.

    Parameters
    ----------
    volumes : Tensor
        (k, X, Y, Z).
    matrix : ndarray of shape (3, 3)
        Voxel offsets from the centre, from the result to the input.
    """
    half = (np.array(volumes.shape[1:]) - 1) / 2
    relative = matrix * half[None, :] / half[:, None]  # in units of half an axis, as torch counts
    flipped = torch.zeros(1, 3, 4, dtype=volumes.dtype, device=volumes.device)  # torch takes z, y, x
    flipped[0, :, :3] = torch.from_numpy(relative[::-1, ::-1].copy()).to(volumes)
    places = F.affine_grid(flipped, [1, 1, *volumes.shape[1:]], align_corners=True)
    return F.grid_sample(volumes.unsqueeze(0), places, mode="bilinear", align_corners=True)[0]


def smoothed(volumes: Tensor, sds: Sequence[float]) -> Tensor:
    """Volumes after Gaussian smoothing along each axis, 0 from outside.  # (k, X, Y, Z), SDs in voxels"""
    for axis, sd in enumerate(sds, start=1):
        radius = max(1, round(TRUNCATE * sd))
        weights = np.exp(-0.5 * (np.arange(radius + 1) / max(sd, 1e-3)) ** 2)
        weights /= weights[0] + 2 * weights[1:].sum()
        blurred = volumes * float(weights[0])
        for offset in range(1, min(radius, volumes.shape[axis] - 1) + 1):  # far cheaper than a convolution
            n = volumes.shape[axis] - offset
            weight = float(weights[offset])
            blurred.narrow(axis, offset, n).add_(volumes.narrow(axis, 0, n), alpha=weight)
            blurred.narrow(axis, 0, n).add_(volumes.narrow(axis, offset, n), alpha=weight)
        volumes = blurred
    return volumes
