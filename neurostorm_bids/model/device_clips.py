"""Clips made on the device that embeds them: volumes go over once, and time, normalisation and layout are done there.

A float32 clip of the published size is 71 MB; the foreground of its volumes, a quarter of the grid, is 18 MB, and raw
int16 volumes of a 2 mm template are 36 MB. On the way, arrays pass through pinned memory, so that reading goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from neurostorm_bids.clips.series import LiveVolumes, VolumeSeries, foreground_voxels
from neurostorm_bids.clips.statistics import RunStatistics
from neurostorm_bids.clips.timing import FrameWeights
from neurostorm_bids.clips.windows import Window, Windows

SLOTS = 4  # arrays under way to a device


@dataclass(frozen=True, eq=False)
class Images:
    """Volumes that have not been brought to the grid, and the weights that bring them there.

    ``volumes(start)`` draws them (x, y, z); ``weights`` multiply their voxels in Fortran order (n grid voxels, n).
    """

    volumes: Callable[[int], Iterator[np.ndarray]]
    weights: csr_matrix


def device_batches(
    series: VolumeSeries,
    statistics: RunStatistics,
    windows: Windows,
    *,
    device: torch.device | str,
    batch_size: int,
    images: Images | None = None,
) -> Iterator[Tensor]:
    """Read a run again and make its clips on a device; the values are those of `clips_of`, bit for bit.

    Parameters
    ----------
    series : VolumeSeries
        The run that ``statistics`` were gathered from.
    statistics : RunStatistics
    windows : Windows
    device : torch.device or str
    batch_size : int
    images : Images, optional
        Of the same run: then these are read and brought to the grid on the device, where sums of weighted voxels may be
        rounded differently.

    Yields
    ------
    Tensor
        (n, 1, x, y, z, t) float32 on the device, n at most ``batch_size``.
    """
    voxels, n_dummies = foreground_voxels(series.mask), statistics.timing.n_dummies
    weights = None if images is None else images.weights
    clips = DeviceClips(voxels, series.mask.shape, statistics, windows, device, resampling=weights)
    volumes = _foregrounds(series, statistics) if images is None else images.volumes(n_dummies)
    for start in range(0, len(windows.kept), batch_size):
        group = windows.kept[start : start + batch_size]
        batch = clips.blank(len(group))
        for clip, window in zip(batch, group, strict=True):
            while clips.n_volumes <= clips.last_volume(window):
                clips.add(next(volumes).ravel(order="F"))
            clips.write(window, clip)
        yield batch


def _foregrounds(series: VolumeSeries, statistics: RunStatistics) -> Iterator[np.ndarray]:
    """Foregrounds of the volumes, one after the other.  # (v,)"""
    live = LiveVolumes(series, statistics.timing.n_dummies, 1, statistics.gain)
    each = _one_volume_a_frame(statistics.timing.n_volumes)
    for number in range(statistics.timing.n_volumes):
        live.advance_to(number)
        yield live.of_frame(each, number)[0][0]


