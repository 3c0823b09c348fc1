"""From a run to its clips: route, grid, timing, first pass. What the model and the training read is prepared here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from neurostorm_bids.ahead import ahead
from neurostorm_bids.clips import (
    Clip,
    RunStatistics,
    Timing,
    VolumeSeries,
    Windows,
    clips_of,
    frames_of,
    plan_windows,
    run_statistics,
)
from neurostorm_bids.clips.denoise import DenoisedSeries, confound_regressors, denoised
from neurostorm_bids.clips.reference import reference_run
from neurostorm_bids.environment import threads_per_run
from neurostorm_bids.errors import ConfoundsUnusable, NeurostormError
from neurostorm_bids.inputs.motion import Motion, read_motion
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.model.config import InputSpec
from neurostorm_bids.model.device_clips import Images, device_batches
from neurostorm_bids.outputs import QualityFigure
from neurostorm_bids.report.carpet import Carpet
from neurostorm_bids.settings import Settings
from neurostorm_bids.space import GridSeries, Route, choose_route, to_grid
from neurostorm_bids.space.nifti import open_series
from neurostorm_bids.space.quality import FIGURES, Tally, assess, require_coverage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """A run after the first pass: everything that the second pass and the sidecars need.

    ``clips`` draws the clips into buffers, ``batches_on`` makes the same clips on a device, a batch at a time, and
    ``frames`` draws the whole normalised run; all may be called again.
    """

    run: BoldRun
    spec: InputSpec
    route: Route
    n_volumes: int
    t_r_s: float
    mask_origin: str
    motion: Motion
    windows: Windows
    statistics: RunStatistics
    clips: Callable[[Sequence[np.ndarray]], Iterator[Clip]]
    frames: Callable[[], Iterator[np.ndarray]] | None
    batches_on: Callable[[str, int], Iterator[Tensor]] | None = None
    warnings: tuple[str, ...] = ()
    placement: tuple[QualityFigure, ...] = ()
    carpet: Carpet | None = None


def prepare_run(run: BoldRun, spec: InputSpec, settings: Settings) -> PreparedRun:
    """Choose the route, open the run on the grid, plan the clips and read it once for its statistics."""
    route = choose_route(
        run,
        spec.grid,
        normalization=settings.normalization,
        interpolation=settings.interpolation,
        offline=settings.offline,
    )
    prepare = prepare_array_space if settings.preprocessing == "reference" else prepare_on_grid
    try:
        return prepare(route, spec, settings)
    except NeurostormError as error:
        raise error.about(route.image.bold) from error


def prepare_on_grid(route: Route, spec: InputSpec, settings: Settings) -> PreparedRun:
    """The default way in: through affines and transforms to the model's grid."""
    run = route.run
    cache = settings.work_dir / "cache" / "coordinates"
    series = to_grid(route, spec.grid, cache_dir=cache, threads=threads_per_run(settings))
    motion = read_motion(run, series.n_volumes)
    timing, windows = plan_clips(series, motion, run.start_time_s, spec, settings)
    signal, brain = cleaned(series, run, timing.n_dummies, settings), series.brain
    with ThreadPoolExecutor(1, thread_name_prefix="tissue") as thread:  # both read maps of the template
        coming = thread.submit(Carpet, spec.grid, brain, timing.n_volumes)
        require_coverage(series, settings.min_coverage)
        tally, carpet = Tally(series), coming.result()

    def observe(volume: np.ndarray) -> None:
        tally.add(volume)
        carpet.add(volume)

    statistics = run_statistics(
        signal.observed_by(observe), timing, intensity=settings.intensity, background=spec.background
    )
    quality = assess(series, tally)
    return PreparedRun(
        run=run,
        spec=spec,
        route=route,
        n_volumes=series.n_volumes,
        t_r_s=series.t_r_s,
        mask_origin=series.mask_origin,
        motion=motion,
        windows=windows,
        statistics=statistics,
        clips=lambda buffers: clips_of(signal, statistics, windows, buffers=buffers),
        frames=lambda: frames_of(signal, statistics),
        batches_on=lambda device, n: device_batches(
            signal, statistics, windows, device=device, batch_size=n, images=images_of(signal)
        ),
        warnings=(*run.warnings, *series.warnings, *motion.warnings, *statistics.warnings, *quality.warnings),
        placement=tuple(
            QualityFigure(name=name, value=getattr(quality, name), unit=unit, description=description)
            for name, (unit, description) in FIGURES.items()
        ),
        carpet=carpet,
    )


