"""``group.html``: the cohort in the plane of its embeddings, evaluations beside baselines, odd and missing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from neurostorm_bids.errors import TableUnreadable
from neurostorm_bids.outputs.atomic import write_text
from neurostorm_bids.outputs.dataset import citation_text, write_bidsignore
from neurostorm_bids.outputs.resume import read_sidecar
from neurostorm_bids.outputs.sidecars import UNTRAINED
from neurostorm_bids.outputs.tables import read_tsv
from neurostorm_bids.report.charts import Scale, principal_plane, ticks
from neurostorm_bids.report.cohort import (
    Evaluated,
    common_warnings,
    mean_by_person,
    number_of,
    outliers,
    read_evaluations,
    read_failures,
    read_quality,
)
from neurostorm_bids.report.page import asset_of_outputs, methods, render
from neurostorm_bids.report.participant import at, report_file
from neurostorm_bids.report.results import Row

MOST_COLUMNS = 200  # of participants.tsv
MOST_PLOTS = 6
SHOWN_TEXT = 40  # characters of a value
SHOWN_METRICS = ("r2", "mae", "balanced_accuracy", "auroc", "rank1", "map", "accuracy", "r", "pearson")

Columns = Mapping[str, Mapping[str, Any]]


def write_group_report(output_dir: Path, participants: Columns | None = None) -> Path:
    """Write ``group.html`` from what the output folder holds.

    Parameters
    ----------
    output_dir : Path
    participants : mapping, optional
        Columns of participants.tsv, each by participant label without ``sub-``.

    Raises
    ------
    OutputNotWritable, OutputWriteFailed
    """
    path = output_dir / "group.html"
    write_bidsignore(output_dir)
    write_text(path, group_page(output_dir, participants or {}))
    return path


def group_page(output_dir: Path, participants: Columns) -> str:
    """The page as text; equal results give equal text."""
    quality, broken = read_quality(output_dir)
    embeddings, described = _table(output_dir, "embeddings")
    predictions, _ = _table(output_dir, "predictions")
    people = [_person(row) for row in embeddings]
    columns = _columns(people, participants, predictions, mean_by_person(quality))
    maps = _maps(embeddings)
    missing = at(described, "Missing")
    untrained = _untrained(described)
    return render(
        "group.html",
        script="group.js",
        n_people=len({label for label, _ in people}),
        n_rows=len(people),
        n_runs=len({row.run for row in quality}),
        models=sorted(maps),
        untrained=untrained,
        data={
            "rows": [{"name": _name(*who), "href": _href(output_dir, who[0])} for who in people],
            "maps": maps,
            "columns": columns,
        },
        first=_drawn(next(iter(maps.values()), None)),
        against=_against_columns(people, predictions, participants),
        evaluations=[_evaluation_view(one) for one in read_evaluations(output_dir)],
        outliers=[(one, _href(output_dir, one.participant)) for one in outliers(quality)],
        warnings=common_warnings(quality),
        missing=[str(text) for text in missing] if isinstance(missing, list) else [],
        failures=[(run, text, _href(output_dir, label)) for label, run, text in read_failures(output_dir)],
        broken=broken,
        reports=[(path.stem, quote(path.name)) for path in sorted(output_dir.glob("sub-*.html"))],
        software=at(described, "Software"),
        methods=methods(citation_text(), asset_of_outputs("CITATION.bib")),
    )


def _table(output_dir: Path, what: str) -> tuple[list[Row], Mapping[str, Any]]:
    path = output_dir / "phenotype" / f"neurostorm_{what}.tsv"
    try:
        return list(read_tsv(path)), read_sidecar(path)
    except TableUnreadable:
        return [], {}


def _untrained(described: Mapping[str, Any]) -> list[str]:
    models = at(described, "Models")
    entries = models.items() if isinstance(models, Mapping) else ()
    return [f"{label}: {UNTRAINED}" for label, model in entries if at(model, "Trained") is False]


def _person(row: Row) -> tuple[str, str | None]:
    session = row.get("session_id")
    label = str(row.get("participant_id")).removeprefix("sub-")
    return label, session.removeprefix("ses-") if session else None


def _name(label: str, session: str | None) -> str:
    return f"sub-{label}" + (f", ses-{session}" if session else "")


def _href(output_dir: Path, label: str) -> str:
    """Link to a participant's page; empty where there is none."""
    path = report_file(output_dir, label)
    return quote(path.name) if path.is_file() else ""


