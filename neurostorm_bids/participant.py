"""Participant level: find the runs, plan them, run them under nipype, say how they ended."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from neurostorm_bids import __version__
from neurostorm_bids.attribute import attribution_questions, with_maps
from neurostorm_bids.environment import runs_at_once, threads_per_run
from neurostorm_bids.errors import (
    NO_USABLE_RUN,
    OK,
    SOME_RUNS_FAILED,
    NeurostormError,
    NothingToReport,
    OutputNotWritable,
    TargetScalerInvalid,
    TransformUnavailable,
)
from neurostorm_bids.inputs import Selection, find_runs
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.model import Model
from neurostorm_bids.model.config import InputSpec
from neurostorm_bids.model.registry import default_model, registry
from neurostorm_bids.outputs import (
    RunFiles,
    check_model_names,
    citation_text,
    is_whole,
    outputs_complete,
    read_sidecar,
    write_dataset_files,
    write_text,
)
from neurostorm_bids.outputs.dataset import check_no_way_out, check_own_folder, write_bidsignore
from neurostorm_bids.outputs.names import APP_DESC
from neurostorm_bids.plan import describe_plan, memory_of_run_mb
from neurostorm_bids.process import Job, ModelRequest, model_record, run_task
from neurostorm_bids.progress import Progress, summary
from neurostorm_bids.report.figures import figures_whole
from neurostorm_bids.report.participant import needs_report, write_participant_report
from neurostorm_bids.report.results import COMMAND, reported_participants
from neurostorm_bids.resume import run_key
from neurostorm_bids.settings import Settings, to_toml
from neurostorm_bids.space import choose_route
from neurostorm_bids.workflow import Outcome, Task, execute


def run_participant(settings: Settings, command: Sequence[str] = ()) -> int:
    """Run the participant level; returns the exit code (0, 1 or 65; other codes come as errors).

    ``command`` is what the user typed, for the reports.
    """
    if settings.boilerplate_only:
        print(citation_text())
        return OK
    if settings.reports_only:
        return rebuild_reports(settings)
    started = time.monotonic()
    scratch = _scratch_folder(settings)
    selection = find_runs(settings, scratch)
    requests, models = load_models(settings)
    for warning in selection.warnings:
        _say(settings, f"warning: {warning}")
    if settings.attribution:
        attribution_questions(models, settings)  # a wrong name fails here, before any run starts
    if settings.dry_run:
        print(describe_plan(selection, models, settings))
        return OK
    _open_output(settings, selection, models)
    settings = settle_transforms(selection.runs, models, settings)
    tasks, skipped = _tasks(selection, requests, models, settings, scratch)
    _log_settings(tasks, settings, scratch.name, command)
    outcomes = [*skipped, *_perform(tasks, settings, scratch, n_skipped=len(skipped))]
    if settings.attribution:
        outcomes = with_maps(outcomes, selection, requests, models, settings, scratch)
    _open_output(settings, selection, models)  # again: what somebody removed meanwhile comes back
    faults = write_reports(_to_report(selection.runs, tasks, settings), settings)
    return conclude(selection.rejected, outcomes, settings, time.monotonic() - started, faults)


def load_models(settings: Settings) -> tuple[list[ModelRequest], list[Model]]:
    """The models of this call, loaded once here so that a wrong name or file fails before any run starts.

    Raises
    ------
    NoModelGiven, ModelNotFound, ModelUnreachable, ModelNamesCollide, ...
        See ``neurostorm_bids.model``.
    """
    requests = _with_scalers(requested_models(settings), settings)
    models = [request.load() for request in requests]
    check_model_names([model.name for model in models])
    return requests, models


def requested_models(settings: Settings) -> list[ModelRequest]:
    """What ``--model`` asks for, packs over the first; scalers go to the models that predict their target."""
    names = settings.model or (default_model(),)
    return [
        ModelRequest(
            source=_from_anywhere(name),
            packs=tuple(map(_from_anywhere, settings.packs)) if number == 0 else (),
            device=settings.device,
            backend=settings.scan_backend,
            precision=settings.precision,
            offline=settings.offline,
            batch_size=1 if settings.low_mem else settings.batch_size,
            threads=threads_per_run(settings),
        )
        for number, name in enumerate(names)
    ]


def _from_anywhere(name: str) -> str:
    """A model's name, or its path as workers find it, who stand in other folders."""
    here = Path(name)
    is_name = here.name == name and any(entry.name == name for entry in registry())
    return str(here.resolve()) if here.exists() and not is_name else name


