"""``sub-X.html``: what was done to a participant's runs, what came of it, and what to look at."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurostorm_bids.outputs.atomic import write_text
from neurostorm_bids.outputs.dataset import citation_text
from neurostorm_bids.outputs.sidecars import UNTRAINED
from neurostorm_bids.report.charts import against_training, timeline, trajectories
from neurostorm_bids.report.figures import RunFigures
from neurostorm_bids.report.page import asset_of_outputs, methods, render
from neurostorm_bids.report.results import ModelResult, ParticipantResults, Row, RunResult, Table, read_participant

MOST_AREAS = 8  # networks or parcels of a map
FIRST_FIGURES = ("coverage", "dice", "mean_fd", "tsnr")  # shown in the overview
APPROXIMATE = (
    "The run lies in another template than the model's and was matched by its affine alone: cortex may be off by "
    "several millimetres. Make the transform available (docs/normalization.md) and run again."
)
NOT_TRAINED = f"{UNTRAINED} Do not interpret them."
UNLIKE = "The run is unlike those that the model was trained on: take the prediction with caution."


def report_file(output_dir: Path, label: str) -> Path:
    """Where a participant's report lies."""
    return output_dir / f"sub-{label}.html"


def write_participant_report(output_dir: Path, label: str) -> tuple[str, ...]:
    """Write ``sub-X.html`` from what the output folder holds.

    Two processes that work on one participant may both write it: a page is written again until nothing has come in
    while it was made, so that the last to finish has seen everything.

    Returns
    -------
    tuple of str
        Faults of the results, which the page tells too.

    Raises
    ------
    OutputNotWritable, OutputWriteFailed
    """
    seen = None
    faults: tuple[str, ...] = ()
    while (state := _state(output_dir, label)) != seen:
        seen = state
        results = read_participant(output_dir, label)
        write_text(report_file(output_dir, label), participant_page(output_dir, results))
        faults = tuple(f"{run.name}: {fault}" for run in results.runs for fault in run.faults)
    return faults


def needs_report(output_dir: Path, label: str) -> bool:
    """Whether a participant's page is missing or older than something that it tells of."""
    page = report_file(output_dir, label)
    if not page.is_file():
        return True
    written = page.stat().st_mtime_ns
    return any(changed > written for _, changed, _ in _state(output_dir, label))


