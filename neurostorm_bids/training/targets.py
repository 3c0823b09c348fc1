"""Targets: what is to be learnt, where it is written, and what kind of thing it is.

``--target`` takes

- ``age``: a column of participants.tsv
- ``phenotype/FILE.tsv:COLUMN``: a column of a phenotype table
- ``sessions:COLUMN``: a column of ``sub-*_sessions.tsv``
- ``entity:task``: an entity of the file names
- ``events:trial_type``: a column of the events tables; stretches of runs are labelled, not runs
- ``identity``: who it is

All of them end as `Label`: a run, or a stretch of one, and its value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurostorm_bids.clips import Timing, Window
from neurostorm_bids.errors import TargetUnusable
from neurostorm_bids.inputs.participants import describe_columns, read_participants
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.inputs.tables import MISSING, number, read_columns
from neurostorm_bids.model.config import Target, TargetKind

Value = str | float
Kind = Literal["auto", "regression", "classification", "retrieval"]
DELAY_S = 5.0  # from the onset of a stimulus to most of its haemodynamic response (canonical peak at 5 to 6 s)
LEAST_COVERAGE = 0.5  # share of a clip that its label must cover
RARE = 0.1  # a class with a smaller share of the participants is told to the user
SHOWN = 5


@dataclass(frozen=True)
class Label:
    """The value of a run, or of a stretch of it.

    ``run`` is the position of the run in the list that was labelled; times are in seconds of scanner time, from the
    first volume on; ``end_s`` None means the whole run.
    """

    run: int
    participant: str
    value: Value
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Labels:
    """All labels of a target.

    ``target`` has kind, unit and classes; its scaler is fitted later, on training participants alone. ``warnings``
    tell what is missing or rare.
    """

    target: Target
    labels: tuple[Label, ...]
    warnings: tuple[str, ...] = ()

    @property
    def participants(self) -> tuple[str, ...]:
        """Those who have a value, sorted."""
        return tuple(sorted({label.participant for label in self.labels}))

    def of_participants(self, participants: Iterable[str]) -> tuple[Label, ...]:
        """Labels of some participants."""
        wanted = set(participants)
        return tuple(label for label in self.labels if label.participant in wanted)

    def strata(self) -> dict[str, Value] | None:
        """A value for each participant to stratify splits by, where there is one and the same for all their runs."""
        values: dict[str, set[Value]] = {}
        for label in self.labels:
            values.setdefault(label.participant, set()).add(label.value)
        if self.target.kind == "retrieval" or any(len(found) > 1 for found in values.values()):
            return None
        return {participant: found.pop() for participant, found in values.items()}

    def index(self, value: Value) -> int:
        """Number of a class."""
        return self.target.classes.index(str(value))


def read_labels(name: str, runs: Sequence[BoldRun], roots: Sequence[Path], *, kind: Kind = "auto") -> Labels:
    """Find a target's values for runs.

    Parameters
    ----------
    name : str
        As ``--target`` takes it.
    runs : sequence of BoldRun
    roots : sequence of Path
        Datasets whose participants.tsv and phenotype/ are looked at, in this order: derivative, then raw.
    kind : {"auto", "regression", "classification", "retrieval"}
        "auto": by what the JSON says (``Levels``, ``Units``) and by the values: texts, and two whole numbers without
        a unit, are classes; other numbers are not.

    Raises
    ------
    TargetUnusable
        When the target is not there, no run has it, or its values cannot be learnt (all the same, no numbers).
    ParticipantsUnusable
        When a table is broken.
    """
    source, _, column = name.rpartition(":")
    if name == "identity":
        found = _Found({position: run.participant for position, run in enumerate(runs)}, "identity")
        return _assembled(found, runs, "retrieval")
    if source == "events":
        return _of_events(column, runs)
    if source == "entity":
        found = _Found(
            {position: run.entities[column] for position, run in enumerate(runs) if column in run.entities}, column
        )
        return _assembled(found, runs, "classification" if kind == "auto" else kind)
    if source == "sessions":
        return _assembled(_of_sessions(column, runs, roots), runs, kind)
    if source.startswith("phenotype/"):
        return _assembled(_of_phenotype(source, column, runs, roots), runs, kind)
    if source:
        raise _unusable(
            f"{source!r} is no place to find a target",
            "a column, phenotype/FILE.tsv:COLUMN, sessions:COLUMN, entity:NAME, events:COLUMN or identity",
        )
    return _assembled(_of_participants(column, runs, roots), runs, kind)


def fitted(labels: Labels, train: Iterable[str]) -> Target:
    """The target with its scaler: mean and SD of training participants, each counted once.

    Raises
    ------
    TargetUnusable
        When the training values are all the same, or a class has no training participant.
    """
    train = set(train)
    mine = labels.of_participants(train)
    if labels.target.kind == "regression":
        values = np.array(list(_participant_means(mine).values()))
        mean, std = (float(values.mean()), float(values.std())) if len(values) else (0.0, 0.0)
        if not std > 0:
            raise _unusable(f"{labels.target.name} is the same for every training participant", "values that differ")
        return replace(labels.target, mean=mean, std=std)
    absent = set(labels.target.classes) - {str(label.value) for label in mine}
    if labels.target.kind == "classification" and absent:
        raise _unusable(
            f"no training participant has {labels.target.name} {_some(sorted(absent))}",
            "every class among the training participants",
            "Choose fewer --folds, stratified splits, or leave the class out",
        )
    return labels.target


def _participant_means(labels: Sequence[Label]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for label in labels:
        values.setdefault(label.participant, []).append(float(label.value))
    return {participant: float(np.mean(found)) for participant, found in values.items()}


def class_weights(labels: Labels, train: Iterable[str]) -> np.ndarray:
    """Weights that give every class the same say in training, of mean 1 over the training labels.  # (classes,)"""
    counts = Counter(str(label.value) for label in labels.of_participants(train))
    n = np.array([counts[name] for name in labels.target.classes], dtype=float)
    return n.sum() / (len(n) * np.maximum(n, 1))