# --- the map ----------------------------------------------------------------------------------------------------


def _maps(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Places of the rows (per cent; None where a model lacks one) in the plane of each model's embeddings."""
    names: dict[str, list[str]] = {}
    for name in rows[0] if rows else ():
        label, _, feature = name.rpartition("_")
        if feature[:1] == "d" and feature[1:].isdigit():
            names.setdefault(label, []).append(name)
    return {label: _map([[number_of(row[name]) for name in own] for row in rows]) for label, own in names.items()}


def _map(cells: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    values = np.array([[np.nan if cell is None else cell for cell in row] for row in cells])  # (n, d)
    there = np.isfinite(values).all(axis=1)
    places: list[tuple[float, float] | None] = [None] * len(values)
    shares = (0.0, 0.0)
    if there.sum() > 1:
        plane, shares = principal_plane(values[there])
        x, y = Scale.around(plane[:, 0]), Scale.around(plane[:, 1], flipped=True)
        for index, (a, b) in zip(np.flatnonzero(there), plane, strict=True):
            places[index] = (x(a), y(b))
    return {"places": places, "shares": [round(100 * share) for share in shares]}


def _drawn(shown: Mapping[str, Any] | None) -> list[tuple[float, float]]:
    return [place for place in shown["places"] if place] if shown else []


def _columns(
    people: Sequence[tuple[str, str | None]],
    participants: Columns,
    predictions: Sequence[Row],
    quality: Mapping[str, Mapping[tuple[str, str | None], float]],
) -> list[dict[str, Any]]:
    """What the map may be coloured by, a value a row."""
    found = [("participant", name, [of.get(label) for label, _ in people]) for name, of in _some(participants)]
    by_person = {_person(row): row for row in predictions}
    told = [
        name for name in (predictions[0] if predictions else ()) if not name.endswith(("_id", "_n_runs", "_n_clips"))
    ]
    found += [("predicted", name, [by_person.get(who, {}).get(name) for who in people]) for name in told]
    found += [("quality", name, [of.get(who) for who in people]) for name, of in quality.items()]
    if any(session for _, session in people):
        found.append(("row", "session", [session for _, session in people]))
    return [{"group": group, "name": name, **_typed(values)} for group, name, values in found]


def _some(participants: Columns) -> list[tuple[str, Mapping[str, Any]]]:
    return list(participants.items())[:MOST_COLUMNS]


def _typed(values: Sequence[Any]) -> dict[str, Any]:
    present = [value for value in values if value is not None]
    numbers = [number_of(value) for value in present]
    if present and None not in numbers:
        return {"kind": "number", "values": [number_of(value) for value in values]}
    return {"kind": "category", "values": [None if value is None else str(value)[:SHOWN_TEXT] for value in values]}


# --- predictions and metrics ------------------------------------------------------------------------------------


def _against_columns(
    people: Sequence[tuple[str, str | None]], predictions: Sequence[Row], participants: Columns
) -> list[dict[str, Any]]:
    """Predicted numbers against the column of participants.tsv that bears the target's name."""
    plots = []
    for name in predictions[0] if predictions else ():
        target = max((column for column in participants if name.endswith(f"_{column}")), key=len, default=None)
        if target is None:
            continue
        pairs = [
            (who[0], number_of(participants[target].get(who[0])), number_of(row.get(name)))
            for who, row in zip(map(_person, predictions), predictions, strict=True)
        ]
        known = [(f"sub-{label}", x, y) for label, x, y in pairs if x is not None and y is not None]
        if len(known) > 1:
            plots.append(_scatter(f"{name} (applied, not cross-validated)", target, known))
    return plots[:MOST_PLOTS]


def _scatter(name: str, target: str, pairs: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Observed across, predicted up, one scale for both."""
    values = [value for _, x, y in pairs for value in (x, y)]
    x, y = Scale.around(values), Scale.around(values, flipped=True)
    marks = ticks(min(values), max(values), 5)
    return {
        "name": name,
        "target": target,
        "points": [(x(a), y(b), f"{who}: {a:g}, predicted {b:.4g}") for who, a, b in pairs],
        "diagonal": (x(min(values)), y(min(values)), x(max(values)), y(max(values))),
        "x_ticks": [(x(mark), f"{mark:g}") for mark in marks],
        "y_ticks": [(y(mark), f"{mark:g}") for mark in marks],
    }


def _evaluation_view(found: Evaluated) -> dict[str, Any]:
    content, metrics = found.content, _metrics(found.metrics)
    target = at(content, "Target", "Name") or found.name
    return {
        "name": found.name,
        "target": str(target),
        "statements": _texts(at(content, "Statements")),
        "warnings": _texts(at(content, "Warnings")),
        "leakage": at(content, "Leakage", "Allowed") is True and bool(at(content, "Leakage", "Findings")),
        "metrics": metrics,
        "guessed": any(line["chance"] is not None for metric in metrics for line in metric["lines"]),
        "plots": _plots(found, str(target)),
        "confusions": _confusions(content),
        "calibration": at(content, "Calibration") if isinstance(at(content, "Calibration"), Mapping) else {},
    }


def _texts(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []


def _metrics(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each metric with a line for every set of features (or fold), on one scale; those best known first."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        value = number_of(row.get("value"))
        if value is not None:
            by_name.setdefault(str(row.get("metric") or row.get("figure")), []).append(_line(row, value))
    ranked = sorted(by_name, key=lambda name: (SHOWN_METRICS.index(name) if name in SHOWN_METRICS else 99, name))
    return [{"name": name, "lines": _placed(by_name[name])} for name in ranked]


def _line(row: Row, value: float) -> dict[str, Any]:
    who = row.get("features") or (f"fold {row.get('fold')}" if row.get("fold") else "")
    setting = row.get("setting")
    return {
        "name": f"{who}, {setting}" if setting else str(who),
        "value": value,
        "low": number_of(row.get("ci_low")),
        "high": number_of(row.get("ci_high")),
        "p": number_of(row.get("p")),
        "chance": number_of(row.get("chance")),
    }


def _placed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    values = [line[key] for line in lines for key in ("value", "low", "high", "chance") if line[key] is not None]
    scale = Scale.around([0.0, *values] if min(values) >= 0 else values, edge=2.0)
    for line in lines:
        line["x"] = scale(line["value"])
        line["bar"] = None if line["low"] is None or line["high"] is None else (scale(line["low"]), scale(line["high"]))
        line["chance_x"] = None if line["chance"] is None else scale(line["chance"])
    return lines


def _plots(found: Evaluated, target: str) -> list[dict[str, Any]]:
    """Observed against predicted numbers of the first repeat, a plot for each set of features."""
    pairs: dict[str, list[tuple[str, float, float]]] = {}
    for row in found.predictions:
        x, y = number_of(row.get("observed", row.get("truth"))), number_of(row.get("predicted"))
        if row.get("repeat", "1") == "1" and x is not None and y is not None:
            pairs.setdefault(str(row.get("features") or found.name), []).append((str(row.get("participant_id")), x, y))
    return [_scatter(name, target, points) for name, points in pairs.items() if len(points) > 1][:MOST_PLOTS]


def _confusions(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = at(content, "ConfusionOfFirstRepeat")
    classes = _texts(at(content, "Target", "Classes"))
    if not isinstance(found, Mapping):
        return []
    tables = [(name, rows) for name, rows in found.items() if isinstance(rows, list)][:MOST_PLOTS]
    return [{"name": name, "classes": classes, "rows": list(zip(classes, rows, strict=False))} for name, rows in tables]
