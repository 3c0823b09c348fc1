"""Results of a run, each a data file and its sidecar: the sidecar is written last and makes the result complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurostorm_bids.outputs.atomic import replacing, sha256, write_json, write_text
from neurostorm_bids.outputs.names import RunFiles, sidecar_of
from neurostorm_bids.outputs.nifti import write_nifti_gz
from neurostorm_bids.outputs.records import ClipRow, ModelRecord, QualityFigure, RunRecord, TargetRow
from neurostorm_bids.outputs.resume import DATA_HASH, KEY
from neurostorm_bids.outputs.sidecars import CLIP_SD, UNTRAINED, model_sidecar, run_sidecar
from neurostorm_bids.outputs.tables import Column, describe_columns, tsv_text


def write_embedding(
    output_dir: Path,
    run: RunRecord,
    model: ModelRecord,
    clips: Sequence[ClipRow],
    embedding: np.ndarray,
    what: str = "before any prediction head",
) -> Path:
    """Write a run's embedding, a row per clip, and its sidecar.

    Parameters
    ----------
    embedding : np.ndarray
        One row a clip.  # (n_clips, n_features)
    what : str
        Where in the model it was taken, in words.

    Returns
    -------
    Path
        The table: ``..._desc-<model>_embedding.tsv``.
    """
    if len(clips) != len(embedding):
        raise ValueError(f"{len(clips)} clips, {len(embedding)} rows of embedding")
    path = _files(output_dir, run, model).embedding
    description = f"Embedding of each clip of the run by the model {model.name}, {what}."
    return _write_table(path, run, model, description, [*_clip_columns(clips), *_feature_columns(embedding)])


def _clip_columns(clips: Sequence[ClipRow]) -> list[Column]:
    return [
        Column(
            "onset",
            [float(clip.onset_s) for clip in clips],
            "Start of the clip, in scanner time from the first recorded volume (dropped dummy scans counted in).",
            "s",
        ),
        Column("duration", [float(clip.duration_s) for clip in clips], "Scanner time that the clip spans.", "s"),
        Column(
            "mean_fd",
            [clip.mean_fd_mm for clip in clips],
            "Mean framewise displacement over the volumes of the clip; n/a without confounds.",
            "mm",
        ),
    ]


def _feature_columns(embedding: np.ndarray) -> list[Column]:
    return [
        Column(f"d{index:03d}", embedding[:, index].tolist(), f"Feature {index} of the embedding.", "arbitrary")
        for index in range(embedding.shape[1])
    ]


def write_predictions(output_dir: Path, run: RunRecord, model: ModelRecord, targets: Sequence[TargetRow]) -> Path:
    """Write what a model predicts for a run, a row per target, and the sidecar.

    Returns
    -------
    Path
        The table: ``..._desc-<model>_predictions.tsv``.
    """
    path = _files(output_dir, run, model).predictions
    description = f"Predictions of the model {model.name}, a row per target. Not for clinical use."
    columns = [*_target_columns(targets), *_interval_columns(targets), *_class_columns(targets)]
    return _write_table(path, run, model, description, columns)


def _target_columns(targets: Sequence[TargetRow]) -> list[Column]:
    return [
        Column("target", [row.target for row in targets], "What is predicted."),
        Column("kind", [row.kind for row in targets], "Kind of the target.", levels=_KINDS),
        Column(
            "value",
            [row.value for row in targets],
            "Regression: mean over clips, in the unit of its row. Classification: the most probable class.",
        ),
        Column(
            "unit",
            ["training SD" if row.standard_units else row.unit for row in targets],
            "Unit of value and clip_sd. 'training SD' marks a target whose scaler nobody stated: the value then "
            "counts standard deviations of the training sample from its mean, not natural units.",
        ),
        Column("clip_sd", [row.clip_sd for row in targets], CLIP_SD),
        Column("n_clips", [row.n_clips for row in targets], "Number of clips behind the value."),
        Column(
            "in_distribution",
            [row.in_distribution for row in targets],
            "Whether the run resembles the model's training data; n/a where the model cannot say.",
        ),
    ]


def _interval_columns(targets: Sequence[TargetRow]) -> list[Column]:
    """Ends of the calibrated intervals, where a target has one."""
    if not any(row.interval for row in targets):
        return []
    ends = [row.interval or (None, None) for row in targets]
    text = (
        "end of the 95 % prediction interval for a run of a new person like those that the model was calibrated on "
        "(held-out validation participants), in the unit of its row; n/a without calibration, and for a run that does "
        "not resemble the training data."
    )
    return [
        Column("interval_low", [low for low, _ in ends], f"Lower {text}"),
        Column("interval_high", [high for _, high in ends], f"Upper {text}"),
    ]


def _class_columns(targets: Sequence[TargetRow]) -> list[Column]:
    classes = dict.fromkeys(name for row in targets for name in row.probabilities)
    return [
        Column(
            f"p_{name}",
            [row.probabilities.get(name) for row in targets],
            f"Probability of the class {name!r}, mean over clips; n/a for targets without this class.",
        )
        for name in classes
    ]


_KINDS = {"regression": "a number", "classification": "one of the classes whose probabilities follow as p_ columns"}


def write_quality(output_dir: Path, run: RunRecord, figures: Sequence[QualityFigure]) -> Path:
    """Write the run's quality figures, one row with a column per figure, and the sidecar.

    Returns
    -------
    Path
        The table: ``..._desc-neurostorm_qc.tsv``, or with the label ``run.desc``.
    """
    columns = [Column(figure.name, [figure.value], figure.description, figure.unit) for figure in figures]
    description = "Placement, motion and signal figures of the run on the model grid."
    return _write_table(_files(output_dir, run).quality, run, None, description, columns)


def write_bold(output_dir: Path, run: RunRecord, volumes: Iterable[np.ndarray], *, n_frames: int) -> Path:
    """Write the normalised run on the model grid, streamed volume by volume, and its sidecar.

    Parameters
    ----------
    volumes : iterable of np.ndarray
        Frames as the model sees them.  # each (X, Y, Z)
    n_frames : int
        How many will come.

    Returns
    -------
    Path
        The image: ``..._desc-neurostorm_bold.nii.gz``.
    """
    if run.step_s is None:
        raise ValueError("the normalised run needs its effective step")
    path = _files(output_dir, run).bold
    with replacing(path) as handle:
        write_nifti_gz(handle, volumes, grid=run.grid, n_frames=n_frames, step_s=run.step_s)
    description = "The run as the model sees it: on the model grid, at the effective step, normalised, background flat."
    image: dict[str, Any] = {
        "TaskName": run.entities.get("task"),
        "RepetitionTime": run.step_s,
        "StartTime": run.first_frame_s,
        "SkullStripped": True,
        "Units": "arbitrary",
    }
    _write_sidecar(path, run, None, description, {key: value for key, value in image.items() if value is not None})
    return path


def _files(output_dir: Path, run: RunRecord, model: ModelRecord | None = None) -> RunFiles:
    name = model.name if model else "any"
    return RunFiles.of(output_dir, run.entities, template=run.grid.template, model_name=name, shared_desc=run.desc)


def _write_table(
    path: Path, run: RunRecord, model: ModelRecord | None, description: str, columns: Sequence[Column]
) -> Path:
    write_text(path, tsv_text(columns))
    _write_sidecar(path, run, model, description, describe_columns(columns))
    return path


def _write_sidecar(
    path: Path, run: RunRecord, model: ModelRecord | None, description: str, entries: Mapping[str, Any]
) -> None:
    if model and not model.trained:
        description = f"{description} {UNTRAINED}"
    key = model.resume_key if model else run.resume_key
    sidecar = {
        **run_sidecar(run, description),
        **(model_sidecar(model) if model else {}),
        **entries,
        KEY: key,
        DATA_HASH: sha256(path),
    }
    write_json(sidecar_of(path), sidecar)


def model_description(model: ModelRecord) -> str:
    """The line of ``descriptions.tsv`` for a model's ``desc-`` label."""
    text = f"Embedding, and predictions where it has heads, of the model {model.name}, hash {model.hash}."
    return text if model.trained else f"{text} {UNTRAINED}"
