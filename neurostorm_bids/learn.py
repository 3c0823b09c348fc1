"""Group level: pretraining and fine-tuning on the runs that the participant level reads."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from neurostorm_bids import __version__
from neurostorm_bids.environment import threads_per_run
from neurostorm_bids.errors import (
    OK,
    SOME_RUNS_FAILED,
    ModelFolderExists,
    NeurostormError,
    ResumeImpossible,
    UsageError,
)
from neurostorm_bids.evaluation.packs import calibrated, calibration_record, distribution_of
from neurostorm_bids.inputs import Selection, find_runs
from neurostorm_bids.inputs.participants import read_participants
from neurostorm_bids.inputs.tables import read_columns
from neurostorm_bids.model.config import EncoderConfig, InputSpec, Target
from neurostorm_bids.model.description import INPUT_FIELDS, Backbone, ModelDescription, model_label, read_json
from neurostorm_bids.model.encoder import Encoder
from neurostorm_bids.model.folder import pack_weights_of, weights_of, write_model_folder
from neurostorm_bids.model.inference import self_test_of
from neurostorm_bids.model.masks import Masking
from neurostorm_bids.model.registry import find_model
from neurostorm_bids.model.strd import RedundancyDropout
from neurostorm_bids.model.weights import load_model
from neurostorm_bids.outputs import write_dataset_files
from neurostorm_bids.outputs.atomic import write_json, write_text
from neurostorm_bids.outputs.tables import Column, describe_columns, tsv_text
from neurostorm_bids.replacing import replacing
from neurostorm_bids.settings import Settings
from neurostorm_bids.stored import Stored, check_storable, store_runs
from neurostorm_bids.training.atlas import patch_regions
from neurostorm_bids.training.augment import Augmentation
from neurostorm_bids.training.clip_store import store_key
from neurostorm_bids.training.course import Outcome, Place
from neurostorm_bids.training.data import RunRecord
from neurostorm_bids.training.finetune import Tuned, Tuning, tune, unit_of
from neurostorm_bids.training.presets import LEARNING_RATES, NO_PRESET, PATIENCE, PRESETS, Preset
from neurostorm_bids.training.pretrain import Pretraining, held_out_people, pretrain
from neurostorm_bids.training.processes import process_rank
from neurostorm_bids.training.schedule import Course
from neurostorm_bids.training.scores import ClipOutput, Judged, chance, figures, judged, retrieval_figures
from neurostorm_bids.training.splits import COLUMNS, Split, make_splits, read_splits, splits_rows, splits_text
from neurostorm_bids.training.targets import Labels, read_labels

PRETRAIN_EPOCHS, PRETRAIN_BATCH, PRETRAIN_RATE = 30, 8, 1e-3
# what may differ between a training and its resumption
FREE = {"resume", "quiet", "verbose", "debug", "workers", "nprocs", "omp_nthreads", "mem_mb", "checkpoint_every"}


TESTED = "tested.pt"


# --- pretraining ------------------------------------------------------------------------------------------------


def run_pretrain(settings: Settings) -> int:
    """Pretrain an encoder and write it as a model folder; returns the exit code."""
    torch.set_num_threads(threads_per_run(settings))
    check_storable(settings)
    base = _Base.load(settings)
    name = settings.name or f"{base.name}-{settings.objective}"
    folder = settings.output_dir / "models" / name
    if _is_made(folder, settings):
        return OK
    selections = _selections(settings)
    stored = [store_runs(found.runs, label, base.spec, settings) for label, found in selections.items()]
    runs = [record for part in stored for record in part.records.values()]
    held_out = held_out_people(runs, settings.validation_share, settings.random_seed)
    _open_output(settings, list(selections.values()), stored)
    course = _course(settings, PRETRAIN_EPOCHS, PRETRAIN_BATCH, PRETRAIN_RATE)
    place = _place(settings, name, [key for part in stored for key in part.keys.values()], base.hash)
    encoder, outcome = pretrain(_pretraining(base, settings), runs, held_out, course, place)
    if outcome.is_first_process:
        record = _record(settings, runs, outcome, course) | {
            "base": {"name": base.name, "hash": base.hash, "weights_used": base.start is not None},
            "validation_participants": [list(person) for person in held_out],
        }
        _write_pretrained(folder, name, base, encoder, record, settings)
        _finish(place, settings, f"{folder}: {_told(outcome)}")
    return _code([selection.rejected for selection in selections.values()], stored)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Base:
    """The model that training begins from: its architecture and input, and its weights if they are used."""

    name: str
    hash: str
    config: EncoderConfig
    spec: InputSpec
    start: Mapping[str, torch.Tensor] | None
    backbone: Backbone | None
    pretrained_on: frozenset[str]  # contents of runs, and "dataset/participant"

    @classmethod
    def load(cls, settings: Settings) -> _Base:
        """The one model that ``--model`` names; without it the published architecture, fresh."""
        if len(settings.model) > 1 or settings.packs:
            raise UsageError("training begins from one model", remedy="State one --model, and no --packs")
        if not settings.model:
            if settings.group_workflow == "finetune":
                raise UsageError("fine-tuning without a backbone", remedy="State --model NAME or PATH")
            spec = replace(InputSpec(), provenance=dict.fromkeys(INPUT_FIELDS, "stated"))
            return cls(
                name="neurostorm",
                hash="fresh",
                config=EncoderConfig(),
                spec=spec,
                start=None,
                backbone=None,
                pretrained_on=frozenset(),
            )
        model = load_model(settings.model[0], device="cpu", backend=settings.scan_backend, offline=settings.offline)
        if model.config.prompt_len:
            raise UsageError("this model has prompts of its own", file=settings.model[0], expected="a backbone")
        kept = model.trained and not settings.from_scratch
        return cls(
            name=model.name,
            hash=model.hash,
            config=model.config,
            spec=model.input,
            start=model.encoder.state_dict() if kept or settings.group_workflow == "finetune" else None,
            backbone=model.backbone,
            pretrained_on=_pretrained_on(settings.model[0]),
        )


def _pretrained_on(source: str) -> frozenset[str]:
    path = find_model(source, offline=True).path / "training.json"
    if not path.is_file():
        return frozenset()
    runs = read_json(path).get("runs", [])
    return frozenset(run.get("content", "") for run in runs) - {""}


def _selections(settings: Settings) -> dict[str, Selection]:
    """Runs by dataset: those of BIDS_DIR, and of each of ``--datasets``, whose pipelines are told by their folders."""
    found = {settings.bids_dir.name: find_runs(settings)}
    for name, path in settings.datasets:
        if name in found:
            raise UsageError(f"--datasets {name} has the name of BIDS_DIR", remedy="Give it another NAME")
        found[name] = find_runs(replace(settings, bids_dir=path, derivatives=(), input_type="auto"))
    for selection in found.values():
        for warning in selection.warnings:
            _say(settings, f"warning: {warning}")
    return found


def _pretraining(base: _Base, settings: Settings) -> Pretraining:
    atlas = patch_regions(settings.atlas, base.spec.grid, base.config.patch_size) if settings.atlas else None
    if settings.dataset_sampling == "loss" and settings.objective != "mae":
        raise UsageError("--dataset-sampling loss needs --objective mae", remedy="Leave out one of the two")
    if not 0 < settings.mask_ratio < 1:
        raise UsageError(f"--mask-ratio {settings.mask_ratio}", expected="a share between 0 and 1")
    return Pretraining(
        config=base.config,
        objective=settings.objective,
        masking=Masking(settings.spatial_mask, settings.temporal_mask, settings.mask_ratio),
        strd=RedundancyDropout(exclude_padding=settings.strd_exclude_padding) if settings.strd else None,
        atlas=atlas,
        start=base.start,
        augment=None if settings.no_augmentation else Augmentation(),
        sampling=settings.dataset_sampling,
        backend=settings.scan_backend,
    )


def _write_pretrained(
    folder: Path, name: str, base: _Base, encoder: Encoder, record: Mapping[str, Any], settings: Settings
) -> None:
    people = record["n_participants"]
    description = ModelDescription(
        name=name,
        config=base.config,
        input=replace(base.spec, provenance=dict.fromkeys(INPUT_FIELDS, "stated")),
        summary=f"Pretrained ({settings.objective}) on {record['n_runs']} runs of {people} participants.",
        source="neurostorm group --group-workflow pretrain",
    )
    write_model_folder(
        folder, description, weights_of(encoder, {}), self_test=self_test_of(encoder), training=_plain(record)
    )


# --- fine-tuning ------------------------------------------------------------------------------------------------


def run_finetune(settings: Settings) -> int:
    """Tune a backbone for each target, test it and write it; returns the exit code."""
    torch.set_num_threads(threads_per_run(settings))
    check_storable(settings)
    preset = PRESETS[settings.preset] if settings.preset else NO_PRESET
    targets = settings.target or ((preset.target,) if preset.target else ())
    if not targets:
        raise UsageError(
            f"--preset {settings.preset} needs a --target", expected="phenotype/FILE.tsv:COLUMN or a column"
        )
    if settings.name and len(targets) > 1:
        raise UsageError("--name names one model, and there are several targets", remedy="Leave it out")
    base = _Base.load(settings)
    selection = _selections(replace(settings, datasets=()))[settings.bids_dir.name]
    stored = store_runs(selection.runs, settings.bids_dir.name, base.spec, settings)
    _open_output(settings, [selection], [stored])
    embeddings: dict[tuple[str, int], np.ndarray] = {}
    for target in targets:
        job = _Finetuning.of(target, preset, base, selection, stored, settings)
        replace(job, embeddings=embeddings).run()
    return _code([selection.rejected], [stored])


@dataclass(frozen=True, eq=False)
class _Tested:
    """What a fold said of its test participants; kept until the figures of all folds are written."""

    target: Target
    test: tuple[ClipOutput, ...]

    def keep(self, place: Place) -> None:
        """Write it among the outputs, before the model is put in its place: a work folder may be removed."""
        clips = [
            (clip.participant, clip.run, clip.first_frame, clip.truth, torch.as_tensor(clip.outputs))
            for clip in self.test
        ]
        content = {"identity": place.identity, "target": asdict(self.target), "clips": clips}
        with replacing(place.logs / TESTED) as handle:
            torch.save(content, handle)

    @classmethod
    def kept(cls, place: Place) -> _Tested | None:
        """What an earlier call of the same training kept; None where its figures were written, or it is gone.

        Raises
        ------
        ResumeImpossible
            It is damaged.
        """
        path = place.logs / TESTED
        if not path.is_file():
            return None
        try:
            content = torch.load(path, weights_only=True)  # data alone: nothing in it runs
        except (OSError, RuntimeError, EOFError, LookupError, UnpicklingError) as error:
            raise ResumeImpossible(
                f"what the fold said of its test participants cannot be read ({error})",
                file=path,
                remedy="Remove the model of that fold, and the same command trains it again",
            ) from error
        if content["identity"] != place.identity:
            return None
        clips = tuple(
            ClipOutput(participant, run, first_frame, truth, outputs.numpy())
            for participant, run, first_frame, truth, outputs in content["clips"]
        )
        return cls(Target(**content["target"]), clips)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Finetuning:
    """One target over one backbone."""

    settings: Settings
    base: _Base
    stored: Stored
    labels: Labels
    splits: tuple[Split, ...]
    course: Course
    method: str
    name: str
    embeddings: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # shared by targets and folds

    @classmethod
    def of(
        cls, target: str, preset: Preset, base: _Base, selection: Selection, stored: Stored, settings: Settings
    ) -> _Finetuning:
        """Read labels, make splits and say how training goes."""
        roots = [source.root for source in selection.sources] + ([selection.raw] if selection.raw else [])
        kind = settings.target_kind or preset.kind
        labels = _usable(read_labels(target, selection.runs, roots, kind=kind), stored)
        for warning in labels.warnings:
            _say(settings, f"warning: {warning}")
        method = settings.method or "prompt"
        patience = settings.patience or PATIENCE
        course = _course(replace(settings, patience=patience), preset.epochs, preset.batch_size, LEARNING_RATES[method])
        return cls(
            settings=settings,
            base=base,
            stored=stored,
            labels=labels,
            splits=_splits(labels, roots, settings),
            course=course,
            method=method,
            name=settings.name or f"{base.name}-{labels.target.name}",
        )

    def run(self) -> None:
        """Train and test every fold that was asked for, then write the figures."""
        table = self.settings.output_dir / "evaluation" / self.name
        told = self._is_told(table)
        if not told and process_rank() == 0:
            _write_splits(table, self.splits)
        done = [] if told else [self._fold(split) for split in self._chosen()]
        if done and process_rank() == 0:
            _write_figures(table, self, done)
        if process_rank() == 0:
            for place in map(self.place, self._chosen()):  # only now: a resumption in between needs what was tested
                shutil.rmtree(place.state, ignore_errors=True)
                (place.logs / TESTED).unlink(missing_ok=True)

    def _is_told(self, table: Path) -> bool:
        """Whether an earlier call did all this, figures included.

        Raises
        ------
        ResumeImpossible
            A fold is there whose predictions are gone: the figures would be those of the other folds alone.
        """
        chosen = self._chosen()
        made = [split for split in chosen if _is_made(self._folder(split), self.settings)]
        gone = [split for split in made if _Tested.kept(self.place(split)) is None]
        if not gone:
            return False
        metrics = table / "metrics.tsv"
        if len(made) == len(chosen) and {split.name for split in chosen} <= _folds_in(metrics):
            return True
        raise ResumeImpossible(
            f"is there, but not what it said of its test participants: {metrics} would leave them out",
            file=", ".join(str(self._folder(split)) for split in gone),
            expected="what an interrupted training of the same folds left",
            remedy="Remove it, and the same command trains it again; or state another --name",
        )

    def _folder(self, split: Split) -> Path:
        return self.settings.output_dir / "models" / self.model_name(split)

    def _chosen(self) -> list[Split]:
        names = [split.name for split in self.splits]
        wanted = names if "all" in self.settings.fold else list(self.settings.fold)
        if self.settings.leave_out and self.settings.fold == ("1",):
            wanted = names
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise UsageError(f"there is no fold {', '.join(unknown)}", expected=f"--fold all, or of {', '.join(names)}")
        return [split for split in self.splits if split.name in wanted]

    def model_name(self, split: Split) -> str:
        """What the model of a fold is called."""
        return f"{self.name}-fold{split.name}" if len(self._chosen()) > 1 else self.name

    def place(self, split: Split) -> Place:
        """Where the training of a fold has its state."""
        keys = [*self.stored.keys.values(), *splits_text([split]).splitlines(), self.labels.target.name]
        return _place(self.settings, self.model_name(split), keys, self.base.hash)

    def _fold(self, split: Split) -> tuple[Split, _Tested]:
        name, folder, place = self.model_name(split), self._folder(split), self.place(split)
        if self.settings.resume and folder.exists() and (known := _Tested.kept(place)):
            return split, known
        self._warn_of_overlap(split)
        assert self.base.start is not None, "fine-tuning takes the weights of its model"
        plan = Tuning(
            method=self.method,  # type: ignore[arg-type]
            config=self.base.config,
            backbone=self.base.start,
            prompt_length=self.settings.prompt_length,
            augment=None if self.settings.no_augmentation else Augmentation(),
            backend=self.settings.scan_backend,
            embeddings=self.embeddings,
        )
        tuned = tune(plan, self.stored.records, self.labels, split, self.course, place)
        tuned = calibrated(tuned, unit_of(self.labels))
        tested = _Tested(tuned.target, tuned.test)
        if tuned.outcome.is_first_process:
            tested.keep(place)
            _write_tuned(folder, name, self, split, tuned)
            scores = ", ".join(f"{key} {value:.3g}" for key, value in self.figures(tested).items())
            if not self.settings.quiet:
                print(f"{folder}: {_told(tuned.outcome)}; test ({len(split.test)}): {scores}", flush=True)
        return split, tested

    def _warn_of_overlap(self, split: Split) -> None:
        if seen := self.overlap(split):
            _say(
                self.settings,
                f"warning: {len(seen)} test participants were in the pretraining of {self.base.name} "
                f"({', '.join(seen[:5])}{', ...' if len(seen) > 5 else ''}): figures may be too good",
            )

    def overlap(self, split: Split) -> list[str]:
        """Test participants whose images were in the pretraining of the base."""
        tested = [run for run in self.stored.records.values() if run.participant in split.test]
        return sorted({run.participant for run in tested if run.content in self.base.pretrained_on})

    def units(self, tuned: Tuned | _Tested) -> list[Judged]:
        """Predictions for what is judged."""
        return judged(tuned.target, tuned.test, unit_of(self.labels))

    def figures(self, tuned: Tuned | _Tested) -> dict[str, float]:
        """Figures on the test participants of a fold."""
        units = self.units(tuned)
        if tuned.target.kind == "retrieval":
            return retrieval_figures(units, seed=self.settings.random_seed)
        return figures(tuned.target, units)


def _usable(labels: Labels, stored: Stored) -> Labels:
    """Labels of runs that are in the store."""
    return replace(labels, labels=tuple(label for label in labels.labels if label.run in stored.records))


def _splits(labels: Labels, roots: Sequence[Path], settings: Settings) -> tuple[Split, ...]:
    groups = _column(roots, settings.group_by, "--group-by") if settings.group_by else None
    if settings.splits is not None:
        return read_splits(settings.splits, labels.participants, groups)
    return make_splits(
        labels.participants,
        folds=settings.folds,
        validation_share=settings.validation_share,
        strata=labels.strata(),
        groups=groups,
        leave_out=_column(roots, settings.leave_out, "--leave-out") if settings.leave_out else None,
        seed=settings.random_seed,
    )


def _column(roots: Sequence[Path], name: str, option: str) -> dict[str, str]:
    path = next((root / "participants.tsv" for root in roots if (root / "participants.tsv").is_file()), None)
    table = read_participants(path or roots[0] / "participants.tsv")
    if name not in table:
        raise UsageError(
            f"{option} {name}: there is no such column",
            file=path,
            expected=f"one of {', '.join(map(str, table))}",
            remedy=f"Check {option}",
        )
    return {str(label): value if value != value else str(value) for label, value in table[name].items()}


def _write_tuned(folder: Path, name: str, job: _Finetuning, split: Split, tuned: Tuned) -> None:
    heads = {tuned.target.name: tuned.head}
    pack = job.method != "full"
    trained_on = [run for run in job.stored.records.values() if run.participant in split.train]
    record = _record(job.settings, trained_on, tuned.outcome, job.course) | {
        "base": {"name": job.base.name, "hash": job.base.hash},
        "method": job.method,
        "trainable_weights": tuned.n_trained,
        "trainable_share": tuned.n_trained / tuned.n_weights,
        "split": {"fold": split.name, **{role: list(getattr(split, role)) for role in ("train", "validation", "test")}},
        "test": job.figures(tuned),
        "calibration": calibration_record(tuned, unit_of(job.labels)),
        "pretraining_overlap": job.overlap(split),
    }
    description = ModelDescription(
        name=name,
        config=tuned.encoder.config,
        input=job.base.spec,
        targets=(tuned.target,),
        backbone=job.base.backbone if pack else None,
        training_distribution=distribution_of(tuned),
        summary=f"{tuned.target.name}, {job.method} tuning of {job.base.name} on {len(split.train)} participants.",
        source="neurostorm group --group-workflow finetune",
    )
    weights = pack_weights_of(tuned.encoder, heads) if pack else weights_of(tuned.encoder, heads)
    write_model_folder(folder, description, weights, self_test=self_test_of(tuned.encoder), training=_plain(record))


# --- figures ----------------------------------------------------------------------------------------------------


def _write_splits(table: Path, splits: Sequence[Split]) -> None:
    """Who is trained on and who is tested, on paper before training begins."""
    rows = splits_rows(splits)
    columns = [Column(name, [row[place] for row in rows], COLUMNS[name]) for place, name in enumerate(COLUMNS)]
    write_text(table / "splits.tsv", tsv_text(columns))
    write_json(table / "splits.json", describe_columns(columns))


def _folds_in(metrics: Path) -> set[str]:
    """The folds that a table of figures tells of."""
    if not metrics.is_file():
        return set()
    return set(read_columns(metrics, ResumeImpossible, "Remove it").get("fold", ()))


def _write_figures(table: Path, job: _Finetuning, done: Sequence[tuple[Split, _Tested]]) -> None:
    rows: list[tuple[str, str, float, float | None, int]] = []
    for split, tuned in done:
        units = job.units(tuned)
        guessed = chance(tuned.target, units)
        rows += [(split.name, key, value, guessed.get(key), len(units)) for key, value in job.figures(tuned).items()]
    units = [unit for _, tuned in done for unit in job.units(tuned)]
    target = done[0][1].target
    if len(done) > 1 and target.kind != "retrieval":
        rows += [
            ("all", key, value, chance(target, units).get(key), len(units))
            for key, value in figures(target, units).items()
        ]
    texts = {
        "fold": "Fold; all: predictions of all folds together",
        "figure": "What was measured on test participants",
        "value": "Value",
        "chance": "What guessing reaches",
        "n": "Predictions that were judged",
    }
    columns = [Column(name, [row[place] for row in rows], text) for place, (name, text) in enumerate(texts.items())]
    write_text(table / "metrics.tsv", tsv_text(columns))
    write_json(table / "metrics.json", describe_columns(columns))
    if target.kind != "retrieval":
        columns = _prediction_columns(job, done)
        write_text(table / "predictions.tsv", tsv_text(columns))
        write_json(table / "predictions.json", describe_columns(columns))


def _prediction_columns(job: _Finetuning, done: Sequence[tuple[Split, _Tested]]) -> list[Column]:
    found = [(split.name, unit) for split, tuned in done for unit in job.units(tuned)]
    target = done[0][1].target
    columns = [
        Column("participant_id", [f"sub-{unit.participant}" for _, unit in found], "Test participant"),
        Column("run", [unit.run for _, unit in found], "Run, where runs or clips are judged"),
        Column("fold", [fold for fold, _ in found], "Fold in which the participant was tested"),
        Column("truth", [unit.truth for _, unit in found], f"What is known of {target.name}", target.unit),
        Column("n_clips", [unit.n_clips for _, unit in found], "Clips that were pooled"),
    ]
    rows = [unit.prediction.rows[0] for _, unit in found]
    if target.kind == "regression":
        return [*columns, Column("predicted", [float(row) for row in rows], "Prediction", target.unit)]
    chosen = [unit.prediction.classes()[0] for _, unit in found]
    columns.append(Column("predicted", chosen, "Likeliest class"))
    return columns + [
        Column(f"probability_{name}", [float(row[place]) for row in rows], f"Probability of {name}")
        for place, name in enumerate(target.classes)
    ]


# --- what both share --------------------------------------------------------------------------------------------


def _course(settings: Settings, epochs: int, batch_size: int, learning_rate: float) -> Course:
    return Course(
        epochs=settings.epochs or epochs,
        batch_size=settings.batch_size or batch_size,
        learning_rate=settings.learning_rate or learning_rate,
        seed=settings.random_seed,
        accumulate=settings.accumulate,
        weight_decay=settings.weight_decay,
        warmup=settings.warmup,
        gradient_clip=settings.gradient_clip,
        patience=settings.patience,
        precision=settings.precision,
        device=settings.device,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        workers=settings.workers,
        checkpoint_every=settings.checkpoint_every,
        checkpoint_blocks=settings.gradient_checkpointing,
        quiet=settings.quiet,
    )


def _is_made(folder: Path, settings: Settings) -> bool:
    """Whether a resumed training had ended already; one that begins must not find its place taken."""
    model_label(folder.name)
    if not folder.exists() or (process_rank() != 0 and not settings.resume):
        return False
    if not settings.resume:
        raise ModelFolderExists("exists already", file=folder, remedy="State another --name, or remove it")
    _say(settings, f"{folder}: is there already")
    return True


def _place(settings: Settings, name: str, keys: Sequence[str], base: str) -> Place:
    """Where the state and the logs of a training lie; a training that begins anew finds nothing there."""
    values = {key: value for key, value in asdict(settings).items() if key not in FREE}
    identity = store_key({"version": __version__, "base": base, "keys": list(keys), "settings": values})
    state = settings.work_dir / "training" / name
    if not settings.resume and process_rank() == 0:
        shutil.rmtree(state, ignore_errors=True)
    logs = settings.output_dir / "logs" / "training" / name
    return Place(state=state, logs=logs, identity=identity, resume=settings.resume)


def _finish(place: Place, settings: Settings, line: str) -> None:
    shutil.rmtree(place.state, ignore_errors=True)
    if not settings.quiet:
        print(line, flush=True)


def _told(outcome: Outcome) -> str:
    loss = "" if outcome.validation_loss is None else f", validation loss {outcome.validation_loss:.4g}"
    return f"best epoch {outcome.best_epoch} of {outcome.n_epochs}{loss}, {outcome.seconds:.0f} s"


def _open_output(settings: Settings, selections: Sequence[Selection], stored: Sequence[Stored]) -> None:
    if process_rank() == 0:
        write_dataset_files(settings.output_dir, [source for found in selections for source in found.sources], [])
    rejected = [error for found in selections for error in found.rejected]
    for error in [*rejected, *(error for part in stored for error in part.rejected)]:
        _say(settings, f"rejected: {error}")


def _code(rejected: Sequence[Sequence[NeurostormError]], stored: Sequence[Stored]) -> int:
    return SOME_RUNS_FAILED if any(rejected) or any(part.rejected for part in stored) else OK


def _record(settings: Settings, runs: Sequence[RunRecord], outcome: Outcome, course: Course) -> dict[str, Any]:
    """``training.json``: data, how it went, and with what."""
    return {
        "n_participants": len({run.person for run in runs}),
        "n_runs": len(runs),
        "runs": [
            {"dataset": run.dataset, "participant": run.participant, "run": run.name, "content": run.content}
            for run in runs
        ],
        "settings": {key: value for key, value in asdict(settings).items() if key not in _PLACES},
        "course": asdict(course),
        "outcome": {key: value for key, value in asdict(outcome).items() if key != "is_first_process"},
        "versions": {"neurostorm": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


_PLACES = ("bids_dir", "output_dir", "work_dir", "bids_database_dir")


def _plain(value: Any) -> Any:
    """JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _say(settings: Settings, line: str) -> None:
    if not settings.quiet and process_rank() == 0:
        print(line, file=sys.stderr, flush=True)