# --- where values are written -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """Values by run, and what is known of their column."""

    values: Mapping[int, Value | None]
    name: str
    description: Mapping[str, Any] | None = None
    file: Path | None = None


def _of_participants(column: str, runs: Sequence[BoldRun], roots: Sequence[Path]) -> _Found:
    path = _first([root / "participants.tsv" for root in roots])
    table = read_participants(path)
    if column not in table:
        raise _unusable(f"has no column {column!r}", f"one of {_some(list(table.columns))}", file=path)
    values = {label: None if _is_missing(value) else value for label, value in table[column].items()}
    by_run = {position: values.get(run.participant) for position, run in enumerate(runs)}
    return _Found(by_run, column, table.attrs["columns"].get(column), path)


def _of_phenotype(place: str, column: str, runs: Sequence[BoldRun], roots: Sequence[Path]) -> _Found:
    path = _first([root / place for root in roots])
    columns = read_columns(path, TargetUnusable, "Mend the table")
    participants = [text.removeprefix("sub-") for text in _column(columns, "participant_id", path)]
    sessions = next((columns[name] for name in ("session_id", "session") if name in columns), None)
    by_session = [text.removeprefix("ses-") for text in sessions] if sessions else [None] * len(participants)
    keys = list(zip(participants, by_session, strict=True))
    values = _by_key(keys, _column(columns, column, path), path)
    by_run = {
        position: values.get((run.participant, run.session if sessions else None)) for position, run in enumerate(runs)
    }
    description = describe_columns(path.with_suffix(".json")).get(column)
    return _Found(_typed(by_run, description), column, description, path)


def _of_sessions(column: str, runs: Sequence[BoldRun], roots: Sequence[Path]) -> _Found:
    values: dict[int, str | None] = {}
    description: Mapping[str, Any] | None = None
    seen: Path | None = None
    for position, run in enumerate(runs):
        name = f"sub-{run.participant}/sub-{run.participant}_sessions.tsv"
        path = next((root / name for root in roots if (root / name).is_file()), None)
        if path is None or run.session is None:
            values[position] = None
            continue
        columns = read_columns(path, TargetUnusable, "Mend the table")
        keys = [text.removeprefix("ses-") for text in _column(columns, "session_id", path)]
        values[position] = _by_key(keys, _column(columns, column, path), path).get(run.session)
        seen, description = path, description or describe_columns(path.with_suffix(".json")).get(column)
    if seen is None:
        raise _unusable("no run belongs to a sub-*_sessions.tsv", "sessions, and a table of them for each participant")
    return _Found(_typed(values, description), column, description, seen)


