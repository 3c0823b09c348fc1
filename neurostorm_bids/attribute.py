"""Participant level, after the embeddings: maps of why a model predicts what it does, by run and by participant."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from neurostorm_bids import __version__
from neurostorm_bids.attribution import (
    ClipMap,
    MapTotal,
    Parcels,
    Question,
    Score,
    explain,
    permuted,
    questions_of,
    read_parcels,
    shares_of,
    similarity,
)
from neurostorm_bids.attribution.baseline import DESCRIPTIONS
from neurostorm_bids.attribution.sanity import DIFFERS_BELOW
from neurostorm_bids.errors import AttributionImpossible, NeurostormError
from neurostorm_bids.inputs import Selection
from neurostorm_bids.inputs.runs import BoldRun, Source
from neurostorm_bids.model import Model
from neurostorm_bids.outputs import desc_label, is_complete, outputs_complete, read_sidecar
from neurostorm_bids.outputs.dataset import write_descriptions
from neurostorm_bids.outputs.maps import MapRecord, map_files, write_map
from neurostorm_bids.outputs.sidecars import UNTRAINED, bids_uri
from neurostorm_bids.prepare import PreparedRun, prepare_run
from neurostorm_bids.process import ModelRequest, failure_of, model_record, run_record
from neurostorm_bids.progress import Progress
from neurostorm_bids.resume import fingerprint, run_key
from neurostorm_bids.settings import AttributionMethod, Settings
from neurostorm_bids.workflow import Outcome, Task, execute

if TYPE_CHECKING:
    from torch import Tensor

PROMISED = 0.02  # of the difference: how exactly a map of integrated gradients adds up


# --- what is asked for ------------------------------------------------------------------------------------------


def attribution_questions(models: Sequence[Model], settings: Settings) -> list[tuple[Question, ...]]:
    """What is to be explained of each model; checked before any run starts.

    Raises
    ------
    AttributionImpossible
        An unknown target or class, no head at all, or two models that predict one target.
    AtlasUnusable
    """
    found = [questions_of(model, settings.attribution_targets) for model in models]
    _require_answers(models, settings)
    for model in models:
        read_parcels(model.grid, settings.atlas)
    labels = [label_of(question, method) for each in found for question in each for method in settings.attribution]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        raise AttributionImpossible(
            f"--attribution: two maps would be called desc-{label}",
            expected="one model a call for each target",
            remedy="Run the models one by one, into folders of their own",
        )
    return found


def _require_answers(models: Sequence[Model], settings: Settings) -> None:
    names = [target.name for model in models for target in model.targets if target.kind != "retrieval"]
    if not names:
        raise AttributionImpossible(
            f"--attribution: {', '.join(model.name for model in models)} predicts nothing that could be explained",
            expected="a model with a regression or classification head",
            remedy="Give a fine-tuned model, or a pack over this one with --packs",
        )
    for asked in settings.attribution_targets:
        if not any(questions_of(model, [asked]) for model in models):
            raise AttributionImpossible(
                f"--attribution-targets {asked}: no model predicts it",
                expected="one of " + ", ".join(sorted(set(names))),
            )


def label_of(question: Question, method: str) -> str:
    """The desc- label of a map: ``ageAttribution``, ``diagnosiscontrolOcclusionAttribution``."""
    chosen = desc_label(question.chosen or "") if question.named else ""
    return desc_label(question.target.name) + chosen + ("Occlusion" if method == "occlusion" else "") + "Attribution"


@dataclass(frozen=True)
class MapJob:
    """One map of one run; crosses process borders."""

    request: ModelRequest
    question: Question
    method: AttributionMethod
    key: str
    embedding_key: str

    @property
    def desc(self) -> str:
        """Its label."""
        return label_of(self.question, self.method)


def map_key(embedding_key: str, question: Question, method: str, settings: Settings) -> str:
    """Resume key of a map: that of the embedding, and what else decides the map."""
    atlas = fingerprint(settings.atlas) if settings.atlas else None
    parts = [embedding_key, question.name, method, settings.attribution_baseline, atlas, settings.random_seed]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


# --- the recipe -------------------------------------------------------------------------------------------------


def with_maps(
    outcomes: Sequence[Outcome],
    selection: Selection,
    requests: Sequence[ModelRequest],
    models: Sequence[Model],
    settings: Settings,
    scratch: Path,
) -> list[Outcome]:
    """Make every map that is missing, then the mean of each participant.

    Returns
    -------
    list of Outcome
        As given, a run whose map failed in place of its own.
    """
    asked = attribution_questions(models, settings)
    usable = {outcome.run for outcome in outcomes if outcome.status != "failed"}
    runs = [run for run in selection.runs if run.name in usable]
    jobs = {run.name: _jobs(run, requests, models, asked, settings) for run in runs}
    failed = {outcome.run: outcome for outcome in _perform(runs, jobs, models, selection.sources, settings, scratch)}
    write_descriptions(settings.output_dir, {job.desc: _label_in_words(job) for each in jobs.values() for job in each})
    for participant in sorted({run.participant for run in runs}):
        average_maps([run for run in runs if run.participant == participant], jobs, settings)
    return [failed.get(outcome.run, outcome) for outcome in outcomes]


def _perform(
    runs: Sequence[BoldRun],
    jobs: Mapping[str, Sequence[MapJob]],
    models: Sequence[Model],
    sources: Sequence[Source],
    settings: Settings,
    scratch: Path,
) -> list[Outcome]:
    """The outcomes of the runs whose maps failed."""
    function, memory_mb = f"{map_task.__module__}:{map_task.__name__}", max(map_memory_mb(model) for model in models)
    missing = {run.name: [job for job in jobs[run.name] if not _is_there(run, job, settings)] for run in runs}
    tasks = [
        Task(run.name, function, (run, missing[run.name], sources, settings, scratch.name), memory_mb)
        for run in runs
        if missing[run.name]
    ]
    if not tasks:
        return []
    with Progress(len(tasks), quiet=settings.quiet) as progress:
        progress.say(f"{sum(map(len, missing.values()))} attribution maps to make, of {len(tasks)} runs")
        outcomes = execute(tasks, settings, scratch / "attribution", progress.ended)
    return [outcome for outcome in outcomes if outcome.status == "failed"]


def _jobs(
    run: BoldRun,
    requests: Sequence[ModelRequest],
    models: Sequence[Model],
    questions: Sequence[Sequence[Question]],
    settings: Settings,
) -> list[MapJob]:
    jobs = []
    for request, model, asked in zip(requests, models, questions, strict=True):
        embedding_key = run_key(run, model.hash, settings, __version__)
        jobs += [
            MapJob(request, question, method, map_key(embedding_key, question, method, settings), embedding_key)
            for question in asked
            for method in settings.attribution
        ]
    return jobs


def _is_there(run: BoldRun, job: MapJob, settings: Settings) -> bool:
    template = job.request.load().grid.template
    return outputs_complete(map_files(settings.output_dir, run.entities, template, job.desc), job.key)


def maps_of(model: Model, settings: Settings) -> tuple[list[AttributionMethod], int]:
    """Methods of the maps that a run gets under a model, one for each map, and the number of parcels."""
    questions = questions_of(model, settings.attribution_targets)
    return [method for _ in questions for method in settings.attribution], len(read_parcels(model.grid, settings.atlas))


def map_memory_mb(model: Model) -> int:
    """Estimated peak of the process that explains a run, in MB (measured: docs/attribution.md)."""
    from math import prod

    config = model.config
    clip_mb = 4 * prod(config.img_size) * config.in_chans / 2**20
    tokens_mb = 4 * prod(config.img_size) / prod(config.patch_size) * config.embed_dim / 2**20
    return int(500 + model.batch_size * (8 * clip_mb + 70 * tokens_mb))


# --- one run ----------------------------------------------------------------------------------------------------


def map_task(
    run: BoldRun, jobs: Sequence[MapJob], sources: Sequence[Source], settings: Settings, call_id: str
) -> Outcome:
    """The maps of one run; what happens in it reaches no other run."""
    started = time.monotonic()
    try:
        for spec in dict.fromkeys(job.request.load().input for job in jobs):
            prepared = prepare_run(run, spec, settings)
            n_clips = len(prepared.windows.kept)
            for job in jobs:
                if job.request.load().input == spec:
                    map_run(prepared, job, sources, settings)
    except NeurostormError as error:
        return failure_of(run, f"{run.name}: no map: {error}", error, settings, call_id, started)
    except Exception as error:  # the border of a run: an unforeseen fault is reported with its traceback
        message = f"{run.name}: no map: an unforeseen {type(error).__name__}: {error}. Please report it."
        return failure_of(run, message, error, settings, call_id, started)
    return Outcome(run.name, "done", time.monotonic() - started, n_clips)


def map_run(prepared: PreparedRun, job: MapJob, sources: Sequence[Source], settings: Settings) -> None:
    """Explain every clip of a run and write the mean map; holds one clip and one map."""
    model = job.request.load()
    score, parcels = Score.of(model, job.question), read_parcels(model.grid, settings.atlas)
    total, first = MapTotal(), None
    for clip in _explained(score, prepared, job, parcels, settings):
        total.add(clip)
        first = first or clip
    assert first is not None, "a run without clips was refused when it was prepared"
    brain = prepared.statistics.mean_image > 0  # (X, Y, Z)
    changed = permuted(score, settings.random_seed)
    other = next(iter(_explained(changed, prepared, job, parcels, settings)))
    mean, alike = total.mean(), similarity(first.values, other.values, brain)
    record = run_record(prepared, "", sources, settings)
    entry = _entry(job, settings, parcels, total, alike)
    made = MapRecord(
        entities=record.entities,
        desc=job.desc,
        grid=model.grid,
        model=model_record(model),
        description=_description(job, model, "mean over the clips of the run"),
        unit=job.question.unit,
        sources=[bids_uri(path, record.datasets) for path in record.sources],
        attribution=entry,
        resume_key=job.key,
        warnings=(*record.warnings, *_faults(entry)),
    )
    write_map(settings.output_dir, made, mean.values, shares_of(mean.values, brain, parcels, model.grid))


def _explained(
    score: Score, prepared: PreparedRun, job: MapJob, parcels: Parcels, settings: Settings
) -> Iterator[ClipMap]:
    return explain(
        score,
        _clips(prepared),
        method=job.method,
        background=float(prepared.statistics.background),
        baseline=settings.attribution_baseline,
        parcels=parcels,
    )


def _clips(prepared: PreparedRun) -> Iterator[Tensor]:
    """One clip at a time, each valid until the next is drawn.  # (1, ch, X, Y, Z, T)"""
    import torch

    buffer = np.empty((1, *prepared.spec.grid.shape, prepared.spec.clip_frames), np.float32)
    for clip in prepared.clips([buffer]):
        yield torch.from_numpy(clip.data[None])


