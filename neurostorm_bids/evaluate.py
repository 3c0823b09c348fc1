"""Group level, ``--group-workflow evaluate``: what embeddings tell of a target, beside simpler things."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurostorm_bids.cached import CachedRun, read_cached
from neurostorm_bids.errors import OK, SOME_RUNS_FAILED, NeurostormError, SplitsOverlap, UsageError
from neurostorm_bids.evaluate_leakage import confessed, find_leakage, overlap_unknown
from neurostorm_bids.evaluate_tuned import not_repeated, tested_folds, tuned_folder, tuned_outcome
from neurostorm_bids.evaluation import baselines, leakage
from neurostorm_bids.evaluation.calibration import Calibration, calibrate
from neurostorm_bids.evaluation.confounds import associations
from neurostorm_bids.evaluation.intervals import N_REFITS, resamples
from neurostorm_bids.evaluation.learning import Features, Outcome, cross_validate
from neurostorm_bids.evaluation.logistic import nested_logistic
from neurostorm_bids.evaluation.permutation import permutations
from neurostorm_bids.evaluation.problem import Fold, Problem, plan_folds
from neurostorm_bids.evaluation.statements import on_age_bias, on_confounds, statements
from neurostorm_bids.evaluation.summary import Summary, summarise
from neurostorm_bids.evaluation_rows import Row, mean_of_rows, rows_of
from neurostorm_bids.evaluation_tables import write_evaluation
from neurostorm_bids.inputs import find_runs
from neurostorm_bids.inputs.participants import read_participants
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.outputs import desc_label
from neurostorm_bids.participant import requested_models
from neurostorm_bids.process import vectors_of
from neurostorm_bids.settings import Settings
from neurostorm_bids.training.splits import Split, read_splits
from neurostorm_bids.training.targets import Labels, read_labels

SITE_COLUMNS = ("site", "site_id", "scanner", "acquisition_site", "center", "centre")
SEX = frozenset({"sex", "gender"})
DEMOGRAPHICS = SEX | {"age"}


@dataclass(frozen=True, eq=False)
class Material:
    """What an evaluation of any target reads.

    ``cached`` holds embeddings by model label and run name; ``runs`` those that every model has; ``participants`` the
    table of the dataset, empty where there is none.
    """

    runs: tuple[BoldRun, ...]
    cached: Mapping[str, Mapping[str, CachedRun]]
    participants: pd.DataFrame
    roots: tuple[Path, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Labels of the models."""
        return tuple(self.cached)

    def column(self, name: str | None) -> dict[str, Any]:
        """A column of participants.tsv, by participant, without missing values.

        Raises
        ------
        UsageError
            There is no such column.
        """
        if name is None:
            return {}
        if name not in self.participants:
            raise UsageError(
                f"participants.tsv has no column {name!r}",
                expected=", ".join(map(str, self.participants.columns)) or "a participants.tsv",
            )
        return {str(label): value for label, value in self.participants[name].dropna().items()}

    def first_column(self, names: Sequence[str]) -> str | None:
        """The first of some names that the table has, in whatever case."""
        by_lower = {str(name).lower(): str(name) for name in self.participants}
        return next((by_lower[name] for name in names if name in by_lower), None)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that is known of one target at the end."""

    problem: Problem
    rows: tuple[Row, ...]
    folds: tuple[Fold, ...]
    models: tuple[str, ...]
    outcomes: Mapping[str, Outcome]
    summary: Summary
    calibrations: Mapping[str, Calibration]
    confounds: Mapping[str, Mapping[str, Mapping[str, Any]]]
    sites: Mapping[str, str]
    findings: tuple[leakage.Finding, ...]
    statements: tuple[str, ...]
    warnings: tuple[str, ...]


def run_evaluate(settings: Settings) -> int:
    """Evaluate every model's cached embeddings for every target; returns the exit code."""
    if not settings.target:
        raise UsageError(
            "an evaluation without a target",
            expected="--target COLUMN, phenotype/FILE.tsv:COLUMN, entity:task, events:trial_type or identity",
            remedy="Name one or several",
        )
    material, broken = gather(settings)
    for error in broken:
        print(f"rejected: {error}", file=sys.stderr)
    for target in settings.target:
        if target == "identity":
            from neurostorm_bids.evaluate_identity import evaluate_identity

            folder = evaluate_identity(material, settings)
        else:
            found = evaluate_target(target, material, settings)
            folder = settings.output_dir / "evaluation" / desc_label(found.problem.name)
            write_evaluation(folder, found, material, settings)
            print("\n".join(found.statements))
        print(f"{target}: {folder}")
    return SOME_RUNS_FAILED if broken else OK


