"""Transforms between spaces, as maps of points in RAS+ millimetres, and the grid's voxels taken through them.

Resampling pulls: each voxel of the grid asks where in the image its value lies. So a file that moves images from A
to B is a map of points of B to points of A.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from neurostorm_bids.errors import TransformUnreadable
from neurostorm_bids.space.fnirt import is_nifti, read_warp
from neurostorm_bids.space.grid import Grid, apply_affine
from neurostorm_bids.space.resample import weight_matrix


class Transform(Protocol):
    """A map of points."""

    def map(self, points: np.ndarray) -> np.ndarray:
        """Points of the target space in the source space, both in RAS+ mm.  # (n, 3) -> (n, 3)"""


@dataclass(frozen=True, eq=False)
class Linear:
    """A 4 x 4 matrix."""

    matrix: np.ndarray  # (4, 4)

    def map(self, points: np.ndarray) -> np.ndarray:
        """Points through the matrix.  # (n, 3) -> (n, 3)"""
        return apply_affine(self.matrix, points)


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """Displacements in mm at the voxels of a grid, interpolated linearly; none outside the grid, as in ITK."""

    geometry: Grid
    vectors: np.ndarray  # (n_voxels, 3) float32, voxels in Fortran order

    def map(self, points: np.ndarray) -> np.ndarray:
        """Points plus the displacement at each.  # (n, 3) -> (n, 3)"""
        return points + weight_matrix(self.geometry, points, "linear") @ self.vectors


@dataclass(frozen=True, eq=False)
class Chain:
    """Transforms in the order in which points pass through them."""

    parts: tuple[Transform, ...]

    def map(self, points: np.ndarray) -> np.ndarray:
        """Points through each part in turn.  # (n, 3) -> (n, 3)"""
        for part in self.parts:
            points = part.map(points)
        return points


# --- the grid through files -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was read: a file that changes is another one to the cache."""

    path: Path
    size: int
    mtime_ns: int
    moving: Grid | None = None  # the image that the last file of a chain starts from, where the file needs it (FNIRT)


def points_through(
    grid: Grid, files: tuple[Path, ...], cache_dir: Path | None = None, moving: Grid | None = None
) -> np.ndarray:
    """The grid's voxel centres taken through transform files, first file first.  # (n_voxels, 3) float32, mm

    Each stretch of a chain is mapped once per process, and once per ``cache_dir`` where its last file is large: the
    runs of a participant share the way from the template to their T1w. ``moving`` is the grid of the image at the end
    of the chain: FNIRT's warps are measured in its voxels.

    Raises
    ------
    TransformUnreadable
        As the files deserve.
    """
    last = len(files) - 1
    return _mapped(grid, tuple(_stamp(path, moving if n == last else None) for n, path in enumerate(files)), cache_dir)


def _stamp(path: Path, moving: Grid | None) -> Stamp:
    try:
        stat = path.stat()
    except OSError:
        if path.is_symlink():
            raise TransformUnreadable(
                "the transform is a dangling link: not fetched", file=path, remedy="Run `datalad get` on it"
            ) from None
        raise TransformUnreadable("the transform does not exist", file=path, remedy="Fetch it again") from None
    return Stamp(path, stat.st_size, stat.st_mtime_ns, moving if is_nifti(path) else None)


@lru_cache(maxsize=8)
def _mapped(grid: Grid, stamps: tuple[Stamp, ...], cache_dir: Path | None) -> np.ndarray:
    if not stamps:
        return grid.points()
    cached = _cache_file(grid, stamps, cache_dir)
    points = _load(cached, grid.n_voxels)
    if points is None:
        before = _mapped(grid, stamps[:-1], cache_dir)
        points = _read(stamps[-1]).map(before).astype(np.float32)
        _save(points, cached)
    points.setflags(write=False)
    return points


def _read(stamp: Stamp) -> Transform:
    if is_nifti(stamp.path):
        return read_warp(stamp.path, stamp.moving)
    from neurostorm_bids.space.itk import read_transform

    return read_transform(stamp.path)


LARGE_FILE = 1_000_000  # bytes; smaller transforms are mapped faster than a cache is read


def _cache_file(grid: Grid, stamps: tuple[Stamp, ...], cache_dir: Path | None) -> Path | None:
    if cache_dir is None or stamps[-1].size < LARGE_FILE:
        return None
    digest = hashlib.sha256(repr((grid, stamps)).encode()).hexdigest()
    return cache_dir / f"points-{digest[:32]}.npy"


def _load(cached: Path | None, n_points: int) -> np.ndarray | None:
    if cached is None or not cached.is_file():
        return None
    try:
        points = np.load(cached, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # a cache that cannot be read is made anew
    return points if points.shape == (n_points, 3) and points.dtype == np.float32 else None


def _save(points: np.ndarray, cached: Path | None) -> None:
    if cached is None:
        return
    cached.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=cached.parent, suffix=".partial")
    with os.fdopen(descriptor, "wb") as stream:
        np.save(stream, points)
    Path(partial).replace(cached)  # whole or not at all: several runs of a participant may write it at once