def _label_in_words(job: MapJob) -> str:
    return f"What each voxel adds to the prediction of {job.question.name}, by {job.method}."


def _description(job: MapJob, model: Model, of_what: str) -> str:
    how = "integrated gradients" if job.method == "integrated-gradients" else "occlusion parcel by parcel"
    what = f"What each voxel adds to the prediction of {job.question.name} by the model {model.name}"
    text = f"{what} ({how}), {of_what}."
    return text if model.trained else f"{text} {UNTRAINED}"


def _entry(job: MapJob, settings: Settings, parcels: Parcels, total: MapTotal, alike: float) -> dict[str, Any]:
    question, mean = job.question, total.mean()
    return {
        "Method": job.method,
        "Target": question.target.name,
        **({"Class": question.chosen} if question.chosen else {}),
        "Baseline": {"Kind": settings.attribution_baseline, "Description": DESCRIPTIONS[settings.attribution_baseline]},
        "Atlas": parcels.description,
        "Clips": total.n_clips,
        "Steps" if job.method == "integrated-gradients" else "Parcels": total.steps,
        "Completeness": _completeness(float(mean.values.sum()), mean.difference, total.differences),
        "SanityCheck": {
            "Description": "Pearson correlation, within the brain, of the first clip's map with that of the same model "
            "after the numbers of each of its weights were permuted.",
            "Correlation": alike,
            "Differs": abs(alike) < DIFFERS_BELOW,
        },
    }


