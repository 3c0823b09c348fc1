"""What is to be predicted: rows, their values, who they are of, and which of them may trade places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neurostorm_bids.errors import EvaluationImpossible, SplitImpossible
from neurostorm_bids.evaluation.metrics import Kind
from neurostorm_bids.training.splits import Split, make_splits

N_INNER = 5
LEAST_ROWS = 10


@dataclass(frozen=True, eq=False)
class Problem:
    """A target and the rows that have it.

    Attributes
    ----------
    name, kind, unit
    participants : tuple of str
        Label of each row's participant; a participant may have several rows (runs, clips).
    values : ndarray of shape (n,)
        Regression: numbers in the target's unit. Classification: indices into ``classes``.
    classes : tuple of str
    families : tuple of str
        Family of each row's participant; one's own where none is stated. Never on two sides of a fold.
    sites : tuple of str
        Labels are permuted within these only.
    """

    name: str
    kind: Kind
    participants: tuple[str, ...]
    values: np.ndarray
    families: tuple[str, ...]
    sites: tuple[str, ...]
    classes: tuple[str, ...] = ()
    unit: str | None = None
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.families)) < LEAST_ROWS:
            raise EvaluationImpossible(
                f"{len(set(self.families))} independent participants have {self.name} and every kind of features",
                expected=f"{LEAST_ROWS} or more (families count once)",
                remedy="Run the participant level for more of them",
            )

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.values)

    @property
    def n_predicted(self) -> int:
        """Columns of a prediction: one number, or a probability a class."""
        return 1 if self.kind == "regression" else len(self.classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """Participants, each once, sorted."""
        return tuple(sorted(set(self.participants)))

    def columns(self, values: np.ndarray) -> np.ndarray:
        """Values as the columns that a linear model learns: numbers, or an indicator a class but the first of two.

        # (n, p) -> (n, p, k)
        """
        if self.kind == "regression":
            return values[..., None].astype(float)
        indicators = np.eye(len(self.classes))[values]  # (n, p, k)
        return indicators[..., 1:] if len(self.classes) == 2 else indicators


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of one fold, and of the inner folds that choose the penalty from the training rows alone.

    ``inner`` holds pairs of positions into ``train``.
    """

    repeat: int
    name: str
    train: np.ndarray
    test: np.ndarray
    inner: tuple[tuple[np.ndarray, np.ndarray], ...]


def plan_folds(
    problem: Problem,
    *,
    folds: int = 5,
    repeats: int = 5,
    leave_out: Mapping[str, str] | None = None,
    splits: Sequence[Split] | None = None,
    seed: int = 0,
) -> tuple[Fold, ...]:
    """Folds of every repeat, by participant and family, drawn without a look at the labels.

    Folds are not stratified: stratified folds would make the observed labels unlike the permuted ones, and the
    permutation p would be too small. Stated splits, and sites left out in turn, are followed once.

    Raises
    ------
    SplitImpossible
        When there are fewer families than folds.
    """
    families = dict(zip(problem.participants, problem.families, strict=True))
    if splits is not None:
        return tuple(_fold(problem, 0, split, families, seed) for split in splits)
    if leave_out is not None:
        made = make_splits(problem.labels, leave_out=leave_out, groups=families, validation_share=0, seed=seed)
        return tuple(_fold(problem, 0, split, families, seed) for split in made)
    return tuple(
        _fold(problem, repeat, split, families, seed)
        for repeat in range(repeats)
        for split in make_splits(
            problem.labels, folds=folds, groups=families, validation_share=0, seed=seed + 1000 * repeat
        )
    )


def _fold(problem: Problem, repeat: int, split: Split, families: Mapping[str, str], seed: int) -> Fold:
    train = _rows(problem.participants, [*split.train, *split.validation])
    mine = [problem.participants[row] for row in train]
    inner = make_splits(
        set(mine), folds=_n_inner(set(mine), families, split), groups=families, validation_share=0, seed=seed
    )
    pairs = tuple((_rows(mine, part.train), _rows(mine, part.test)) for part in inner)
    return Fold(repeat, split.name, train, _rows(problem.participants, split.test), pairs)


def _n_inner(participants: set[str], families: Mapping[str, str], split: Split) -> int:
    n_families = len({families[label] for label in participants})
    if n_families < 2:
        raise SplitImpossible(
            f"fold {split.name} trains on {n_families} family",
            expected="two or more",
            remedy="Choose other --folds, --group-by or --leave-out",
        )
    return min(N_INNER, n_families)


def _rows(participants: Sequence[str], chosen: Sequence[str]) -> np.ndarray:
    wanted = set(chosen)
    return np.array([row for row, label in enumerate(participants) if label in wanted], dtype=int)
