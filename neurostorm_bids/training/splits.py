"""Splits of participants into training, validation and test: never of runs, never of clips.

A split is made from labels alone, before anything is trained, and does not depend on the order in which participants
were found. Families stay together; a site that is left out is left out whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    LeaveOneGroupOut,
    StratifiedGroupKFold,
    StratifiedKFold,
)

from neurostorm_bids.errors import SplitImpossible, SplitsOverlap, SplitsUnusable
from neurostorm_bids.inputs.tables import read_columns

Role = Literal["train", "validation", "test"]
ROLES: tuple[Role, ...] = ("train", "validation", "test")
N_BINS = 4  # a regression target is stratified by quartile
SHOWN = 5


@dataclass(frozen=True)
class Split:
    """One fold: who is trained on, who decides when to stop, who is tested at the very end.

    Labels are sorted. ``name`` is the number of the fold, or the site that was left out.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def role_of(self) -> dict[str, Role]:
        """The role of each participant."""
        return {label: role for role in ROLES for label in getattr(self, role)}


def make_splits(
    participants: Iterable[str],
    *,
    folds: int = 5,
    validation_share: float = 0.15,
    strata: Mapping[str, object] | None = None,
    groups: Mapping[str, str] | None = None,
    leave_out: Mapping[str, str] | None = None,
    seed: int = 0,
) -> tuple[Split, ...]:
    """Split participants; each is tested exactly once.

    Parameters
    ----------
    participants : iterable of str
        Those who have the target.
    folds : int
        Number of folds; not used with ``leave_out``.
    validation_share : float
        Share of the participants who are not tested that validates; 0 for none.
    strata : mapping of label to class or number, optional
        Classes are spread evenly over folds; numbers by quartile.
    groups : mapping of label to group, optional
        Families: never on two sides. One without a group is a group of one.
    leave_out : mapping of label to site, optional
        Each site is tested once by models that saw none of it.
    seed : int

    Raises
    ------
    SplitImpossible
        When there are too few participants, groups, sites, or members of a class.
    SplitsOverlap
        When a family belongs to several of the sites that are left out in turn.
    """
    labels = np.array(sorted(set(participants)), dtype=object)
    families = _groups(labels, groups)
    classes = _strata(labels, strata, folds)
    if leave_out is None:
        _require_members(labels, families if groups else labels, classes, folds)
        tests = _k_fold(labels, classes, families if groups else None, folds, seed)
        names = [str(number) for number in range(1, folds + 1)]
    else:
        names, tests = _by_site(labels, leave_out)
    made = [
        _with_validation(name, labels, test, classes, families if groups else None, validation_share, seed + number)
        for number, (name, test) in enumerate(zip(names, tests, strict=True))
    ]
    for split in made:
        require_disjoint(split, groups)
    return tuple(made)


def require_disjoint(split: Split, groups: Mapping[str, str] | None = None) -> None:
    """Refuse a split in which a participant, or a family, is on two sides; called again when training begins.

    Raises
    ------
    SplitsOverlap
    """
    sides: dict[str, set[str]] = {}
    for role in ROLES:
        members: Sequence[str] = getattr(split, role)
        twice = sorted({label for label in members if members.count(label) > 1})
        _refuse_overlap(split, "participants", twice)
        for label in members:
            sides.setdefault(label, set()).add(role)
    _refuse_overlap(split, "participants", [label for label, roles in sides.items() if len(roles) > 1])
    families: dict[str, set[str]] = {}
    for label, roles in sides.items():
        if groups and _is_stated(groups.get(label)):
            families.setdefault(str(groups[label]), set()).update(roles)
    _refuse_overlap(split, "groups", [family for family, roles in families.items() if len(roles) > 1])