def _first(paths: Sequence[Path]) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise _unusable(f"there is no {paths[0].name}", "the table that holds the target", file=paths[0])


def _column(columns: Mapping[str, Sequence[str]], name: str, path: Path) -> Sequence[str]:
    if name not in columns:
        raise _unusable(f"has no column {name!r}", f"one of {_some(list(columns))}", file=path)
    return columns[name]


def _by_key(keys: Sequence[Any], values: Sequence[str], path: Path) -> dict[Any, str]:
    twice = [key for key, times in Counter(keys).items() if times > 1]
    if twice:
        raise _unusable(
            f"has several rows for {_some([str(key) for key in twice])}",
            "one row a participant, or a session_id column that tells them apart",
            file=path,
        )
    return dict(zip(keys, values, strict=True))


def _typed(values: Mapping[int, str | None], description: Mapping[str, Any] | None) -> dict[int, Value | None]:
    """Texts as numbers when all of them are, and no ``Levels`` say otherwise."""
    stated = {run: text for run, text in values.items() if text is not None and text not in MISSING}
    numbers = {run: number(text) for run, text in stated.items()}
    numeric = "Levels" not in (description or {}) and None not in numbers.values()
    return {run: (numbers if numeric else stated).get(run) for run in values}


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


# --- what kind they are -----------------------------------------------------------------------------------------


def _assembled(found: _Found, runs: Sequence[BoldRun], kind: Kind) -> Labels:
    values = {run: value for run, value in found.values.items() if value is not None}
    if not values:
        raise _unusable(
            f"{found.name} is stated for none of the {len(runs)} runs", "a value for the runs", file=found.file
        )
    decided = _kind(values.values(), found, kind)
    typed = {run: _value(value, decided, found) for run, value in values.items()}
    labels = tuple(Label(run, runs[run].participant, value) for run, value in sorted(typed.items()))
    return _described(labels, decided, found, [runs[run].participant for run in range(len(runs)) if run not in values])


def _kind(values: Iterable[Value], found: _Found, kind: Kind) -> TargetKind:
    if kind != "auto":
        return kind
    distinct = set(values)
    if "Levels" in (found.description or {}) or any(isinstance(value, str) for value in distinct):
        return "classification"
    codes = len(distinct) == 2 and all(float(value).is_integer() for value in distinct)
    return "classification" if codes and "Units" not in (found.description or {}) else "regression"


def _value(value: Value, kind: TargetKind, found: _Found) -> Value:
    if kind != "regression":
        return f"{value:g}" if isinstance(value, float) else str(value)
    as_number = number(value) if isinstance(value, str) else float(value)
    if as_number is None or not np.isfinite(as_number):
        raise _unusable(f"{found.name} {value!r} is no number", "numbers", "Or state --target-kind", file=found.file)
    return as_number


def _described(labels: tuple[Label, ...], kind: TargetKind, found: _Found, without: Sequence[str]) -> Labels:
    description = found.description or {}
    classes = _classes(labels, description, found) if kind == "classification" else ()
    if kind == "regression" and len({label.value for label in labels}) < 2:
        raise _unusable(f"{found.name} is {labels[0].value} for everybody", "values that differ", file=found.file)
    if kind == "retrieval" and len({label.value for label in labels}) < 2:
        raise _unusable("there is one participant only", "two or more to tell apart")
    head = "emb" if kind == "retrieval" else "v1"
    target = Target(found.name, kind, head=head, unit=description.get("Units"), classes=classes)
    return Labels(target, labels, tuple(_warnings(labels, target, found, without)))


def _classes(labels: Sequence[Label], description: Mapping[str, Any], found: _Found) -> tuple[str, ...]:
    """Classes that occur, in the order of ``Levels``, then of the alphabet."""
    present = {str(label.value) for label in labels}
    if len(present) < 2:
        raise _unusable(f"{found.name} is {present.pop()!r} for everybody", "two classes or more", file=found.file)
    declared = [str(level) for level in description.get("Levels", {}) if str(level) in present]
    return (*declared, *sorted(present - set(declared)))


