"""What an output folder holds of one participant, read back for the report. Nothing is computed from images here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurostorm_bids.errors import NeurostormError, TableUnreadable
from neurostorm_bids.outputs.atomic import sha256
from neurostorm_bids.outputs.names import parse_entities
from neurostorm_bids.outputs.resume import DATA_HASH, read_sidecar
from neurostorm_bids.outputs.tables import read_tsv
from neurostorm_bids.report.figures import RunFigures, read_figures

Row = Mapping[str, str | None]
FUNC = ("func", "ses-*/func")
SUFFIXES = ("_qc.tsv", "_embedding.tsv", "_predictions.tsv")
MAP_SUFFIX = "_attribution.tsv"
OURS = ("log/*/neurostorm.toml", "func/*_embedding.tsv", "ses-*/func/*_embedding.tsv")
COMMAND = "# command: "  # first line of a call's neurostorm.toml, then the words as JSON


@dataclass(frozen=True)
class Table:
    """A table of ours with its sidecar."""

    path: Path
    rows: Sequence[Row]
    sidecar: Mapping[str, Any]

    @property
    def entities(self) -> dict[str, str]:
        """Entities of the file name."""
        return parse_entities(self.path)


@dataclass(frozen=True)
class ModelResult:
    """What one model made of a run."""

    label: str
    embedding: Table | None = None
    predictions: Table | None = None

    @property
    def sidecar(self) -> Mapping[str, Any]:
        """The sidecar that says most of the model."""
        table = self.predictions or self.embedding
        return {} if table is None else table.sidecar


@dataclass(frozen=True)
class RunResult:
    """One run: quality tables with their figures (more than one where models differ in grid), and each model's."""

    name: str
    quality: tuple[Table, ...] = ()
    figures: Mapping[str, RunFigures] = field(default_factory=dict)  # by desc- label of the quality table
    models: tuple[ModelResult, ...] = ()
    maps: tuple[Table, ...] = ()  # summaries of attribution maps
    faults: tuple[str, ...] = ()

    @property
    def sidecar(self) -> Mapping[str, Any]:
        """What was done to the run before any model saw it."""
        tables = [*self.quality, *(model.embedding for model in self.models if model.embedding)]
        return tables[0].sidecar if tables else {}


@dataclass(frozen=True)
class ParticipantResults:
    """Everything of a participant that the report tells."""

    label: str
    runs: tuple[RunResult, ...]
    maps: tuple[Table, ...]  # summaries of attribution maps over all runs
    failed: Mapping[str, str]  # run without results: why
    command: tuple[str, ...]


def reported_participants(output_dir: Path) -> list[str]:
    """Labels of the participants that this program worked on, whether or not that came to anything."""
    return sorted(
        folder.name.removeprefix("sub-")
        for folder in output_dir.glob("sub-*")
        if any(next(folder.glob(pattern), None) for pattern in OURS)
    )


def read_participant(output_dir: Path, label: str) -> ParticipantResults:
    """Read the results of one participant; what is damaged is told in its place, not raised."""
    folder = output_dir / f"sub-{label}"
    paths: dict[str, list[Path]] = {}
    for pattern in FUNC:
        for path in sorted(folder.glob(f"{pattern}/*.tsv")):
            if path.name.endswith((*SUFFIXES, MAP_SUFFIX)) and run_name(path):
                paths.setdefault(run_name(path), []).append(path)
    means, _ = _tables(paths.pop(f"sub-{label}", []))  # without any other entity: of no single run
    runs = tuple(_run(output_dir, label, name, members) for name, members in sorted(paths.items()))
    calls = sorted((folder / "log").glob("*/neurostorm.toml"))
    failed = {name: text for name, text in _crashes(folder).items() if name not in paths}
    return ParticipantResults(label, runs, tuple(means), failed, _command(calls))


def run_name(path: Path) -> str:
    """The run of a table of ours: its entities without those that we added; "" for a file that is not ours."""
    parts = path.name.split("_")
    kept = [part for part in parts[:-1] if not part.startswith(("space-", "res-", "desc-"))]
    return "_".join(kept) if all("-" in part for part in parts[:-1]) else ""


def _run(output_dir: Path, label: str, name: str, paths: Sequence[Path]) -> RunResult:
    tables, faults = _tables(paths)
    quality = tuple(table for table in tables if table.path.name.endswith("_qc.tsv"))
    figures = {}
    for table in quality:
        stem = table.path.name.removesuffix("_qc.tsv")
        try:
            path = output_dir / f"sub-{label}" / "figures" / f"{stem}_report.json"
            figures[table.entities["desc"]] = read_figures(path)
        except TableUnreadable as error:
            faults.append(error)
    texts = tuple(f"{_name_of(error)}: {error.fault}" for error in faults)
    maps = tuple(table for table in tables if table.path.name.endswith(MAP_SUFFIX))
    return RunResult(name, quality, figures, tuple(_models(tables)), maps, texts)


def _name_of(error: NeurostormError) -> str:
    return Path(str(error.file)).name if error.file else "a file"


def _tables(paths: Iterable[Path]) -> tuple[list[Table], list[NeurostormError]]:
    found: list[Table] = []
    faults: list[NeurostormError] = []
    for path in paths:
        try:
            found.append(read_table(path))
        except TableUnreadable as error:
            faults.append(error)
    return found, faults


def read_table(path: Path) -> Table:
    """A table that is as its sidecar describes it.

    Raises
    ------
    TableUnreadable
        Table or sidecar is missing, cut or changed.
    """
    sidecar = read_sidecar(path)
    if sidecar.get(DATA_HASH) != sha256(path):
        raise TableUnreadable("was cut or changed since it was written", file=path)
    return Table(path, read_tsv(path), sidecar)


def _models(tables: Sequence[Table]) -> Iterable[ModelResult]:
    by_suffix = {
        suffix: {table.entities["desc"]: table for table in tables if table.path.name.endswith(f"_{suffix}.tsv")}
        for suffix in ("embedding", "predictions")
    }
    for label in sorted(set(by_suffix["embedding"]) | set(by_suffix["predictions"])):
        yield ModelResult(label, by_suffix["embedding"].get(label), by_suffix["predictions"].get(label))


def _crashes(folder: Path) -> dict[str, str]:
    """The first paragraph of the latest crash file of each run."""
    texts = {}
    for path in sorted((folder / "log").glob("*/crash-*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        texts[path.stem.removeprefix("crash-")] = text.split("\n\n")[0]
    return texts


def _command(calls: Sequence[Path]) -> tuple[str, ...]:
    """The command of the latest call that worked on the participant; empty where none is on record."""
    for path in reversed(calls):
        first = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
        try:
            words = json.loads(first.removeprefix(COMMAND)) if first.startswith(COMMAND) else []
        except ValueError:
            continue
        if isinstance(words, list) and words:
            return tuple(map(str, words))
    return ()
