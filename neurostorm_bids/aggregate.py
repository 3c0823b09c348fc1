"""Group level, ``--group-workflow aggregate``: the run tables become one row per participant and session.

Pooling goes from clips to runs to participants. A run's embedding is the mean of its clips. A participant's is the mean
of the runs weighted by their number of clips, so that each clip counts once whatever run it lies in. Predictions are
pooled in the same way: values of regression targets, and probabilities of each class.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from neurostorm_bids.errors import ModelsMixed, NeurostormError, NothingToAggregate, TableUnreadable
from neurostorm_bids.outputs.atomic import sha256, write_json, write_text
from neurostorm_bids.outputs.dataset import write_bidsignore
from neurostorm_bids.outputs.names import desc_label, parse_entities
from neurostorm_bids.outputs.resume import DATA_HASH, read_sidecar
from neurostorm_bids.outputs.sidecars import UNTRAINED, software_versions
from neurostorm_bids.outputs.tables import Column, describe_columns, read_tsv, tsv_text

WEIGHTING = "mean of the runs, each weighted by its number of clips, so that every clip counts once"
_RERUN = "run the participant level again: it computes this result anew and nothing else"
Person = tuple[str, str | None]  # participant and session label
Row = Mapping[str, str | None]


@dataclass(frozen=True)
class Aggregate:
    """What was written, and what could not be pooled.

    ``missing`` holds a line for each expected participant without result and each run that one model has and another
    lacks; ``rejected`` an error for each table that is broken.
    """

    written: tuple[Path, ...]
    n_participants: int
    n_rows: int
    models: tuple[str, ...]
    missing: tuple[str, ...]
    rejected: tuple[NeurostormError, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Where a run's result comes from."""

    path: Path
    entities: Mapping[str, str]
    model: Mapping[str, Any]
    settings_hash: str | None

    @property
    def person(self) -> Person:
        """Participant and session."""
        return self.entities["sub"], self.entities.get("ses")

    @property
    def run(self) -> str:
        """The run's name, without space, resolution and model."""
        return "_".join(f"{k}-{v}" for k, v in self.entities.items() if k not in ("space", "res", "desc"))

    @property
    def label(self) -> str:
        """Label of the model in file names."""
        return self.entities["desc"]


@dataclass(frozen=True)
class RunEmbedding:
    """A run's embedding, pooled over its clips as soon as it was read: memory holds one table at a time."""

    origin: Origin
    names: tuple[str, ...]
    mean: np.ndarray  # (n_features,)
    n_clips: int


@dataclass(frozen=True)
class RunPredictions:
    """A run's predictions, a row per target."""

    origin: Origin
    rows: Sequence[Row]


Result = TypeVar("Result", RunEmbedding, RunPredictions)
Found = Mapping[Person, Sequence[tuple[Origin, Row]]]


def aggregate(
    output_dir: Path,
    *,
    participants: Iterable[str] = (),
    sessions: Iterable[str] = (),
    tasks: Iterable[str] = (),
    expected: Iterable[Person] = (),
) -> Aggregate:
    """Pool the run tables of an output folder into ``phenotype/neurostorm_{embeddings,predictions}.tsv``.

    Parameters
    ----------
    participants, sessions, tasks
        Labels to keep; empty keeps all.
    expected
        Participants and sessions of the input, to report those without results.

    Raises
    ------
    NothingToAggregate
        No usable embedding passes the selection.
    ModelsMixed
        Tables of one model name come from different weights, or give one target in different units.
    """
    keep = {"sub": set(participants), "ses": set(sessions), "task": set(tasks)}
    embeddings, broken = _read(output_dir, "embedding", keep, _read_embedding)
    predictions, broken_predictions = _read(output_dir, "predictions", keep, _read_predictions)
    if not embeddings:
        raise _nothing(output_dir, keep, broken)
    predictions, left_over = _of_the_embeddings(predictions, embeddings)
    _check_one_model_a_label([*_origins(embeddings), *_origins(predictions)])
    missing = _missing(_origins(embeddings), set(expected))
    written = _write(output_dir, "embeddings", _embedding_columns(embeddings), _origins(embeddings), missing)
    written += _write(output_dir, "predictions", _prediction_columns(predictions), _origins(predictions), missing)
    persons = _persons(_origins(embeddings))
    people = {participant for participant, _ in persons}
    write_bidsignore(output_dir, sessions_as_rows=len(people) < len(persons))
    return Aggregate(
        written=written,
        n_participants=len(people),
        n_rows=len(persons),
        models=tuple(_by_label(embeddings)),
        missing=missing,
        rejected=(*broken, *broken_predictions),
        warnings=(*_warnings(embeddings), *left_over),
    )


