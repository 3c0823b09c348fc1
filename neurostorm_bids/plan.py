"""What a call would do and cost: runs, routes, clips, and estimates of time, memory and disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from neurostorm_bids.attribute import map_memory_mb, maps_of
from neurostorm_bids.attribution import estimated_passes
from neurostorm_bids.environment import runs_at_once
from neurostorm_bids.errors import NeurostormError
from neurostorm_bids.inputs import Selection
from neurostorm_bids.inputs.motion import read_motion
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.model import Model
from neurostorm_bids.prepare import plan_clips
from neurostorm_bids.settings import Settings
from neurostorm_bids.space import Route, choose_route, to_grid

# measured peaks (docs/performance.md): interpreter with its libraries, then what grows with grid and model
BASE_MB = 525
LANCZOS_MB = 400  # the kernel's offsets and weights for every voxel of the grid
LIVE_VOLUMES = 24  # foreground volumes held while a clip is made, as whole volumes of the grid
COMPILED_ACTIVATIONS = 6  # copies of the stage-0 tokens alive in the compiled encoder
TORCH_ACTIVATIONS = 60
READ_MB_S = 150  # of compressed input, both passes counted


@dataclass(frozen=True)
class PlannedRun:
    """A run as it would be processed, or the error that would stop it."""

    run: BoldRun
    route: Route | None = None
    n_clips: int = 0
    error: NeurostormError | None = None


def plan_run(run: BoldRun, model: Model, settings: Settings) -> PlannedRun:
    """Route and clips of a run, from headers and tables; voxels are not read (a missing mask aside)."""
    try:
        route = choose_route(
            run,
            model.grid,
            normalization=settings.normalization,
            interpolation=settings.interpolation,
            offline=True,  # planning downloads nothing
        )
        series = to_grid(route, model.grid)
        motion = read_motion(run, series.n_volumes)
        _, windows = plan_clips(series, motion, run.start_time_s, model.input, settings)
    except NeurostormError as error:
        return PlannedRun(run, error=error)
    return PlannedRun(run, route, len(windows.kept))


def describe_plan(selection: Selection, models: Sequence[Model], settings: Settings) -> str:
    """The text of ``--dry-run``."""
    planned = [plan_run(run, models[0], settings) for run in selection.runs]
    lines = [_line(plan) for plan in planned] + [f"rejected: {error}" for error in selection.rejected]
    n_clips = sum(plan.n_clips for plan in planned)
    seconds = _seconds(planned, models, settings)
    at_once = min(runs_at_once(settings), len(planned))
    memory_mb = memory_of_run_mb(models, settings) * at_once
    disk_mb = sum(_disk_mb(plan, models, settings) for plan in planned)
    lines.append(
        f"{len(planned)} runs, {n_clips} clips, {len(models)} model(s), {at_once} run(s) at a time. "
        f"About {seconds:.0f} s (one clip was timed on this machine), {memory_mb} MB of memory, "
        f"{disk_mb:.1f} MB of disk. Nothing was written."
    )
    if settings.attribution:
        lines.append(_attribution_line(n_clips, models, settings, at_once))
    return "\n".join(lines)


def _attribution_line(n_clips: int, models: Sequence[Model], settings: Settings, at_once: int) -> str:
    """What the maps of ``--attribution`` would cost on top."""
    counts = [maps_of(model, settings) for model in models]
    passes = [sum([estimated_passes(method, n_parcels) for method in maps]) for maps, n_parcels in counts]
    seconds = n_clips * sum(seconds_per_clip(model) * n for model, n in zip(models, passes, strict=True))
    memory_mb = max(map_memory_mb(model) for model in models) * at_once
    n_maps = sum(len(maps) for maps, _ in counts)
    seconds /= max(at_once, 1)
    return f"Attribution, {n_maps} map(s) a run: about {seconds:.0f} s more, {memory_mb} MB of memory."


def _line(plan: PlannedRun) -> str:
    if plan.error is not None or plan.route is None:
        return f"{plan.run.name}: would fail: {plan.error}"
    warnings = "".join(f"\n    warning: {text}" for text in plan.route.warnings)
    return f"{plan.run.name}: {plan.n_clips} clips, route {plan.route.kind}: {'; '.join(plan.route.steps)}{warnings}"


def _seconds(planned: Sequence[PlannedRun], models: Sequence[Model], settings: Settings) -> float:
    n_clips = sum(plan.n_clips for plan in planned)
    if not n_clips:
        return 0.0
    per_clip = sum(seconds_per_clip(model) for model in models)
    read_mb = sum(plan.route.image.bold.stat().st_size / 2**20 for plan in planned if plan.route)
    return (n_clips * per_clip + read_mb / READ_MB_S) / min(runs_at_once(settings), len(planned))


def seconds_per_clip(model: Model) -> float:
    """Time of one clip through the model, on this machine and now."""
    import torch

    clip = torch.zeros(1, model.config.in_chans, *model.config.img_size)  # (1, ch, X, Y, Z, T)
    started = time.monotonic()
    model.embed(clip)
    return time.monotonic() - started


def memory_of_run_mb(models: Sequence[Model], settings: Settings) -> int:
    """Estimated peak of the process that handles one run, in MB; it does not depend on the run's length."""
    kernel_mb = LANCZOS_MB if settings.interpolation == "lanczos" else 0
    return BASE_MB + kernel_mb + max(_model_mb(model, settings) for model in models)


def _model_mb(model: Model, settings: Settings) -> int:
    from neurostorm_bids.model.scan import resolve_backend

    config = model.config
    grid_mb = 4 * prod(model.grid.shape) / 2**20
    clip_mb = grid_mb * config.img_size[3] * config.in_chans
    tokens_mb = 4 * prod(config.img_size) / prod(config.patch_size) * config.embed_dim / 2**20
    compiled = resolve_backend(model.backend, model.device) == "cpu"
    copies = COMPILED_ACTIVATIONS if compiled else TORCH_ACTIVATIONS
    return int(2 * LIVE_VOLUMES * grid_mb + model.batch_size * (clip_mb + copies * tokens_mb))


def _disk_mb(plan: PlannedRun, models: Sequence[Model], settings: Settings) -> float:
    tables = sum(12e-6 * plan.n_clips * model.n_features + 0.03 for model in models)
    bold = 4e-6 * prod(models[0].grid.shape) * plan.n_clips * models[0].input.clip_frames * 0.5
    return tables + (bold if settings.output_bold else 0.0)
