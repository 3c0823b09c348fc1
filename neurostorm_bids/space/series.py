"""A run on the model's grid, streamed one volume at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from neurostorm_bids.errors import ConstantSeries, DemeanedSeries, NonFiniteVoxels
from neurostorm_bids.settings import Interpolation
from neurostorm_bids.space.grid import Grid, same_voxels
from neurostorm_bids.space.header import judged_affine, judged_t_r_s
from neurostorm_bids.space.masks import computed_mask, open_mask, read_mask
from neurostorm_bids.space.nifti import NiftiFile, open_nifti, open_series
from neurostorm_bids.space.resample import Sampler, sampler, sampler_in_space
from neurostorm_bids.space.routes import PARTICIPANT_SPACES, Route
from neurostorm_bids.space.transforms import points_through


@dataclass(frozen=True)
class GridSeries:
    """A run on the model's grid; voxels, mask and transforms are read when they are first asked for.

    Attributes
    ----------
    route : Route
    grid : Grid
    t_r_s : float
        Repetition time in seconds, header and sidecar reconciled.
    warnings : tuple of str
        Those of the route, of the header, and of a missing mask.
    """

    route: Route
    grid: Grid
    t_r_s: float
    warnings: tuple[str, ...]
    _bold: NiftiFile = field(repr=False)
    _mask_file: NiftiFile | None = field(repr=False)
    _mean_file: NiftiFile | None = field(default=None, repr=False)
    _cache_dir: Path | None = field(default=None, repr=False)
    _threads: int = field(default=1, repr=False)
    _observers: tuple[Callable[[np.ndarray], None], ...] = field(default=(), repr=False)

    @property
    def n_volumes(self) -> int:
        """Number of volumes."""
        return self._bold.n_volumes

    @property
    def mask_origin(self) -> str:
        """Name of the mask file, or "computed"."""
        return "computed" if self._mask_file is None else self._mask_file.path.name

    @cached_property
    def mask(self) -> np.ndarray:
        """Linearly interpolated brain mask > 0: the foreground, as the reference has it.  # (X, Y, Z) bool"""
        return self._by("linear")(self._source_mask) > 0

    @cached_property
    def brain(self) -> np.ndarray:
        """Brain mask by nearest neighbour, for figures.  # (X, Y, Z) bool"""
        return self._by("nearest")(self._source_mask) >= 0.5

    @cached_property
    def inside(self) -> np.ndarray:
        """Voxels of the grid that lie in the field of view.  # (X, Y, Z) bool"""
        return self._resample.inside()

    def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
        """Volumes from number ``start`` on, one at a time; zero outside the field of view.  # (X, Y, Z) float32

        Voxels that are NaN outside the brain, as some programs mark their background, are 0.

        Raises
        ------
        ImageUnreadable, NonFiniteVoxels
            As soon as they are met.
        ConstantSeries
            After the last volume.
        """
        # in the caller's thread: what a volume goes through finds it in the cache, while the next is decompressed
        for image in self.images(start):
            on_grid = self._resample(image)
            for observe in self._observers:
                observe(on_grid)
            yield on_grid

    def images(self, start: int = 0) -> Iterator[np.ndarray]:
        """Volumes from number ``start`` on as they lie in the file, checked as `volumes` says.  # (x, y, z) float32"""
        watch = _Watch(self._bold, np.flatnonzero(self._source_mask.ravel(order="F") > 0))
        for volume in self._bold.volumes(start):
            yield self._with_mean(watch.checked(volume))
        watch.finish()

    @property
    def weights(self) -> csr_matrix | None:
        """What `volumes` multiplies the voxels of `images` (Fortran order) by; None where it does more than that."""
        return self._resample.weights

    def observed_by(self, observe: Callable[[np.ndarray], None]) -> GridSeries:
        """The same series; ``observe`` is called with each volume as it passes, so one pass serves two ends."""
        twin = replace(self, _observers=(*self._observers, observe))
        twin.__dict__.update({name: self.__dict__[name] for name in _CACHED if name in self.__dict__})
        return twin

    @cached_property
    def _source_mask(self) -> np.ndarray:
        if self._mask_file is None:
            return computed_mask(self._bold, self.route.geometry)
        return read_mask(self._mask_file)

    def _with_mean(self, volume: np.ndarray) -> np.ndarray:
        return volume if self._mean_file is None else volume + self._removed_mean

    @cached_property
    def _removed_mean(self) -> np.ndarray:
        """What an earlier step took away from every volume.  # (x, y, z)"""
        assert self._mean_file is not None
        mean = next(self._mean_file.volumes())
        if not np.isfinite(mean).all():
            raise _mean_unavailable(self.route, "its boldref holds NaN or infinity", self._mean_file.path)
        return mean

    @property
    def _kernel(self) -> Interpolation:
        # on the lattice every point is a voxel centre, whatever the kernel
        return "nearest" if self.route.kind == "lattice" else self.route.interpolation

    @cached_property
    def _resample(self) -> Sampler:
        return self._sampled_by(self._kernel)

    def _by(self, kernel: Interpolation) -> Sampler:
        """The sampler of a kernel; that of the volumes where it does the same."""
        same = kernel == self._kernel or self.route.kind == "lattice"
        return self._resample if same else self._sampled_by(kernel)

    def _sampled_by(self, kernel: Interpolation) -> Sampler:
        if not self.route.files:
            return sampler_in_space(self.route.geometry, self.grid, kernel, threads=self._threads)
        files = self.route.files[::-1]  # points move against the images
        points = points_through(self.grid, files, self._cache_dir, moving=self.route.geometry)
        return sampler(self.route.geometry, self.grid, points, kernel, threads=self._threads)


