"""What this stage needs of a run on the model's grid, and the few volumes of it that are alive at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from neurostorm_bids.clips.timing import FrameWeights
from neurostorm_bids.errors import ConstantSeries, ImageUnreadable, MaskUnusable, NonFiniteVoxels

SMALLEST_RELATIVE_SD = 1e-6  # below this share of the mean, spread is float32 rounding
BLOCK = 16384  # voxels worked on at a time: a block of float64 and its frames stay in the second-level cache


class VolumeSeries(Protocol):
    """A run on the model's grid, streamed; ``volumes`` may be called again for another pass."""

    @property
    def n_volumes(self) -> int: ...

    @property
    def t_r_s(self) -> float: ...

    @property
    def mask(self) -> np.ndarray:
        """Foreground: where the interpolated mask is above 0.  # (x, y, z) bool"""

    def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
        """Volumes from ``start`` on, each (x, y, z) float32."""


def foreground_voxels(mask: np.ndarray) -> np.ndarray:
    """Raster positions of the foreground.  # (v,)

    Raises
    ------
    MaskUnusable
        When the mask holds no voxel.
    """
    voxels = np.flatnonzero(np.ascontiguousarray(mask))
    if voxels.size == 0:
        raise MaskUnusable(
            "the mask holds no voxel on the model's grid",
            expected="a brain mask that overlaps the template",
            remedy="Check the mask and the space of the image",
        )
    return voxels


def require_finite(values: np.ndarray, volume: int) -> None:
    """Raise NonFiniteVoxels where the foreground of a volume holds NaN or infinity."""
    if np.isfinite(values.sum(dtype=np.float64)):
        return
    raise NonFiniteVoxels(
        f"{np.count_nonzero(~np.isfinite(values))} voxels of volume {volume} (from 0) are NaN or infinite",
        expected="finite values inside the mask",
        remedy="Repair the image, or its mask where it covers undefined voxels",
    )


def require_spread(mean: float, variance: float) -> None:
    """Raise ConstantSeries where the values of a run hardly differ from their mean."""
    if variance > (SMALLEST_RELATIVE_SD * mean) ** 2:
        return
    raise ConstantSeries(
        f"every value inside the mask is {mean:g}",
        expected="values that differ across space and time",
        remedy="Check the image and its mask",
    )


class LiveVolumes:
    """The foreground of the volumes that the current frames need: a ring that one pass over the run fills.

    ``capacity`` volumes are held; asking for an older one is an error of the caller.
    """

    def __init__(
        self, series: VolumeSeries, start: int, capacity: int, gain: np.ndarray | None = None, *, check: bool = False
    ) -> None:
        self.voxels = foreground_voxels(series.mask)
        self._ring = np.empty((capacity, self.voxels.size), np.float32)
        self._stream = series.volumes(start)
        self._start, self._next = start, 0
        self._gain, self._check = gain, check

    def advance_to(self, volume: int) -> None:
        """Draw volumes up to and including ``volume`` (counted from ``start``)."""
        while self._next <= volume:
            drawn = next(self._stream, None)
            if drawn is None:
                raise ImageUnreadable(
                    f"the image ends after {self._start + self._next} volumes",
                    expected=f"at least {self._start + volume + 1}, as its header says",
                    remedy="Check that the file is complete",
                )
            self._keep(drawn)
            self._next += 1

    def finish(self) -> None:
        """Read to the end: a series makes its last checks there."""
        for _ in self._stream:
            pass

    def _keep(self, volume: np.ndarray) -> None:
        place = self._ring[self._next % len(self._ring)]
        # "clip" skips the bounds check that numpy would do on a buffered copy; positions come from the mask
        np.take(np.ascontiguousarray(volume).reshape(-1), self.voxels, out=place, mode="clip")
        if self._check:
            require_finite(place, self._start + self._next)
        if self._gain is not None:
            place *= self._gain

    def of_frame(self, frames: FrameWeights, frame: int) -> list[tuple[np.ndarray, np.float32]]:
        """The foregrounds that make up a frame, with their weights."""
        held = range(self._next - len(self._ring), self._next)
        parts = []
        for volume, weight in zip(frames.volumes[frame], frames.weights[frame], strict=True):
            if weight:
                assert volume in held, f"volume {volume} is no longer (or not yet) alive: {held}"
                parts.append((self._ring[volume % len(self._ring)], weight))
        return parts


def weighted_sum(
    parts: Sequence[tuple[np.ndarray, np.float32]], block: slice, out: np.ndarray, spare: np.ndarray
) -> None:
    """A block of one frame: the weighted sum of its volumes, in float32, in their order."""
    np.multiply(parts[0][0][block], parts[0][1], out=out)
    for values, weight in parts[1:]:
        np.multiply(values[block], weight, out=spare)
        np.add(out, spare, out=out)


def blocks(n_voxels: int) -> Iterator[slice]:
    """Consecutive slices of at most ``BLOCK`` voxels."""
    for start in range(0, n_voxels, BLOCK):
        yield slice(start, min(start + BLOCK, n_voxels))


def longest_span(frames: FrameWeights, n_together: int, stride: int = 1) -> int:
    """How many volumes any ``n_together`` successive frames reach over."""
    first, last = frames.volumes.min(axis=1), frames.volumes.max(axis=1)
    starts = np.arange(0, len(first), stride)
    ends = np.minimum(starts + n_together, len(first)) - 1
    return int((last[ends] - first[starts]).max()) + 1
