"""``evaluation/<target>/``: metrics, differences, folds, predictions, splits as tables; the rest as JSON and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurostorm_bids import __version__
from neurostorm_bids.evaluate_leakage import leakage_json
from neurostorm_bids.evaluate_tuned import not_repeated
from neurostorm_bids.evaluation import confounds
from neurostorm_bids.evaluation.learning import Outcome, scores_of
from neurostorm_bids.evaluation.methods import methods_text
from neurostorm_bids.evaluation.metrics import DESCRIPTIONS, confusion, metrics_of
from neurostorm_bids.outputs.atomic import write_json, write_text
from neurostorm_bids.outputs.sidecars import UNTRAINED, software_versions
from neurostorm_bids.outputs.tables import Column, describe_columns, tsv_text
from neurostorm_bids.settings import Settings

if TYPE_CHECKING:
    from neurostorm_bids.evaluate import Evaluation, Material

IDENTIFYING = (
    "Embeddings identify people, and predictions.tsv holds a value for each participant: share this folder only as the "
    "access agreement of the images allows."
)

INTERVAL = (
    "Bootstrap over people (families), widened to the spread of resamples that are trained on as well. n/a for the "
    "expected calibration error, of which no interval is known to cover."
)


def write_evaluation(folder: Path, found: Evaluation, material: Material, settings: Settings) -> None:
    """Write everything about one target; the JSON comes last and makes it complete."""
    (folder / "evaluation.json").unlink(missing_ok=True)
    tables = {
        "metrics": metric_columns(found),
        "differences": difference_columns(found),
        "folds": fold_columns(found),
        "predictions": prediction_columns(found),
        "splits": split_columns(found),
    }
    for name, columns in tables.items():
        write_text(folder / f"{name}.tsv", tsv_text(columns))
        write_json(folder / f"{name}.json", describe_columns(columns))
    features = {name: outcome.features.description for name, outcome in found.outcomes.items()}
    text = methods_text(found.problem, described(settings, found), features, found.statements)
    write_text(folder / "methods.md", text)
    ignore_evaluation(settings.output_dir)
    write_json(folder / "evaluation.json", report(found, material, settings))


def ignore_evaluation(output_dir: Path) -> None:
    """Keep the BIDS validator out of ``evaluation/``, which BIDS does not know."""
    path = output_dir / ".bidsignore"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if "evaluation" not in lines:
        write_text(path, "\n".join([*lines, "evaluation"]) + "\n")


# --- tables -----------------------------------------------------------------------------------------------------


def metric_columns(found: Evaluation) -> list[Column]:
    """A row for each set of features and metric."""
    rows = found.summary.rows
    return [
        Column("features", [row.features for row in rows], "What the prediction rests on."),
        Column("metric", [row.metric for row in rows], "Metric.", levels=_levels(found)),
        Column("value", [row.value for row in rows], "Mean over repeats of the metric over all tested rows."),
        Column("ci_low", [row.interval.low for row in rows], f"Lower end of the 95 % interval. {INTERVAL}"),
        Column("ci_high", [row.interval.high for row in rows], "Upper end of that interval."),
        Column("repeat_sd", [row.repeat_sd for row in rows], "SD over repeats: of the folds alone, no interval."),
        Column("p", [row.p for row in rows], _p_text(found)),
        Column("n_permutations", [row.n_permutations for row in rows], "Permutations behind p."),
    ]


def _p_text(found: Evaluation) -> str:
    fixed = [name for name, outcome in found.outcomes.items() if not outcome.inner]
    text = "Share of permuted labellings (and the observed) that do as well, the whole procedure repeated for each."
    return text + "".join(f" {not_repeated(name)}" for name in fixed)


def _levels(found: Evaluation) -> dict[str, str]:
    return {name: DESCRIPTIONS[name] for name in metrics_of(found.problem.kind)}


def difference_columns(found: Evaluation) -> list[Column]:
    """A row for each model, comparison and metric."""
    rows = found.summary.differences
    return [
        Column("model", [row.model for row in rows], "Model."),
        Column("features", [row.features for row in rows], "What it is compared with."),
        Column("metric", [row.metric for row in rows], "Metric.", levels=_levels(found)),
        Column("difference", [row.value for row in rows], "The model's metric less that of the comparison."),
        Column("ci_low", [row.interval.low for row in rows], "Lower end of its 95 % interval, resamples paired."),
        Column("ci_high", [row.interval.high for row in rows], "Upper end of that interval."),
    ]


def fold_columns(found: Evaluation) -> list[Column]:
    """A row for each set of features, repeat and fold, with the metrics of the fold."""
    rows = [(name, *row) for name, outcome in found.outcomes.items() for row in outcome.folds]
    of_fold = {(fold.repeat, fold.name): fold.test for fold in found.folds}
    repeats = sorted({fold.repeat for fold in found.folds})
    scores = [_fold_scores(found, found.outcomes[row[0]], repeats.index(row[1]), of_fold[row[1:3]]) for row in rows]
    return [
        Column("features", [row[0] for row in rows], "What the prediction rests on."),
        Column("repeat", [row[1] + 1 for row in rows], "Repeat."),
        Column("fold", [row[2] for row in rows], "Fold, or the site that was left out."),
        Column("penalty", [row[3] for row in rows], "Penalty that the inner folds chose."),
        Column("n_train", [row[4] for row in rows], "Rows that were trained on."),
        Column("n_test", [row[5] for row in rows], "Rows that were tested."),
        *(
            Column(name, [of_row[name] for of_row in scores], DESCRIPTIONS[name])
            for name in metrics_of(found.problem.kind)
        ),
    ]


def _fold_scores(found: Evaluation, outcome: Outcome, repeat: int, test: np.ndarray) -> dict[str, float]:
    weights = np.zeros((1, found.problem.n_rows))
    weights[0, test] = 1.0
    said = (outcome.predicted[repeat], outcome.decided[repeat], outcome.fold[repeat], outcome.reference[repeat])
    scores = scores_of(found.problem, *said, weights)
    return {name: float(values[0]) for name, values in scores.items()}


def prediction_columns(found: Evaluation) -> list[Column]:
    """A row for each set of features, repeat and row of the problem."""
    problem, outcomes = found.problem, found.outcomes
    index = [
        (name, repeat, row)
        for name, outcome in outcomes.items()
        for repeat in range(len(outcome.predicted))
        for row in range(problem.n_rows)
        if not np.isnan(outcome.predicted[repeat, row, 0])
    ]
    observed, predicted = _said(found, index)
    return [
        Column("participant_id", [f"sub-{problem.participants[row]}" for _, _, row in index], "Participant."),
        Column("row", [problem.rows[row] for _, _, row in index], "Participant, run or clip that was predicted."),
        Column("features", [name for name, _, _ in index], "What the prediction rests on."),
        Column("repeat", [repeat + 1 for _, repeat, _ in index], "Repeat."),
        Column("observed", observed, f"Observed {problem.name}.", problem.unit),
        Column("predicted", predicted, f"Predicted {problem.name}, by a model that did not see it.", problem.unit),
        *(
            Column(
                f"p_{name}",
                [float(outcomes[features].predicted[repeat, row, number]) for features, repeat, row in index],
                f"Probability of {name!r}.",
            )
            for number, name in enumerate(problem.classes)
        ),
    ]


def _said(found: Evaluation, index: Sequence[tuple[str, int, int]]) -> tuple[list[Any], list[Any]]:
    problem, outcomes = found.problem, found.outcomes
    if problem.kind == "regression":
        predicted = [float(outcomes[name].predicted[repeat, row, 0]) for name, repeat, row in index]
        return [float(problem.values[row]) for _, _, row in index], predicted
    decided = [problem.classes[outcomes[name].decided[repeat, row]] for name, repeat, row in index]
    return [problem.classes[problem.values[row]] for _, _, row in index], decided


def split_columns(found: Evaluation) -> list[Column]:
    """A row for each repeat, fold and participant."""
    problem = found.problem
    rows = [
        (fold.repeat + 1, fold.name, label, role)
        for fold in found.folds
        for role, members in (("train", fold.train), ("test", fold.test))
        for label in sorted({problem.participants[row] for row in members})
    ]
    return [
        Column("repeat", [row[0] for row in rows], "Repeat."),
        Column("fold", [row[1] for row in rows], "Fold, or the site that was left out."),
        Column("participant_id", [f"sub-{row[2]}" for row in rows], "Participant."),
        Column(
            "split", [row[3] for row in rows], "train: fitted, penalties chosen on inner folds of it. test: judged."
        ),
    ]


# --- the report -------------------------------------------------------------------------------------------------


def described(settings: Settings, found: Evaluation) -> dict[str, Any]:
    """How the evaluation was done."""
    repeats = {fold.repeat for fold in found.folds}
    names = {fold.name for fold in found.folds}
    return {
        "Participants": len(found.problem.labels),
        "Rows": found.problem.n_rows,
        "Families": len(set(found.problem.families)),
        "GroupBy": settings.group_by,
        "LeaveOut": settings.leave_out,
        "Splits": settings.splits.name if settings.splits else None,
        "Tuned": settings.tuned,
        "Folds": len(names),
        "Repeats": len(repeats),
        "Classifier": settings.classifier if found.problem.kind == "classification" else None,
        "Permutations": settings.n_permutations,
        "Resamples": settings.n_bootstrap,
        "Seed": settings.random_seed,
    }


def report(found: Evaluation, material: Material, settings: Settings) -> dict[str, Any]:
    """``evaluation.json``."""
    problem = found.problem
    models = {label: next(iter(of_model.values())).model for label, of_model in material.cached.items()}
    untrained = [f"{label}: {UNTRAINED}" for label, model in models.items() if not model.get("Trained", True)]
    return {
        "Description": f"Evaluation of {', '.join(found.models)} for {problem.name}. {IDENTIFYING}",
        "Target": {"Name": problem.name, "Kind": problem.kind, "Units": problem.unit, "Classes": list(problem.classes)},
        "Design": {key: value for key, value in described(settings, found).items() if value is not None},
        "Models": models,
        "Features": {name: outcome.features.description for name, outcome in found.outcomes.items()},
        "Statements": list(found.statements),
        "Leakage": leakage_json(found.findings, settings),
        "Confounds": _without_none(found.confounds),
        "WithinSites": _within_sites(found),
        "Calibration": {name: _finite(each.figures) for name, each in found.calibrations.items()},
        **_confusions(found),
        "Warnings": [*untrained, *found.warnings],
        "Software": software_versions() | {"neurostorm-bids": __version__},
    }


def _within_sites(found: Evaluation) -> dict[str, Any]:
    if not found.sites:
        return {}
    return {name: confounds.within(found.problem, found.outcomes[name], found.sites) for name in found.models}


def _confusions(found: Evaluation) -> dict[str, Any]:
    if found.problem.kind == "regression":
        return {}
    n = len(found.problem.classes)
    matrices = {}
    for name, outcome in found.outcomes.items():
        tested = ~np.isnan(outcome.predicted[0, :, 0])
        matrices[name] = confusion(found.problem.values[tested], outcome.decided[0, tested], n)
    return {"ConfusionOfFirstRepeat": {"Rows": "observed", "Columns": "decided", **matrices}}


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def _without_none(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in entries.items()
        if value is not None
    }
