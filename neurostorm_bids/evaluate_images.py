"""What an evaluation reads from the images again: parcel courses, and each model's view of clips without dynamics."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurostorm_bids import __version__
from neurostorm_bids.cached import CachedRun
from neurostorm_bids.errors import ModelsMixed
from neurostorm_bids.evaluation.atlas import Parcellation
from neurostorm_bids.evaluation.baselines import connectivity
from neurostorm_bids.evaluation.controls import MeanImage, shuffled
from neurostorm_bids.evaluation.learning import Features
from neurostorm_bids.evaluation_rows import Row, mean_of_rows
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.model import Model
from neurostorm_bids.model.config import InputSpec
from neurostorm_bids.outputs.atomic import replacing
from neurostorm_bids.participant import requested_models
from neurostorm_bids.prepare import prepare_run
from neurostorm_bids.resume import run_key
from neurostorm_bids.settings import Settings
from neurostorm_bids.space import Grid

if TYPE_CHECKING:
    from neurostorm_bids.evaluate import Material

Arrays = dict[str, np.ndarray]
CONTROLS = {"static": "the run's mean image in every frame", "shuffled": "the frames of each clip out of order"}


def image_features(
    rows: Sequence[Row], material: Material, wanted: Sequence[str], settings: Settings
) -> tuple[list[Features], list[str]]:
    """Functional connectivity, mean image, static and shuffled controls, and a line for what cannot be had."""
    models, warnings = _models(material, wanted, settings)
    needed = {name for row in rows for name in row.runs}
    runs = [run for run in material.runs if run.name in needed]
    arrays: dict[str, Arrays] = {}
    for number, run in enumerate(runs, 1):
        arrays[run.name] = _arrays_of(run, material, models, settings)
        if not settings.quiet:
            print(f"[{number}/{len(runs)}] {run.name}: images read", file=sys.stderr, flush=True)
    features = [
        Features.fixed(
            f"{control}-{label}", f"{label}, {CONTROLS[control]}", _of_rows(rows, arrays, f"{control}-{label}")
        )
        for label in models
        for control in CONTROLS
        if control in wanted
    ]
    if "fc" in wanted:
        features += connectivity([_courses(row, arrays) for row in rows])
    if "mean-image" in wanted:
        means = np.stack([np.concatenate(_courses(row, arrays)).mean(axis=0) for row in rows])
        features.append(Features.fixed("mean-image", "Mean image of the parcels", means))
    return features, warnings


def _models(material: Material, wanted: Sequence[str], settings: Settings) -> tuple[dict[str, Model], list[str]]:
    """The models of the controls, by label."""
    if not set(CONTROLS) & set(wanted):
        return {}, []
    models: dict[str, Model] = {}
    for request in requested_models(settings) if settings.model else ():
        model = request.load()
        _require_same(model, material.cached[model.label])
        models[model.label] = model
    missing = [label for label in material.models if label not in models]
    return models, [f"static, shuffled: no control for {label}, which is no model of --model" for label in missing]


def _require_same(model: Model, cached: Mapping[str, CachedRun]) -> None:
    run = next(iter(cached.values()))
    if run.model.get("Hash") != model.hash:
        raise ModelsMixed(
            f"--model {model.name} is not the model that made the embeddings",
            file=run.path,
            expected="the same weights and scalers",
            remedy="Name the model and the --packs of the participant level, or run that level again",
        )


def _of_rows(rows: Sequence[Row], arrays: Mapping[str, Arrays], name: str) -> np.ndarray:
    return mean_of_rows(rows, {run: of_run[name] for run, of_run in arrays.items()})


def _courses(row: Row, arrays: Mapping[str, Arrays]) -> list[np.ndarray]:
    """Parcel courses of each run of a row, or of its clip.  # each (t, parcels)"""
    if row.clip is not None:
        return [arrays[row.runs[0]]["courses"][row.clip]]
    # clips that overlap would count frames twice
    return [np.concatenate(list(arrays[name]["courses"][:: int(arrays[name]["step"])])) for name in row.runs]


def run_courses(material: Material, settings: Settings) -> dict[str, np.ndarray]:
    """Parcel courses of every run.  # each (clips, t, parcels)"""
    return {run.name: _arrays_of(run, material, {}, settings)["courses"] for run in material.runs}


# --- one run ----------------------------------------------------------------------------------------------------


def _arrays_of(run: BoldRun, material: Material, models: Mapping[str, Model], settings: Settings) -> Arrays:
    """Read from the cache of the work folder, or from the image."""
    hashes = " ".join(model.hash for model in models.values())
    path = settings.work_dir / "cache" / "evaluation" / f"{run_key(run, hashes, settings, __version__)}.npz"
    if path.is_file():
        with np.load(path) as stored:
            return dict(stored)
    spec = next(iter(models.values())).input if models else _input_of(material.cached[material.models[0]][run.name])
    arrays = _pass(run, spec, models, settings)
    _store(path, arrays)
    return arrays


def _store(path: Path, arrays: Arrays) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    with replacing(path) as handle:
        handle.write(content.getvalue())


def _input_of(cached: CachedRun) -> InputSpec:
    """The input that the embedding's sidecar tells of, for want of the model."""
    grid, timing = cached.sidecar["Grid"], cached.sidecar["Timing"]
    return InputSpec(
        grid=Grid.of(grid["Shape"], np.array(grid["Affine"]), grid["Template"]),
        t_r_s=float(timing["EffectiveStep"]),
        clip_frames=int(cached.sidecar["Clips"]["FramesPerClip"]),
    )


def _pass(run: BoldRun, spec: InputSpec, models: Mapping[str, Model], settings: Settings) -> Arrays:
    """One pass over the clips of a run."""
    prepared = prepare_run(run, spec, settings)
    parcels, mean = Parcellation(spec.grid), MeanImage()
    background = float(prepared.statistics.background)
    courses: list[np.ndarray] = []
    found: dict[str, list[np.ndarray]] = {f"shuffled-{label}": [] for label in models}
    buffer = np.empty((1, *spec.grid.shape, spec.clip_frames), np.float32)
    for number, clip in enumerate(prepared.clips([buffer])):
        courses.append(parcels.courses(clip.data, background).astype(np.float32))
        mean.add(clip.data)
        out_of_order = shuffled(clip.data, settings.random_seed, number)[None]
        for label, model in models.items():
            found[f"shuffled-{label}"].append(model.embed(out_of_order).numpy()[0])
    still = mean.repeated(spec.clip_frames)[None]
    arrays: Arrays = {name: np.stack(parts).astype(float) for name, parts in found.items()}
    arrays |= {f"static-{label}": model.embed(still).numpy().astype(float) for label, model in models.items()}
    step = -(-spec.clip_frames // prepared.windows.stride) if prepared.windows.stride < spec.clip_frames else 1
    return arrays | {"courses": np.stack(courses), "step": np.array(step)}