def _with_scalers(requests: list[ModelRequest], settings: Settings) -> list[ModelRequest]:
    targets = [{target.name for target in request.load().targets} for request in requests]
    for name, _, _ in settings.target_scaler:
        if not any(name in known for known in targets):
            raise TargetScalerInvalid(
                f"--target-scaler {name}: no model predicts it",
                expected=", ".join(sorted(set().union(*targets))) or "a model with a regression target",
            )
    return [
        replace(request, target_scaler=tuple(entry for entry in settings.target_scaler if entry[0] in known))
        for request, known in zip(requests, targets, strict=True)
    ]


def _scratch_folder(settings: Settings) -> Path:
    if settings.clean_workdir:
        _empty(settings.work_dir)
    folder = settings.work_dir / f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4()}"
    try:
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(to_toml(settings))
    except OSError as error:
        raise OutputNotWritable(
            f"the work folder cannot be created: {error.strerror}",
            file=settings.work_dir,
            remedy="Name a writable folder with --work-dir",
        ) from None
    return folder


def _empty(work_dir: Path) -> None:
    """Remove earlier calls' scratch folders and caches, and nothing that is not ours."""
    import shutil

    for config in work_dir.glob("*/config.toml"):
        shutil.rmtree(config.parent)
    shutil.rmtree(work_dir / "cache", ignore_errors=True)


def _open_output(settings: Settings, selection: Selection, models: Sequence[Model]) -> None:
    try:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(
            f"the output folder cannot be created: {error.strerror}",
            file=settings.output_dir,
            remedy="Name another OUTPUT_DIR, or change its permissions",
        ) from None
    check_no_way_out(settings.output_dir, sorted({run.participant for run in selection.runs}))
    write_dataset_files(settings.output_dir, selection.sources, [model_record(model) for model in models])


def _tasks(
    selection: Selection,
    requests: Sequence[ModelRequest],
    models: Sequence[Model],
    settings: Settings,
    scratch: Path,
) -> tuple[list[Task], list[Outcome]]:
    """A task for every run that lacks results of any model, and an outcome for every run that lacks none."""
    tasks, skipped = [], []
    memory_mb = memory_of_run_mb(models, settings)
    labels = shared_labels(models)
    for run in selection.runs:
        keys = [run_key(run, model.hash, settings, __version__) for model in models]
        jobs = [
            Job(request, key, label)
            for request, model, key, label in zip(requests, models, keys, labels, strict=True)
            if not _is_done(run, model, key, label, settings)
        ]
        if not jobs:
            skipped.append(Outcome(run.name, "skipped"))
            continue
        arguments = (run, jobs, selection.sources, settings, scratch.name)
        tasks.append(Task(run.name, f"{run_task.__module__}:{run_task.__name__}", arguments, memory_mb))
    return tasks, skipped


def shared_labels(models: Sequence[Model]) -> list[str]:
    """The desc- label of each model's quality table: the app's own, or with several inputs that of a model."""
    first: dict[InputSpec, str] = {}
    for model in models:
        first.setdefault(model.input, model.label)
    return [APP_DESC if len(first) == 1 else first[model.input] for model in models]


def _is_done(run: BoldRun, model: Model, key: str, label: str, settings: Settings) -> bool:
    files = RunFiles.of(
        settings.output_dir, run.entities, template=model.grid.template, model_name=model.name, shared_desc=label
    )
    own = [files.embedding, *([files.predictions] if model.targets else [])]
    shared = [files.quality, *([files.bold] if settings.output_bold else [])]
    complete = outputs_complete(own, key) and all(is_whole(path) for path in shared) and figures_whole(files.figures)
    return complete and not _can_be_placed_better(run, model, files, settings)


def _can_be_placed_better(run: BoldRun, model: Model, files: RunFiles, settings: Settings) -> bool:
    """Whether a result for which a transform was missing could now have it."""
    if not read_sidecar(files.embedding).get("Route", {}).get("Approximate"):
        return False
    return _route_offline(run, model, settings) != "affine-approximate"