def images_of(signal: GridSeries | DenoisedSeries) -> Images | None:
    """The run before resampling, where resampling is all that lies between it and the signal."""
    if isinstance(signal, DenoisedSeries) or signal.weights is None:
        return None
    return Images(volumes=lambda start: ahead(signal.images(start)), weights=signal.weights)


def cleaned(series: GridSeries, run: BoldRun, n_dummies: int, settings: Settings) -> GridSeries | DenoisedSeries:
    """The series after ``--denoise``.

    Raises
    ------
    ConfoundsUnusable
        When the run has no confounds table, or the table lacks what the strategy needs.
    """
    if settings.denoise == "none":
        return series
    if run.confounds is None:
        raise ConfoundsUnusable(
            f"--denoise {settings.denoise} needs confounds, and this run has none",
            expected="a desc-confounds_timeseries.tsv",
            remedy="Fetch it, or leave out --denoise",
        )
    return denoised(
        series, confound_regressors(run.confounds, run.confounds_json, settings.denoise), n_dummies=n_dummies
    )


def prepare_array_space(route: Route, spec: InputSpec, settings: Settings) -> PreparedRun:
    """``--preprocessing reference``: the published way, by array size and with int8 frames; affines are ignored."""
    run, image = route.run, route.image
    n_volumes = open_series(image.bold).n_volumes
    motion = read_motion(run, n_volumes)
    reference = reference_run(
        image.bold,
        image.mask,
        target_t_r_s=spec.t_r_s,
        n_dummies=n_dummies_of(motion, settings),
        start_time_s=run.start_time_s,
        work_dir=settings.work_dir,
    )
    windows = cut_windows(reference.timing, motion, spec, settings)
    return PreparedRun(
        run=run,
        spec=spec,
        route=replace(route, kind="array", steps=(image.bold.name, "resized by array size; the affine was ignored")),
        n_volumes=n_volumes,
        t_r_s=reference.timing.t_r_s,
        mask_origin=image.mask.name if image.mask else "exact zeros",
        motion=motion,
        windows=windows,
        statistics=reference.statistics,
        clips=lambda buffers: reference.clips(windows, img_size=spec.grid.shape, buffers=buffers),
        frames=None,
        warnings=(*run.warnings, *motion.warnings, *reference.warnings),
    )


def plan_clips(
    series: VolumeSeries, motion: Motion, start_time_s: float, spec: InputSpec, settings: Settings
) -> tuple[Timing, Windows]:
    """Timing and windows of a run, from its header alone: ``--dry-run`` plans by the same rules."""
    timing = Timing.of(
        series.n_volumes,
        series.t_r_s,
        n_dummies=n_dummies_of(motion, settings),
        target_t_r_s=spec.t_r_s,
        start_time_s=start_time_s,
        anti_alias=settings.anti_alias,
    )
    return timing, cut_windows(timing, motion, spec, settings)


def n_dummies_of(motion: Motion, settings: Settings) -> int:
    """Volumes to drop at the start: as many as stated, else as the confounds flag."""
    return motion.non_steady_volumes if settings.dummy_scans is None else settings.dummy_scans


def cut_windows(timing: Timing, motion: Motion, spec: InputSpec, settings: Settings) -> Windows:
    """The clips that the settings ask for."""
    return plan_windows(
        timing,
        clip_frames=spec.clip_frames,
        stride=settings.clip_stride,
        fd_mm=motion.fd_mm,
        fd_threshold_mm=settings.fd_threshold_mm,
    )
