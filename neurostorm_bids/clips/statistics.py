"""First pass: one mean and one SD of a run's foreground, across space and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from neurostorm_bids.clips.compiled import Parts, frame_kernels
from neurostorm_bids.clips.intensity import hcp_gain
from neurostorm_bids.clips.series import (
    BLOCK,
    LiveVolumes,
    VolumeSeries,
    blocks,
    foreground_voxels,
    longest_span,
    require_spread,
    weighted_sum,
)
from neurostorm_bids.clips.timing import Timing
from neurostorm_bids.clips.windows import require_one_clip
from neurostorm_bids.errors import DemeanedSeries
from neurostorm_bids.settings import Intensity

Background = Literal["minimum", "zero"]

GROUP = 20  # frames summed per visit of a block
SMALL_TEMPORAL_SHARE = 1e-4


@dataclass(frozen=True, eq=False)
class RunStatistics:
    """What the normalisation of a run rests on.

    Attributes
    ----------
    timing : Timing
    mean, std : float
        Over foreground voxels and frames, negatives taken as 0; ``std`` is the unbiased one.
    minimum : float
        Smallest foreground value (after negatives became 0), which the background takes.
    temporal_variance_share : float
        Share of the variance that lies within voxels over time; the rest is anatomy.
    n_negative : int
        Foreground values below 0 (voxels times frames), and their share.
    mean_image : ndarray of shape (x, y, z), float32
        Mean over frames; 0 in the background.
    gain : ndarray of shape (n foreground voxels,), float32, or None
        Factor that each foreground voxel was multiplied by (``--intensity hcp``).
    background_rule : {"minimum", "zero"}
        What the background becomes.
    """

    timing: Timing
    mean: float
    std: float
    minimum: float
    temporal_variance_share: float
    n_foreground: int
    n_negative: int
    negative_share: float
    mean_image: np.ndarray
    gain: np.ndarray | None = None
    background_rule: Background = "minimum"
    warnings: tuple[str, ...] = ()

    @property
    def background(self) -> np.float32:
        """The value of the background after normalisation: the smallest foreground z, or 0."""
        if self.background_rule == "zero":
            return np.float32(0)
        return (np.float32(self.minimum) - np.float32(self.mean)) / np.float32(self.std)


def run_statistics(
    series: VolumeSeries,
    timing: Timing,
    *,
    intensity: Intensity = "none",
    background: Background = "minimum",
    max_negative_share: float = 0.05,
) -> RunStatistics:
    """Read the run once and gather its statistics.

    Sums are kept per voxel in float64, around the voxel's first frame, in the order of time, so that the result
    is the same bytes however the pass is cut up, and a large offset costs no digits.

    Parameters
    ----------
    series : VolumeSeries
    timing : Timing
    intensity : {"none", "hcp"}
        "hcp": bias correction of the mean image and a grand mean of 10,000, as a gain per voxel.
    background : {"minimum", "zero"}
        What the background becomes after normalisation: the smallest foreground z (as published), or 0.
    max_negative_share : float
        Largest share of negative foreground values; more of them means that the mean was removed.

    Raises
    ------
    TooFewFrames, MaskUnusable, NonFiniteVoxels, ImageUnreadable, ConstantSeries, DemeanedSeries
    """
    require_one_clip(timing, clip_frames=1)
    sums = _sum_up(series, timing)
    negative_share = sums.n_negative / (timing.n_frames * sums.first.size)
    if negative_share > max_negative_share:
        raise DemeanedSeries(
            f"{100 * negative_share:.1f} % of the values inside the mask are negative",
            expected=f"at most {100 * max_negative_share:g} %: BOLD with its mean, not demeaned or standardised",
            remedy="Use the images before demeaning, or add the mean image back",
        )
    statistics = _evaluate(sums, series.mask, timing, intensity, negative_share)
    return replace(statistics, background_rule=background)


class _Sums:
    """Sums over time of each foreground voxel, around its first frame."""

    def __init__(self, n_voxels: int) -> None:
        self.first = np.zeros(n_voxels)
        self.deviation = np.zeros(n_voxels)
        self.square = np.zeros(n_voxels)
        self.minimum = np.full(n_voxels, np.inf, np.float32)
        self.n_negative = 0

    def add_frames(self, parts: Parts, *, begins: bool) -> None:
        """Add successive frames; those that begin the run give each voxel what it is counted from."""
        kernels = frame_kernels()
        if kernels is None:
            self._add_by_blocks(parts, begins)
            return
        sums = (self.minimum, self.first, self.deviation, self.square)
        self.n_negative += kernels.add(parts, begins, *sums)

    def _add_by_blocks(self, parts: Parts, begins: bool) -> None:
        frame, product, spare = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK)
        for block in blocks(self.first.size):
            n = block.stop - block.start
            for number, part in enumerate(parts):
                weighted_sum(part, block, frame[:n], product[:n])
                if begins and number == 0:
                    self.first[block] = np.maximum(frame[:n], 0)
                self._add(block, frame[:n], spare[:n])

    def _add(self, block: slice, frame: np.ndarray, spare: np.ndarray) -> None:
        np.minimum(self.minimum[block], frame, out=self.minimum[block])
        if frame.min() < 0:
            self.n_negative += int(np.count_nonzero(frame < 0))
            np.maximum(frame, 0, out=frame)
        np.copyto(spare, frame)
        spare -= self.first[block]
        self.deviation[block] += spare
        spare *= spare
        self.square[block] += spare


def _sum_up(series: VolumeSeries, timing: Timing) -> _Sums:
    frames = timing.frames
    live = LiveVolumes(series, timing.n_dummies, longest_span(frames, GROUP, GROUP), check=True)
    sums = _Sums(live.voxels.size)
    for start in range(0, timing.n_frames, GROUP):
        members = range(start, min(start + GROUP, timing.n_frames))
        live.advance_to(int(frames.volumes[members].max()))
        sums.add_frames([live.of_frame(frames, member) for member in members], begins=start == 0)
    live.finish()
    return sums


def _evaluate(
    sums: _Sums, mask: np.ndarray, timing: Timing, intensity: Intensity, negative_share: float
) -> RunStatistics:
    n_frames, n_voxels = timing.n_frames, sums.first.size
    voxel_mean = sums.first + sums.deviation / n_frames
    within = np.maximum(sums.square - sums.deviation**2 / n_frames, 0)  # squares around each voxel's own mean
    gain = hcp_gain(voxel_mean, mask) if intensity == "hcp" else None
    factor = 1.0 if gain is None else gain.astype(np.float64)
    voxel_mean, within = voxel_mean * factor, within * factor**2
    mean = voxel_mean.mean()
    within_sum, between_sum = within.sum(), n_frames * ((voxel_mean - mean) ** 2).sum()
    std = np.sqrt((within_sum + between_sum) / max(n_frames * n_voxels - 1, 1))
    require_spread(mean, std**2)
    mean_image = np.zeros(mask.size, np.float32)
    mean_image[foreground_voxels(mask)] = voxel_mean
    share = float(within_sum / (within_sum + between_sum))
    return RunStatistics(
        timing=timing,
        mean=float(mean),
        std=float(std),
        minimum=float((np.maximum(sums.minimum, 0) * factor).astype(np.float32).min()),
        temporal_variance_share=share,
        n_foreground=n_voxels,
        n_negative=sums.n_negative,
        negative_share=float(negative_share),
        mean_image=mean_image.reshape(mask.shape),
        gain=gain,
        warnings=_warnings(share),
    )


def _warnings(share: float) -> tuple[str, ...]:
    if share >= SMALL_TEMPORAL_SHARE:
        return ()
    return (f"only {100 * share:.2g} % of the variance is temporal: the volumes of this run hardly differ",)
