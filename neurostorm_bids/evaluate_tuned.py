"""A fine-tuned model beside the rest: its recorded splits are the folds, its test predictions one outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from neurostorm_bids.errors import EvaluationImpossible, TableUnreadable
from neurostorm_bids.evaluation.learning import Features, Outcome, as_probabilities, each_repeat
from neurostorm_bids.evaluation.metrics import COUNTED, metrics_of
from neurostorm_bids.evaluation.permutation import permutations
from neurostorm_bids.evaluation.problem import Fold, Problem
from neurostorm_bids.evaluation_rows import Row
from neurostorm_bids.outputs.tables import read_tsv
from neurostorm_bids.settings import Settings

Cells = Mapping[str, str | None]
DESCRIPTION = "Fine-tuned model, its recorded test predictions; p without training again"


def tuned_folder(settings: Settings) -> Path | None:
    """Where fine-tuning wrote the splits and predictions of ``--tuned``."""
    return settings.output_dir / "evaluation" / settings.tuned if settings.tuned else None


def tested_folds(folder: Path) -> set[str]:
    """Folds that were trained and tested."""
    return {str(row.get("fold")) for row in read_tsv(folder / "predictions.tsv")}


def tuned_outcome(
    problem: Problem, rows: Sequence[Row], folds: Sequence[Fold], weights: np.ndarray, settings: Settings
) -> Outcome:
    """The recorded predictions of a fine-tuned model as an outcome of one repeat.

    Nothing is trained again: labels are permuted among the tested rows of each fold, and where there are several folds
    resampled metrics spread by sqrt(1 + tested / trained rows) more than test rows alone (Nadeau & Bengio 2003).

    Raises
    ------
    EvaluationImpossible
        When predictions are of clips, or of none of the rows.
    TableUnreadable
        When the table lacks a column.
    """
    path = settings.output_dir / "evaluation" / str(settings.tuned) / "predictions.tsv"
    if any(row.clip is not None for row in rows):
        raise EvaluationImpossible(
            "--tuned with a target of clips", expected="a target of participants or runs", remedy="Leave --tuned out"
        )
    cells = _by_row(read_tsv(path), rows)
    predicted = np.full((1, problem.n_rows, problem.n_predicted), np.nan)
    reference, place = np.zeros_like(predicted), np.zeros((1, problem.n_rows), int)
    for number, fold in enumerate(folds):
        place[0, fold.test] = number
        reference[0, fold.test] = _known_of_anybody(problem, problem.values[fold.train])
        for row in fold.test:
            if (found := cells.get((fold.name, row))) is not None:
                predicted[0, row] = _numbers(found, problem, path)
    if np.isnan(predicted).all():
        raise EvaluationImpossible(f"{settings.tuned} has predictions of none of the rows", file=path)
    decided = np.zeros((1, problem.n_rows), int)
    if problem.kind == "classification":
        decided = np.nan_to_num(predicted).argmax(axis=-1)
    described = [(0, fold.name, float("nan"), len(fold.train), len(fold.test)) for fold in folds]
    outcome = Outcome(
        Features.fixed(str(settings.tuned), DESCRIPTION, np.zeros((problem.n_rows, 0))),
        predicted, decided, place, reference, {}, {}, described,
    )  # fmt: skip
    outcome.permuted.update(_permuted(problem, outcome, _orders(problem, folds, settings)))
    outcome.interaction.update(_assumed(problem, outcome, folds, weights))
    return outcome


def not_repeated(name: str) -> str:
    """What its p is, in words."""
    return (
        f"{name}: its p comes from labels permuted among the tested rows of each fold, WITHOUT training again. It "
        "tells whether these predictions go along with the labels; where several folds share training participants it "
        "is too small by an unknown amount, unlike the other p values, whose whole procedure was repeated."
    )


def _orders(problem: Problem, folds: Sequence[Fold], settings: Settings) -> np.ndarray:
    """Permutations within the tested rows of each fold, and within sites.  # (n, p)"""
    fold_of = {row: fold.name for fold in folds for row in fold.test.tolist()}
    places = tuple(f"{site} {fold_of.get(row, '')}" for row, site in enumerate(problem.sites))
    return permutations(replace(problem, sites=places), settings.n_permutations, settings.random_seed)


def _assumed(problem: Problem, outcome: Outcome, folds: Sequence[Fold], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Of resamples that train too, what training sets in common ask for, since nothing is trained.  # (b,) each"""
    ratio = np.mean([len(fold.test) / len(fold.train) for fold in folds]) if len(folds) > 1 else 0.0
    tested = each_repeat(problem, outcome, weights)[0]
    middle = {name: np.nanmean(values) if np.isfinite(values).any() else np.nan for name, values in tested.items()}
    needed = {name: np.sqrt(ratio / COUNTED.get(name, 0.5)) for name in tested}
    return {name: needed[name] * (values - middle[name]) for name, values in tested.items()}


def _by_row(table: Sequence[Cells], rows: Sequence[Row]) -> dict[tuple[str, int], Cells]:
    """Cells by fold and row: by run where the table names one, else by participant."""
    places = {row.name: number for number, row in enumerate(rows)}
    return {
        (str(cells.get("fold")), places[key]): cells
        for cells in table
        for key in (cells.get("run"), cells.get("participant_id"))
        if key in places
    }


def _known_of_anybody(problem: Problem, values: np.ndarray) -> np.ndarray:
    """Mean, or share of each class.  # (n train,) -> (k,)"""
    if problem.kind == "regression":
        return values.mean(keepdims=True)
    return np.bincount(values, minlength=len(problem.classes)) / len(values)


def _numbers(cells: Cells, problem: Problem, path: Path) -> np.ndarray:
    """Prediction, or probabilities of the classes.  # (k,)"""
    names = ["predicted"] if problem.kind == "regression" else [f"probability_{name}" for name in problem.classes]
    try:
        found = np.array([float(str(cells[name])) for name in names])
    except (KeyError, ValueError) as error:
        raise TableUnreadable(
            f"holds no number for {error}", file=path, expected=", ".join(names), remedy="Fine-tune again"
        ) from error
    return found if problem.kind == "regression" else as_probabilities(found)


def _permuted(problem: Problem, outcome: Outcome, orders: np.ndarray) -> dict[str, np.ndarray]:
    scores = [each_repeat(problem, outcome, values=problem.values[order])[0] for order in orders.T]
    return {name: np.array([float(score[name][0]) for score in scores]) for name in metrics_of(problem.kind)}
