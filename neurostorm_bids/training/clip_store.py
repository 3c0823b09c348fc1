"""Normalised runs on disk, for training to read clips from at random.

One safetensors file a run, a row a frame, foreground voxels only: a clip is one contiguous piece of a memory-mapped
file. Frames are int8 with an offset and a scale for each voxel, so that an outlier costs no other voxel its precision,
or float16. Files appear whole under a name that says what they were made from; whoever comes second finds them there.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from neurostorm_bids.errors import ClipStoreUnreadable, TrainingError
from neurostorm_bids.replacing import replacing

Precision = Literal["int8", "float16"]
FORMAT = 2  # of 1, displacement was not known
LEVELS = 127  # int8 values run from -127 to 127
BLOCK = 8192  # voxels decoded at a time: they stay in the cache
TYPES = {"int8": "I8", "float16": "F16", "float32": "F32", "uint8": "U8"}


@dataclass(frozen=True, eq=False)
class NormalisedRun:
    """A run as the participant level normalises it, ready to be stored.

    Parameters
    ----------
    frames : callable
        Gives the normalised frames from the first one on, each (x, y, z) float32; called once or twice.
    mask : ndarray of shape (x, y, z), bool
        Foreground.
    n_frames : int
    background : float
        Value of everything outside the mask.
    onset_s, step_s : float
        Scanner time of the first frame, and time from frame to frame.
    fd_mm : ndarray of shape (n_frames,), optional
        Framewise displacement of each frame.
    notes : mapping
        Whatever the caller wants to find again: entities, mean, SD, route.
    """

    frames: Callable[[], Iterator[np.ndarray]]
    mask: np.ndarray
    n_frames: int
    background: float
    onset_s: float = 0.0
    step_s: float = 0.8
    fd_mm: np.ndarray | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipStore:
    """A folder of stored runs.

    Parameters
    ----------
    folder : Path
    precision : {"int8", "float16"}
    """

    folder: Path
    precision: Precision = "int8"

    def path_of(self, key: str) -> Path:
        """Where a run lies, or will lie."""
        return self.folder / f"{key}-{self.precision}-v{FORMAT}.safetensors"

    def run(self, key: str, prepare: Callable[[], NormalisedRun]) -> StoredRun:
        """The stored run of a key; if it is not there, or damaged, it is made from ``prepare()``.

        Any number of processes may ask for the same run at once. A builder that is killed leaves nothing that is
        taken for a run.

        Parameters
        ----------
        key : str
            Says what the run was made from, see `store_key`.
        prepare : callable
            The participant level's normalisation; its errors pass through.
        """
        path = self.path_of(key)
        if path.exists():
            with suppress(ClipStoreUnreadable):
                return StoredRun.open(path)
        write_run(path, prepare(), self.precision)
        return StoredRun.open(path)


def store_key(parts: Mapping[str, Any]) -> str:
    """A name for what a run is made from: input hashes and every setting that changes its frames."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- reading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunInfo:
    """What a stored run says of itself; ``error_rms`` and ``error_max`` are the storage's against float32, in SDs."""

    shape: tuple[int, int, int]
    n_frames: int
    n_voxels: int
    background: float
    onset_s: float
    step_s: float
    precision: Precision
    error_rms: float
    error_max: float
    notes: dict[str, Any]


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run in the store. It holds no open file, so that it can be sent to worker processes."""

    path: Path
    info: RunInfo

    @classmethod
    def open(cls, path: Path) -> StoredRun:
        """A stored run.

        Raises
        ------
        ClipStoreUnreadable
            When the file is missing, cut short, or of another format.
        """
        try:
            with safe_open(path, "numpy") as file:
                content = json.loads((file.metadata() or {})["neurostorm"])
                shape = file.get_slice("frames").get_shape()
        except (OSError, SafetensorError, KeyError, ValueError) as fault:
            raise _unreadable(path, f"cannot be read ({fault})") from None
        if content.pop("format", None) != FORMAT or shape != [content["n_frames"], content["n_voxels"]]:
            raise _unreadable(path, "is of another format")
        return cls(path, RunInfo(**{**content, "shape": tuple(content["shape"])}))

    @property
    def n_frames(self) -> int:
        return self.info.n_frames

    def onset_of(self, frame: int) -> float:
        """Scanner time at which a frame begins, in seconds."""
        return self.info.onset_s + frame * self.info.step_s

    def frames(self, first: int, n: int) -> np.ndarray:
        """Foreground of successive frames.  # (n, v) float32"""
        rows = self._rows(first, n)
        if self.info.precision == "float16":
            return rows.astype(np.float32)
        return rows * self._decoding[1] + self._decoding[0]

    def clip(self, first: int, n: int, out: np.ndarray | None = None) -> np.ndarray:
        """A clip as the model reads it.

        Parameters
        ----------
        first, n : int
            First frame and number of frames.
        out : ndarray of shape (1, x, y, z, n), float32, C-contiguous, optional
            Where to write it.

        Returns
        -------
        ndarray of shape (1, x, y, z, n), float32
        """
        shape = (1, *self.info.shape, n)
        out = np.empty(shape, np.float32) if out is None else out
        if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"a clip must be contiguous float32 {shape}, not {out.dtype} {out.shape}")
        out.fill(self.info.background)
        stored, places, target = self._rows(first, n), self.voxels, out.reshape(-1, n)
        for start in range(0, len(places), BLOCK):
            block = slice(start, start + BLOCK)
            target[places[block]] = self._decoded(stored[:, block], block).T
        return out

    def _decoded(self, stored: np.ndarray, block: slice) -> np.ndarray:
        if self.info.precision == "float16":
            return stored.astype(np.float32)
        offset, scale = self._decoding
        values = np.multiply(stored, scale[block], dtype=np.float32)
        values += offset[block]
        return values

    def _rows(self, first: int, n: int) -> np.ndarray:
        if not 0 <= first <= self.n_frames - n:
            raise ValueError(f"frames {first} to {first + n - 1} of a run of {self.n_frames}")
        return self._read("frames", slice(first, first + n))

    def _read(self, name: str, part: slice) -> np.ndarray:
        try:
            with safe_open(self.path, "numpy") as file:  # opening costs a quarter of a millisecond
                return file.get_slice(name)[part]
        except (OSError, SafetensorError) as fault:
            raise _unreadable(self.path, f"cannot be read ({fault})") from None

    @cached_property
    def voxels(self) -> np.ndarray:
        """Raster positions of the foreground.  # (v,)"""
        bits = np.unpackbits(self._read("mask", slice(None)), count=prod(self.info.shape))
        return np.flatnonzero(bits)

    @cached_property
    def mask(self) -> np.ndarray:
        """Foreground.  # (x, y, z) bool"""
        mask = np.zeros(prod(self.info.shape), bool)
        mask[self.voxels] = True
        return mask.reshape(self.info.shape)

    @cached_property
    def fd_mm(self) -> np.ndarray:
        """Framewise displacement of each frame, NaN where it is not known.  # (t,)"""
        return self._read("fd_mm", slice(None))

    @cached_property
    def _decoding(self) -> tuple[np.ndarray, np.ndarray]:
        return self._read("offset", slice(None)), self._read("scale", slice(None))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "info": self.info}