def _completeness(sum_of_map: float, difference: float, differences: Sequence[float]) -> dict[str, float | None]:
    """How the map adds up: against the mean difference, and against its size where clips differ in sign.

    An error against a difference of nothing has no value.
    """
    off, size = abs(sum_of_map - difference), float(np.abs(differences).mean())
    return {
        "SumOfMap": sum_of_map,
        "OutputDifference": difference,
        "RelativeError": _ratio(off, abs(difference)),
        "ErrorByMeanSize": _ratio(off, size),
    }


def _ratio(off: float, size: float) -> float | None:
    if size:
        return off / size
    return None if off else 0.0


def _faults(entry: dict[str, Any]) -> Iterator[str]:
    error = entry["Completeness"]["RelativeError"]
    if entry["Method"] == "integrated-gradients" and (error is None or error > PROMISED):
        size = "without bound" if error is None else f"of {error:.1%}"
        yield (f"The map adds up to the difference between the outputs with an error {size}, more than {PROMISED:.0%}.")
    if not entry["SanityCheck"]["Differs"]:
        yield (
            "A model with permuted weights gives a similar map: it shows the image, not what the model learnt "
            f"(correlation {entry['SanityCheck']['Correlation']:.2f})."
        )


# --- a participant ----------------------------------------------------------------------------------------------