def gather(settings: Settings) -> tuple[Material, list[NeurostormError]]:
    """Runs of the input, their cached embeddings and the participants' table.

    Raises
    ------
    NothingToEvaluate
        No run has an embedding of every model.
    """
    selection = find_runs(settings, settings.work_dir)
    labels = [desc_label(name) for name in _model_names(settings)]
    cached, broken = read_cached(settings.output_dir, selection.runs, labels)
    common = set.intersection(*(set(of_model) for of_model in cached.values()))
    runs = tuple(run for run in selection.runs if run.name in common)
    roots = tuple(dict.fromkeys([*(source.root for source in selection.sources), selection.raw, settings.bids_dir]))
    known_roots = tuple(root for root in roots if root is not None)
    return Material(runs, cached, _participants(known_roots), known_roots), broken


def _model_names(settings: Settings) -> list[str]:
    """The names under which results of ``--model`` lie: embeddings, and vectors of the retrieval heads of packs."""
    if not settings.model:
        return []
    models = [request.load() for request in requested_models(settings)]
    vectors = [vectors_of(m.name, target.name) for m in models for target in m.targets if target.kind == "retrieval"]
    return [*(model.name for model in models), *vectors]


def _participants(roots: Sequence[Path]) -> pd.DataFrame:
    for root in roots:
        if (root / "participants.tsv").is_file():
            return read_participants(root)
    return pd.DataFrame()


# --- one target -------------------------------------------------------------------------------------------------


def evaluate_target(target: str, material: Material, settings: Settings) -> Evaluation:
    """Cross-validate every model and every comparison on the same folds.

    Raises
    ------
    TargetUnusable, EvaluationImpossible, SplitImpossible
    LeakageFound
        Unless ``--allow-leakage``.
    """
    labels = read_labels(target, material.runs, material.roots, kind=settings.target_kind or "auto")
    problem, rows = _problem(labels, material, settings)
    folds = _folds(problem, material, settings)
    findings = tuple(find_leakage(problem, rows, folds, material, settings))
    leakage.require_none(findings, allowed=settings.allow_leakage)
    nuisance = nuisance_table(rows, material)
    features, warnings = _features(problem, rows, nuisance, material, settings)
    orders = permutations(problem, settings.n_permutations, settings.random_seed)
    weights = resamples(problem, settings.n_bootstrap, settings.random_seed)
    outcomes = _learn(problem, features, folds, orders, weights[:N_REFITS], settings)
    models = material.models
    if settings.tuned:
        tuned = tuned_outcome(problem, rows, folds, weights[:N_REFITS], settings)
        outcomes, models = {settings.tuned: tuned, **outcomes}, (settings.tuned, *models)
    summary = summarise(problem, outcomes, models, weights)
    calibrations = {name: calibrate(problem, each, folds) for name, each in outcomes.items() if each.inner}
    fixed = (settings.tuned,) if settings.tuned else ()
    descriptions = {name: outcome.features.description for name, outcome in outcomes.items()}
    associated = {name: associations(problem, outcomes[name], nuisance) for name in models}
    said = [
        *confessed(findings),
        *statements(problem, summary, models, fixed, descriptions),
        *(line for name in models for line in on_confounds(name, associated[name])),
        *_on_age(problem, {name: calibrations[name] for name in models if name in calibrations}),
        *map(not_repeated, fixed),
    ]
    return Evaluation(
        problem=problem,
        rows=rows,
        folds=folds,
        models=models,
        outcomes=outcomes,
        summary=summary,
        calibrations=calibrations,
        confounds=associated,
        sites={label: str(value) for label, value in material.column(_site_column(material, settings)).items()},
        findings=findings,
        statements=tuple(said),
        warnings=(*labels.warnings, *overlap_unknown(material, settings), *warnings),
    )


def _on_age(problem: Problem, calibrations: Mapping[str, Calibration]) -> list[str]:
    if problem.kind != "regression" or "age" not in re.split(r"[^a-z]+", problem.name.lower()):
        return []
    return [on_age_bias(name, each.figures, problem.unit) for name, each in calibrations.items()]


def _problem(labels: Labels, material: Material, settings: Settings) -> tuple[Problem, tuple[Row, ...]]:
    rows = rows_of(labels, material.runs, next(iter(material.cached.values())))
    target, family = labels.target, material.column(settings.group_by)
    site = material.column(settings.leave_out)
    participants = tuple(row.participant for row in rows)
    # a prefix keeps a participant's own label from being taken for a family's name
    families = tuple(f"family {family[p]}" if p in family else f"alone {p}" for p in participants)
    values = [labels.index(row.value) if target.classes else float(row.value) for row in rows]
    problem = Problem(
        name=target.name,
        kind="classification" if target.classes else "regression",
        participants=participants,
        values=np.array(values, int if target.classes else float),
        families=families,
        sites=tuple(str(site.get(participant, "")) for participant in participants),
        classes=target.classes,
        unit=target.unit,
        rows=tuple(row.name for row in rows),
    )
    return problem, rows


def _folds(problem: Problem, material: Material, settings: Settings) -> tuple[Fold, ...]:
    splits: Sequence[Split] | None = None
    tuned = tuned_folder(settings)
    stated = tuned / "splits.tsv" if tuned is not None else settings.splits
    if stated is not None:
        splits = _stated_splits(stated, problem, settings)
    if splits is not None and tuned is not None:
        splits = [split for split in splits if split.name in tested_folds(tuned)]
    return plan_folds(
        problem,
        folds=settings.folds,
        repeats=settings.repeats,
        leave_out={label: str(value) for label, value in material.column(settings.leave_out).items()} or None,
        splits=splits,
        seed=settings.random_seed,
    )


