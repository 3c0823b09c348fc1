"""Frames by the compiled kernels: the same bits as NumPy gives, in a third of the time (csrc/frames.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache

import numpy as np

from neurostorm_bids.library import kernel_library

FRAME_BLOCK = 256  # voxels that the kernel works on at a time
Parts = Sequence[Sequence[tuple[np.ndarray, np.float32]]]  # of each frame, its volumes (v,) and their weights


class Frames(ctypes.Structure):
    """ns_frames: frames as weighted sums of volumes, which it keeps alive."""

    _fields_ = (
        ("frames", c_int32),
        ("width", c_int32),
        ("n_voxels", c_int64),
        ("volumes", c_void_p),
        ("weights", c_void_p),
    )

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.frames, self.width, self.n_voxels = len(parts), max(map(len, parts)), parts[0][0][0].size
        self.places, self.factors = _tables(parts, self.width)
        self.volumes, self.weights, self.owned = self.places.ctypes.data, self.factors.ctypes.data, parts


def _tables(parts: Parts, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Addresses of the volumes and weights, a row a frame, 0 where a frame has fewer.  # (t, width) each"""
    places, weights = np.zeros((len(parts), width), np.uintp), np.zeros((len(parts), width), np.float32)
    for frame, part in enumerate(parts):
        for number, (volume, weight) in enumerate(part):
            places[frame, number], weights[frame, number] = _address(volume), weight
    return places, weights


def _address(array: np.ndarray, dtype: type = np.float32) -> int:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"the kernels take contiguous {dtype.__name__}, not {array.dtype} with strides {array.strides}"
        )
    return array.ctypes.data


class FrameKernels:
    """The two functions of the library that work on frames."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._write, self._sum = library.ns_write_frames, library.ns_sum_frames
        self._write.argtypes = [POINTER(Frames), c_void_p, c_float, c_float, c_void_p, c_void_p]
        self._write.restype = None
        self._sum.argtypes, self._sum.restype = [POINTER(Frames), c_int, *[c_void_p] * 4], c_int64

    def write(
        self, parts: Parts, voxels: np.ndarray, mean: np.float32, std: np.float32, scratch: np.ndarray, data: np.ndarray
    ) -> None:
        """Normalised frames into the rows ``voxels`` of a clip.  # t x (v,), (v,) int64, (t, 256), (1, x, y, z, t)"""
        places = _address(voxels, np.int64)
        self._write(Frames(parts), places, float(mean), float(std), _address(scratch), _address(data))

    def add(
        self,
        parts: Parts,
        begins: bool,
        minimum: np.ndarray,
        first: np.ndarray,
        deviation: np.ndarray,
        square: np.ndarray,
    ) -> int:
        """Frames onto the sums of each voxel; returns how many values are negative.  # parts t x (v,), (v,) each"""
        sums = [_address(array, np.float64) for array in (first, deviation, square)]
        return int(self._sum(Frames(parts), int(begins), _address(minimum), *sums))


@cache
def frame_kernels() -> FrameKernels | None:
    """The kernels, None where they were not compiled."""
    try:
        return FrameKernels(kernel_library())
    except ImportError:
        return None