_CACHED = ("mask", "brain", "inside", "_source_mask", "_resample", "_removed_mean")


def to_grid(route: Route, grid: Grid, *, cache_dir: Path | None = None, threads: int = 1) -> GridSeries:
    """Open a run along its route: headers are read and checked now, voxels when the volumes are asked for.

    Parameters
    ----------
    route : Route
        See ``choose_route``.
    grid : Grid
        The grid of the model.
    cache_dir : Path, optional
        Folder that keeps the grid's voxels as mapped through large transforms, for the participant's other runs.
    threads : int
        Threads that share a volume; the result does not depend on them.

    Raises
    ------
    RepetitionTimeUnusable, MaskUnusable, ImageUnreadable, ...
        As the headers deserve.
    """
    bold = open_series(route.image.bold)
    t_r_s, warnings = judged_t_r_s(bold.header, route.run.t_r_s, bold.path)
    mask_file = None
    if route.image.mask is not None:
        in_template = route.image.space not in PARTICIPANT_SPACES
        mask_file = open_mask(route.image.mask, route.geometry, in_template=in_template)
    else:
        warnings += (f"{bold.path.name}: no brain mask was found; one is computed from the mean image",)
    mean_file = None
    if route.run.mean_removed:
        mean_file = _open_mean(route)
        warnings += (f"{bold.path.name}: its mean was removed; that of {mean_file.path.name} is added back",)
    return GridSeries(route, grid, t_r_s, (*route.warnings, *warnings), bold, mask_file, mean_file, cache_dir, threads)


def _open_mean(route: Route) -> NiftiFile:
    """The reference image of a run whose mean was removed."""
    path = route.image.boldref
    if path is None:
        raise _mean_unavailable(route, "no boldref in the same space gives it back", route.image.bold)
    image = open_nifti(path)
    own = Grid.of(image.shape[:3], judged_affine(image, in_template=True), route.geometry.template)
    if image.n_volumes != 1 or not same_voxels(own, route.geometry) or own.shape != route.geometry.shape:
        raise _mean_unavailable(route, f"{path.name} lies on another grid", path)
    return image


def _mean_unavailable(route: Route, fault: str, file: Path) -> DemeanedSeries:
    return DemeanedSeries(
        f"the mean of {route.image.bold.name} was removed, and {fault}",
        file=file,
        expected="a series with its mean, or a boldref on the grid of the series",
        remedy="Put the boldref beside the series, or choose another --desc",
    )


class _Watch:
    """Faults of the voxels that show only while they stream."""

    def __init__(self, image: NiftiFile, brain: np.ndarray) -> None:
        self._image, self._brain = image, brain  # flat Fortran indices of the brain's voxels
        self._first: np.ndarray | None = None
        self._changes, self._n_volumes = False, 0

    def checked(self, volume: np.ndarray) -> np.ndarray:
        if not self._image.always_finite and not np.isfinite(volume).all():
            if not np.isfinite(volume.ravel(order="F")[self._brain]).all():
                raise _non_finite(self._image, self._brain)
            volume = np.nan_to_num(volume, nan=0.0, posinf=0.0, neginf=0.0)
        self._n_volumes += 1
        if not self._changes:
            self._compare(volume.ravel(order="F")[self._brain])
        return volume

    def _compare(self, values: np.ndarray) -> None:
        if self._first is None:
            self._first = values
        self._changes = not np.array_equal(values, self._first)

    def finish(self) -> None:
        if self._n_volumes > 1 and not self._changes:
            raise ConstantSeries(
                f"the {self._n_volumes} volumes are all the same inside the brain mask",
                file=self._image.path,
                expected="a BOLD series",
                remedy="Check how the file was made",
            )


def _non_finite(image: NiftiFile, brain: np.ndarray) -> NonFiniteVoxels:
    counts = [np.count_nonzero(~np.isfinite(volume.ravel(order="F")[brain])) for volume in image.volumes()]
    first = int(np.flatnonzero(counts)[0])
    return NonFiniteVoxels(
        f"{sum(counts)} voxels inside the brain mask are NaN or infinite, in {np.count_nonzero(counts)} of "
        f"{image.n_volumes} volumes; the first is volume {first} (counted from 0)",
        file=image.path,
        expected="finite values",
        remedy="Find out which step made them; a series with holes is not interpolated over",
    )
