"""What the user asked for: one frozen dataclass, TOML out and in."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Literal

from neurostorm_bids.errors import ConfigUnreadable, UnknownLevel, UsageError

Level = Literal["participant", "group"]
Normalization = Literal["auto", "lattice", "affine", "transform"]
Interpolation = Literal["linear", "nearest", "lanczos"]
Preprocessing = Literal["affine", "reference"]
Intensity = Literal["none", "hcp"]
Denoising = Literal["none", "24P", "36P", "acompcor"]
GroupWorkflow = Literal["aggregate", "pretrain", "finetune", "evaluate"]
Objective = Literal["mae", "contrastive"]
Method = Literal["prompt", "linear", "full"]
TargetKindChoice = Literal["auto", "regression", "classification", "retrieval"]
SpatialMask = Literal["random", "window", "atlas"]
TemporalMask = Literal["random", "tube"]
DatasetSampling = Literal["uniform", "loss"]
Precision = Literal["32", "tf32", "bf16", "16"]
Classifier = Literal["ridge", "logistic"]
COMPARISONS = ("fc", "mean-image", "static", "shuffled", "nuisance", "demographics")
AttributionMethod = Literal["integrated-gradients", "occlusion"]
AttributionBaseline = Literal["flat", "static"]
Preset = Literal["age", "sex", "phenotype", "diagnosis", "retrieval", "state"]


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
    dataset_preset: str | None = None
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False

    # space and intensity
    normalization: Normalization = "auto"
    interpolation: Interpolation = "linear"
    intensity: Intensity = "none"
    denoise: Denoising = "none"
    min_coverage: float = 0.05

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

    # attribution
    attribution: tuple[AttributionMethod, ...] = ()
    attribution_targets: tuple[str, ...] = ()
    attribution_baseline: AttributionBaseline = "flat"

    # group level
    group_workflow: GroupWorkflow = "aggregate"

    # training: what is learnt
    preset: Preset | None = None
    target: tuple[str, ...] = ()
    target_kind: TargetKindChoice | None = None  # None: as the preset says, else found from the data
    method: Method | None = None
    prompt_length: int = 50
    objective: Objective = "mae"
    spatial_mask: SpatialMask = "window"
    temporal_mask: TemporalMask = "random"
    mask_ratio: float = 0.5
    atlas: Path | None = None
    strd: bool = False
    strd_exclude_padding: bool = False
    no_augmentation: bool = False
    datasets: tuple[tuple[str, Path], ...] = ()
    dataset_sampling: DatasetSampling = "uniform"
    from_scratch: bool = False
    name: str | None = None

    # training: who is trained on, who is tested
    folds: int = 5
    fold: tuple[str, ...] = ("1",)
    validation_share: float = 0.15
    group_by: str | None = None
    leave_out: str | None = None
    splits: Path | None = None

    # training: how
    epochs: int | None = None
    accumulate: int = 1
    learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    gradient_clip: float = 1.0
    gradient_checkpointing: bool = False
    patience: int | None = None  # epochs without a better validation loss; None: as the workflow has it
    precision: Precision = "32"
    devices: int | None = None  # None: one, or as many as torchrun or Slurm started
    num_nodes: int = 1
    workers: int = 0
    checkpoint_every: int = 50
    store_precision: Literal["int8", "float16"] = "int8"
    resume: bool = False

    # evaluation
    repeats: int = 5
    n_permutations: int = 1000
    n_bootstrap: int = 1000
    classifier: Classifier = "ridge"
    compare: tuple[str, ...] = COMPARISONS
    tuned: str | None = None
    allow_leakage: bool = False

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


# --- from the command line and back -----------------------------------------------------------------------------


def settings_from_namespace(namespace: Namespace) -> Settings:
    """Checked ``Settings`` of parsed arguments.

    Raises
    ------
    UsageError, UnknownLevel
        For combinations that make no sense.
    """
    values = {field.name: getattr(namespace, field.name) for field in fields(Settings)}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
        if isinstance(value, Path):
            values[name] = value.expanduser().absolute()
    for field_name in ("derivatives", "datasets"):
        values[field_name] = tuple(
            (name, path.expanduser().absolute()) for name, path in getattr(namespace, field_name)
        )
    settings = Settings(**values)
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    if settings.level not in ("participant", "group"):
        raise UnknownLevel(
            f"unknown analysis level {settings.level!r}", expected="participant or group", remedy="State one of the two"
        )
    if settings.output_dir.resolve() == settings.bids_dir.resolve():
        raise UsageError(
            "the output folder is the input folder", file=settings.output_dir, remedy="Name another OUTPUT_DIR"
        )
    if settings.work_dir.resolve().is_relative_to(settings.bids_dir.resolve()):
        raise UsageError(
            "the work folder lies inside the input",
            file=settings.work_dir,
            expected="a folder outside BIDS_DIR, which is never written to",
            remedy="Name another one with --work-dir",
        )
    if settings.preprocessing == "reference" and settings.output_bold:
        raise UsageError(
            "--output-bold with --preprocessing reference: array space has no affine to write",
            remedy="Leave out one of the two",
        )
    _check_attribution(settings)
    for option, named in (("--derivatives", settings.derivatives), ("--datasets", settings.datasets)):
        names = [name for name, _ in named]
        for name in sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"{option} names {name!r} twice", remedy="Give each dataset its own NAME=PATH")
    _check_training(settings)


def _check_attribution(settings: Settings) -> None:
    if not settings.attribution and (settings.attribution_targets or settings.attribution_baseline != "flat"):
        raise UsageError(
            "--attribution-targets and --attribution-baseline without --attribution",
            remedy="State --attribution integrated-gradients or occlusion",
        )
    if settings.attribution and settings.level == "group":
        raise UsageError("--attribution belongs to the participant level", remedy="Leave it out, or run participant")
    if settings.attribution and settings.preprocessing == "reference":
        raise UsageError(
            "--attribution with --preprocessing reference: array space has no affine to write a map with",
            remedy="Leave out one of the two",
        )


def _check_training(settings: Settings) -> None:
    if settings.level == "group" and settings.group_workflow == "finetune" and not (settings.target or settings.preset):
        raise UsageError(
            "fine-tuning without a target",
            expected="--target COLUMN, phenotype/FILE.tsv:COLUMN, entity:task, events:trial_type or identity",
            remedy="Name one, or a --preset",
        )
    explains = settings.atlas is not None and bool(settings.attribution)
    if not explains and (settings.spatial_mask == "atlas") != (settings.atlas is not None):
        raise UsageError("--spatial-mask atlas and --atlas FILE belong together", remedy="State both or neither")
    if settings.splits is not None and settings.leave_out is not None:
        raise UsageError("--splits and --leave-out both say who is tested", remedy="Leave out one of the two")


def to_toml(settings: Settings) -> str:
    """The settings as TOML that ``--config-file`` reads back."""
    import tomli_w

    return tomli_w.dumps(
        {field.name: _plain(field.name, settings) for field in fields(settings) if _is_set(field, settings)}
    )


def _is_set(field: Field, settings: Settings) -> bool:
    return getattr(settings, field.name) not in (None, ())


def _plain(name: str, settings: Settings):
    value = getattr(settings, name)
    if name in ("derivatives", "datasets"):
        return [f"{label}={path}" for label, path in value]
    if name == "target_scaler":
        return [f"{target}={mean!r},{std!r}" for target, mean, std in value]
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


POSITIONAL = ("bids_dir", "output_dir", "level")
FLAGS = {"fd_threshold_mm": "fd-threshold", "mem_mb": "mem", "nipype_plugin_file": "use-plugin"}


def read_config(path: Path) -> list[str]:
    """A TOML file of settings as command-line words, so that both are checked by one parser.

    Raises
    ------
    ConfigUnreadable
        When the file is missing, is no TOML, or names a setting that does not exist.
    """
    import tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigUnreadable(
            f"cannot be read as TOML: {error}", file=path, remedy="Mend it or leave out --config-file"
        ) from None
    known = {field.name for field in fields(Settings)}
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in known:
            raise ConfigUnreadable(f"{key!r} is no setting", file=path, remedy="See neurostorm --help for the options")
    return [word for key, value in values.items() if key not in POSITIONAL for word in _words(key, value)]


def _words(key: str, value) -> list[str]:
    if isinstance(value, bool):
        return [_flag(key)] if value else []
    if key == "verbose":
        return ["-v"] * value
    values = value if isinstance(value, list) else [value]
    return [_flag(key), *(str(item) for item in values)] if values else []


def _flag(key: str) -> str:
    return "--" + FLAGS.get(key, key).replace("_", "-")
