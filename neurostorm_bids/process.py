"""One run, start to end: route, grid, clips, model, results; nipype's nodes call it and it knows nothing of nipype."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from neurostorm_bids import __version__
from neurostorm_bids.ahead import ahead
from neurostorm_bids.clips import RunStatistics
from neurostorm_bids.errors import ModelFolderInvalid, NeurostormError
from neurostorm_bids.evaluation.shift import UNKNOWN, Mark
from neurostorm_bids.inputs.runs import BoldRun, Source
from neurostorm_bids.model import Model, load_model
from neurostorm_bids.model.config import Target
from neurostorm_bids.model.description import INPUT_FIELDS, provenance_of
from neurostorm_bids.model.predict import Prediction, joined
from neurostorm_bids.model.scan import resolve_backend
from neurostorm_bids.outputs import (
    ClipRow,
    ModelRecord,
    QualityFigure,
    RunRecord,
    TargetRow,
    name_datasets,
    write_bold,
    write_embedding,
    write_predictions,
    write_quality,
    write_text,
)
from neurostorm_bids.outputs.names import APP_DESC
from neurostorm_bids.prepare import PreparedRun, prepare_run
from neurostorm_bids.report.figures import RunFigures, carpet_figure, motion_and_clips, placement, write_figures
from neurostorm_bids.resume import run_key, settings_hash
from neurostorm_bids.settings import Precision, Settings
from neurostorm_bids.workflow import Outcome

if TYPE_CHECKING:
    from torch import Tensor


# quality figures by which a run is compared with those that a model was trained on
COMPARED = (
    *("coverage", "dice", "centroid_offset", "template_correlation", "lr_asymmetry", "tsnr"),
    *("mean_fd", "temporal_variance_share"),
)


PRODUCTS = {"32": "float32", "tf32": "tf32", "bf16": "bfloat16", "16": "float16"}  # as sidecars say it


@dataclass(frozen=True)
class ModelRequest:
    """A model as the user named it; crosses process borders in place of the weights."""

    source: str
    packs: tuple[str, ...] = ()
    device: str = "auto"
    backend: str = "auto"
    precision: Precision = "32"
    offline: bool = False
    target_scaler: tuple[tuple[str, float, float], ...] = ()
    batch_size: int | None = None
    threads: int = 1

    def load(self) -> Model:
        """The model, read once in each process."""
        return _loaded(self)


@lru_cache(maxsize=8)
def _loaded(request: ModelRequest) -> Model:
    import torch

    torch.set_num_threads(request.threads)
    return load_model(
        request.source,
        packs=request.packs,
        device=request.device,
        backend=request.backend,
        precision=request.precision,
        offline=request.offline,
        batch_size=request.batch_size,
        target_scaler={target: (mean, std) for target, mean, std in request.target_scaler},
    )


@dataclass(frozen=True)
class Job:
    """What one model has to do for a run.

    ``key`` is the resume key of its results. ``shared_desc`` labels the quality table and the normalised run, which
    belong to the model's input: models of one call that share an input share them, others have their own.
    """

    request: ModelRequest
    key: str
    shared_desc: str = APP_DESC


# --- the node ---------------------------------------------------------------------------------------------------


def run_task(run: BoldRun, jobs: Sequence[Job], sources: Sequence[Source], settings: Settings, call_id: str) -> Outcome:
    """Process one run and tell how it ended; nothing that happens in it reaches the other runs."""
    started = time.monotonic()
    try:
        n_clips, warnings = process_run(run, jobs, sources, settings)
    except NeurostormError as error:
        return failure_of(run, str(error), error, settings, call_id, started)
    except Exception as error:  # the border of a run: an unforeseen fault is reported with its traceback
        message = f"{run.name}: an unforeseen {type(error).__name__}: {error}. Please report it with the crash file."
        return failure_of(run, message, error, settings, call_id, started)
    return Outcome(run.name, "done", time.monotonic() - started, n_clips, warnings=warnings)


def failure_of(
    run: BoldRun, message: str, error: Exception, settings: Settings, call_id: str, started: float
) -> Outcome:
    """The outcome of a run that failed, its traceback in a crash file beside the results."""
    folder = settings.output_dir / f"sub-{run.participant}" / "log" / call_id
    crash_file = folder / f"crash-{run.name}.txt"
    details = "".join(traceback.format_exception(error))
    text = message if run.name in message else f"{run.name}: {message}"
    try:
        write_text(crash_file, f"{text}\n\n{details}")
    except NeurostormError as second:
        text += f" (No crash file: {second})"
        return Outcome(run.name, "failed", time.monotonic() - started, message=text)
    return Outcome(run.name, "failed", time.monotonic() - started, message=text, crash_file=str(crash_file))


def process_run(
    run: BoldRun, jobs: Sequence[Job], sources: Sequence[Source], settings: Settings
) -> tuple[int, tuple[str, ...]]:
    """Embed one run with every model and write the results.

    Parameters
    ----------
    run : BoldRun
    jobs : sequence of Job
        Models that share an input are fed by one pass over the run.
    sources : sequence of Source
        Every input dataset of the call, which BIDS URIs name.
    settings : Settings

    Returns
    -------
    int
        Number of clips (of the first model's input).
    tuple of str
        Warnings, each once.

    Raises
    ------
    NeurostormError
        Whatever makes the run unusable, by name.
    """
    prepared_runs, odd = [], []
    for spec in dict.fromkeys(job.request.load().input for job in jobs):
        prepared = prepare_run(run, spec, settings)
        odd += _write(prepared, [job for job in jobs if job.request.load().input == spec], sources, settings)
        prepared_runs.append(prepared)
    warnings = dict.fromkeys([*(text for prepared in prepared_runs for text in prepared.warnings), *odd])
    return len(prepared_runs[0].windows.kept), tuple(warnings)


# --- the model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Features:
    """What one model makes of a run: embeddings, a row a clip, and predictions by target."""

    embedding: np.ndarray  # (n_clips, d)
    predictions: dict[str, Prediction]


def embed_run(prepared: PreparedRun, models: Sequence[Model]) -> list[Features]:
    """Embeddings and predictions of every clip under each model, from one pass over the run."""
    parts: list[list[Features]] = [[] for _ in models]
    for batch in ahead(_batches(prepared, models)):
        for model, rows in zip(models, parts, strict=True):
            rows.append(_features(model, batch))
    return [_joined(rows) for rows in parts]


def _batches(prepared: PreparedRun, models: Sequence[Model]) -> Iterator[Tensor]:
    """Clips by the batch, made where the models are.  # (n, 1, X, Y, Z, T)"""
    import torch

    device, batch_size = models[0].device, max(model.batch_size for model in models)
    if prepared.batches_on is not None and device != "cpu":
        return prepared.batches_on(device, batch_size)
    return map(torch.from_numpy, _host_batches(prepared, batch_size))


def _host_batches(prepared: PreparedRun, batch_size: int) -> Iterator[np.ndarray]:
    """Clips by the batch; a batch stays valid while the next is drawn.  # (n, 1, X, Y, Z, T)"""
    n_clips = len(prepared.windows.kept)
    batch_size = min(batch_size, n_clips)
    shape = (1, *prepared.spec.grid.shape, prepared.spec.clip_frames)
    pair = np.empty((2, batch_size, *shape), np.float32)
    clips = prepared.clips(list(pair.reshape(-1, *shape)))
    for number, start in enumerate(range(0, n_clips, batch_size)):
        n = len(list(islice(clips, min(batch_size, n_clips - start))))
        yield pair[number % 2, :n]


def _features(model: Model, clips: Tensor) -> Features:
    if not model.targets:
        return Features(model.embed(clips).numpy(), {})
    embedding, predictions = model.embed_and_predict(clips)
    return Features(embedding.numpy(), predictions)


def _joined(rows: Sequence[Features]) -> Features:
    embedding = np.concatenate([row.embedding for row in rows])  # (n_clips, d)
    return Features(embedding, {name: joined([row.predictions[name] for row in rows]) for name in rows[0].predictions})


# --- the results ------------------------------------------------------------------------------------------------


def _write(prepared: PreparedRun, jobs: Sequence[Job], sources: Sequence[Source], settings: Settings) -> list[str]:
    """Write what every model makes of a run; returns a line for each head whose training runs it does not resemble."""
    odd: list[str] = []
    models = [job.request.load() for job in jobs]
    features = embed_run(prepared, models)
    record = run_record(prepared, jobs[0].shared_desc, sources, settings)
    write_quality(settings.output_dir, record, quality_figures(prepared))
    write_figures(settings.output_dir, record, report_figures(prepared, settings))
    if settings.output_bold and prepared.frames is not None:
        write_bold(settings.output_dir, record, prepared.frames(), n_frames=prepared.statistics.timing.n_frames)
    windows = prepared.windows.kept
    clips = [ClipRow(onset_s=w.onset_s, duration_s=w.duration_s, mean_fd_mm=w.mean_fd_mm) for w in windows]
    for job, model, found in zip(jobs, models, features, strict=True):
        described = model_record(model, job.key)
        if model.targets:
            marks = {name: mark_of(model, name, found.embedding, prepared) for name in found.predictions}
            rows = [target_row(prediction, marks[name]) for name, prediction in found.predictions.items()]
            shift = {name: mark.as_json() for name, mark in marks.items()}
            marked = replace(described, extra={**described.extra, "Shift": shift})
            write_predictions(settings.output_dir, record, marked, [row for row in rows if row is not None])
            far = {name: mark for name, mark in marks.items() if mark.resembles is False}
            odd += [f"{model.name}, {name}: {mark.sentence()}" for name, mark in far.items()]
            _write_vectors(settings, record, described, clips, found)
        # last: a complete embedding means that everything of this run and model is there
        write_embedding(settings.output_dir, record, described, clips, found.embedding)
    return odd


def _write_vectors(
    settings: Settings, record: RunRecord, model: ModelRecord, clips: Sequence[ClipRow], found: Features
) -> None:
    """Vectors of retrieval heads, as embeddings of a model that is called after both: people are told apart by them."""
    for name, prediction in found.predictions.items():
        if prediction.vectors is not None:
            of_head = replace(model, name=vectors_of(model.name, name))
            what = f"vectors of unit length by the head of {name}"
            write_embedding(settings.output_dir, record, of_head, clips, prediction.vectors, what)


def vectors_of(model: str, target: str) -> str:
    """What the vectors of a retrieval head are called, in file names and evaluations."""
    return f"{model}-{target}"


def mark_of(model: Model, target: str, embedding: np.ndarray, prepared: PreparedRun) -> Mark:
    """Whether a run lies where the training runs of a target's head do.  # (n_clips, d)

    Raises
    ------
    ModelFolderInvalid
        The training distribution of ``model.json`` is none.
    """
    description = model.description_of(target)
    try:
        return Mark.of(
            description.training_distribution, embedding.mean(axis=0), numeric_figures(quality_figures(prepared))
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelFolderInvalid(
            f"the training distribution of {description.name} cannot be read ({error})",
            expected="one as fine-tuning writes it",
            remedy="Copy the folder again, or fine-tune again",
        ) from error


def target_row(prediction: Prediction, mark: Mark = UNKNOWN) -> TargetRow | None:
    """A run's prediction, pooled over its clips; None for a retrieval, whose vectors are no prediction.

    The interval is that of the target's calibration; a run that does not resemble the training runs has none, since
    it was calibrated on runs that do.
    """
    target, pooled, spread = prediction.target, prediction.pooled(), prediction.clip_sd()
    common: dict[str, Any] = {"target": target.name, "kind": target.kind, "n_clips": prediction.n_clips}
    common["in_distribution"] = mark.resembles
    if pooled.values is not None:
        if target.half_width is not None and prediction.natural_units and mark.resembles is not False:
            middle = float(pooled.values[0])
            common["interval"] = (middle - target.half_width, middle + target.half_width)
        return TargetRow(
            **common,
            value=float(pooled.values[0]),
            unit=prediction.unit,
            standard_units=not prediction.natural_units,
            clip_sd=None if spread is None else float(spread[0]),
        )
    if pooled.probabilities is None:
        return None
    chosen = int(pooled.probabilities[0].argmax())
    return TargetRow(
        **common,
        value=target.classes[chosen],
        clip_sd=None if spread is None else float(spread[chosen]),
        probabilities=dict(zip(target.classes, pooled.probabilities[0].tolist(), strict=True)),
    )


def model_record(model: Model, key: str = "") -> ModelRecord:
    """What the sidecars say of a model and of how it computed."""
    import torch

    return ModelRecord(
        name=model.name,
        hash=model.hash,
        trained=model.trained,
        resume_key=key,
        backend=resolve_backend(model.backend, model.device),
        device=model.device.partition(":")[0],  # which of several GPUs it was says nothing of the result
        precision=PRODUCTS[model.precision],
        batch_size=model.batch_size,
        threads=torch.get_num_threads(),
        provenance={name: provenance_of(model.input, name) for name in INPUT_FIELDS},
        extra={"Targets": {target.name: trained_on(target) for target in model.targets}},
    )


def trained_on(target: Target) -> dict[str, Any]:
    """What the sidecars say of a target's training: its scaler, and the temperature of its probabilities."""
    if target.kind != "regression":
        return {"Kind": target.kind, "Temperature": target.temperature}
    names = ("Minimum", "Range") if target.scaling == "minmax" else ("Mean", "SD")
    scaler = dict(zip(names, (target.mean, target.std), strict=True)) if target.mean is not None else None
    return {"Kind": target.kind, "Unit": target.unit, "Training": scaler}


def run_record(prepared: PreparedRun, desc: str, sources: Sequence[Source], settings: Settings) -> RunRecord:
    """What the sidecars say of a run before any model saw it."""
    run, route, statistics = prepared.run, prepared.route, prepared.statistics
    timing, windows = statistics.timing, prepared.windows
    motion_file = run.motion.path if run.motion is not None else None
    files = [route.image.bold, route.image.mask, run.confounds, motion_file, *route.files]
    return RunRecord(
        entities=run.entities,
        desc=desc,
        sources=tuple(path for path in files if path is not None),
        datasets=name_datasets(sources),
        grid=prepared.spec.grid,
        resume_key=run_key(run, repr(prepared.spec), settings, __version__),
        settings_hash=settings_hash(settings),
        input_pipeline=run.source.pipeline,
        input_version=run.source.version,
        input_denoising=_denoising(run, settings),
        input_space=route.image.space,
        route=route.kind,
        steps=route.steps,
        approximate=route.kind == "affine-approximate",
        interpolation=route.interpolation if route.kind not in ("lattice", "array") else "none",
        preprocessing=settings.preprocessing,
        t_r_s=prepared.t_r_s,
        step_s=timing.step_s,
        first_frame_s=timing.onset_s(0),
        n_volumes=prepared.n_volumes,
        n_frames=timing.n_frames,
        dummy_scans=timing.n_dummies,
        clip_frames=windows.clip_frames,
        clip_stride=windows.stride,
        n_clips=len(windows.kept),
        dropped_clips={"motion": len(windows.excluded)},
        dropped_frames=windows.n_dropped_frames,
        temporal_variance_share=statistics.temporal_variance_share,
        normalisation={
            "Mean": statistics.mean,
            "StandardDeviation": statistics.std,
            "Background": float(statistics.background),
        },
        warnings=tuple(dict.fromkeys(prepared.warnings)),
        extra={"MaskOrigin": prepared.mask_origin, "RunSha256": content_hash(statistics)},
    )


def content_hash(statistics: RunStatistics) -> str:
    """SHA-256 of a run's normalised mean image, to three decimals, and its length: copies of an image share it."""
    z = (statistics.mean_image - statistics.mean) / statistics.std  # (x, y, z)
    share = f"{statistics.timing.n_frames} {statistics.temporal_variance_share:.6f}"
    return hashlib.sha256(np.rint(z * 1000).astype(np.int32).tobytes() + share.encode()).hexdigest()


def _denoising(run: BoldRun, settings: Settings) -> str:
    """What was regressed out, by the pipeline and by us."""
    if settings.denoise == "none":
        return run.source.denoising
    return settings.denoise if run.source.denoising == "none" else f"{run.source.denoising}, then {settings.denoise}"


def report_figures(prepared: PreparedRun, settings: Settings) -> RunFigures:
    """What the participant's report shows of a run; placement and carpet only where the affine was obeyed."""
    statistics = prepared.statistics
    figures = motion_and_clips(prepared.motion.fd_mm, statistics, prepared.windows, settings.fd_threshold_mm)
    if prepared.carpet is None:
        return figures
    return figures | placement(prepared.spec.grid, statistics) | carpet_figure(prepared.carpet, statistics)


def numeric_figures(figures: Sequence[QualityFigure]) -> dict[str, float]:
    """Figures of a run that are known numbers and say something of its data, not of how it was cut into clips."""
    found = {figure.name: figure.value for figure in figures if figure.name in COMPARED}
    return {
        name: float(value) for name, value in found.items() if isinstance(value, int | float) and np.isfinite(value)
    }


def quality_figures(prepared: PreparedRun) -> list[QualityFigure]:
    """The run's quality table: placement, motion, signal."""
    statistics, windows, motion = prepared.statistics, prepared.windows, prepared.motion
    mean_fd = None if motion.fd_mm is None else float(np.nanmean(motion.fd_mm))
    return [
        *prepared.placement,
        QualityFigure(name="mean_fd", value=mean_fd, unit="mm", description="Mean framewise displacement of the run."),
        QualityFigure(
            name="non_steady_volumes",
            value=motion.non_steady_volumes,
            description="Volumes at the start that the pipeline flagged as non-steady state.",
        ),
        QualityFigure(
            name="temporal_variance_share",
            value=statistics.temporal_variance_share,
            description="Share of the normalised variance that lies in time rather than between voxels.",
        ),
        QualityFigure(name="n_clips", value=len(windows.kept), description="Clips that were used."),
        QualityFigure(
            name="n_clips_motion", value=len(windows.excluded), description="Clips left out by --fd-threshold."
        ),
    ]
