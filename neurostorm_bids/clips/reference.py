"""``--preprocessing reference``: the published preprocessing, in array space and with int8 frames, value for value.

Arrays go in as they lie in the file: the affine, and with it left and right, is ignored. Trilinear to 2 mm by size,
linear to 0.8 s by size, centre crop to 96, background where the interpolated mask is 0 (without a mask: where a value
is exactly 0), negatives 0, one mean and SD, background at the smallest foreground value, int8 with one scale.

The float32 mean of the published code depends on the order of summation: voxel by voxel, time fastest. A streamed run
arrives the other way round, so resampled volumes go through a temporary file; memory does not grow with the run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from neurostorm_bids.clips.normalisation import Clip
from neurostorm_bids.clips.series import require_finite, require_spread
from neurostorm_bids.clips.statistics import Background, RunStatistics
from neurostorm_bids.clips.timing import Timing
from neurostorm_bids.clips.torch_sum import TorchMean
from neurostorm_bids.clips.windows import Windows
from neurostorm_bids.errors import MaskUnusable, OutputNotWritable
from neurostorm_bids.space.header import judged_t_r_s
from neurostorm_bids.space.nifti import NiftiFile, open_nifti, open_series

VOXEL_MM = 2.0
SIZE = 96
INT8_MAX = 127
BLOCK_BYTES = 8 * 2**20  # of one block of voxels over all frames
ORIENTATION_WARNING = (
    "--preprocessing reference ignores the affine: axes go in as they lie in the file, so left and right are as "
    "stored, and a file in another orientation than the model's training data reaches it mirrored"
)


@dataclass(frozen=True)
class ReferenceTiming(Timing):
    """Timing whose frame count is that of the published code: float32, and never below one."""

    @property
    def n_frames(self) -> int:
        """Frames after resampling."""
        scale = np.float32(self.t_r_s) / np.float32(self.target_t_r_s)
        return max(int(np.rint(np.float32(self.n_volumes) * scale)), 1)


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """A run after the published preprocessing; frames and clips are read from a temporary file.

    Attributes
    ----------
    timing : ReferenceTiming
    statistics : RunStatistics
    scale : float
        What one int8 step is worth, in SD.
    shape : tuple of int
        Of a frame, after the crop.
    """

    timing: ReferenceTiming
    statistics: RunStatistics
    scale: float
    spill: _Spill

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of a frame, after the crop."""
        return self.spill.shape

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know about this run."""
        return self.statistics.warnings

    def frames(self, first: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
        """Frames ``first`` to ``end`` (excluded; default: all).  # each (x, y, z) int8"""
        for frame in range(first, self.timing.n_frames if end is None else end):
            yield self._quantised(self.spill.frame(self.timing, frame))

    def _quantised(self, values: np.ndarray) -> np.ndarray:
        statistics = self.statistics
        normalised = (np.maximum(values, 0) - np.float32(statistics.mean)) / np.float32(statistics.std)
        filler = statistics.background
        if not self.spill.has_mask:
            normalised[values == 0] = filler
        frame = np.full(int(np.prod(self.shape)), np.rint(filler / np.float32(self.scale)), np.int8)
        frame[self.spill.voxels] = np.rint(normalised / np.float32(self.scale))
        return frame.reshape(self.shape)

    def clips(
        self,
        windows: Windows,
        *,
        img_size: tuple[int, int, int] = (SIZE, SIZE, SIZE),
        buffers: Sequence[np.ndarray] = (),
    ) -> Iterator[Clip]:
        """Clips as the published loader makes them: int8 times the scale, padded to 96 with the clip's first voxel.

        A model of another ``img_size`` gets them resized (trilinear). ``buffers`` as in `clips_of`.
        """
        for number, window in enumerate(windows.kept):
            frames = np.stack(list(self.frames(window.first_frame, window.last_frame + 1)))  # (t, x, y, z)
            loaded = loaded_clip(frames, self.scale, img_size)
            if len(buffers):
                np.copyto(buffers[number % len(buffers)][0], loaded)
                loaded = buffers[number % len(buffers)][0]
            yield Clip.at(window, loaded[None])


