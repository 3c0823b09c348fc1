"""What the outputs stage is told about a run and a model; every sidecar is made of these two records.

The participant recipe fills one :class:`RunRecord` a run and one :class:`ModelRecord` a run and model, and hands
them to the writers of :mod:`neurostorm_bids.outputs.writers`. A field that is None is left out of the sidecar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neurostorm_bids.outputs.names import APP_DESC
from neurostorm_bids.space.grid import Grid


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What was done to a run before any model saw it.

    Parameters
    ----------
    entities
        Entities of the run (``BoldRun.entities``).
    sources
        Every file that was read: BOLD, mask, confounds, transforms.
    datasets
        Name of each input dataset and its root, from :func:`neurostorm_bids.outputs.dataset.name_datasets`;
        it turns ``sources`` into BIDS URIs.
    grid
        Grid that the run was brought to.
    resume_key
        Hash over inputs and settings, without the model: the key of the quality table and the normalised run.
    route, steps, approximate
        How the grid was reached (``"lattice"``, ``"affine"``, ...), in words step by step, and whether the
        template differs from the input's so that the match is only approximate.
    t_r_s, step_s
        Seconds between input volumes, and between the frames that the model sees (the effective step).
    first_frame_s
        Scanner time of the first frame, in seconds from the first recorded volume.
    dropped_clips
        Reason (``"incomplete tail"``, ``"motion"``) and number of clips that were left out for it.
    temporal_variance_share
        Share of the normalised signal's variance that lies in time rather than between voxels, 0 to 1.
    normalisation
        Figures of the normalisation (mean, SD, background), in the input's units.
    desc
        Label of the quality table and of the normalised run. All models with the same input share them; where the
        models of one call differ in grid or timing, give each model's own label instead.
    """

    entities: Mapping[str, str]
    sources: tuple[Path, ...]
    datasets: Mapping[str, Path]
    grid: Grid
    resume_key: str
    input_pipeline: str | None = None
    input_version: str | None = None
    input_denoising: str | None = None
    input_space: str | None = None
    route: str | None = None
    steps: tuple[str, ...] = ()
    approximate: bool | None = None
    interpolation: str | None = None
    preprocessing: str | None = None
    t_r_s: float | None = None
    step_s: float | None = None
    first_frame_s: float | None = None
    n_volumes: int | None = None
    n_frames: int | None = None
    dummy_scans: int | None = None
    clip_frames: int | None = None
    clip_stride: int | None = None
    n_clips: int | None = None
    dropped_clips: Mapping[str, int] = field(default_factory=dict)
    dropped_frames: int | None = None
    temporal_variance_share: float | None = None
    normalisation: Mapping[str, Any] = field(default_factory=dict)
    settings_hash: str | None = None
    warnings: tuple[str, ...] = ()
    desc: str = APP_DESC
    extra: Mapping[str, Any] = field(default_factory=dict)  # further sidecar entries, CamelCase keys


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model that produced a result, and how it was computed.

    Parameters
    ----------
    resume_key
        Hash over inputs, model and settings: the key of embedding and predictions.
    trained
        False marks weights that were never trained; their values say nothing about people.
    provenance
        Each property of the expected input and whether it is ``"stated"`` or ``"assumed"``.
    """

    name: str
    hash: str
    trained: bool
    resume_key: str
    backend: str
    device: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    threads: int | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClipRow:
    """Place of one clip in the run: scanner seconds, and mean framewise displacement in mm (None: unknown)."""

    onset_s: float
    duration_s: float
    mean_fd_mm: float | None = None


@dataclass(frozen=True, kw_only=True)
class TargetRow:
    """A model's prediction of one target for one run.

    Parameters
    ----------
    value
        Regression: mean over clips, in ``unit``. Classification: the most probable class.
    unit
        Natural unit of a regression target ("year").
    standard_units
        True where nobody stated the scaler, so that ``value`` counts training standard deviations.
    clip_sd
        Standard deviation over the clips of the value (regression) or of the reported class's probability.
        It describes the run's clips and is no interval for the person.
    probabilities
        Classification: each class and its mean probability over clips.
    in_distribution
        Whether the run resembles the training data; None where the model cannot say.
    interval
        Regression: 95 % prediction interval by the calibration of the model; None where there is none.
    """

    target: str
    kind: Literal["regression", "classification"]
    value: float | str | None
    n_clips: int
    unit: str | None = None
    standard_units: bool = False
    clip_sd: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    in_distribution: bool | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class QualityFigure:
    """One figure of the quality table."""

    name: str
    value: float | int | str | bool | None
    description: str
    unit: str | None = None