def _nothing(output_dir: Path, keep: Mapping[str, set[str]], broken: Sequence[NeurostormError]) -> NothingToAggregate:
    chosen = [f"{key}-{label}" for key, labels in keep.items() for label in sorted(labels)]
    return NothingToAggregate(
        "no embedding is there to aggregate"
        + (f" for {', '.join(chosen)}" if chosen else "")
        + (f"; {len(broken)} are broken, the first: {broken[0]}" if broken else ""),
        file=output_dir,
        expected="tables written by the participant level",
        remedy="run the participant level first, or widen the selection",
    )


# --- reading ----------------------------------------------------------------------------------------------------


def _read(
    output_dir: Path, suffix: str, keep: Mapping[str, set[str]], reader: Callable[[Origin], Result]
) -> tuple[list[Result], list[NeurostormError]]:
    results: list[Result] = []
    broken: list[NeurostormError] = []
    for path in sorted(p for folder in _FUNC for p in output_dir.glob(f"{folder}/*_{suffix}.tsv")):
        entities = parse_entities(path)
        if any(labels and entities.get(key) not in labels for key, labels in keep.items()):
            continue
        try:
            results.append(reader(_origin(path, entities)))
        except TableUnreadable as error:
            broken.append(error)
    return results, broken


_FUNC = ("sub-*/func", "sub-*/ses-*/func")


def _origin(path: Path, entities: Mapping[str, str]) -> Origin:
    sidecar = read_sidecar(path)
    if sidecar.get(DATA_HASH) != sha256(path):
        raise TableUnreadable("was cut or changed since it was written", file=path, remedy=_RERUN)
    model = sidecar.get("Model")
    return Origin(path, entities, model if isinstance(model, dict) else {}, sidecar.get("SettingsHash"))


def _read_embedding(origin: Origin) -> RunEmbedding:
    rows = read_tsv(origin.path)
    # interned: tables of one model share the names, which would else fill more memory than the numbers
    names = tuple(sys.intern(name) for name in rows[0] if name.startswith("d") and name[1:].isdigit()) if rows else ()
    if not names:
        raise TableUnreadable("holds no clip or no feature", file=origin.path, remedy=_RERUN)
    features = np.array([[_number(origin, row, name) for name in names] for row in rows])  # (n_clips, n_features)
    return RunEmbedding(origin, names, features.mean(axis=0), len(rows))


def _read_predictions(origin: Origin) -> RunPredictions:
    return RunPredictions(origin, read_tsv(origin.path))


def _number(origin: Origin, row: Row, column: str) -> float:
    cell = row.get(column)
    try:
        return float("nan") if cell is None else float(cell)
    except ValueError as error:
        raise TableUnreadable(
            f"column {column} holds {cell!r}", file=origin.path, expected="a number", remedy=_RERUN
        ) from error


# --- who and what -----------------------------------------------------------------------------------------------


def _origins(results: Iterable[RunEmbedding] | Iterable[RunPredictions]) -> list[Origin]:
    return [result.origin for result in results]


def _order(person: Person) -> tuple[str, str]:
    return person[0], person[1] or ""


def _persons(origins: Iterable[Origin]) -> list[Person]:
    return sorted({origin.person for origin in origins}, key=_order)