def _unreadable(path: Path, fault: str) -> ClipStoreUnreadable:
    return ClipStoreUnreadable(
        fault,
        file=path,
        expected=f"a stored run of format {FORMAT}",
        remedy="Remove the file; it is made again when training begins",
    )


# --- writing ----------------------------------------------------------------------------------------------------


def write_run(path: Path, run: NormalisedRun, precision: Precision) -> None:
    """Write a stored run at once: beside its place first, then renamed. Memory does not grow with its length.

    Raises
    ------
    TrainingError
        When the frames are fewer or more than announced, or the disk is full.
    """
    voxels = np.flatnonzero(np.ascontiguousarray(run.mask))
    low, high = _extremes(run, voxels) if precision == "int8" else (np.zeros(0), np.zeros(0))
    coder = _Coder(precision, (low + high) / 2, (high - low) / (2 * LEVELS))
    fd_mm = np.full(run.n_frames, np.nan) if run.fd_mm is None else run.fd_mm
    tensors: dict[str, np.ndarray] = {"fd_mm": fd_mm.astype(np.float32), "mask": np.packbits(run.mask.ravel())}
    tensors |= coder.tensors
    with replacing(path) as handle:
        handle.seek(_header_room(run))
        for values in _foreground(run, voxels):
            handle.write(coder.encode(values).tobytes())
        for tensor in tensors.values():
            handle.write(tensor.tobytes())
        handle.seek(0)
        handle.write(_header(run, coder, tensors, len(voxels)))