def _state(output_dir: Path, label: str) -> list[tuple[str, int, int]]:
    folder = output_dir / f"sub-{label}"
    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.suffix in _READ and path.is_file()]
    return [(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]


_READ = (".tsv", ".json", ".webp", ".txt", ".toml")


# --- the page ---------------------------------------------------------------------------------------------------


def participant_page(output_dir: Path, results: ParticipantResults) -> str:
    """The page as text; equal results give equal text."""
    ways = _trajectories(results.runs)
    runs = [_run_view(number, run, ways) for number, run in enumerate(results.runs, 1)]
    return render(
        "participant.html",
        label=results.label,
        runs=runs,
        maps=[_map_view(table) for table in results.maps],
        failed=results.failed,
        command=shlex.join(results.command),
        software=_first(results.runs, "Software"),
        methods=methods(_citation(output_dir), asset_of_outputs("CITATION.bib")),
        first_figures=FIRST_FIGURES,
        has_group=(output_dir / "group.html").is_file(),
    )


def _citation(output_dir: Path) -> str:
    path = output_dir / "logs" / "CITATION.md"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else citation_text()


def _first(runs: Sequence[RunResult], key: str) -> Mapping[str, Any]:
    return next((found for run in runs if (found := at(run.sidecar, key))), {})


def at(content: Any, *keys: str) -> Any:
    """An entry of nested mappings, or None where there is none or something else is in its place."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _trajectories(runs: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """By model label and run: the run's clips in the plane of all clips of the participant."""
    by_label: dict[str, dict[str, np.ndarray]] = {}
    for run in runs:
        for model in run.models:
            if model.embedding is not None:
                by_label.setdefault(model.label, {})[run.name] = features_of(model.embedding)
    return {
        label: trajectories(of_run) if len({rows.shape[1] for rows in of_run.values()}) == 1 else {}
        for label, of_run in by_label.items()
    }


def features_of(table: Table) -> np.ndarray:
    """Embedding of each clip.  # (n_clips, d)"""
    names = [name for name in table.rows[0] if name[:1] == "d" and name[1:].isdigit()] if table.rows else []
    return np.array([[_float(row.get(name)) for name in names] for row in table.rows]).reshape(len(table.rows), -1)


def _float(text: str | None) -> float:
    try:
        return float("nan") if text is None else float(text)
    except ValueError:
        return float("nan")


def _run_view(number: int, run: RunResult, ways: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    faults = list(run.faults)
    first = next((table.rows[0] for table in run.quality if table.rows), {})
    figures = []
    for table in run.quality:
        try:
            figures.append(_figures_view(table, run.figures.get(table.entities["desc"])))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            faults.append(f"{table.path.name}: its figures are not what this program writes")
    models = [_model_view(model, ways.get(model.label, {}).get(run.name)) for model in run.models]
    return {
        "id": f"run-{number}",
        "name": run.name,
        "facts": _facts(run.sidecar),
        "steps": _texts(at(run.sidecar, "Route", "Steps")),
        "sources": _texts(at(run.sidecar, "Sources")),
        "hashes": {name: at(run.sidecar, name) for name in ("RunSha256", "SettingsHash", "ResumeKey")},
        "warnings": _warnings(run, models),
        "faults": faults,
        "figures": figures,
        "quality": _quality(run.quality),
        "overview": [first.get(name) for name in FIRST_FIGURES],
        "models": models,
        "maps": [_map_view(table) for table in run.maps],
        "n_clips": at(run.sidecar, "Clips", "Used"),
    }


def _texts(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []


def _warnings(run: RunResult, models: Sequence[Mapping[str, Any]]) -> list[str]:
    texts = [APPROXIMATE] if at(run.sidecar, "Route", "Approximate") is True else []
    texts += [text[:1].upper() + text[1:] for text in _texts(at(run.sidecar, "Warnings"))]
    for model in models:
        texts += [f"{model['name']}: {NOT_TRAINED}"] if not model["trained"] else []
        texts += [f"{model['name']}, {row['target']}: {UNLIKE}" for row in model["predictions"] if row["unlike"]]
    return list(dict.fromkeys(texts))


def _facts(sidecar: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was done to a run, in words; what is not known is left out."""
    pipeline, timing, clips, route = (at(sidecar, key) or {} for key in ("InputPipeline", "Timing", "Clips", "Route"))
    used, dropped = at(clips, "Used"), at(clips, "Dropped", "motion")
    entries = [
        ("Input", " ".join(str(x) for x in (at(pipeline, "Name"), at(pipeline, "Version")) if x)),
        ("Denoising", at(pipeline, "Denoising")),
        ("Input space", at(route, "InputSpace")),
        ("Route to the model's grid", f"{at(route, 'Kind')}, {at(route, 'Interpolation')} interpolation"),
        ("Grid", str(at(sidecar, "Resolution") or "").removeprefix("Grid of the model: ")),
        ("Template", at(sidecar, "Grid", "Template")),
        ("Brain mask", at(sidecar, "MaskOrigin")),
        ("Repetition time", _unit(at(timing, "InputRepetitionTime"), "s")),
        ("Time step that the model sees", _unit(at(timing, "EffectiveStep"), "s")),
        ("Volumes", _counted(at(timing, "InputVolumes"), at(timing, "DummyScans"), "dropped at the start")),
        ("Clips used", _counted(used, dropped, "left out for motion")),
        ("Clip length", _unit(at(clips, "FramesPerClip"), "frames")),
    ]
    return [(name, str(value)) for name, value in entries if value not in (None, "", "None, None interpolation")]


def _unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _counted(value: Any, fewer: Any, why: str) -> str | None:
    return None if value is None else f"{value}" + (f" ({fewer} {why})" if fewer else "")


def _quality(tables: Sequence[Table]) -> list[dict[str, Any]]:
    rows = []
    for table in tables:
        for name, value in (table.rows[0] if table.rows else {}).items():
            entry = at(table.sidecar, name)
            rows.append(
                {"name": name, "value": value, "unit": at(entry, "Units"), "text": at(entry, "Description") or ""}
            )
    return rows


def _figures_view(table: Table, figures: RunFigures | None) -> dict[str, Any]:
    if figures is None:
        return {"label": table.entities["desc"], "placement": None, "timeline": None, "carpet": None}
    pictures, placement = figures.pictures, figures.content.get("Placement")
    return {
        "label": table.entities["desc"],
        "placement": None
        if placement is None
        else {
            "mean": pictures["mean"],
            "template": pictures["template"],
            "width": int(placement["Width"]),
            "height": int(placement["Height"]),
            "outline": str(placement["Outline"]),
            "slices": {plane: ", ".join(f"{x:g}" for x in mm) for plane, mm in placement["SlicesInMm"].items()},
        },
        "timeline": timeline(figures.content),
        "carpet": pictures.get("carpet"),
    }


# --- models -----------------------------------------------------------------------------------------------------


def _model_view(model: ModelResult, way: Mapping[str, Any] | None) -> dict[str, Any]:
    described = at(model.sidecar, "Model") or {}
    names = ("Hash", "Backend", "Device", "Precision", "BatchSize", "Threads", "License")
    provenance = at(described, "InputProvenance")
    rows = model.predictions.rows if model.predictions else ()
    return {
        "label": model.label,
        "name": str(at(described, "Name") or model.label),
        "trained": at(described, "Trained") is not False,
        "facts": [(name, at(described, name)) for name in names if at(described, name) is not None],
        "assumed": [k for k, v in provenance.items() if v == "assumed"] if isinstance(provenance, Mapping) else [],
        "clips": _clip_rows(model.embedding),
        "n_features": features_of(model.embedding).shape[1] if model.embedding else 0,
        "trajectory": way,
        "predictions": [_prediction(row, described) for row in rows],
    }


def _clip_rows(table: Table | None) -> list[dict[str, Any]]:
    rows = table.rows if table else ()
    return [{name: row.get(name) for name in ("onset", "duration", "mean_fd")} for row in rows]


def _prediction(row: Row, described: Any) -> dict[str, Any]:
    target = str(row.get("target"))
    known = at(described, "Targets", target) or {}
    classes = [(name.removeprefix("p_"), _float(p)) for name, p in row.items() if name[:2] == "p_" and p is not None]
    return {
        "target": target,
        "kind": row.get("kind"),
        "value": row.get("value"),
        "unit": row.get("unit") or "",
        "clip_sd": row.get("clip_sd"),
        "n_clips": row.get("n_clips"),
        "interval": _interval(row),
        "in_distribution": row.get("in_distribution"),
        "unlike": row.get("in_distribution") == "false",
        "odd": _texts(at(described, "Shift", target, "OddQuality")),
        "classes": sorted(classes, key=lambda pair: -pair[1]),
        "calibrated": at(known, "Temperature") not in (None, 1, 1.0),
        "training": _training(known),
        "chart": _chart(row, known),
    }


def _interval(row: Row) -> tuple[str, str] | None:
    low, high = row.get("interval_low"), row.get("interval_high")
    return None if low is None or high is None else (low, high)


def _training(known: Any) -> dict[str, float] | None:
    training = at(known, "Training")
    if not isinstance(training, Mapping):
        return None
    return {str(name): float(x) for name, x in training.items() if isinstance(x, int | float)}


def _chart(row: Row, known: Any) -> dict[str, Any] | None:
    """A regression value among the training sample; None where nobody stated its mean and SD."""
    training = _training(known) or {}
    value, spread = _float(row.get("value")), _float(row.get("clip_sd"))
    if row.get("unit") == "training SD":
        training = {"Mean": 0.0, "SD": 1.0}
    if row.get("kind") != "regression" or not training.get("SD") or "Mean" not in training or not np.isfinite(value):
        return None
    interval = _interval(row)
    ends = None if interval is None else (_float(interval[0]), _float(interval[1]))
    return against_training(value, spread if np.isfinite(spread) else None, training["Mean"], training["SD"], ends)


# --- attribution ------------------------------------------------------------------------------------------------


def _map_view(table: Table) -> dict[str, Any]:
    """Where a prediction comes from: the networks (else parcels) with the largest shares, and the map's own checks."""
    entry = at(table.sidecar, "Attribution")
    level = "network" if any(row.get("level") == "network" for row in table.rows) else "parcel"
    areas = [
        (str(row.get("name")), _float(row.get("mass")), _float(row.get("volume")))
        for row in table.rows
        if row.get("level") == level
    ]
    known = [area for area in areas if np.isfinite(area[1:]).all()]
    shown = sorted(known, key=lambda area: -area[1])[:MOST_AREAS]
    chosen = at(entry, "Class")
    return {
        "target": str(at(entry, "Target") or table.entities.get("desc", "")) + (f", {chosen}" if chosen else ""),
        "method": str(at(entry, "Method") or ""),
        "error": at(entry, "Completeness", "RelativeError"),
        "alike": at(entry, "SanityCheck", "Correlation"),
        "differs": at(entry, "SanityCheck", "Differs"),
        "level": level,
        "areas": [{"name": name, "mass": mass, "volume": volume} for name, mass, volume in shown],
        "most": max([share for area in shown for share in area[1:]], default=1.0) or 1.0,
        "image": table.path.name.replace("_attribution.tsv", "_boldmap.nii.gz"),
        "warnings": _texts(at(table.sidecar, "Warnings")),
    }