def average_maps(runs: Sequence[BoldRun], jobs_of: Mapping[str, Sequence[MapJob]], settings: Settings) -> None:
    """The mean of a participant's maps over all runs of this call, each clip counting once.

    Written only where every run has its map, so that a mean never rests on what happened to succeed.
    """
    found: dict[str, list[tuple[Path, MapJob]]] = defaultdict(list)
    for run in runs:
        for job in jobs_of[run.name]:
            image, _ = map_files(settings.output_dir, run.entities, job.request.load().grid.template, job.desc)
            found[job.desc].append((image, job))
    for of_runs in found.values():
        if all(is_complete(image, job.key) for image, job in of_runs):
            _average(runs[0].participant, of_runs, settings)


def _average(participant: str, of_runs: Sequence[tuple[Path, MapJob]], settings: Settings) -> None:
    job = of_runs[0][1]
    model, parcels = job.request.load(), read_parcels(job.request.load().grid, settings.atlas)
    key = hashlib.blake2b("".join(one.key for _, one in of_runs).encode(), digest_size=16).hexdigest()
    if outputs_complete(map_files(settings.output_dir, {"sub": participant}, model.grid.template, job.desc), key):
        return
    entries = [read_sidecar(image)["Attribution"] for image, _ in of_runs]
    weights = [entry["Clips"] for entry in entries]
    values = np.zeros(model.grid.shape)
    for (image, _), weight in zip(of_runs, weights, strict=True):
        values += weight * np.asarray(nib.load(image).dataobj)[..., 0]  # type: ignore[attr-defined]
    values /= sum(weights)
    differences = [entry["Completeness"]["OutputDifference"] for entry in entries]
    mean = float(np.average(differences, weights=weights))
    alike = max((entry["SanityCheck"]["Correlation"] for entry in entries), key=abs)
    entry = {
        **entries[0],
        "Clips": sum(weights),
        "Runs": len(of_runs),
        "Completeness": _completeness(float(values.sum()), mean, differences),
        "SanityCheck": {**entries[0]["SanityCheck"], "Correlation": alike, "Differs": abs(alike) < DIFFERS_BELOW},
    }
    record = MapRecord(
        entities={"sub": participant},
        desc=job.desc,
        grid=model.grid,
        model=model_record(model),
        description=_description(job, model, f"mean over the clips of {len(of_runs)} runs"),
        unit=job.question.unit,
        sources=[f"bids::{image.relative_to(settings.output_dir).as_posix()}" for image, _ in of_runs],
        attribution=entry,
        resume_key=key,
        warnings=tuple(_faults(entry)),
    )
    write_map(settings.output_dir, record, values, shares_of(values, values != 0, parcels, model.grid))