def _by_label(results: Iterable[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.origin.label].append(result)
    return dict(sorted(groups.items()))


def _check_one_model_a_label(origins: Sequence[Origin]) -> None:
    for label in {origin.label for origin in origins}:
        hashes = {origin.model.get("Hash"): origin.path for origin in origins if origin.label == label}
        if len(hashes) > 1:
            first, second = list(hashes.values())[:2]
            raise ModelsMixed(
                f"results named desc-{label} come from {len(hashes)} different models, the other one in {first.name}",
                file=second,
                expected="one model hash under one name",
                remedy="run the participant level again with one model: it replaces the results of the other",
            )


def _of_the_embeddings(
    predictions: Sequence[RunPredictions], embeddings: Sequence[RunEmbedding]
) -> tuple[list[RunPredictions], tuple[str, ...]]:
    """Predictions of the models that the embeddings come from, and a line for each model of which others are there.

    A run's embedding is written last. What an earlier call left with other packs, or with another model of the same
    name, is still there where the last call predicted nothing, and does not belong to it.
    """
    now = {(it.origin.run, it.origin.label): it.origin.model.get("Hash") for it in embeddings}
    current = [
        it
        for it in predictions
        if (hash_of := it.origin.model.get("Hash")) == now.get((it.origin.run, it.origin.label), hash_of)
    ]
    left = Counter(it.origin.label for it in predictions) - Counter(it.origin.label for it in current)
    return current, tuple(
        f"{label}: predictions of {n} runs are left out, by an earlier call with other packs or another model of this "
        "name than their embeddings; run the participant level with those packs again to have them"
        for label, n in sorted(left.items())
    )


def _missing(origins: Sequence[Origin], expected: set[Person]) -> tuple[str, ...]:
    absent = sorted(expected - set(_persons(origins)), key=_order)
    labels = {origin.label for origin in origins}
    runs: dict[str, set[str]] = defaultdict(set)
    for origin in origins:
        runs[origin.run].add(origin.label)
    return (
        *(f"sub-{sub}{f'_ses-{ses}' if ses else ''}: no result" for sub, ses in absent),
        *(f"{run}: no result of {', '.join(sorted(labels - have))}" for run, have in runs.items() if labels - have),
    )


def _warnings(embeddings: Sequence[RunEmbedding]) -> tuple[str, ...]:
    lines = []
    for label, group in _by_label(embeddings).items():
        if len({result.origin.settings_hash for result in group}) > 1:
            lines.append(f"runs of {label} were processed with different settings (SettingsHash in their sidecars)")
        if not group[0].origin.model.get("Trained", True):
            lines.append(f"{label}: {UNTRAINED}")
    return tuple(lines)


# --- pooling ----------------------------------------------------------------------------------------------------


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of the known values by weight; NaN where none is known."""
    x, w = np.asarray(values, float), np.asarray(weights, float)
    known = ~np.isnan(x) & (w > 0)
    return float(np.sum(x[known] * w[known]) / np.sum(w[known])) if known.any() else float("nan")


def _embedding_columns(embeddings: Sequence[RunEmbedding]) -> list[Column]:
    persons = _persons(_origins(embeddings))
    return [column for label, group in _by_label(embeddings).items() for column in _features(label, group, persons)]


def _features(label: str, group: Sequence[RunEmbedding], persons: Sequence[Person]) -> list[Column]:
    runs: dict[Person, list[RunEmbedding]] = {person: [] for person in persons}
    for result in group:
        runs[result.origin.person].append(result)
    means = np.array([_person_mean(runs[person], len(group[0].names)) for person in persons])  # (n_persons, n_features)
    text = f"of the embedding by {group[0].origin.model.get('Name', label)}; {WEIGHTING}."
    return [
        *_counts(label, [len(runs[p]) for p in persons], [sum(result.n_clips for result in runs[p]) for p in persons]),
        *(
            Column(f"{label}_{name}", means[:, index], f"Feature {index} {text}", "arbitrary")
            for index, name in enumerate(group[0].names)
        ),
    ]


def _person_mean(runs: Sequence[RunEmbedding], n_features: int) -> np.ndarray:
    if not runs:
        return np.full(n_features, np.nan)
    return np.average([result.mean for result in runs], axis=0, weights=[result.n_clips for result in runs])


def _counts(stem: str, n_runs: Sequence[int], n_clips: Sequence[int]) -> list[Column]:
    return [
        Column(f"{stem}_n_runs", n_runs, f"Number of runs behind {stem}."),
        Column(f"{stem}_n_clips", n_clips, f"Number of clips behind {stem}."),
    ]


def _prediction_columns(predictions: Sequence[RunPredictions]) -> list[Column]:
    persons = _persons(_origins(predictions))
    return [
        column
        for label, group in _by_label(predictions).items()
        for target in dict.fromkeys(str(row["target"]) for result in group for row in result.rows)
        for column in _target_columns(f"{label}_{desc_label(target)}", target, group, persons)
    ]


def _target_columns(stem: str, target: str, group: Sequence[RunPredictions], persons: Sequence[Person]) -> list[Column]:
    found: dict[Person, list[tuple[Origin, Row]]] = {person: [] for person in persons}
    for result in group:
        found[result.origin.person] += [(result.origin, row) for row in result.rows if row.get("target") == target]
    rows = [pair for pairs in found.values() for pair in pairs]
    _check_one_unit(target, rows)
    n_clips = [int(sum(_number(*pair, "n_clips") for pair in found[person])) for person in persons]
    make = _classification if rows[0][1].get("kind") == "classification" else _regression
    return [*make(stem, target, found), *_counts(stem, [len(found[person]) for person in persons], n_clips)]


def _check_one_unit(target: str, rows: Sequence[tuple[Origin, Row]]) -> None:
    units = {row.get("unit"): origin.path for origin, row in rows}
    if len(units) > 1:
        raise ModelsMixed(
            f"{target} is given in different units: {', '.join(sorted(str(unit) for unit in units))}",
            file=list(units.values())[-1],
            expected="one unit for one target",
            remedy="run the participant level again with one --target-scaler",
        )


def _pooled(found: Found, column: str) -> list[float]:
    """Mean of a column for each person, by number of clips."""
    return [
        weighted_mean([_number(*pair, column) for pair in pairs], [_number(*pair, "n_clips") for pair in pairs])
        for pairs in found.values()
    ]


def _regression(stem: str, target: str, found: Found) -> list[Column]:
    unit = next(row.get("unit") for pairs in found.values() for _, row in pairs)
    return [Column(stem, _pooled(found, "value"), f"Predicted {target}; {WEIGHTING}. Not for clinical use.", unit)]


def _classification(stem: str, target: str, found: Found) -> list[Column]:
    rows = [row for pairs in found.values() for _, row in pairs]
    columns = dict.fromkeys(
        name for row in rows for name, cell in row.items() if name.startswith("p_") and cell is not None
    )
    means = {name: _pooled(found, name) for name in columns}
    best = [_most_probable({name: means[name][index] for name in means}) for index in range(len(found))]
    text = f"Predicted {target}: the class of highest mean probability. Not for clinical use."
    return [
        Column(stem, best, text),
        *(
            Column(f"{stem}_{name}", values, f"Probability of {name.removeprefix('p_')!r} for {target}; {WEIGHTING}.")
            for name, values in means.items()
        ),
    ]


def _most_probable(probabilities: Mapping[str, float]) -> str | None:
    known = {name: value for name, value in probabilities.items() if not np.isnan(value)}
    return max(known, key=known.__getitem__).removeprefix("p_") if known else None


# --- writing ----------------------------------------------------------------------------------------------------


def _write(
    output_dir: Path, what: str, columns: Sequence[Column], origins: Sequence[Origin], missing: Sequence[str]
) -> tuple[Path, ...]:
    """Write the table and its sidecar; without columns, remove what an earlier call wrote."""
    path = output_dir / "phenotype" / f"neurostorm_{what}.tsv"
    sidecar = path.with_suffix(".json")
    if not columns:
        sidecar.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return ()
    table = [*_person_columns(_persons(origins)), *columns]
    content = {
        "Description": f"NeuroSTORM {what}, a row per participant and session; {WEIGHTING}.",
        "Models": {origin.label: origin.model for origin in origins},
        "Missing": list(missing),
        "Sources": [f"bids::{origin.path.relative_to(output_dir).as_posix()}" for origin in origins],
        "Software": software_versions(),
    }
    write_text(path, tsv_text(table))
    write_json(sidecar, content | describe_columns(table))
    return path, sidecar


def _person_columns(persons: Sequence[Person]) -> list[Column]:
    columns = [Column("participant_id", [f"sub-{participant}" for participant, _ in persons], "Participant.")]
    if any(session for _, session in persons):
        sessions = [f"ses-{session}" if session else None for _, session in persons]
        columns.append(Column("session_id", sessions, "Session; n/a for runs outside any session."))
    return columns