def _warnings(labels: Sequence[Label], target: Target, found: _Found, without: Sequence[str]) -> Iterator[str]:
    place = f"{found.file}: " if found.file else ""
    if without:
        n_people = len(set(without) - {label.participant for label in labels})
        yield f"{place}{target.name} is missing for {len(without)} runs ({n_people} participants); they are left out"
    counts = Counter(str(value) for _, value in {(label.participant, label.value) for label in labels})
    rare = [name for name in target.classes if counts[name] < RARE * counts.total()]
    if rare:
        shares = ", ".join(f"{name} {counts[name]}" for name in target.classes)
        yield f"{place}classes of {target.name} are unequal ({shares} participants); training weighs them by frequency"
    undeclared = set(target.classes) - {str(level) for level in (found.description or {}).get("Levels", target.classes)}
    if undeclared:
        yield f"{place}{target.name} holds {_some(sorted(undeclared))}, which its JSON does not declare"


def _unusable(fault: str, expected: str, remedy: str = "Check --target", *, file: Path | None = None) -> TargetUnusable:
    return TargetUnusable(fault, file=file, expected=expected, remedy=remedy)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- events -----------------------------------------------------------------------------------------------------


def _of_events(column: str, runs: Sequence[BoldRun]) -> Labels:
    labels: list[Label] = []
    for position, run in enumerate(runs):
        if run.events is not None:
            labels += _stretches(position, run, run.events, column)
    if not labels:
        raise _unusable(
            f"none of the {len(runs)} runs has events with a {column}",
            "events.tsv beside the runs or in the raw dataset",
        )
    with_events = {label.run for label in labels}
    without = [run.participant for position, run in enumerate(runs) if position not in with_events]
    found = _Found({}, column, describe_columns(_json_of(runs[labels[0].run].events)).get(column))
    return _described(tuple(labels), "classification", found, without)


def _json_of(path: Path | None) -> Path:
    assert path is not None, "a labelled run has events"
    return path.with_suffix(".json")


def _stretches(position: int, run: BoldRun, path: Path, column: str) -> list[Label]:
    columns = read_columns(path, TargetUnusable, "Mend the events table")
    times = [[number(text) for text in _column(columns, name, path)] for name in ("onset", "duration")]
    labels = []
    for row, (onset, duration, value) in enumerate(zip(*times, _column(columns, column, path), strict=True), 2):
        if value in MISSING:
            continue
        if onset is None or duration is None or not np.isfinite([onset, duration]).all() or duration < 0:
            raise _unusable(f"row {row} has no onset or duration", "seconds", "Mend the events table", file=path)
        labels.append(Label(position, run.participant, value, onset, onset + duration))
    return labels


def event_starts(
    labels: Sequence[Label], timing: Timing, clip_frames: int, *, delay_s: float = DELAY_S
) -> list[tuple[Label, int]]:
    """First frame of the clip that shows each stretch: it begins ``delay_s`` after the stimulus.

    Stretches that cover less than half a clip, or whose clip would pass the end of the run, have none.
    """
    placed = []
    for label in labels:
        assert label.end_s is not None, "a stretch has an end"
        first = int(np.ceil((label.start_s + delay_s - timing.onset_s(0)) / timing.step_s - 1e-6))
        long_enough = label.end_s - label.start_s >= LEAST_COVERAGE * clip_frames * timing.step_s
        if long_enough and 0 <= first <= timing.n_frames - clip_frames:
            placed.append((label, first))
    return placed


def window_labels(
    windows: Sequence[Window], labels: Sequence[Label], *, delay_s: float = DELAY_S, coverage: float = LEAST_COVERAGE
) -> list[Value | None]:
    """The label of each clip of one run: the one that covers most of it, and enough of it; else None."""
    return [_label_of(window, labels, delay_s, coverage) for window in windows]


def _label_of(window: Window, labels: Sequence[Label], delay_s: float, coverage: float) -> Value | None:
    covered: dict[Value, float] = {}
    for label in labels:
        if label.end_s is None:
            return label.value
        overlap = min(label.end_s + delay_s, window.onset_s + window.duration_s)
        overlap -= max(label.start_s + delay_s, window.onset_s)
        if overlap > 0:
            covered[label.value] = covered.get(label.value, 0.0) + overlap
    value = max(covered, key=covered.__getitem__, default=None)
    return value if value is not None and covered[value] >= coverage * window.duration_s else None