def loaded_clip(frames: np.ndarray, scale: float, img_size: tuple[int, int, int] = (SIZE, SIZE, SIZE)) -> np.ndarray:
    """A clip of int8 frames as the published loader hands it to the model.

    Parameters
    ----------
    frames : ndarray of shape (t, x, y, z), int8
    scale : float
    img_size : tuple of int
        Spatial size that the model takes.

    Returns
    -------
    ndarray of shape (*img_size, t), float32
    """
    values = torch.from_numpy(frames.astype(np.float32)).mul_(float(np.float32(scale)))[None]  # (1, t, x, y, z)
    missing = [SIZE - n for n in frames.shape[1:]]
    before_after = [amount for gap in reversed(missing) for amount in (-(-gap // 2), gap // 2)]
    values = functional.pad(values, before_after, value=values[0, 0, 0, 0, 0].item())
    if tuple(values.shape[2:]) != tuple(img_size):
        values = functional.interpolate(values, size=tuple(img_size), mode="trilinear", align_corners=False)
    return np.ascontiguousarray(values[0].permute(1, 2, 3, 0).numpy())


def reference_run(
    bold: Path,
    mask: Path | None = None,
    *,
    target_t_r_s: float = 0.8,
    n_dummies: int = 0,
    start_time_s: float = 0.0,
    background: Background = "minimum",
    work_dir: Path | None = None,
) -> ReferenceRun:
    """Preprocess a file as the published code does.

    Parameters
    ----------
    bold, mask : Path
        4D series and 3D mask, read in the order of their voxels. Without a mask, exact zeros are background.
    target_t_r_s : float
        TR of the model, in seconds.
    n_dummies : int
        Volumes to drop first.
    start_time_s : float
        Scanner time of the first volume, in seconds.
    background : {"minimum", "zero"}
        What the background becomes: the smallest foreground z, as published, or 0.
    work_dir : Path, optional
        Where the temporary file of resampled volumes goes (4 bytes a voxel and volume).

    Raises
    ------
    ImageUnreadable, NotABoldSeries, RepetitionTimeUnusable, MaskUnusable, NonFiniteVoxels, ConstantSeries
    """
    series = open_series(bold)
    t_r_s, warnings = _repetition_time(series)
    timing = ReferenceTiming.of(
        series.n_volumes, t_r_s, n_dummies=n_dummies, target_t_r_s=target_t_r_s, start_time_s=start_time_s
    )
    spill = _Spill.filled(series, None if mask is None else open_nifti(mask), n_dummies, work_dir)
    statistics, largest = _statistics(spill, timing, (ORIENTATION_WARNING, *warnings))
    statistics = replace(statistics, background_rule=background)
    extremes = [(np.float32(x) - np.float32(statistics.mean)) / np.float32(statistics.std) for x in largest]
    return ReferenceRun(timing, statistics, float(max(abs(z) for z in extremes)) / INT8_MAX, spill)


def _repetition_time(series: NiftiFile) -> tuple[float, tuple[str, ...]]:
    judged, warnings = judged_t_r_s(series.header, None, series.path)
    exact = float(series.header.get_zooms()[3])
    # the header's own float32 where it is in seconds; milliseconds are not taken for seconds, as was published
    return (exact if abs(exact - judged) < 1e-5 * judged else judged), warnings


# --- space ------------------------------------------------------------------------------------------------------


def resized(volume: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """A volume at 2 mm by size, trilinear, and its central 96 voxels a side.  # (x, y, z) float32"""
    scales = np.asarray(zooms[:3], np.float32) / np.float32(VOXEL_MM)
    size = [int(np.rint(np.float32(n) * scale)) for n, scale in zip(volume.shape, scales, strict=True)]
    if size != list(volume.shape):
        tensor = torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None, None]
        volume = functional.interpolate(tensor, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()
    starts = [max(n - SIZE, 0) // 2 for n in volume.shape]
    return volume[tuple(slice(start, start + SIZE) for start in starts)]


def _foreground(mask: NiftiFile, shape: tuple[int, ...]) -> np.ndarray:
    if len(mask.shape) != 3:
        raise MaskUnusable(
            f"the mask is {len(mask.shape)}D", file=mask.path, expected="one 3D volume", remedy="Give one volume"
        )
    interpolated = resized(next(mask.volumes()), mask.header.get_zooms())
    if interpolated.shape != shape:
        raise MaskUnusable(
            f"the mask is {interpolated.shape} voxels at 2 mm, the series {shape}",
            file=mask.path,
            expected="a mask on the grid of its series",
            remedy="Take the mask that the pipeline wrote for this space",
        )
    return np.flatnonzero(interpolated)


class _Spill:
    """Resampled volumes in a temporary file, (volumes, voxels) float32: written in order, read either way."""

    def __init__(self, shape: tuple[int, ...], voxels: np.ndarray, has_mask: bool, folder: Path | None) -> None:
        self.shape, self.voxels, self.has_mask = shape, voxels, has_mask
        self.n_volumes = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as the run
        self._recent: dict[int, np.ndarray] = {}

    @classmethod
    def filled(cls, series: NiftiFile, mask: NiftiFile | None, start: int, folder: Path | None) -> _Spill:
        """Resample every volume from ``start`` on."""
        zooms, spill = series.header.get_zooms(), None
        for number, volume in enumerate(series.volumes(start), start):
            small = resized(volume, zooms)
            if spill is None:
                voxels = np.arange(small.size) if mask is None else _foreground(mask, small.shape)
                spill = cls(small.shape, voxels, mask is not None, folder)
            spill.append(small.reshape(-1)[spill.voxels], number)
        if spill is None or spill.voxels.size == 0:
            raise MaskUnusable(
                "the mask holds no voxel, or no volume is left", file=series.path, remedy="Check mask and --dummy-scans"
            )
        return spill

    def append(self, values: np.ndarray, number: int) -> None:
        require_finite(values, number)
        try:
            self._file.write(np.ascontiguousarray(values).data)
        except OSError as fault:
            raise OutputNotWritable(
                f"the file of resampled volumes cannot grow beyond {self.n_volumes} volumes ({fault.strerror})",
                expected=f"{self._row_bytes} bytes a volume in the work folder",
                remedy="Name a larger folder with --work-dir",
            ) from None
        self.n_volumes += 1

    @property
    def _row_bytes(self) -> int:
        return 4 * self.voxels.size

    def _read(self, volume: int, first: int, out: np.ndarray) -> np.ndarray:
        self._file.flush()
        os.preadv(self._file.fileno(), [out.data], volume * self._row_bytes + 4 * first)
        return out

    def blocks(self, timing: Timing) -> Iterator[tuple[slice, np.ndarray]]:
        """Voxels a block at a time, in raster order, at the model's TR.  # (v, t)"""
        n_at_once = max(1, BLOCK_BYTES // (4 * max(self.n_volumes, timing.n_frames)))
        read = np.empty((self.n_volumes, n_at_once), np.float32)  # one buffer: many small ones scatter the heap
        for first in range(0, self.voxels.size, n_at_once):
            block = slice(first, min(first + n_at_once, self.voxels.size))
            for volume in range(self.n_volumes):
                self._read(volume, first, read[volume, : block.stop - first])
            rows = torch.from_numpy(read[:, : block.stop - first].T.copy())[None]
            yield (
                block,
                functional.interpolate(rows, size=timing.n_frames, mode="linear", align_corners=False)[0].numpy(),
            )

    def frame(self, timing: Timing, frame: int) -> np.ndarray:
        """One frame, the same numbers as in `blocks`.  # (v,)"""
        needed, weights = timing.frames.volumes[frame], timing.frames.weights[frame]
        self._recent = {int(volume): self._volume(int(volume)) for volume in needed}
        lower, upper = (self._recent[int(volume)] for volume in needed)
        # torch rounds the second product, and fuses the first with the sum: float64 holds it exactly
        return (lower.astype(np.float64) * weights[0] + upper * weights[1]).astype(np.float32)

    def _volume(self, volume: int) -> np.ndarray:
        if volume in self._recent:
            return self._recent[volume]
        return self._read(volume, 0, np.empty(self.voxels.size, np.float32))


# --- statistics -------------------------------------------------------------------------------------------------


class _Moments:
    """Sums over the foreground, per voxel and in float64; a voxel's frames that are background do not count."""

    def __init__(self, n_voxels: int) -> None:
        self.n, self.sum, self.square = (np.zeros(n_voxels) for _ in range(3))
        self.smallest, self.largest = np.float32(np.inf), np.float32(0)
        self.n_negative = 0

    def add(self, block: slice, frames: np.ndarray, inside: np.ndarray) -> None:
        self.n_negative += int(np.count_nonzero(frames < 0))
        values = np.where(inside, np.maximum(frames, 0), 0).astype(np.float64)
        self.n[block], self.sum[block] = inside.sum(axis=1), values.sum(axis=1)
        self.square[block] = np.einsum("vt,vt->v", values, values)
        foreground = np.maximum(frames[inside], 0)
        self.smallest = foreground.min(initial=self.smallest)
        self.largest = foreground.max(initial=self.largest)

    @cached_property
    def total(self) -> int:
        return int(self.n.sum())

    @property
    def within(self) -> float:
        """Squares around each voxel's own mean."""
        means = np.divide(self.sum, self.n, out=np.zeros_like(self.sum), where=self.n > 0)
        return float(np.maximum(self.square - means * self.sum, 0).sum())

    @property
    def around_mean(self) -> float:
        """Squares around the mean of all."""
        return float(self.square.sum() - self.sum.sum() ** 2 / self.total)


def _statistics(
    spill: _Spill, timing: Timing, warnings: tuple[str, ...]
) -> tuple[RunStatistics, tuple[np.float32, np.float32]]:
    moments = _Moments(spill.voxels.size)
    for block, frames in spill.blocks(timing):
        moments.add(block, frames, _inside(spill, frames))
    require_spread(moments.sum.sum() / max(moments.total, 1), moments.around_mean / max(moments.total - 1, 1))
    published = TorchMean(moments.total)
    for _, frames in spill.blocks(timing):
        published.feed(np.maximum(frames[_inside(spill, frames)], 0))
    mean_image = np.zeros(int(np.prod(spill.shape)), np.float32)
    mean_image[spill.voxels] = moments.sum / timing.n_frames
    statistics = RunStatistics(
        timing=timing,
        mean=float(published.result()),
        std=float(np.float32(np.sqrt(moments.around_mean / (moments.total - 1)))),
        minimum=float(moments.smallest),
        temporal_variance_share=moments.within / moments.around_mean,
        n_foreground=int(np.count_nonzero(moments.n)),
        n_negative=moments.n_negative,
        negative_share=moments.n_negative / moments.total,
        mean_image=mean_image.reshape(spill.shape),
        warnings=warnings,
    )
    return statistics, (moments.smallest, moments.largest)


def _inside(spill: _Spill, frames: np.ndarray) -> np.ndarray:
    """Foreground of a block of frames.  # (v, t) bool"""
    return np.ones(frames.shape, bool) if spill.has_mask else frames != 0