class _Coder:
    """Turns foreground values into what is stored, and keeps account of what that costs."""

    def __init__(self, precision: Precision, offset: np.ndarray, scale: np.ndarray) -> None:
        self.precision = precision
        self.tensors: dict[str, np.ndarray] = {}
        if precision == "int8":
            scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)  # a constant voxel is its offset
            self.tensors = {"offset": offset.astype(np.float32), "scale": scale.astype(np.float32)}
        self._squares, self._n, self.error_max = 0.0, 0, 0.0

    def encode(self, values: np.ndarray) -> np.ndarray:
        stored, read = self._coded(values)
        error = np.abs(read - values)
        self._squares += float((error.astype(np.float64) ** 2).sum())
        self._n += error.size
        self.error_max = max(self.error_max, float(error.max(initial=0.0)))
        return stored

    def _coded(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.precision == "float16":
            stored = values.astype(np.float16)
            return stored, stored.astype(np.float32)
        offset, scale = self.tensors["offset"], self.tensors["scale"]
        levels = np.clip(np.rint((values - offset) / scale), -LEVELS, LEVELS)
        return levels.astype(np.int8), levels * scale + offset

    @property
    def error_rms(self) -> float:
        return (self._squares / max(self._n, 1)) ** 0.5


def _foreground(run: NormalisedRun, voxels: np.ndarray) -> Iterator[np.ndarray]:
    """Foreground of each frame.  # each (v,) float32"""
    n = 0
    for frame in run.frames():
        n += 1
        yield np.ascontiguousarray(frame).reshape(-1)[voxels]
    if n != run.n_frames:
        raise TrainingError(
            f"a run of {run.n_frames} frames gave {n}", remedy="Check that its image is complete, then run again"
        )


def _extremes(run: NormalisedRun, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each voxel.  # (v,), (v,)"""
    low = np.full(len(voxels), np.inf, np.float32)
    high = np.full(len(voxels), -np.inf, np.float32)
    for values in _foreground(run, voxels):
        np.minimum(low, values, out=low)
        np.maximum(high, values, out=high)
    return low.astype(np.float64), high.astype(np.float64)


def _header(run: NormalisedRun, coder: _Coder, tensors: Mapping[str, np.ndarray], n_voxels: int) -> bytes:
    """Header of a safetensors file: its length, then JSON filled up with spaces to the room it was given."""
    info = RunInfo(
        shape=run.mask.shape,
        n_frames=run.n_frames,
        n_voxels=n_voxels,
        background=float(run.background),
        onset_s=float(run.onset_s),
        step_s=float(run.step_s),
        precision=coder.precision,
        error_rms=coder.error_rms,
        error_max=coder.error_max,
        notes=dict(run.notes),
    )
    content: dict[str, Any] = {"__metadata__": {"neurostorm": json.dumps({"format": FORMAT, **asdict(info)})}}
    end = run.n_frames * n_voxels * np.dtype(coder.precision).itemsize
    content["frames"] = {"dtype": TYPES[coder.precision], "shape": [run.n_frames, n_voxels], "data_offsets": [0, end]}
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        content[name] = {"dtype": TYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    room = _header_room(run) - 8
    return struct.pack("<Q", room) + json.dumps(content).encode().ljust(room)


def _header_room(run: NormalisedRun) -> int:
    """Bytes before the first frame: enough for whatever the header will say, a multiple of 4,096."""
    return -(-(2048 + 2 * len(json.dumps(json.dumps(dict(run.notes))))) // 4096) * 4096
