"""Time: from scanner volumes to frames of the model's TR, and from frames to seconds of scanner time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np


class FrameWeights(NamedTuple):
    """Each frame as a weighted sum of volumes (counted from the first kept one).

    ``volumes`` (n_frames, width) int and ``weights`` (n_frames, width) float32; unused places have weight 0.
    """

    volumes: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Timing:
    """How the volumes of a run become frames.

    Parameters
    ----------
    n_volumes : int
        Volumes that are kept, after the dummies.
    t_r_s, target_t_r_s : float
        Repetition time of the run and of the model, in seconds.
    n_dummies : int
        Volumes dropped at the start.
    start_time_s : float
        Scanner time of the first volume (BIDS ``StartTime``), in seconds.
    anti_alias : bool
        Low-pass before thinning a run whose TR is below the model's (a triangle as wide as two frames).
    """

    n_volumes: int
    t_r_s: float
    target_t_r_s: float = 0.8
    n_dummies: int = 0
    start_time_s: float = 0.0
    anti_alias: bool = False

    @classmethod
    def of(cls, n_volumes: int, t_r_s: float, *, n_dummies: int = 0, **options) -> Self:
        """Timing of a run of ``n_volumes``, the first ``n_dummies`` of which are dropped."""
        return cls(max(0, n_volumes - n_dummies), t_r_s, n_dummies=n_dummies, **options)

    @property
    def n_frames(self) -> int:
        """Frames after resampling: the kept duration over the target TR, halves to even."""
        return round(self.n_volumes * self.t_r_s / self.target_t_r_s)

    @property
    def step_s(self) -> float:
        """Effective time from frame to frame, in seconds (the target TR up to rounding of the frame count)."""
        return self.n_volumes * self.t_r_s / self.n_frames

    def onset_s(self, frame: int) -> float:
        """Scanner time at which a frame begins, in seconds."""
        return self.start_time_s + self.n_dummies * self.t_r_s + frame * self.step_s

    @cached_property
    def frames(self) -> FrameWeights:
        """Which volumes make up each frame."""
        if self.anti_alias and self.n_volumes > self.n_frames:
            return triangle_weights(self.n_volumes, self.n_frames)
        return linear_weights(self.n_volumes, self.n_frames)


def linear_weights(n_volumes: int, n_frames: int) -> FrameWeights:
    """Linear interpolation by size, ``align_corners=False``, in the float32 arithmetic of torch.

    Frame i lies at (i + 0.5) * n_volumes / n_frames - 0.5, clamped to the run. The position is rounded to float32
    once, because that is what torch's fused multiply-add does: over a long run it moves weights by up to 1e-4.
    """
    ratio = np.float64(np.float32(n_volumes) / np.float32(n_frames))
    position = np.maximum((ratio * (np.arange(n_frames) + 0.5) - 0.5).astype(np.float32), np.float32(0))
    lower = np.minimum(position.astype(np.int64), n_volumes - 1)
    upper = np.minimum(lower + 1, n_volumes - 1)
    fraction = np.clip(position - lower.astype(np.float32), 0, 1).astype(np.float32)
    return FrameWeights(np.stack([lower, upper], 1), np.stack([np.float32(1) - fraction, fraction], 1))


def triangle_weights(n_volumes: int, n_frames: int) -> FrameWeights:
    """Anti-aliased thinning: a triangle of half-width n_volumes / n_frames around each frame, weights adding to 1.

    The same kernel as torch's and Pillow's antialiased linear resizing. Needs ``n_volumes >= n_frames``.
    """
    ratio = n_volumes / n_frames
    centre = ratio * (np.arange(n_frames) + 0.5)
    first = np.maximum((centre - ratio + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + ratio + 0.5).astype(np.int64), n_volumes)
    volumes = first[:, None] + np.arange((end - first).max())  # (n_frames, width)
    weights = np.maximum(1 - np.abs(volumes - centre[:, None] + 0.5) / ratio, 0)
    weights[volumes >= end[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return FrameWeights(np.minimum(volumes, n_volumes - 1), weights.astype(np.float32))