def settle_transforms(runs: Sequence[BoldRun], models: Sequence[Model], settings: Settings) -> Settings:
    """Fetch the template transform that some run lacks, once and here, before workers could each try.

    Returns
    -------
    Settings
        Offline from here on when it was not to be had, so that no run waits for a dead network again.
    """
    if settings.offline or settings.normalization in ("lattice", "affine"):
        return settings
    for run in runs:
        for model in models:
            if any(image.space == model.grid.template for image in run.images):
                continue  # nothing could be better; the headers of a large dataset are left alone
            if _route_offline(run, model, settings) not in ("affine-approximate", None):
                continue
            try:
                choose_route(run, model.grid, normalization="transform", interpolation=settings.interpolation)
            except TransformUnavailable as error:
                _say(settings, f"warning: {error}")
                return replace(settings, offline=True)
            except NeurostormError:
                continue  # this run has faults of its own, which are told when it is processed
    return settings


def _route_offline(run: BoldRun, model: Model, settings: Settings) -> str | None:
    """Kind of the route that needs no network; None where there is none."""
    try:
        return choose_route(run, model.grid, normalization=settings.normalization, offline=True).kind
    except NeurostormError:
        return None


def _log_settings(tasks: Sequence[Task], settings: Settings, call_id: str, command: Sequence[str]) -> None:
    """The settings of this call beside the results of every participant that it works on."""
    typed = f"{COMMAND}{json.dumps(list(command))}\n" if command else ""
    for participant in _participants(tasks):
        folder = settings.output_dir / f"sub-{participant}" / "log" / call_id
        write_text(folder / "neurostorm.toml", typed + to_toml(settings))


def _participants(tasks: Sequence[Task]) -> list[str]:
    return sorted({task.arguments[0].participant for task in tasks})


def _perform(tasks: Sequence[Task], settings: Settings, scratch: Path, *, n_skipped: int) -> list[Outcome]:
    if not tasks:
        return []
    at_once, threads = min(len(tasks), runs_at_once(settings)), threads_per_run(settings)
    done = f", {n_skipped} already done" if n_skipped else ""
    with Progress(len(tasks), quiet=settings.quiet) as progress:
        progress.say(f"{len(tasks)} runs to process{done}; {at_once} at a time with {threads} threads each")
        return execute(tasks, settings, scratch, progress.ended)


# --- reports ----------------------------------------------------------------------------------------------------


def rebuild_reports(settings: Settings) -> int:
    """``--reports-only``: write the reports of what the output folder holds; inputs and models are not touched.

    Raises
    ------
    NothingToReport
        The folder has no results of the participants that were asked for.
    """
    check_own_folder(settings.output_dir / "dataset_description.json")
    check_no_way_out(settings.output_dir)
    there = reported_participants(settings.output_dir)
    labels = [label for label in there if not settings.participant_label or label in settings.participant_label]
    if not labels:
        raise NothingToReport(
            "no results are there to report",
            file=settings.output_dir,
            expected="the output folder of an earlier call",
            remedy="run the participant level first, or name other participants",
        )
    write_bidsignore(settings.output_dir)
    faults = write_reports(labels, settings)
    for fault in faults:
        print(f"report: {fault}", file=sys.stderr)
    print(f"{len(labels)} reports: {settings.output_dir}")
    return SOME_RUNS_FAILED if faults else OK


def _to_report(runs: Sequence[BoldRun], tasks: Sequence[Task], settings: Settings) -> list[str]:
    """Participants whose report is missing, or older than a result; those of this call among them."""
    labels = {run.participant for run in runs}
    worked_on = set(_participants(tasks))
    return sorted(label for label in labels if label in worked_on or needs_report(settings.output_dir, label))


def write_reports(labels: Iterable[str], settings: Settings) -> list[str]:
    """Write the participants' reports; what could not be written or read is returned in words."""
    faults: list[str] = []
    for label in labels:
        try:
            faults += write_participant_report(settings.output_dir, label)
        except NeurostormError as error:
            faults.append(str(error))
    return faults


# --- the end ----------------------------------------------------------------------------------------------------


def conclude(
    rejected: Sequence[NeurostormError],
    outcomes: Sequence[Outcome],
    settings: Settings,
    seconds: float,
    faults: Sequence[str] = (),
) -> int:
    """Print the summary, failures last and by name, and return the exit code."""
    failed = any(outcome.status == "failed" for outcome in outcomes) or bool(rejected)
    stream = sys.stderr if failed or faults else sys.stdout
    print(summary(outcomes, rejected, settings.output_dir, seconds, faults), file=stream, flush=True)
    if failed and all(outcome.status == "failed" for outcome in outcomes):
        return NO_USABLE_RUN
    return SOME_RUNS_FAILED if failed or faults else OK


def _say(settings: Settings, line: str) -> None:
    if not settings.quiet:
        print(line, file=sys.stderr, flush=True)
