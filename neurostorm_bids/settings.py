"""What the user asked for: one frozen dataclass, TOML out and in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["participant", "group"]
Normalization = Literal["auto", "lattice", "affine", "transform"]
Interpolation = Literal["linear", "nearest", "lanczos"]
Preprocessing = Literal["affine", "reference"]
Intensity = Literal["none", "hcp"]
Denoising = Literal["none", "24P", "36P", "acompcor"]
GroupWorkflow = Literal["aggregate", "pretrain", "finetune", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one call, as the command line and the TOML file state them.

    Paths are absolute. Tuples stand for options that take several values; empty means "all".
    """

    bids_dir: Path
    output_dir: Path
    level: Level

    # which runs
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    task_id: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    derivatives: tuple[tuple[str, Path], ...] = ()
    desc: str = "preproc"
    input_type: str = "auto"
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False

    # space and intensity
    normalization: Normalization = "auto"
    interpolation: Interpolation = "linear"
    intensity: Intensity = "none"
    denoise: Denoising = "none"
    min_coverage: float = 0.5

    # clips
    preprocessing: Preprocessing = "affine"
    clip_stride: int = 20
    anti_alias: bool = False
    dummy_scans: int | None = None  # None: as many as the confounds flag ("auto")
    fd_threshold_mm: float | None = None

    # model
    model: tuple[str, ...] = ()
    packs: tuple[str, ...] = ()
    target_scaler: tuple[tuple[str, float, float], ...] = ()  # (target, mean, SD) in natural units
    device: str = "auto"
    scan_backend: str = "auto"
    batch_size: int | None = None
    offline: bool = False

    # outputs
    output_bold: bool = False

    # group level
    group_workflow: GroupWorkflow = "aggregate"

    # resources and workflow
    nprocs: int | None = None
    omp_nthreads: int | None = None
    mem_mb: int | None = None
    low_mem: bool = False
    nipype_plugin_file: Path | None = None
    write_graph: bool = False
    resource_monitor: bool = False
    work_dir: Path = Path("work")
    clean_workdir: bool = False
    stop_on_first_crash: bool = False

    # the rest
    dry_run: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    random_seed: int = 0
    debug: bool = False
    quiet: bool = False
    verbose: int = 0
