"""Clips without dynamics: the mean of a run in every frame, and frames out of order."""

from __future__ import annotations

import numpy as np


class MeanImage:
    """The temporal mean of the clips of a run, repeated as a clip."""

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self._n_frames = 0

    def add(self, clip: np.ndarray) -> None:
        """Take in a clip.  # (1, x, y, z, t)"""
        total = clip.sum(axis=-1, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._n_frames += clip.shape[-1]

    def repeated(self, n_frames: int) -> np.ndarray:
        """The mean image at every frame.  # (1, x, y, z, t) float32"""
        if self._sum is None:
            raise ValueError("no clip was added")
        mean = (self._sum / self._n_frames).astype(np.float32)
        return np.repeat(mean[..., None], n_frames, axis=-1)


def shuffled(clip: np.ndarray, seed: int, number: int) -> np.ndarray:
    """The frames of a clip in an order that seed and number of the clip decide.  # (1, x, y, z, t)

    All that does not depend on order stays: mean, variance and covariance of the voxels within the clip.
    """
    order = np.random.default_rng([seed, number]).permutation(clip.shape[-1])
    return np.ascontiguousarray(clip[..., order])