class DeviceClips:
    """Foregrounds of the volumes that the current clip needs, on a device, and the clips made of them.

    Parameters
    ----------
    voxels : ndarray of int
        Raster positions of the foreground.  # (v,)
    shape : tuple of int
        The grid's.
    statistics : RunStatistics
    windows : Windows
    device : torch.device or str
    resampling : csr_matrix, optional
        Weights of the voxels of a raw image (Fortran order) in each voxel of the grid (`weight_matrix` of the space
        stage): volumes are then added as they lie in the file, and resampled on the device.  # (x y z, n)
    """

    def __init__(
        self,
        voxels: np.ndarray,
        shape: Sequence[int],
        statistics: RunStatistics,
        windows: Windows,
        device: torch.device | str,
        *,
        resampling: csr_matrix | None = None,
    ) -> None:
        self.device, self.shape, self.n_volumes = torch.device(device), tuple(shape), 0
        self._frames, self._clip_frames = statistics.timing.frames, windows.clip_frames
        self._voxels = torch.from_numpy(np.ascontiguousarray(voxels)).to(self.device)
        # tensors, not numbers: a GPU divides by a number as a product with its reciprocal, one rounding away
        self._mean, self._std = (
            torch.tensor(float(np.float32(value)), dtype=torch.float32, device=self.device)
            for value in (statistics.mean, statistics.std)
        )
        self._background = float(statistics.background)
        self._ring = torch.empty(_span(self._frames, windows), len(voxels), device=self.device)
        self._staging = Staging(self.device)
        self._resampling = None if resampling is None else _on_device(resampling[voxels], self.device)
        gain = statistics.gain if resampling is not None else None  # foregrounds come with it
        self._gain = None if gain is None else torch.from_numpy(np.ascontiguousarray(gain)).to(self.device)

    def blank(self, n: int) -> Tensor:
        """Clips of nothing but background.  # (n, 1, x, y, z, t)"""
        return torch.full((n, 1, *self.shape, self._clip_frames), self._background, device=self.device)

    def last_volume(self, window: Window) -> int:
        """The last volume that a clip needs."""
        return int(self._frames.volumes[window.first_frame : window.last_frame + 1].max())

    def add(self, volume: np.ndarray) -> None:
        """The next volume: its foreground (v,) float32 or, with resampling, the raw voxels (n,) of any real type."""
        values = self._staging.send(volume)
        place = self._ring[self.n_volumes % len(self._ring)]
        if self._resampling is None:
            place.copy_(values)
        else:
            torch.mv(self._resampling, values.float(), out=place)
        if self._gain is not None:
            place.mul_(self._gain)
        self.n_volumes += 1

    def write(self, window: Window, clip: Tensor) -> None:
        """A window's frames into a clip of background.  # (1, x, y, z, t), contiguous"""
        members = slice(window.first_frame, window.last_frame + 1)
        volumes = torch.from_numpy(self._frames.volumes[members] % len(self._ring)).to(self.device)  # (t, width)
        weights = torch.from_numpy(self._frames.weights[members].astype(np.float32)).to(self.device)
        frames = self._ring[volumes[:, 0]] * weights[:, :1]  # (t, v)
        for volume, weight in zip(volumes.t()[1:], weights.t()[1:], strict=True):
            frames += self._ring[volume] * weight[:, None]
        frames.clamp_(min=0).sub_(self._mean).div_(self._std)
        clip.view(prod(self.shape), self._clip_frames)[self._voxels] = frames.t()


class Staging:
    """The way of arrays to a device, through pinned memory where that is a GPU.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._sent = device, 0
        self._slots: list[Tensor | None] = [None] * SLOTS
        self._arrivals: list[torch.cuda.Event | None] = [None] * SLOTS

    def send(self, array: np.ndarray) -> Tensor:
        """A copy of the array on its way to the device; on the CPU the array itself."""
        values = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type != "cuda":
            return values
        slot = self._sent % SLOTS
        self._sent += 1
        arrival = self._arrivals[slot]
        if arrival is not None:
            arrival.synchronize()
        pinned = self._slots[slot]
        if pinned is None or pinned.shape != values.shape or pinned.dtype != values.dtype:
            pinned = self._slots[slot] = torch.empty_like(values, pin_memory=True)
        pinned.copy_(values)
        with torch.cuda.device(self._device):
            there = pinned.to(self._device, non_blocking=True)
            arrival = self._arrivals[slot] = torch.cuda.Event()
            arrival.record()
        return there


def _one_volume_a_frame(n_volumes: int) -> FrameWeights:
    return FrameWeights(np.arange(n_volumes)[:, None], np.ones((n_volumes, 1), np.float32))


def _span(frames: FrameWeights, windows: Windows) -> int:
    """Most volumes that any one clip needs."""
    first, last = frames.volumes.min(axis=1), frames.volumes.max(axis=1)
    return int(max(last[window.last_frame] - first[window.first_frame] for window in windows.kept)) + 1


def _on_device(matrix: csr_matrix, device: torch.device) -> Tensor:
    matrix = matrix.copy()
    matrix.sum_duplicates()  # at the border of an image a voxel serves twice
    rows, columns, values = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            rows, columns, values.float(), matrix.shape, device=device, check_invariants=True
        )
