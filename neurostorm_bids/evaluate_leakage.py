"""What of the participants of an evaluation may have been known in training, and what cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurostorm_bids.evaluation import leakage
from neurostorm_bids.evaluation.problem import Fold, Problem
from neurostorm_bids.evaluation_rows import Row
from neurostorm_bids.model.description import read_json
from neurostorm_bids.model.registry import find_model
from neurostorm_bids.settings import Settings
from neurostorm_bids.stored import content_of

if TYPE_CHECKING:
    from neurostorm_bids.evaluate import Material

Record = Sequence[Mapping[str, Any]] | None  # of the runs that a model was trained on, None where there is none


def find_leakage(
    problem: Problem, rows: Sequence[Row], folds: Sequence[Fold], material: Material, settings: Settings
) -> list[leakage.Finding]:
    """Everything about the test participants that may have been known in training."""
    columns = {str(name): material.column(str(name)) for name in material.participants}
    used = sorted({name for row in rows for name in row.runs})
    found = leakage.both_sides(problem, folds)
    found += leakage.split_families(folds, problem.participants, columns, settings.group_by)
    found += _duplicates(used, material)
    return found + _seen_in_training(problem.labels, material, settings)


def identity_leakage(material: Material, settings: Settings) -> list[leakage.Finding]:
    """What may have been known of people who are to be told apart."""
    labels = sorted({run.participant for run in material.runs})
    return _duplicates([run.name for run in material.runs], material) + _seen_in_training(labels, material, settings)


def confessed(findings: Sequence[leakage.Finding]) -> list[str]:
    """A line for each finding that was allowed."""
    return [f"LEAKAGE, allowed by --allow-leakage: {finding.sentence()}." for finding in findings]


def leakage_json(findings: Sequence[leakage.Finding], settings: Settings) -> dict[str, Any]:
    """Findings for ``evaluation.json``."""
    return {
        "Allowed": settings.allow_leakage,
        "Findings": [{"Kind": f.kind, "Count": f.n, "Examples": list(f.examples)} for f in findings],
    }


def _duplicates(names: Sequence[str], material: Material) -> list[leakage.Finding]:
    cached = next(iter(material.cached.values()))
    participant_of = {run.name: run.participant for run in material.runs}
    return leakage.duplicates(
        [participant_of[name] for name in names],
        [cached[name].content_hash for name in names],
        np.stack([cached[name].clips.mean(axis=0) for name in names]),
    )


def _seen_in_training(labels: Sequence[str], material: Material, settings: Settings) -> list[leakage.Finding]:
    """Participants who are among those that a model, pack or fine-tuned model was trained on."""
    records = {name: record for name, record in training_records(material, settings).items() if record}
    images: dict[str, set[str]] = {label: set() for label in labels}
    for run in material.runs if records else ():  # hashing images takes a while
        if run.participant in images:
            images[run.participant].add(content_of(run))
    people = [leakage.Person(settings.bids_dir.name, label, frozenset(found)) for label, found in images.items()]
    found = [one for name, record in records.items() for one in leakage.seen_in_training(name, record or (), people)]
    return found + _seen_by_tuned(labels, settings)


def _seen_by_tuned(labels: Sequence[str], settings: Settings) -> list[leakage.Finding]:
    """Tested participants who were in the pretraining of the model that ``--tuned`` began from, by its own record."""
    name, models = settings.tuned, settings.output_dir / "models"
    if not name:
        return []
    folders = [path for path in models.glob(f"{name}*") if path.name == name or path.name.startswith(f"{name}-fold")]
    records = [path / "training.json" for path in folders if (path / "training.json").is_file()]
    seen = {label for path in records for label in read_json(path).get("pretraining_overlap", ())}
    return leakage.images_seen(f"the model that {name} began from", seen & set(labels))


def training_records(material: Material, settings: Settings) -> dict[str, Record]:
    """Runs that each model and pack was trained on by its ``training.json``.

    The models are those of ``--model``, else those of OUTPUT_DIR whose hash the embeddings name. Models that were not
    trained are left out.
    """
    folders: dict[str, Path | None] = {
        source: find_model(source, offline=True).path for source in (*settings.model, *settings.packs)
    }
    if not settings.model:
        made = {read_json(path).get("sha256"): path.parent for path in settings.output_dir.glob("models/*/model.json")}
        folders |= {label: made.get(_sidecar(material, label).get("Hash")) for label in material.models}
    return {name: _runs_of(folder) for name, folder in folders.items() if _is_trained(name, folder, material)}


def _sidecar(material: Material, label: str) -> Mapping[str, Any]:
    """What the sidecars say of a model."""
    return next(iter(material.cached[label].values())).model


def _is_trained(name: str, folder: Path | None, material: Material) -> bool:
    if folder is not None and (folder / "model.json").is_file():
        return bool(read_json(folder / "model.json").get("trained", True))
    return name not in material.cached or bool(_sidecar(material, name).get("Trained", True))


def _runs_of(folder: Path | None) -> Record:
    record = folder / "training.json" if folder is not None else None
    if record is None or not record.is_file():
        return None
    runs = read_json(record).get("runs")
    return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else None


def overlap_unknown(material: Material, settings: Settings) -> list[str]:
    """A line for each model of which nobody knows whom it was trained on."""
    return [
        f"{name}: whom it was trained on is not known (no training.json that --model or --packs names), so that an "
        "overlap with the participants evaluated here cannot be ruled out"
        for name, record in training_records(material, settings).items()
        if record is None
    ]