def _stated_splits(path: Path, problem: Problem, settings: Settings) -> Sequence[Split]:
    try:
        return read_splits(path, problem.labels, _stated_families(problem))
    except SplitsOverlap:
        if not settings.allow_leakage:
            raise
        return leakage.splits_as_they_are(path, problem.labels)


def _stated_families(problem: Problem) -> dict[str, str]:
    return dict(zip(problem.participants, problem.families, strict=True))


def _learn(
    problem: Problem,
    features: Sequence[Features],
    folds: Sequence[Fold],
    orders: np.ndarray,
    weights: np.ndarray,
    settings: Settings,
) -> dict[str, Outcome]:
    logistic = settings.classifier == "logistic" and problem.kind == "classification"
    progress = progress_of(len(features) * len(folds), settings)
    outcomes = {}
    for each in features:
        learner = nested_logistic if logistic and each.name != "chance" else None
        mine = orders[:, :0] if each.name == "chance" else orders
        outcomes[each.name] = cross_validate(
            problem, each, folds, mine, learner=learner, weights=weights, progress=progress
        )
    return outcomes


def progress_of(total: int, settings: Settings) -> Callable[[str], None]:
    """A line a fold, with what is left."""
    started, done = time.monotonic(), 0

    def tell(text: str) -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - started) / done * (total - done)
        if not settings.quiet:
            print(f"[{done}/{total}] {text}; about {left:.0f} s left", file=sys.stderr, flush=True)

    return tell


# --- what is compared -------------------------------------------------------------------------------------------


def _features(
    problem: Problem, rows: Sequence[Row], nuisance: pd.DataFrame, material: Material, settings: Settings
) -> tuple[list[Features], list[str]]:
    """The models first, then every comparison that can be made, and a line for each that cannot."""
    found = [
        Features.fixed(label, f"Embedding of {label}", mean_of_rows(rows, {n: r.clips for n, r in of_model.items()}))
        for label, of_model in material.cached.items()
    ]
    warnings: list[str] = []
    if wanted := {"fc", "mean-image", "static", "shuffled"} & set(settings.compare):
        from neurostorm_bids.evaluate_images import image_features

        from_images, warnings = image_features(rows, material, sorted(wanted), settings)
        found += from_images
    tables = {"nuisance": ("Motion, site, length, pipeline and route", nuisance)}
    demographics = _demographics(problem, rows, material)
    tables["demographics"] = (" and ".join(map(str, demographics)).capitalize(), demographics)
    for name, (description, table) in tables.items():
        features = baselines.table_features(name, description, table) if name in settings.compare else None
        found += [] if features is None else [features]
        if features is None and name in settings.compare:
            warnings.append(f"{name}: nothing is known that differs between participants")
    return [*found, baselines.chance(problem.n_rows, problem.kind)], warnings


def nuisance_table(rows: Sequence[Row], material: Material) -> pd.DataFrame:
    """Mean framewise displacement, numbers of frames and clips, pipeline, route and site of each row."""
    cached = next(iter(material.cached.values()))
    table = pd.DataFrame(
        {
            "mean_fd": [_mean(np.concatenate([cached[name].fd_mm for name in row.runs])) for row in rows],
            "n_frames": [sum(cached[n].sidecar.get("Timing", {}).get("Frames", 0) for n in row.runs) for row in rows],
            "n_clips": [float(row.n_clips(cached)) for row in rows],
            "pipeline": [
                _joined(cached[n].sidecar.get("InputPipeline", {}).values() for n in row.runs) for row in rows
            ],
            "route": [_joined([cached[n].sidecar.get("Route", {}).get("Kind")] for n in row.runs) for row in rows],
        }
    )
    site = material.first_column(SITE_COLUMNS)
    if site is not None:
        known = material.column(site)
        table["site"] = pd.Series([known.get(row.participant) for row in rows], dtype=object)
    return table


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _joined(parts) -> str:
    return " + ".join(sorted({" ".join(str(item) for item in part if item) for part in parts}))


def _demographics(problem: Problem, rows: Sequence[Row], material: Material) -> pd.DataFrame:
    """Columns of age and sex that differ between rows, without the target: not under another name for it either."""
    itself = SEX if problem.name.lower() in SEX else {problem.name.lower()}
    columns = [str(name) for name in material.participants if str(name).lower() in DEMOGRAPHICS - itself]
    table = {name: [material.column(name).get(row.participant) for row in rows] for name in columns}
    found = pd.DataFrame(table, index=range(len(rows)))
    return found[[name for name in found if baselines.varies(found[name])]]


def _site_column(material: Material, settings: Settings) -> str | None:
    return settings.leave_out or material.first_column(SITE_COLUMNS)