def _refuse_overlap(split: Split, what: str, names: Sequence[str]) -> None:
    if names:
        raise SplitsOverlap(
            f"fold {split.name} has {what} on two sides: {_some(sorted(names))}",
            expected="training, validation and test without anything in common",
            remedy="Mend splits.tsv, or the column that --group-by names",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- making them ------------------------------------------------------------------------------------------------


def _is_stated(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _groups(labels: np.ndarray, groups: Mapping[str, str] | None) -> np.ndarray:
    stated = groups or {}
    # a prefix keeps a participant's own label from being taken for a family's name
    return np.array(
        [f"group {stated[label]}" if _is_stated(stated.get(label)) else f"alone {label}" for label in labels],
        dtype=object,
    )


def _strata(labels: np.ndarray, strata: Mapping[str, object] | None, folds: int) -> np.ndarray | None:
    """Classes as texts; numbers as bins of equal size, four or as many as fill every fold."""
    if strata is None or not len(labels):
        return None
    values = [strata[label] for label in labels]
    if all(isinstance(value, int | float | np.number) for value in values):
        rank = np.argsort(np.argsort(np.array(values, dtype=float), kind="stable"))
        return rank * max(1, min(N_BINS, len(labels) // folds)) // len(labels)
    return np.array([str(value) for value in values], dtype=object)


def _require_members(labels: np.ndarray, families: np.ndarray, classes: np.ndarray | None, folds: int) -> None:
    n_units = len(np.unique(families.astype(str)))
    if folds < 2 or n_units < folds:
        what = "participants" if families is labels else "groups"
        raise SplitImpossible(
            f"{n_units} {what} cannot be split into {folds} folds",
            expected=f"2 to {n_units} folds" if n_units > 1 else f"2 {what} or more",
            remedy="Choose another number with --folds, or give more participants",
        )
    if classes is not None and classes.dtype == object:
        names, counts = np.unique(classes.astype(str), return_counts=True)
        if counts.min() < folds:
            raise SplitImpossible(
                f"class {str(names[counts.argmin()])!r} has {counts.min()} participants for {folds} folds",
                expected="a member of every class in every fold",
                remedy="Choose fewer --folds, or leave the class out",
            )


def _k_fold(
    labels: np.ndarray, classes: np.ndarray | None, families: np.ndarray | None, folds: int, seed: int
) -> list[np.ndarray]:
    """Positions of the test participants of each fold."""
    if classes is not None:
        kind = StratifiedKFold if families is None else StratifiedGroupKFold
    else:
        kind = KFold if families is None else GroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # quartiles of a few participants
        return [test for _, test in splitter.split(labels, classes, families)]


def _by_site(labels: np.ndarray, leave_out: Mapping[str, str]) -> tuple[list[str], list[np.ndarray]]:
    unknown = [str(label) for label in labels if not _is_stated(leave_out.get(label))]
    sites = np.array([str(leave_out.get(label)) for label in labels])
    if unknown or len(set(sites)) < 2:
        raise SplitImpossible(
            f"nothing is stated for {_some(unknown)}" if unknown else f"every participant has {''.join(set(sites))!r}",
            expected="a value for each participant, and two values or more",
            remedy="Choose another column with --leave-out, or split into folds",
        )
    tests = [test for _, test in LeaveOneGroupOut().split(labels, groups=sites)]
    return [str(sites[test[0]]) for test in tests], tests


def _with_validation(
    name: str,
    labels: np.ndarray,
    test: np.ndarray,
    classes: np.ndarray | None,
    families: np.ndarray | None,
    share: float,
    seed: int,
) -> Split:
    rest = np.setdiff1d(np.arange(len(labels)), test)
    of_rest = [None if values is None else values[rest] for values in (classes, families)]
    chosen = rest[_held_out(labels[rest], *of_rest, share=share, seed=seed)] if share > 0 else rest[:0]
    train = np.setdiff1d(rest, chosen)
    for part, purpose in ((test, "test"), (train, "train on"), (chosen, "validate on")):
        if not len(part) and (share > 0 or part is not chosen):
            raise SplitImpossible(
                f"fold {name} leaves nobody to {purpose}",
                expected="participants (of different groups) for training, validation and test",
                remedy="Choose other --folds, --group-by or --leave-out, or give more participants",
            )
    return Split(name, *(tuple(str(label) for label in labels[part]) for part in (train, chosen, test)))


def _held_out(
    labels: np.ndarray, classes: np.ndarray | None, families: np.ndarray | None, *, share: float, seed: int
) -> np.ndarray:
    """Positions of about a share of the participants, classes spread evenly where they are large enough."""
    units = labels if families is None else families
    n_parts = min(max(2, round(1 / share)), len(set(units)))
    if n_parts < 2:
        return np.arange(0)
    try:
        chosen = _k_fold(labels, classes, families, n_parts, seed)[0]
    except ValueError:  # classes smaller than the number of parts
        chosen = np.arange(0)
    if len(chosen):
        return chosen
    return next(GroupShuffleSplit(1, test_size=1 / n_parts, random_state=seed).split(labels, groups=units))[1]


# --- on paper ---------------------------------------------------------------------------------------------------

COLUMNS = {
    "fold": "Number of the fold, or the site that was left out.",
    "participant_id": "Participant.",
    "split": "train: weights are fitted. validation: decides when to stop. test: looked at once, at the end.",
}


def splits_rows(splits: Sequence[Split]) -> list[tuple[str, str, str]]:
    """Rows of ``splits.tsv``: fold, participant, role."""
    return [
        (split.name, f"sub-{label}", role)
        for split in splits
        for label, role in sorted(split.role_of().items())
    ]  # fmt: skip


def splits_text(splits: Sequence[Split]) -> str:
    """``splits.tsv`` as text."""
    return "\n".join("\t".join(row) for row in (tuple(COLUMNS), *splits_rows(splits))) + "\n"


def read_splits(path: Path, participants: Iterable[str], groups: Mapping[str, str] | None = None) -> tuple[Split, ...]:
    """Splits as a table gives them.

    Parameters
    ----------
    path : Path
        Columns ``participant_id`` and ``split`` (train, validation or test; ``val`` too), and ``fold`` where there
        are several.
    participants : iterable of str
        Those who have the target. Others in the table are passed over: they cannot be used.
    groups : mapping of label to group, optional

    Raises
    ------
    SplitsUnusable
        When the table cannot be read, gives a participant no role or an unknown one, or a fold has no training or
        test participants.
    SplitsOverlap
        When a participant or a family is on two sides.
    """
    columns = read_columns(path, SplitsUnusable, REMEDY)
    for name in ("participant_id", "split"):
        if name not in columns:
            raise _unusable(path, f"has no column {name}")
    known = set(participants)
    fold_of = columns.get("fold", ["1"] * len(columns["split"]))
    folds: dict[str, dict[Role, list[str]]] = {}
    for fold, participant, role in zip(fold_of, columns["participant_id"], columns["split"], strict=True):
        sides = folds.setdefault(fold, {role: [] for role in ROLES})
        label = participant.removeprefix("sub-")
        if label in known:
            sides[_role(role, path)].append(label)
    return tuple(_checked(path, fold, sides, known, groups) for fold, sides in folds.items())


REMEDY = "See docs/reference for the columns of splits.tsv"


def _role(text: str, path: Path) -> Role:
    for role in ROLES:
        if text == role or (text == "val" and role == "validation"):
            return role
    raise _unusable(path, f"gives a participant the role {text!r}")


def _checked(
    path: Path, fold: str, sides: Mapping[Role, list[str]], known: set[str], groups: Mapping[str, str] | None
) -> Split:
    split = Split(fold, *(tuple(sorted(sides[role])) for role in ROLES))
    require_disjoint(split, groups)
    absent = sorted(known - set(split.role_of()))
    if absent:
        raise _unusable(path, f"says nothing of {_some(absent)} in fold {fold}")
    for role in ("train", "test"):
        if not getattr(split, role):
            raise _unusable(path, f"has no {role} participants with a target in fold {fold}")
    return split


def _unusable(path: Path, fault: str) -> SplitsUnusable:
    return SplitsUnusable(
        fault, file=path, expected="columns fold, participant_id, split (train, validation, test)", remedy=REMEDY
    )
