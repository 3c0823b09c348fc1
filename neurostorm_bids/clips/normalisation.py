"""Second pass: normalised clips, laid out as the model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neurostorm_bids.clips.compiled import FRAME_BLOCK, Parts, frame_kernels
from neurostorm_bids.clips.series import BLOCK, LiveVolumes, VolumeSeries, blocks, weighted_sum
from neurostorm_bids.clips.statistics import RunStatistics
from neurostorm_bids.clips.timing import FrameWeights
from neurostorm_bids.clips.windows import Window, Windows, plan_windows


@dataclass(frozen=True, eq=False)
class Clip:
    """One input of the model.

    ``data`` is (1, x, y, z, t) float32; ``last_frame`` is included; times in seconds of scanner time;
    ``mean_fd_mm`` is None where the run has no framewise displacement.
    """

    data: np.ndarray
    onset_s: float
    duration_s: float
    first_frame: int
    last_frame: int
    mean_fd_mm: float | None = None

    @classmethod
    def at(cls, window: Window, data: np.ndarray) -> Clip:
        """A clip at a window's place."""
        return cls(data, window.onset_s, window.duration_s, window.first_frame, window.last_frame, window.mean_fd_mm)


def clips_of(
    series: VolumeSeries, statistics: RunStatistics, windows: Windows, *, buffers: Sequence[np.ndarray] = ()
) -> Iterator[Clip]:
    """Read the run again and yield its clips, in order of time.

    z = (max(x, 0) - mean) / SD inside the mask; the smallest foreground z outside.

    Parameters
    ----------
    series : VolumeSeries
        The run that ``statistics`` were gathered from.
    statistics : RunStatistics
    windows : Windows
    buffers : sequence of ndarray (1, x, y, z, t) float32, C-contiguous, optional
        Memory to write clips into, one after the other and then again from the first: a clip stays valid until
        ``len(buffers)`` more are drawn. A batch array (n, 1, x, y, z, t) is such a sequence. Without it each clip
        has an array of its own.

    Yields
    ------
    Clip
    """
    frames = statistics.timing.frames
    live = LiveVolumes(series, statistics.timing.n_dummies, _span(frames, windows), statistics.gain)
    writer = _ClipWriter(live, statistics, windows.clip_frames)
    prepared: list[np.ndarray] = []
    for number, window in enumerate(windows.kept):
        members = range(window.first_frame, window.last_frame + 1)
        live.advance_to(int(frames.volumes[members].max()))
        if len(prepared) < max(len(buffers), 1):
            prepared.append(writer.blank(series.mask.shape, buffers[number] if len(buffers) else None))
        data = prepared[number % len(buffers)] if len(buffers) else prepared.pop()
        writer.write([live.of_frame(frames, member) for member in members], data)
        yield Clip.at(window, data)


def frames_of(series: VolumeSeries, statistics: RunStatistics) -> Iterator[np.ndarray]:
    """The whole normalised run, frame by frame, each (x, y, z) float32 and an array of its own."""
    single = plan_windows(statistics.timing, clip_frames=1, stride=1)
    for clip in clips_of(series, statistics, single):
        yield clip.data[0, ..., 0]


def normalise(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The normalisation of a run that is in memory and at the model's TR already.

    Parameters
    ----------
    frames : ndarray of shape (x, y, z, t)
    mask : ndarray of shape (x, y, z)
        Foreground where above 0.

    Returns
    -------
    ndarray of shape (x, y, z, t), float32
    """
    foreground = np.asarray(mask) > 0
    values = np.maximum(frames[foreground], 0).astype(np.float32)  # (v, t)
    mean, std = np.float32(values.mean(dtype=np.float64)), np.float32(values.std(dtype=np.float64, ddof=1))
    normalised = np.full(frames.shape, (values.min() - mean) / std, np.float32)
    normalised[foreground] = (values - mean) / std
    return normalised


def _span(frames: FrameWeights, windows: Windows) -> int:
    """Most volumes that any one clip needs."""
    first, last = frames.volumes.min(axis=1), frames.volumes.max(axis=1)
    return int(max(last[window.last_frame] - first[window.first_frame] for window in windows.kept)) + 1


class _ClipWriter:
    """Writes foreground rows of clips; the background of a buffer is filled once and stays."""

    def __init__(self, live: LiveVolumes, statistics: RunStatistics, clip_frames: int) -> None:
        self._voxels = live.voxels
        self._mean, self._std = np.float32(statistics.mean), np.float32(statistics.std)
        self._background = statistics.background
        self._clip_frames = clip_frames
        self._scratch = np.empty((clip_frames, FRAME_BLOCK), np.float32)

    def blank(self, shape: tuple[int, ...], buffer: np.ndarray | None) -> np.ndarray:
        expected = (1, *shape, self._clip_frames)
        data = np.empty(expected, np.float32) if buffer is None else buffer
        if data.shape != expected or data.dtype != np.float32 or not data.flags.c_contiguous:
            raise ValueError(f"a clip buffer must be contiguous float32 {expected}, not {data.dtype} {data.shape}")
        data.fill(self._background)
        return data

    def write(self, parts: Parts, data: np.ndarray) -> None:
        kernels = frame_kernels()
        if kernels is None:
            self._write_by_blocks(parts, data)
        else:
            kernels.write(parts, self._voxels, self._mean, self._std, self._scratch, data)

    def _write_by_blocks(self, parts: Parts, data: np.ndarray) -> None:
        rows = data.reshape(-1, len(parts))  # (voxels of the grid, t)
        values, spare = np.empty((len(parts), BLOCK), np.float32), np.empty(BLOCK, np.float32)
        for block in blocks(self._voxels.size):
            n = block.stop - block.start
            frames = values[:, :n]
            for place, part in enumerate(parts):
                weighted_sum(part, block, frames[place], spare[:n])
            np.maximum(frames, 0, out=frames)
            frames -= self._mean
            frames /= self._std
            rows[self._voxels[block]] = frames.T
