"""What of the test participants may have been known in training: counted, and refused unless allowed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurostorm_bids.errors import LeakageFound, SplitsUnusable
from neurostorm_bids.evaluation.problem import Fold, Problem
from neurostorm_bids.inputs.tables import read_columns
from neurostorm_bids.training.splits import ROLES, Split

FAMILY_COLUMNS = ("family_id", "family", "familyid", "rel_family_id", "pedigree_id")
EQUAL = 1e-6  # embeddings that differ by less, relative to their size, are of one image
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One kind of leakage: what it is, how many it concerns, some of their names, what to do."""

    kind: str
    n: int
    examples: tuple[str, ...]
    remedy: str

    def sentence(self) -> str:
        """The finding in words."""
        return f"{self.kind}: {self.n} ({', '.join(self.examples)})"


def require_none(findings: Sequence[Finding], *, allowed: bool) -> None:
    """Refuse an evaluation with leakage.

    Raises
    ------
    LeakageFound
        Unless it is allowed: then it belongs into the report.
    """
    if findings and not allowed:
        raise LeakageFound(
            "; ".join(finding.sentence() for finding in findings),
            expected="test participants of whom nothing was known in training",
            remedy="; ".join(dict.fromkeys(finding.remedy for finding in findings))
            + ", or say --allow-leakage: it will be in the report",
        )


def splits_as_they_are(path: Path, participants: Iterable[str]) -> tuple[Split, ...]:
    """Splits of a table whose sides overlap, for an evaluation that allows it; `both_sides` will count them."""
    columns, known = read_columns(path, SplitsUnusable, "Mend the table"), set(participants)
    folds: dict[str, dict[str, set[str]]] = defaultdict(lambda: {role: set() for role in ROLES})
    fold_of = columns.get("fold", ["1"] * len(columns["split"]))
    for fold, participant, role in zip(fold_of, columns["participant_id"], columns["split"], strict=True):
        label, role = participant.removeprefix("sub-"), {"val": "validation"}.get(role, role)
        if label in known and role in ROLES:
            folds[fold][role].add(label)
    return tuple(Split(fold, *(tuple(sorted(sides[role])) for role in ROLES)) for fold, sides in folds.items())


def _finding(kind: str, names: Iterable[str], remedy: str) -> list[Finding]:
    names = sorted(names)
    return [Finding(kind, len(names), tuple(names[:SHOWN]), remedy)] if names else []


def both_sides(problem: Problem, folds: Sequence[Fold]) -> list[Finding]:
    """Participants and families that are trained on and tested in one fold."""
    found: list[Finding] = []
    for kind, names in (("participants", problem.participants), ("families", problem.families)):
        shared: set[str] = set()
        for fold in folds:
            shared |= {names[row] for row in fold.train} & {names[row] for row in fold.test}
        found += _finding(f"{kind} on both sides of a fold", shared, "Mend the splits")
        if found:
            break  # a participant on both sides brings its family along
    return found


def split_families(
    folds: Sequence[Fold], participants: Sequence[str], columns: Mapping[str, Mapping[str, object]], stated: str | None
) -> list[Finding]:
    """Families that a column of participants.tsv tells of and that folds tear apart, because nobody named it.

    Parameters
    ----------
    columns : mapping of column to mapping of participant to value
    stated : str, optional
        The column that --group-by names.
    """
    name = next((column for column in columns if column.lower() in FAMILY_COLUMNS), None)
    if name is None or name == stated:
        return []
    family_of, torn = columns[name], set()
    for fold in folds:
        sides = [
            {str(family_of[participants[row]]) for row in rows if _is_stated(family_of.get(participants[row]))}
            for rows in (fold.train, fold.test)
        ]
        torn |= sides[0] & sides[1]
    return _finding(f"families ({name}) on both sides of a fold", torn, f"State --group-by {name}")


def _is_stated(value: object) -> bool:
    return value is not None and value == value  # NaN is not equal to itself


def duplicates(participants: Sequence[str], hashes: Sequence[str | None], embeddings: np.ndarray) -> list[Finding]:
    """Images that occur under several participants: equal hashes of the normalised run, or equal embeddings.

    Parameters
    ----------
    participants, hashes : sequences, one entry a run
    embeddings : ndarray of shape (runs, d)
    """
    places: dict[str, set[str]] = defaultdict(set)
    for participant, content in zip(participants, hashes, strict=True):
        if content:
            places[content].add(participant)
    pairs = {tuple(sorted(found)) for found in places.values() if len(found) > 1}
    pairs |= set(_equal_embeddings(participants, embeddings))
    names = [" = ".join(f"sub-{label}" for label in pair) for pair in pairs]
    return _finding("images under several participants", names, "Remove the copies")


def _equal_embeddings(participants: Sequence[str], embeddings: np.ndarray) -> Iterable[tuple[str, ...]]:
    """Pairs of neighbours along the first feature whose embeddings are the same."""
    order = np.argsort(embeddings[:, 0], kind="stable")
    size = max(float(np.abs(embeddings).max()), 1e-300)
    for step in (1, 2, 3):  # a run may have several copies, or runs of the same participant beside it
        apart = np.abs(embeddings[order[step:]] - embeddings[order[:-step]]).max(axis=1)
        for place in np.flatnonzero(apart < EQUAL * size):
            pair = {participants[order[place]], participants[order[place + step]]}
            if len(pair) > 1:
                yield tuple(sorted(pair))


@dataclass(frozen=True)
class Person:
    """A participant who is evaluated: name of the dataset's folder, label, hashes of the images."""

    dataset: str
    label: str
    images: frozenset[str]

    def with_image(self, content: str) -> Person:
        """The same person with one image more."""
        return Person(self.dataset, self.label, self.images | {content})


def seen_in_training(model: str, runs: Sequence[Mapping[str, object]], people: Sequence[Person]) -> list[Finding]:
    """People whom a model was trained on: by their images, or by label in a dataset of the same name.

    The second tells people whose images were processed again, and may be wrong about datasets of a common name.

    Parameters
    ----------
    model : str
    runs : sequence of mapping
        ``runs`` of the model's ``training.json``.
    people : sequence of Person
    """
    contents = {run.get("content") for run in runs} - {None, ""}
    named = {(run.get("dataset"), run.get("participant")) for run in runs}
    by_image = {person.label for person in people if person.images & contents}
    by_name = {person.label for person in people if (person.dataset, person.label) in named} - by_image
    dataset = people[0].dataset if people else ""
    kind = f"participants whose labels, in a dataset that is called {dataset} too, {model} was trained on"
    return images_seen(model, by_image) + _finding(kind, map("sub-{}".format, by_name), "Evaluate on others")


def images_seen(model: str, participants: Iterable[str]) -> list[Finding]:
    """Participants whose images a model was trained on."""
    labels = {f"sub-{label}" for label in participants}
    return _finding(f"participants that {model} was trained on", labels, "Evaluate on others")
