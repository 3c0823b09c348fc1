"""A run on the model's grid, streamed one volume at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from neurostorm_bids.errors import ConstantSeries, DemeanedSeries, NonFiniteVoxels
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.header import judged_t_r_s
from neurostorm_bids.space.masks import computed_mask, read_mask
from neurostorm_bids.space.nifti import NiftiFile, open_series
from neurostorm_bids.space.resample import Sampler, sampler
from neurostorm_bids.space.routes import PARTICIPANT_SPACES, Route
from neurostorm_bids.space.transforms import points_through

NEGATIVE_SHARE = 0.05  # more negative voxels than this in the brain: the mean was taken away


@dataclass(frozen=True)
class GridSeries:
    """A run on the model's grid.

    Attributes
    ----------
    n_volumes : int
        Number of volumes.
    t_r_s : float
        Repetition time in seconds, header and sidecar reconciled.
    mask : np.ndarray
        Interpolated brain mask > 0: the foreground of the normalisation, as the reference has it.  # (X, Y, Z) bool
    brain : np.ndarray
        Brain mask by nearest neighbour, for figures.  # (X, Y, Z) bool
    inside : np.ndarray
        Voxels of the grid that lie in the field of view.  # (X, Y, Z) bool
    mask_origin : str
        Name of the mask file, or "computed".
    warnings : tuple of str
        Those of the route, and of what was found while reading.
    """

    route: Route
    grid: Grid
    n_volumes: int
    t_r_s: float
    mask: np.ndarray
    brain: np.ndarray
    inside: np.ndarray
    mask_origin: str
    warnings: tuple[str, ...]
    _file: NiftiFile = field(repr=False)
    _sampler: Sampler = field(repr=False)
    _source_brain: np.ndarray = field(repr=False)  # flat Fortran indices into a volume of the image
    _observers: tuple[Callable[[np.ndarray], None], ...] = field(default=(), repr=False)

    def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
        """Volumes from number ``start`` on, one at a time; zero outside the field of view.  # (X, Y, Z) float32

        Voxels that are NaN outside the brain, as some programs mark their background, are 0.

        Raises
        ------
        ImageUnreadable, NonFiniteVoxels
            As soon as they are met.
        ConstantSeries, DemeanedSeries
            After the last volume.
        """
        watch = _Watch(self._file, self._source_brain)
        for volume in self._file.volumes(start):
            on_grid = self._sampler(watch.checked(volume))
            for observe in self._observers:
                observe(on_grid)
            yield on_grid
        watch.finish(demeaned_is_known=bool(self.route.run.mean_removed))

    def observed_by(self, observe: Callable[[np.ndarray], None]) -> GridSeries:
        """The same series; ``observe`` is called with each volume as it passes, so one pass serves two ends."""
        return replace(self, _observers=(*self._observers, observe))


def to_grid(route: Route, grid: Grid, *, cache_dir: Path | None = None) -> GridSeries:
    """Open a run along its route; voxels are read when the volumes are asked for.

    Without a mask file one is computed, which reads the run once. ``cache_dir`` keeps the grid's voxels as mapped
    through large transforms, for the other runs of the participant.

    Raises
    ------
    MaskUnusable, RepetitionTimeUnusable, ImageUnreadable
        As the files deserve.
    """
    image = open_series(route.image.bold)
    t_r_s, warnings = judged_t_r_s(image.header, route.run.t_r_s, image.path)
    points = points_through(grid, route.files[::-1], cache_dir)  # points move against the images
    resample = sampler(route.geometry, grid, points, route.interpolation)
    mask, mask_origin, mask_warnings = _mask(route, image)
    return GridSeries(
        route=route,
        grid=grid,
        n_volumes=image.n_volumes,
        t_r_s=t_r_s,
        mask=sampler(route.geometry, grid, points, "linear")(mask) > 0,
        brain=sampler(route.geometry, grid, points, "nearest")(mask) >= 0.5,
        inside=resample.inside(),
        mask_origin=mask_origin,
        warnings=(*route.warnings, *warnings, *mask_warnings),
        _file=image,
        _sampler=resample,
        _source_brain=np.flatnonzero(mask.ravel(order="F") > 0),
    )


def _mask(route: Route, image: NiftiFile) -> tuple[np.ndarray, str, tuple[str, ...]]:
    if route.image.mask is None:
        warning = f"{image.path.name}: no brain mask was found; one was computed from the mean image"
        return computed_mask(image, route.geometry), "computed", (warning,)
    in_template = route.image.space not in PARTICIPANT_SPACES
    return read_mask(route.image.mask, route.geometry, in_template=in_template), route.image.mask.name, ()


class _Watch:
    """Faults of the voxels that show only while they stream."""

    def __init__(self, image: NiftiFile, brain: np.ndarray) -> None:
        self._image, self._brain = image, brain
        self._first: np.ndarray | None = None
        self._changes, self._n_volumes, self._n_negative = False, 0, 0

    def checked(self, volume: np.ndarray) -> np.ndarray:
        values = volume.ravel(order="F")[self._brain]
        if not np.isfinite(volume).all():
            if not np.isfinite(values).all():
                raise _non_finite(self._image, self._brain)
            volume = np.nan_to_num(volume, nan=0.0, posinf=0.0, neginf=0.0)
        self._n_volumes += 1
        self._n_negative += np.count_nonzero(values < 0)
        if self._first is None:
            self._first = values
        self._changes = self._changes or not np.array_equal(values, self._first)
        return volume

    def finish(self, *, demeaned_is_known: bool) -> None:
        if self._n_volumes > 1 and not self._changes:
            raise ConstantSeries(
                f"the {self._n_volumes} volumes are all the same inside the brain mask",
                file=self._image.path,
                expected="a BOLD series",
                remedy="Check how the file was made",
            )
        share = self._n_negative / max(1, self._n_volumes * len(self._brain))
        if share > NEGATIVE_SHARE and not demeaned_is_known:
            raise DemeanedSeries(
                f"{share:.0%} of the voxels inside the brain mask are negative: the mean was removed",
                file=self._image.path,
                expected=f"a preprocessed series with its mean (at most {NEGATIVE_SHARE:.0%} negative)",
                remedy="Give the series before denoising, or one with the mean added back",
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
